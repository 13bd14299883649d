"""A cache that follows a store: list, watch from there, resume when the watch breaks, list again when it must.

Used by the control loop as its `View`, and by the data plane to build its tables. When the store is away the last
state stays: stale, never empty. Source of the pattern: Kubernetes' API concepts ("Efficient detection of changes").
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from core.control.backoff import Backoff
from core.control.index import Index
from core.control.port import Change, Listing, ResourceStore
from core.errors import Gone, NotFound, Overloaded, PenstockError
from core.resources import Key, KindRef, Resource
from core.telemetry import Metrics

__all__ = ["FOLLOW_BACKOFF", "Follower", "Observed", "OnChange"]

logger = logging.getLogger(__name__)

#: A restarted API server is back within a second; asking every few seconds during a longer outage costs nothing.
FOLLOW_BACKOFF: Final = Backoff(first_s=0.1, cap_s=5.0)

#: A watch that lived this long worked: what ends it then is not counted as one more failure in a row.
_PROGRESS_S: Final = 1.0


class Observed(msgspec.Struct, frozen=True):
    """What became of one resource since the last call: `before` None where it was not known, `after` None where it is
    gone. At least one of them is there. A different uid in `after` means that it was deleted and created again."""

    before: Resource | None
    after: Resource | None

    @property
    def key(self) -> Key:
        known = self.after or self.before
        assert known is not None  # noqa: S101 - the class's promise; tells the type checker
        return known.key


#: Called on the loop's thread with everything that changed since the last call; empty after a new listing that found
#: nothing changed.
OnChange = Callable[[Sequence[Observed]], None]


class Follower:
    """The last known state of `kinds`, as a `View`.

    `run` it in a task that its owner keeps; it goes on until cancelled. `on_change` (and each further `subscribe`) is
    told first when all kinds are listed, with everything that is there, and from then on once per turn of the event
    loop in which something changed. `synced` is set before that first call. Of a kind in `namespaces`, only what is in
    that namespace is followed.
    """

    def __init__(
        self,
        store: ResourceStore,
        kinds: Iterable[KindRef],
        on_change: OnChange | None = None,
        *,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
        backoff: Backoff = FOLLOW_BACKOFF,
        namespaces: Mapping[KindRef, str] | None = None,
    ) -> None:
        self._store = store
        self._namespaces = dict(namespaces or {})
        self._kinds = frozenset(kinds)
        self._subscribers: list[OnChange] = [on_change] if on_change else []
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._backoff = backoff
        self._index = Index()
        self._seen: dict[KindRef, int] = {}
        self._pending: dict[Key, Observed] = {}
        self._flush: asyncio.Handle | None = None
        self.synced = asyncio.Event()
        metrics = metrics or Metrics()
        self._relists = metrics.counter("penstock_follow_lists_total", "Full listings taken while following the store.")
        self._failures = metrics.counter("penstock_follow_failures_total", "Listings and watches that failed.")

    @property
    def kinds(self) -> frozenset[KindRef]:
        return self._kinds

    def get(self, key: Key) -> Resource | None:
        return self._index.get(key)

    def list(self, kind: KindRef, namespace: str | None = None) -> Sequence[Resource]:
        return self._index.list(kind, namespace)

    def owned(self, owner: Resource, kind: KindRef) -> Sequence[Resource]:
        return self._index.owned(owner, kind)

    def dependents(self, uid: str) -> Sequence[Resource]:
        """Resources of any followed kind that name the uid among their owners."""
        return self._index.dependents(uid)

    def holds_uid(self, uid: str) -> bool:
        return self._index.holds_uid(uid)

    def seen(self, kind: KindRef) -> int:
        """The version up to which all changes of the kind are in this cache; 0 before the first listing."""
        return self._seen.get(kind, 0)

    def subscribe(self, on_change: OnChange) -> None:
        """Tell this one, too. Before `run`, so that it misses nothing."""
        self._subscribers.append(on_change)

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind in sorted(self._kinds):
                    tasks.create_task(self._follow(kind), name=f"follow {kind}")
                if not self._kinds:
                    self.synced.set()
        finally:
            if self._flush is not None:
                self._flush.cancel()
                self._flush = None

    async def _follow(self, kind: KindRef) -> None:
        """Keep one kind current. Every failure that the store can name is waited out."""
        version: int | None = None
        failures = 0
        now = asyncio.get_running_loop().time
        while True:
            opened = math.inf
            try:
                if version is None:
                    listing = await self._store.list(kind, self._namespaces.get(kind))
                    self._replace(kind, listing)
                    version = listing.version
                opened = now()
                async with aclosing(self._store.watch(kind, version, self._namespaces.get(kind))) as watch:
                    async for change in watch:
                        self._change(kind, change)
                        version = change.version
                        failures = 0
                error: PenstockError | None = None
            except Gone as gone:
                version, error = None, gone
            except PenstockError as failed:
                error = failed
                if isinstance(failed, NotFound) and kind not in self._seen:
                    # A kind that the cluster does not have has no resources: the others must not wait for it.
                    self._replace(kind, Listing((), 0))
            failures = 1 if now() - opened >= _PROGRESS_S else failures + 1
            await self._pause(kind, error, failures)

    async def _pause(self, kind: KindRef, error: PenstockError | None, failures: int) -> None:
        """Wait before the next try. A watch that ended, or is Gone, is nobody's failure unless it happens again."""
        if failures == 1 and (error is None or isinstance(error, Gone)):
            return
        delay_s = self._backoff.delay_s(failures, self._rng)
        if isinstance(error, Overloaded):
            delay_s = max(delay_s, error.retry_after_s)
        self._failures.value += 1
        if failures <= 2 and error is not None:
            facts = {"kind": str(kind), "error": str(error), "again_in_s": round(delay_s, 3)}
            logger.warning("following the store failed; the last known state stays in use", extra={"facts": facts})
        await asyncio.sleep(delay_s)

    def _replace(self, kind: KindRef, listing: Listing) -> None:
        self._relists.value += 1
        listed = {resource.key for resource in listing.items}
        for key in self._index.keys(kind) - listed:
            self._note(key, self._index.drop(key), None)
        for resource in listing.items:
            held = self._index.get(resource.key)
            if held is None or _identity(held) != _identity(resource):
                self._note(resource.key, self._index.put(resource), resource)
        self._seen[kind] = listing.version
        self._schedule_flush()

    def _change(self, kind: KindRef, change: Change) -> None:
        resource = change.resource
        if resource is not None:
            if change.type == "DELETED":
                self._note(resource.key, self._index.drop(resource.key) or resource, None)
            else:
                self._note(resource.key, self._index.put(resource), resource)
            self._schedule_flush()
        self._seen[kind] = change.version

    def _note(self, key: Key, before: Resource | None, after: Resource | None) -> None:
        earlier = self._pending.get(key)
        if earlier is not None and (earlier.before is not None or after is not None):
            before = earlier.before
        self._pending[key] = Observed(before, after)

    def _schedule_flush(self) -> None:
        if self._flush is None and self._seen.keys() == self._kinds:
            self._flush = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._flush = None
        batch = tuple(self._pending.values())
        self._pending.clear()
        self.synced.set()
        for subscriber in self._subscribers:
            try:
                subscriber(batch)
            except Exception:  # boundary: one subscriber's bug must not end the others' view
                logger.exception("a subscriber of the store's changes failed")


def _identity(resource: Resource) -> tuple[str, str]:
    """Equal for two readings of one state."""
    return resource.meta.uid, resource.meta.resource_version
