"""The ResourceStore over the Kubernetes API's protocol, whatever carries its requests.

Each call is one request, but for `delete`, which first reads the state that it promises to return, a listing of many
pages, and a write without a version, which first reads the one to replace: custom resources take no other. Nothing else
is tried again here: callers know whether that makes sense. Source of the protocol: Kubernetes API concepts and
conventions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final, Protocol
from urllib.parse import quote

import msgspec

from core.control import lifecycle
from core.control.api_status import error_of_status, is_status
from core.control.port import Change, Listing
from core.errors import Conflict, Corrupt, Gone, NotFound, PenstockError, Unavailable
from core.limits import MAX_RESOURCE_BYTES
from core.resources import Key, Kind, KindRef, Resource

__all__ = ["ApiStore", "Document", "Transport", "set_back"]

#: A JSON object to send.
Document = Mapping[str, Any]

#: Resources in one answer to a list, as many as Kubernetes' own clients ask for: neither side holds all at once.
_PAGE: Final = 500

#: A page is read whole: 500 resources, and then some, of the largest that the platform itself writes.
_MAX_PAGE_BYTES: Final = 256 * 1024 * 1024

#: Pages of one listing, over a million resources: a server that never ends its list is not listened to for ever.
_MAX_PAGES: Final = 2_000

#: An answer about one resource: the resource, as another server may encode it.
_MAX_ANSWER_BYTES: Final = 2 * MAX_RESOURCE_BYTES

#: How long one watch may last, as clients of Kubernetes ask it to: a fresh one finds a server that moved.
_WATCH_S: Final = 600

#: A write without a version is tried this often against whoever writes in between (Kubernetes' own patches: 5).
_MAX_REPLACES: Final = 5


class Transport(Protocol):
    """How requests reach one API server."""

    @property
    def where(self) -> str:
        """The server, for messages."""
        ...

    async def call(
        self, method: str, target: str, document: Document | None = None, *, max_bytes: int = _MAX_ANSWER_BYTES
    ) -> bytes:
        """The body of the answer. Raises what a failed answer means, and Unavailable where there is none."""
        ...

    def lines(self, target: str) -> AsyncGenerator[bytes, None]:
        """The lines of a streamed answer to a GET as they come. Raises as `call` does."""
        ...


class _Line(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _ListMeta(msgspec.Struct, frozen=True, rename={"resource_version": "resourceVersion", "following": "continue"}):
    resource_version: str
    following: str = ""


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[dict[str, Any]] | None


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _ListMeta


_LINE: Final = msgspec.json.Decoder(_Line)
_LIST: Final = msgspec.json.Decoder(_List)
_BOOKMARK: Final = msgspec.json.Decoder(_Bookmark)


class ApiStore:
    """The API server behind `transport`, which serves `kinds` (a Registry will do). Every resource that is read goes
    through `settle`. The transport stays its owner's."""

    def __init__(
        self, transport: Transport, kinds: Iterable[Kind], *, settle: Callable[[Kind, Resource], Resource] | None = None
    ) -> None:
        self._transport = transport
        self._kinds = {kind.ref: kind for kind in kinds}
        self._settle = settle

    async def get(self, key: Key) -> Resource:
        return self._resource(key.kind, await self._transport.call("GET", self._object(key)))

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        collection = self._collection(kind, namespace)
        items: list[Resource] = []
        following = ""
        for _ in range(_MAX_PAGES):
            query = f"?limit={_PAGE}" + (f"&continue={quote(following, safe='')}" if following else "")
            try:
                target = collection + query + self._selected(kind)
                body = await self._transport.call("GET", target, max_bytes=_MAX_PAGE_BYTES)
            except NotFound as error:
                raise self._not_served(kind) from error
            try:
                page = _LIST.decode(body)
                items += [self._of_document(kind, document) for document in page.items or ()]
                version = int(page.metadata.resource_version)
            except (msgspec.MsgspecError, ValueError) as error:
                raise self._unreadable(f"the list of {kind}", error) from error
            following = page.metadata.following
            if not following:
                items.sort(key=lambda resource: (resource.meta.namespace, resource.meta.name))
                return Listing(tuple(items), version)
        raise Unavailable(f"The API server at {self._transport.where} lists {kind} without an end.")

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        since = max(since, lifecycle.FIRST_VERSION)
        query = f"?watch=1&resourceVersion={since}&allowWatchBookmarks=true&timeoutSeconds={_WATCH_S}"
        target = self._collection(kind, namespace) + query + self._selected(kind)
        async with aclosing(self._transport.lines(target)) as lines:
            try:
                async for line in lines:
                    change = self._change(kind, line)
                    if change.version < since:
                        raise set_back(since, change.version)
                    yield change
            except NotFound as error:
                raise self._not_served(kind) from error

    async def create(self, resource: Resource) -> Resource:
        lifecycle.check_named(resource)
        # The server gives these, and refuses a create that brings them.
        fresh = resource.with_meta(resource_version="", uid="", creation_timestamp=None)
        target = self._collection(resource.ref, resource.meta.namespace)
        return self._resource(resource.ref, await self._transport.call("POST", target, fresh.to_dict()))

    async def update(self, resource: Resource) -> Resource:
        return await self._replace(resource)

    async def update_status(self, resource: Resource) -> Resource:
        return await self._replace(resource, "/status")

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
        answer = await self._transport.call("DELETE", self._object(key), options)
        # Kubernetes answers with the resource while finalizers hold it, else with a Status that says what is gone.
        return last if is_status(answer) else self._resource(key.kind, answer)

    async def _replace(self, resource: Resource, part: str = "") -> Resource:
        target = self._object(resource.key) + part
        if resource.meta.resource_version:
            return self._resource(resource.ref, await self._transport.call("PUT", target, resource.to_dict()))
        for attempt in range(_MAX_REPLACES):
            held = await self.get(resource.key)
            against = resource.with_meta(resource_version=held.meta.resource_version)
            try:
                return self._resource(resource.ref, await self._transport.call("PUT", target, against.to_dict()))
            except Conflict:
                another = resource.meta.uid and resource.meta.uid != held.meta.uid
                if another or attempt + 1 == _MAX_REPLACES:
                    raise
        raise AssertionError("the loop above returns or raises")

    async def _newest(self, kind: KindRef, namespace: str | None) -> int:
        """The version that the server is at."""
        try:
            body = await self._transport.call("GET", self._collection(kind, namespace) + "?limit=1")
        except NotFound as error:
            raise self._not_served(kind) from error
        try:
            return int(_LIST.decode(body).metadata.resource_version)
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._unreadable(f"the list of {kind}", error) from error

    def _selected(self, kind: KindRef) -> str:
        """The rest of a query that narrows it to what is looked at of the kind."""
        selector = self._kinds[kind].selector
        return f"&labelSelector={quote(selector, safe='')}" if selector else ""

    def _collection(self, kind: KindRef, namespace: str | None) -> str:
        known = self._kinds.get(kind)
        if known is None:
            raise NotFound(f"The kind {kind} ({kind.api_version}) is not among those that this process knows.")
        base = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        place = f"/namespaces/{quote(namespace, safe='')}" if namespace and known.namespaced else ""
        return f"{base}{place}/{known.plural}"

    def _object(self, key: Key) -> str:
        return f"{self._collection(key.kind, key.namespace)}/{quote(key.name, safe='')}"

    def _change(self, kind: KindRef, text: bytes) -> Change:
        """One line of a watch. Raises what an ERROR line says."""
        try:
            line = _LINE.decode(text)
            if line.type == "BOOKMARK":
                return Change("BOOKMARK", int(_BOOKMARK.decode(line.object).metadata.resource_version))
            if line.type in ("ADDED", "MODIFIED", "DELETED"):
                resource = self._of_document(kind, msgspec.json.decode(line.object))
                return Change(line.type, int(resource.meta.resource_version), resource)  # type: ignore[arg-type]
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._unreadable(f"a watch of {kind}", error) from error
        raise error_of_status(bytes(line.object))

    def _resource(self, kind: KindRef, body: bytes) -> Resource:
        try:
            return self._of_document(kind, msgspec.json.decode(body))
        except msgspec.MsgspecError as error:
            raise Corrupt(f"The API server's answer is not a {kind}: {error}.") from error

    def _of_document(self, ref: KindRef, document: dict[str, Any]) -> Resource:
        """The resource of an answer; a list's items may leave out what the list says of all."""
        resource = Resource.from_dict({**document, "apiVersion": ref.api_version, "kind": ref.kind})
        if resource.meta.managed_fields:
            # Often longer than all the rest, of no use to a controller, and kept by the server where a write has none.
            resource = resource.with_meta(managed_fields=())
        return self._settle(self._kinds[ref], resource) if self._settle else resource

    def _not_served(self, kind: KindRef) -> NotFound:
        where = self._transport.where
        return NotFound(f"The API server at {where} has no kind {kind} ({kind.api_version}). Install its definition.")

    def _unreadable(self, what: str, error: Exception) -> PenstockError:
        return Corrupt(f"The API server at {self._transport.where} sent {what} that cannot be read: {error}.")


def set_back(since: int, found: int) -> Gone:
    """Why a watch cannot go on from `since` at a server whose newest version is `found`."""
    return Gone(
        f"Version {since} is not of this store, which is at {found}: it was set back to an older state. "
        "List again and watch from the listing's version."
    )
