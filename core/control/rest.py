"""The ResourceStore over the Kubernetes REST protocol: the way to desired state of every process that does not hold it.

Each call is one request, but for `delete`, which first reads the state that it promises to return. Nothing is tried
again here: callers know whether that makes sense.
Source of the protocol: Kubernetes API concepts and conventions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Final
from urllib.parse import quote

import msgspec

from core.control import lifecycle
from core.control.port import Change, Listing
from core.control.rest_status import error_of_answer, error_of_status, is_status
from core.control.rest_watch import LineStream
from core.errors import Conflict, Corrupt, NotFound, PenstockError, Unavailable
from core.limits import MAX_RESOURCE_BYTES
from core.net.client import Client
from core.net.types import Address, Headers, NetError
from core.resources import Key, Kind, KindRef, Resource

__all__ = ["RestStore"]

#: The API server answers from its own disk; what takes longer is stuck.
_TIMEOUT_S: Final = 15.0

#: A listing is read whole: over 10,000 resources of the usual few KiB.
_MAX_LISTING_BYTES: Final = 256 * 1024 * 1024

#: An answer about one resource: the resource, as another server may encode it.
_MAX_ANSWER_BYTES: Final = 2 * MAX_RESOURCE_BYTES

#: How long one watch may last, as clients of Kubernetes ask it to: a fresh one finds a server that moved.
_WATCH_S: Final = 600

#: Servers send a bookmark about once a minute; a watch that hears nothing for this long is connected to nobody.
_WATCH_SILENCE_S: Final = 180.0


class _Line(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[dict[str, Any]] | None


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _ListMeta


_LINE: Final = msgspec.json.Decoder(_Line)
_LIST: Final = msgspec.json.Decoder(_List)
_BOOKMARK: Final = msgspec.json.Decoder(_Bookmark)


class RestStore:
    """The API server at `address`, which serves `kinds` (a Registry will do). `headers` go with every request; the
    client stays its owner's."""

    def __init__(
        self,
        client: Client,
        address: Address,
        kinds: Iterable[Kind],
        *,
        tls: bool = False,
        headers: Headers | None = None,
    ) -> None:
        self._client = client
        self._address = address
        self._kinds = {kind.ref: kind for kind in kinds}
        self._tls = tls
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self._where = f"{host}:{address[1]}"
        self._headers: Headers = [
            (b"host", self._where.encode()),
            (b"accept", b"application/json"),
            *(headers or ()),
        ]

    async def get(self, key: Key) -> Resource:
        return _resource(key.kind, await self._call(b"GET", self._object(key)))

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        body = await self._call(b"GET", self._collection(kind, namespace), max_bytes=_MAX_LISTING_BYTES)
        try:
            listed = _LIST.decode(body)
            items = [_of_document(kind, document) for document in listed.items or ()]
            version = int(listed.metadata.resource_version)
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._unreadable(f"the list of {kind}", error) from error
        items.sort(key=lambda resource: (resource.meta.namespace, resource.meta.name))
        return Listing(tuple(items), version)

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        since = max(since, lifecycle.FIRST_VERSION)
        query = f"?watch=1&resourceVersion={since}&allowWatchBookmarks=true&timeoutSeconds={_WATCH_S}"
        target = self._collection(kind, namespace) + query
        stream = LineStream()
        try:
            stream.request = self._client.send(
                self._address, b"GET", target.encode(), self._headers, 0, stream, tls=self._tls
            )
        except RuntimeError as error:
            raise Unavailable("The client of the API server is closed.") from error
        try:
            while (line := await self._next_line(stream)) is not None:
                yield self._change(kind, line)
        finally:
            stream.close()

    async def create(self, resource: Resource) -> Resource:
        lifecycle.check_named(resource)
        # The server gives these, and refuses a create that brings them.
        fresh = resource.with_meta(resource_version="", uid="", creation_timestamp=None)
        target = self._collection(resource.ref, resource.meta.namespace)
        return _resource(resource.ref, await self._call(b"POST", target, _encode(fresh)))

    async def update(self, resource: Resource) -> Resource:
        answer = await self._call(b"PUT", self._object(resource.key), _encode(resource))
        return _resource(resource.ref, answer)

    async def update_status(self, resource: Resource) -> Resource:
        answer = await self._call(b"PUT", self._object(resource.key) + "/status", _encode(resource))
        return _resource(resource.ref, answer)

    async def delete(self, key: Key, *, uid: str | None = None) -> Resource:
        last = await self.get(key)
        if uid is not None and uid != last.meta.uid:
            raise Conflict(f"{key} has the uid {last.meta.uid}, not {uid}: it was deleted and created again.")
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": last.meta.uid},
        }
        answer = await self._call(b"DELETE", self._object(key), msgspec.json.encode(options))
        # Kubernetes answers with the resource while finalizers hold it, else with a Status that says what is gone.
        return last if is_status(answer) else _resource(key.kind, answer)

    def _collection(self, kind: KindRef, namespace: str | None) -> str:
        known = self._kinds.get(kind)
        if known is None:
            raise NotFound(f"The kind {kind} ({kind.api_version}) is not among those that this process knows.")
        base = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        place = f"/namespaces/{quote(namespace, safe='')}" if namespace and known.namespaced else ""
        return f"{base}{place}/{known.plural}"

    def _object(self, key: Key) -> str:
        return f"{self._collection(key.kind, key.namespace)}/{quote(key.name, safe='')}"

    async def _call(
        self, method: bytes, target: str, body: bytes = b"", *, max_bytes: int = _MAX_ANSWER_BYTES
    ) -> bytes:
        headers = [*self._headers, (b"content-type", b"application/json")] if body else self._headers
        try:
            response = await self._client.request(
                self._address,
                method,
                target.encode(),
                headers,
                body,
                timeout_s=_TIMEOUT_S,
                max_bytes=max_bytes,
                tls=self._tls,
            )
        except NetError as error:
            raise Unavailable(
                f"The API server at {self._where} does not answer: {error} Check that the platform runs."
            ) from error
        except RuntimeError as error:
            raise Unavailable("The client of the API server is closed.") from error
        if response.status >= 300:
            raise error_of_answer(response.status, response.body)
        return response.body

    async def _next_line(self, stream: LineStream) -> bytes | None:
        try:
            async with asyncio.timeout(_WATCH_SILENCE_S):
                return await stream.next_line()
        except TimeoutError as error:
            raise Unavailable(f"The API server at {self._where} fell silent during a watch.") from error

    def _change(self, kind: KindRef, text: bytes) -> Change:
        """One line of a watch. Raises what an ERROR line says."""
        try:
            line = _LINE.decode(text)
            if line.type == "BOOKMARK":
                return Change("BOOKMARK", int(_BOOKMARK.decode(line.object).metadata.resource_version))
            if line.type in ("ADDED", "MODIFIED", "DELETED"):
                resource = _of_document(kind, msgspec.json.decode(line.object))
                return Change(line.type, int(resource.meta.resource_version), resource)  # type: ignore[arg-type]
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._unreadable(f"a watch of {kind}", error) from error
        raise error_of_status(bytes(line.object))

    def _unreadable(self, what: str, error: Exception) -> PenstockError:
        return Corrupt(f"The API server at {self._where} sent {what} that cannot be read: {error}.")


def _encode(resource: Resource) -> bytes:
    return msgspec.json.encode(resource.to_dict())


def _resource(kind: KindRef, body: bytes) -> Resource:
    try:
        return _of_document(kind, msgspec.json.decode(body))
    except msgspec.MsgspecError as error:
        raise Corrupt(f"The API server's answer is not a {kind}: {error}.") from error


def _of_document(kind: KindRef, document: dict[str, Any]) -> Resource:
    """The resource of an answer; a list's items may leave out what the list says of all."""
    return Resource.from_dict({**document, "apiVersion": kind.api_version, "kind": kind.kind})
