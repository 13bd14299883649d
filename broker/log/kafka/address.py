"""How people write where Kafka is. Knows nothing of its client, which costs memory and start-up time."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

__all__ = ["Address", "address_of", "shown"]

_PROTOCOLS: Final = {"plaintext": "PLAINTEXT", "ssl": "SSL", "sasl_plaintext": "SASL_PLAINTEXT", "sasl_ssl": "SASL_SSL"}


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where Kafka is, and how to get in."""

    servers: tuple[str, ...]
    protocol: str = "PLAINTEXT"
    mechanism: str = "PLAIN"
    user: str | None = None
    password: str | None = None


def address_of(servers: str) -> Address:
    """What ``host:port,host:port`` or ``sasl_ssl://user:password@host:port,host:port?mechanism=SCRAM-SHA-256`` says.

    Raises ValueError.
    """
    scheme, given, rest = servers.rpartition("://")
    if not given:
        scheme = "plaintext"
    elif scheme not in _PROTOCOLS:
        raise ValueError(f"{scheme}:// is none of {', '.join(f'{name}://' for name in _PROTOCOLS)}")
    parts = urlsplit(f"//{rest}")
    who, _, where = parts.netloc.rpartition("@")
    hosts = tuple(host.strip() for host in where.split(",") if host.strip())
    for host in hosts:
        name, _, port = host.rpartition(":")
        if not name or not port.isdecimal():
            raise ValueError(f"{host!r} is not host:port")
    if not hosts:
        raise ValueError("no host:port is given")
    user, _, password = who.partition(":")
    if scheme.startswith("sasl") and not (user and password):
        raise ValueError(f"{scheme}:// needs user:password@ before the hosts")
    return Address(
        servers=hosts,
        protocol=_PROTOCOLS[scheme],
        mechanism=parse_qs(parts.query).get("mechanism", ["PLAIN"])[0],
        user=unquote(user) or None,
        password=unquote(password) or None,
    )


def shown(servers: str) -> str:
    """The servers without a password."""
    return ",".join(address_of(servers).servers)
