"""The in-memory ResourceStore: the fake for tests, and the oracle that the durable store is compared with."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from core.clock import Clock, SystemClock
from core.control import lifecycle
from core.control.lifecycle import Write
from core.control.port import Change, Listing
from core.control.wakeups import Wakeups
from core.errors import AlreadyExists
from core.resources import Key, KindRef, Resource

__all__ = ["MemoryStore"]

#: As many as the durable store keeps.
_MAX_CHANGES: Final = 10_000


class MemoryStore:
    """Resources in a dict and their changes in a deque, which holds the newest `max_changes`."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        max_changes: int = _MAX_CHANGES,
    ) -> None:
        self._clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self._resources: dict[Key, Resource] = {}
        self._changes: deque[Change] = deque(maxlen=max_changes)
        self._version = lifecycle.FIRST_VERSION
        self._wakeups = Wakeups()

    async def get(self, key: Key) -> Resource:
        return self._stored(key)

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        keys = sorted(k for k in self._resources if k.kind == kind and namespace in (None, k.namespace))
        return Listing(tuple(self._resources[key] for key in keys), self._version)

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        position = max(since, lifecycle.FIRST_VERSION)
        while True:
            batch = self._after(position, kind, namespace)
            for change in batch:
                position = change.version
                yield change
            if batch:
                continue
            wake = await self._wakeups.wait(kind)
            position = wake.position
            if wake.bookmark:
                yield Change("BOOKMARK", position)

    async def create(self, resource: Resource) -> Resource:
        for _ in range(lifecycle.GENERATED_NAME_ATTEMPTS):
            candidate = lifecycle.named(resource, self._rng)
            stored = self._resources.get(candidate.key)
            if stored is None or resource.meta.name:
                break
        else:
            raise AlreadyExists(
                f"{candidate.key} and other generated names already exist. Choose another generateName."
            )
        uid, now = lifecycle.new_uid(self._rng), self._clock.now()
        return self._keep(lifecycle.created(candidate, stored, uid=uid, now=now, version=self._version + 1))

    async def update(self, resource: Resource) -> Resource:
        stored = self._stored(resource.key)
        write = lifecycle.updated(stored, resource, version=self._version + 1)
        return stored if write is None else self._keep(write)

    async def update_status(self, resource: Resource) -> Resource:
        stored = self._stored(resource.key)
        write = lifecycle.status_replaced(stored, resource, version=self._version + 1)
        return stored if write is None else self._keep(write)

    async def delete(self, key: Key, *, uid: str | None = None) -> Resource:
        stored = self._stored(key)
        write = lifecycle.deleted(stored, uid=uid, now=self._clock.now(), version=self._version + 1)
        return stored if write is None else self._keep(write)

    def close(self) -> None:
        """End every watch."""
        self._wakeups.close()

    def _stored(self, key: Key) -> Resource:
        stored = self._resources.get(key)
        if stored is None:
            raise lifecycle.not_found(key)
        return stored

    def _keep(self, write: Write) -> Resource:
        # Through JSON and back: what is kept shares nothing with the caller's dicts, and reads as the durable store's.
        kept = lifecycle.decode(lifecycle.encode(write.resource))
        self._version = write.version
        self._changes.append(Change(write.type, write.version, kept))
        if write.type == "DELETED":
            del self._resources[kept.key]
        else:
            self._resources[kept.key] = kept
        self._wakeups.tell(kept.ref, write.version)
        return kept

    def _after(self, position: int, kind: KindRef, namespace: str | None) -> tuple[Change, ...]:
        oldest = self._changes[0].version if self._changes else self._version + 1
        if not oldest - 1 <= position <= self._version:
            raise lifecycle.gone(position, oldest=oldest, newest=self._version)
        newer = []
        for change in reversed(self._changes):
            if change.version <= position:
                break
            held = change.resource
            if held is not None and held.ref == kind and namespace in (None, held.meta.namespace):
                newer.append(change)
        return tuple(reversed(newer))
