"""Garbage collection by owner reference: what belonged to a resource that is gone is deleted (background propagation).

A dependent goes once none of its owners exists. The cache only suggests: each owner is looked up in the store before
anything is deleted, because kinds are followed independently and a dependent can be seen before its owner.
Source of the rules: Kubernetes' documentation, "Garbage Collection".
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Final

from core.control.backoff import Backoff
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.errors import Conflict, NotFound, PenstockError
from core.resources import Key, KindRef, OwnerReference, Resource
from core.telemetry import Metrics

__all__ = ["GarbageCollector", "owner_keys"]

logger = logging.getLogger(__name__)

#: While the store is away nothing can be deleted; asking every few seconds is enough.
_BACKOFF: Final = Backoff(first_s=0.1, cap_s=10.0)


def owner_keys(dependent: Resource, reference: OwnerReference) -> tuple[Key, ...]:
    """Where an owner may be: in the dependent's namespace, or cluster-scoped."""
    kind = KindRef.parse(reference.api_version, reference.kind)
    places = dict.fromkeys((dependent.meta.namespace, ""))
    return tuple(Key(kind, namespace, reference.name) for namespace in places)


class GarbageCollector:
    """Deletes orphans among the kinds that `follower` follows.

    Make it before the follower runs, and `run` it in a task of its owner. An owner of a kind that is not followed is
    taken to exist. What waits to be checked is bounded by the number of resources: each is in it once.
    """

    def __init__(
        self,
        store: ResourceStore,
        follower: Follower,
        *,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._follower = follower
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._suspects: dict[Key, None] = {}
        #: Dependents whose owner is in the store but not yet in the cache: looked at again when the cache moves on, so
        #: that an owner which goes without ever being seen does not leave them behind.
        self._ahead: set[Key] = set()
        self._news = asyncio.Event()
        self._deleted = (metrics or Metrics()).counter(
            "penstock_gc_deleted_total", "Resources deleted because their owners are gone."
        )
        follower.subscribe(self._observe)

    async def run(self) -> None:
        """Collect until cancelled."""
        failures = 0
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                while self._suspects:
                    key = next(iter(self._suspects))
                    # Out before the check: what is suspected again meanwhile is checked again.
                    del self._suspects[key]
                    await self._check(key)
                    failures = 0
            except PenstockError as error:
                failures += 1
                self._suspects[key] = None
                await asyncio.sleep(self._backoff_s(failures, error))
                self._news.set()

    def _backoff_s(self, failures: int, error: PenstockError) -> float:
        delay_s = _BACKOFF.delay_s(failures, self._rng)
        if failures <= 2:
            facts = {"error": str(error), "again_in_s": round(delay_s, 3)}
            logger.warning("garbage collection failed and will be tried again", extra={"facts": facts})
        return delay_s

    def _observe(self, batch: Sequence[Observed]) -> None:
        ahead, self._ahead = self._ahead, set()
        for key in ahead:
            dependent = self._follower.get(key)
            if dependent is not None:
                self._suspect(dependent)
        for observed in batch:
            before, after = observed.before, observed.after
            if before is not None and (after is None or after.meta.uid != before.meta.uid):
                for dependent in self._follower.dependents(before.meta.uid):
                    self._suspect(dependent)
            if after is not None and after.meta.owner_references:
                self._suspect(after)

    def _suspect(self, dependent: Resource) -> None:
        if any(self._follower.holds_uid(reference.uid) for reference in dependent.meta.owner_references):
            return
        self._suspects[dependent.key] = None
        self._news.set()

    async def _check(self, key: Key) -> None:
        """Delete the resource of this key if all of its owners are gone. What went wrong is raised."""
        dependent = self._follower.get(key)
        if dependent is None or not dependent.meta.owner_references or dependent.meta.deletion_timestamp:
            return
        for reference in dependent.meta.owner_references:
            if await self._exists(dependent, reference):
                return
        try:
            await self._store.delete(key, uid=dependent.meta.uid)
        except (NotFound, Conflict):
            # It is gone already; a namesake of another uid is checked when it is seen.
            return
        self._deleted.value += 1

    async def _exists(self, dependent: Resource, reference: OwnerReference) -> bool:
        if self._follower.holds_uid(reference.uid):
            return True
        for key in owner_keys(dependent, reference):
            if key.kind not in self._follower.kinds:
                return True
            try:
                owner = await self._store.get(key)
            except NotFound:
                continue
            if owner.meta.uid == reference.uid:
                self._ahead.add(dependent.key)
                return True
        return False
