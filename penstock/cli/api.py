"""The command line's connection to the API server and the broker: small, synchronous, standard library only."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from core.resources import Kind
from penstock.cli.failure import FAILED, NOT_FOUND, UNREACHABLE, Failure
from penstock.places import Places, read_places

__all__ = ["Api", "Refused", "collection_path", "connect", "object_path"]

#: A command waits this long for any answer but a stream's.
TIMEOUT_S: Final = 30.0

_START_HINT: Final = "Start it with: penstock up"


class Refused(Failure):
    """The server answered with an error. `status` is the HTTP code, `details` the Status object's details."""

    def __init__(self, message: str, status: int, details: Mapping[str, Any]) -> None:
        super().__init__(message, code=NOT_FOUND if status == 404 else FAILED)
        self.status = status
        self.details = details


class Api:
    """One platform, by the base URL of one of its listeners."""

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        if parts.scheme != "http" or not parts.hostname:
            raise Failure(f"{base!r} is not the URL of a platform.", hint="Write it as http://127.0.0.1:8082")
        self.base = base.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port or 80

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of the answer. Raises Refused for an error status, Failure where nothing answers."""
        payload = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"Accept": "application/json", "Content-Type": "application/json", **(headers or {})}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, _with_query(path, query), payload, sent)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise _refusal(answer.status, text)
        return _decoded(text)

    def stream(self, path: str, *, query: Mapping[str, str] | None = None) -> Iterator[bytes]:
        """The answer's body, line by line, as it comes."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=None)
        try:
            connection.request("GET", _with_query(path, query))
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _refusal(answer.status, answer.read())
            while line := answer.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _unreachable(self, error: Exception) -> Failure:
        return Failure(f"No platform answers at {self.base}: {error}.", hint=_START_HINT, code=UNREACHABLE)


def connect(server: str | None, data: Path) -> tuple[Api, Places]:
    """The API server that `server` names, or the one of the platform with this data directory."""
    places = read_places(data) or Places()
    return Api(server or places.api), places


def collection_path(kind: Kind, namespace: str | None) -> str:
    """The REST path of a kind's collection; namespace None means all of them."""
    group = kind.ref.group
    prefix = f"/apis/{group}/{kind.ref.version}" if group else f"/api/{kind.ref.version}"
    if kind.namespaced and namespace is not None:
        return f"{prefix}/namespaces/{namespace}/{kind.plural}"
    return f"{prefix}/{kind.plural}"


def object_path(kind: Kind, namespace: str, name: str) -> str:
    return f"{collection_path(kind, namespace)}/{name}"


def _with_query(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return text.decode("utf-8", "replace")


def _refusal(status: int, text: bytes) -> Refused:
    answer = _decoded(text)
    if isinstance(answer, dict):
        message = answer.get("message") or answer.get("detail") or f"The server answered {status}."
        return Refused(str(message), status, answer.get("details") or {})
    return Refused(str(answer).strip() or f"The server answered {status}.", status, {})
