"""The command line's connection to the API server and the broker: small, synchronous, standard library only."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import click
import msgspec

from core.resources import Kind
from penstock.cli.failure import FAILED, NOT_FOUND, UNREACHABLE, Failure
from penstock.places import Places, read_places

__all__ = ["Api", "Refused", "collection_path", "connect", "object_path"]

#: A command waits this long for any answer but a stream's.
TIMEOUT_S: Final = 30.0

#: As an API server warns (RFC 7234, section 5.5; Kubernetes' "warning mechanism").
_WARNING: Final = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')

#: By name, or in pairs where a name comes more than once.
Query = Mapping[str, str] | Sequence[tuple[str, str]]

_START_HINT: Final = "Start it with: penstock up. One that runs elsewhere is found by --data-dir or --server."
_SERVER_HINT: Final = "Write it as http://127.0.0.1:8082; `penstock up` prints the address of its api."


class Refused(Failure):
    """The server answered with an error. `status` is the HTTP code, `details` the Status object's details."""

    def __init__(self, message: str, status: int, details: Mapping[str, Any]) -> None:
        super().__init__(message, code=NOT_FOUND if status == 404 else FAILED)
        self.status = status
        self.details = details


class Api:
    """One platform, by the base URL of one of its listeners."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._host, self._port = _place(base)
        self._warned: set[str] = set()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of the answer. Raises Refused for an error status, Failure where nothing answers.

        A GET whose connection breaks is sent again once: the listener outlives a process behind it that is restarted.
        """
        payload = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"Accept": "application/json", "Content-Type": "application/json", **(headers or {})}
        target = _with_query(path, query)
        try:
            status, text = self._exchange(method, target, payload, sent)
        except (OSError, http.client.HTTPException) as error:
            if method != "GET" or isinstance(error, (ConnectionRefusedError, TimeoutError)):
                raise self._unreachable(error) from error
            try:
                status, text = self._exchange(method, target, payload, sent)
            except (OSError, http.client.HTTPException) as again:
                raise self._unreachable(again) from again
        if status >= 400:
            raise _refusal(status, text)
        return self._decoded(text)

    def _exchange(self, method: str, target: str, payload: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            # A server that refuses a body answers without reading it all, and closes: the answer is there to be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, payload, headers)
            answer = connection.getresponse()
            self._warn(answer.headers.get_all("Warning") or [])
            return answer.status, answer.read()
        finally:
            connection.close()

    def _warn(self, headers: Sequence[str]) -> None:
        """Tell what the server doubts, each once: a resource is tried out before it is applied."""
        for header in headers:
            found = _WARNING.fullmatch(header)
            if found is not None and header not in self._warned:
                self._warned.add(header)
                text = re.sub(r"\\(.)", r"\1", found[1])
                click.echo(f"{click.style('warning', fg='yellow')}: {text}", err=True)

    def _decoded(self, text: bytes) -> Any:
        try:
            return msgspec.json.decode(text) if text else {}
        except msgspec.DecodeError as error:
            message = f"What answers at {self.base} is not the API server of a platform."
            raise Failure(message, hint=_SERVER_HINT, code=UNREACHABLE) from error

    def stream(self, path: str, *, query: Query | None = None) -> Iterator[bytes]:
        """The answer's body, line by line, as it comes; returns once it has begun. Raises as `request` does, and from
        the iterator where it breaks off."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=None)
        try:
            connection.request("GET", _with_query(path, query))
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _refusal(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except Refused:
            connection.close()
            raise
        return self._lines(connection, answer)

    def _lines(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while line := answer.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()
            connection.close()

    def _unreachable(self, error: Exception) -> Failure:
        return Failure(f"No platform answers at {self.base}: {error}.", hint=_START_HINT, code=UNREACHABLE)


def connect(server: str | None, data: Path) -> tuple[Api, Places]:
    """The API server that `server` names, or the one of the platform with this data directory. Raises Failure."""
    try:
        places = read_places(data) or Places()
    except OSError as error:
        message = f"Where the platform of {data} is cannot be read: {error.strerror} ({error.filename})."
        raise Failure(message, hint="Name it with --server, or a readable data directory with --data-dir.") from error
    return Api(server or places.api), places


def collection_path(kind: Kind, namespace: str | None) -> str:
    """The REST path of a kind's collection; namespace None means all of them."""
    group = kind.ref.group
    prefix = f"/apis/{group}/{kind.ref.version}" if group else f"/api/{kind.ref.version}"
    if kind.namespaced and namespace is not None:
        return f"{prefix}/namespaces/{quote(namespace, safe='')}/{kind.plural}"
    return f"{prefix}/{kind.plural}"


def object_path(kind: Kind, namespace: str, name: str) -> str:
    return f"{collection_path(kind, namespace)}/{quote(name, safe='')}"


def _with_query(path: str, query: Query | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _refusal(status: int, text: bytes) -> Refused:
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError:
        answer = text.decode("utf-8", "replace").strip()
    if isinstance(answer, dict):
        message = answer.get("message") or answer.get("detail") or f"The server answered {status}."
        return Refused(str(message), status, answer.get("details") or {})
    return Refused(str(answer) or f"The server answered {status}.", status, {})


def _place(base: str) -> tuple[str, int]:
    """Host and port of a base URL. Raises Failure."""
    try:
        parts = urlsplit(base)
        port = parts.port or 80
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise Failure(f"{base!r} is not the URL of a platform.", hint=_SERVER_HINT)
    return parts.hostname, port
