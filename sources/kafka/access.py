"""How to reach the brokers: TLS and login, with what the spec's Secrets hold."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from core.errors import FieldError, InvalidInput
from sources.kafka.resources import KafkaSourceSpec, SaslShape, SecretValue, TlsShape

__all__ = ["MECHANISMS", "Access", "Login", "access_of"]

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
MECHANISMS: Final[tuple[Mechanism, ...]] = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

#: The data of a Secret by name. Raises NotFound, Unavailable, InvalidInput.
Secrets = Callable[[str], Awaitable[Mapping[str, bytes]]]


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """Who we say that we are (SASL)."""

    mechanism: Mechanism
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login(mechanism={self.mechanism!r}, user={self.user!r})"


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where the brokers are and how they are spoken to."""

    servers: tuple[str, ...]
    tls: ssl.SSLContext | None = None
    login: Login | None = None


async def access_of(spec: KafkaSourceSpec, secrets: Secrets) -> Access:
    """What the spec and its Secrets say. Raises NotFound, Unavailable, and InvalidInput with the field path."""
    reader = _Reader(secrets)
    return Access(
        servers=spec.bootstrap_servers,
        tls=await _tls(spec.net.tls, reader) if spec.net.tls.enable else None,
        login=await _login(spec.net.sasl, reader) if spec.net.sasl.enable else None,
    )


class _Reader:
    """The values that a spec refers to."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def value(self, path: str, value: SecretValue | None) -> bytes | None:
        """The value at a field path; None where none is asked for, or an optional one is missing."""
        ref = value.secret_key_ref if value is not None else None
        if ref is None:
            return None
        held = await self._secrets(ref.name)
        if ref.key not in held:
            if ref.optional:
                return None
            known = ", ".join(sorted(held)) or "nothing"
            rule = f'names a key that the Secret "{ref.name}" does not have; it has {known}'
            raise _invalid(f"{path}.secretKeyRef.key", rule, ref.key)
        return held[ref.key]


async def _login(sasl: SaslShape, reader: _Reader) -> Login:
    named = await reader.value("spec.net.sasl.type", sasl.type)
    wanted = (named or b"PLAIN").decode("utf-8", "replace").strip().upper()
    mechanism = next((known for known in MECHANISMS if known == wanted), None)
    if mechanism is None:
        raise _invalid("spec.net.sasl.type", f"must hold one of {', '.join(MECHANISMS)}", wanted)
    found = {}
    for name, value in (("user", sasl.user), ("password", sasl.password)):
        raw = await reader.value(f"spec.net.sasl.{name}", value)
        if raw is None:
            raise _invalid(f"spec.net.sasl.{name}", "is required where sasl is enabled")
        try:
            # Secrets are often made with `echo`, and neither has a line's end.
            found[name] = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _invalid(f"spec.net.sasl.{name}", "must be UTF-8") from error
    return Login(mechanism=mechanism, user=found["user"], password=found["password"])


async def _tls(tls: TlsShape, reader: _Reader) -> ssl.SSLContext:
    authority = await reader.value("spec.net.tls.caCert", tls.ca_cert)
    certificate = await reader.value("spec.net.tls.cert", tls.cert)
    key = await reader.value("spec.net.tls.key", tls.key)
    if (certificate is None) != (key is None):
        raise _invalid("spec.net.tls", "needs cert and key together")
    return await asyncio.to_thread(_context, authority, certificate, key)


def _context(authority: bytes | None, certificate: bytes | None, key: bytes | None) -> ssl.SSLContext:
    """What is trusted, and who we are. Reads files."""
    if authority is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts this authority and no other
        try:
            context.load_verify_locations(cadata=authority.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise _invalid("spec.net.tls.caCert", f"must hold certificates in PEM: {error}") from error
    if certificate is not None and key is not None:
        _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Python's ssl reads these from files only: they are there for as long as that takes, readable by us alone."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        cert_file, key_file = Path(folder, "cert.pem"), Path(folder, "key.pem")
        for path, content in ((cert_file, certificate), (key_file, key)):
            path.touch(mode=0o600)
            path.write_bytes(content)
        try:
            context.load_cert_chain(cert_file, key_file)
        except (ssl.SSLError, ValueError) as error:
            raise _invalid("spec.net.tls", f"cert and key must be a pair in PEM: {error}") from error


def _invalid(path: str, rule: str, value: object = None) -> InvalidInput:
    return InvalidInput.of("The KafkaSource", [FieldError(path=path, rule=rule, value=value)])
