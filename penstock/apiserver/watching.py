"""Watches: a store's changes as a stream of JSON lines, filtered, in the form that the client asked for.

Source: Kubernetes API concepts, "Efficient detection of changes". A watch ends after its time-out, when its client
goes, when it reads too slowly, or when the server closes all of them; clients resume from the last version they saw.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import msgspec
from starlette.types import Message, Receive, Send

from core.control.port import Change, Listing, ResourceStore
from core.errors import Gone, Overloaded, PenstockError
from core.resources import Key, KindRef, Resource
from core.telemetry import Metrics
from penstock.apiserver.selectors import Selection
from penstock.apiserver.statuses import status_of

__all__ = ["MAX_WATCHES", "Watch", "WatchPlan", "Watches"]

_LOG: Final = logging.getLogger(__name__)

#: Watches open at once. Each client keeps one for each kind it follows; every component of ours together has about 50.
MAX_WATCHES: Final = 1_000

#: A watch without timeoutSeconds ends after this (Kubernetes: 30 to 60 minutes), and none lasts longer.
MAX_WATCH_S: Final = 3_600.0

#: A quiet watch that allows bookmarks gets one this often (Kubernetes: about a minute).
BOOKMARK_PERIOD_S: Final = 60.0

#: A client that takes nothing for this long is gone or stuck; it would hold changes in memory for ever.
SEND_TIMEOUT_S: Final = 30.0

_ENCODER: Final = msgspec.json.Encoder()
_INITIAL_END: Final = {"k8s.io/initial-events-end": "true"}

Render = Callable[[Resource], Mapping[str, Any]]


class WatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants to watch.

    `since` None begins with the present state, each resource as "ADDED". `mark_initial_end` ends that with a
    bookmark that says so.
    """

    kind: KindRef
    namespace: str | None
    since: int | None
    selection: Selection
    render: Render
    timeout_s: float = MAX_WATCH_S
    bookmarks: bool = False
    mark_initial_end: bool = False


class Watches:
    """All watches of a server, so that their number is limited and a shutdown can end them."""

    def __init__(self, store: ResourceStore, metrics: Metrics) -> None:
        self._store = store
        self._open = 0
        self._closing = asyncio.Event()
        gauge = metrics.gauge("penstock_apiserver_watches", "Watches that are open.")
        gauge.read = lambda: float(self._open)

    def watch(self, plan: WatchPlan) -> Watch:
        """A stream for `plan`. Raises Overloaded where MAX_WATCHES are open."""
        if self._open >= MAX_WATCHES:
            raise Overloaded(f"{MAX_WATCHES} watches are open, which is the limit. Close some, or try again later.")
        return Watch(plan, self._store, self)

    def close(self) -> None:
        """End every watch now and each later one at once. Call it before the server waits for its connections."""
        self._closing.set()

    @property
    def closing(self) -> asyncio.Event:
        return self._closing

    def opened(self) -> None:
        self._open += 1

    def ended(self) -> None:
        self._open -= 1


class _Matches:
    """Tells for each change what a watch with a label selector sees: a resource may come into view and leave it."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._seen: dict[Key, bool] = {}

    def learn(self, resource: Resource) -> None:
        """The state of `resource` at the start of the watch."""
        self._seen[resource.key] = self._selection.labelled(resource.meta)

    def of(self, change: Change, resource: Resource) -> str | None:
        """The type to tell `change` as, None where the watch does not see it."""
        if not self._selection.covers(resource):
            return None
        if not self._selection.labels:
            return change.type
        matches = self._selection.labelled(resource.meta)
        before = self._seen.get(resource.key)
        if change.type == "DELETED":
            self._seen.pop(resource.key, None)
            return "DELETED" if before or (before is None and matches) else None
        self._seen[resource.key] = matches
        if matches:
            return "MODIFIED" if before or (before is None and change.type == "MODIFIED") else "ADDED"
        # Unknown before, and not in view now: it may have been in view, and a needless DELETED does no harm.
        return "DELETED" if before or (before is None and change.type == "MODIFIED") else None


class Watch:
    """One stream. `run` writes it and returns when it is over."""

    def __init__(self, plan: WatchPlan, store: ResourceStore, owner: Watches) -> None:
        self._plan = plan
        self._store = store
        self._owner = owner
        self._matches = _Matches(plan.selection)
        #: The last change that was told, and when.
        self._version = 0
        self._told_at = 0.0

    async def run(self, receive: Receive, send: Send) -> None:
        self._owner.opened()
        lines = _Lines(send)
        ends = [asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(self._owner.closing.wait())]
        try:
            await lines.start()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._plan.timeout_s, MAX_WATCH_S)):
                    await self._stream(lines, ends)
            await lines.finish()
        except _TooSlow:
            _LOG.warning(
                "A watch ended because its client took nothing.", extra={"facts": {"kind": str(self._plan.kind)}}
            )
        finally:
            self._owner.ended()
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _stream(self, lines: _Lines, ends: Sequence[asyncio.Future[Any]]) -> None:
        try:
            since = await self._begin(lines)
            async with aclosing(self._store.watch(self._plan.kind, since, self._plan.namespace)) as changes:
                await self._follow(lines, changes, since, ends)
        except Gone as error:
            await lines.write("ERROR", status_of(error))
        except PenstockError as error:
            _LOG.warning("A watch ended early.", extra={"facts": {"error": str(error)}})
            await lines.write("ERROR", status_of(error))

    async def _begin(self, lines: _Lines) -> int:
        """Send the present state where it is asked for; the version that changes are to be told from."""
        plan = self._plan
        if plan.since is not None:
            if plan.selection.labels:
                self._learn(await self._store.list(plan.kind, plan.namespace), plan.since)
            return plan.since
        listing = await self._store.list(plan.kind, plan.namespace)
        self._learn(listing, listing.version)
        for resource in listing.items:
            if plan.selection.matches(resource):
                await lines.write("ADDED", plan.render(resource))
        if plan.mark_initial_end:
            await lines.write("BOOKMARK", self._bookmark(listing.version, _INITIAL_END))
        return listing.version

    def _learn(self, listing: Listing, since: int) -> None:
        if not self._plan.selection.labels:
            return
        for resource in listing.items:
            if int(resource.meta.resource_version) <= since:
                self._matches.learn(resource)

    async def _follow(
        self, lines: _Lines, changes: AsyncGenerator[Change, None], since: int, ends: Sequence[asyncio.Future[Any]]
    ) -> None:
        """Tell changes until one of `ends` is done. One task tells them all: what has piled up goes out in one turn of
        the loop, which may be a long one where much is written."""
        now = asyncio.get_running_loop().time
        self._version, self._told_at = since, now()
        telling = asyncio.ensure_future(self._tell_all(lines, changes))
        try:
            while True:
                quiet_s = self._told_at + BOOKMARK_PERIOD_S - now() if self._plan.bookmarks else None
                if quiet_s is not None and quiet_s <= 0:
                    await lines.write("BOOKMARK", self._bookmark(self._version))
                    self._told_at = now()
                    continue
                await asyncio.wait((telling, *ends), timeout=quiet_s, return_when=asyncio.FIRST_COMPLETED)
                if any(end.done() for end in ends):
                    return
                if telling.done():
                    telling.result()
                    return
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell_all(self, lines: _Lines, changes: AsyncGenerator[Change, None]) -> None:
        now = asyncio.get_running_loop().time
        async for change in changes:
            self._version, self._told_at = change.version, now()
            await self._tell(lines, change)

    async def _tell(self, lines: _Lines, change: Change) -> None:
        if change.resource is None:
            if self._plan.bookmarks:
                await lines.write("BOOKMARK", self._bookmark(change.version))
            return
        seen_as = self._matches.of(change, change.resource)
        if seen_as is not None:
            await lines.write(seen_as, self._plan.render(change.resource))

    def _bookmark(self, version: int, annotations: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        meta: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        kind = self._plan.kind
        return {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}


class _TooSlow(Exception):
    """The client took nothing for SEND_TIMEOUT_S."""


class _Lines:
    """The response body: one JSON object a line. Its methods raise _TooSlow."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def start(self) -> None:
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-cache")]
        await self._pass_on({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, change: str, value: Any) -> None:
        line = b'{"type":"%b","object":%b}\n' % (change.encode(), _ENCODER.encode(value))
        await self._pass_on({"type": "http.response.body", "body": line, "more_body": True})

    async def finish(self) -> None:
        await self._pass_on({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_on(self, message: Message) -> None:
        limit = asyncio.timeout(SEND_TIMEOUT_S)
        try:
            async with limit:
                await self._send(message)
        except TimeoutError as error:
            raise _TooSlow from error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
