"""The loop that carries reconcilers' decisions out: serial per object, parallel across objects, with back-off.

Changes of followed resources touch keys in a work queue per reconciler; each touched key is decided on the cache's
state and the outcome carried out against the store. What a run wrote comes back as a change and is decided on again,
until a decision changes nothing: there is no periodic resync, because no change can be lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from core.clock import Clock
from core.control.actions import Execution, OnStatus
from core.control.backoff import Backoff
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.control.queue import WorkQueue
from core.control.reconcile import Reconciler
from core.errors import Conflict, Overloaded, PenstockError
from core.resources import Key, KindRef
from core.telemetry import Metrics

__all__ = ["ControlLoop", "LoopLimits"]

logger = logging.getLogger(__name__)

#: A decision that asks to be made again "now" would keep the loop to itself; what it waits for comes as a change.
_MIN_AGAIN_S: Final = 0.01

#: Conflicts in a row that are retried as soon as the cache is current; more of them mean two writers that fight.
_PROMPT_CONFLICTS: Final = 3


class LoopLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`parallel`: objects of one reconciler at work at a time; enough to overlap the waiting for a remote store, few
    enough not to flood it. `backoff`: after errors, per object."""

    parallel: int = 8
    backoff: Backoff = Backoff(first_s=0.05, cap_s=30.0)


class ControlLoop:
    """All reconcilers of a process over one store and one shared cache.

    `also_follow` names kinds that others (garbage collection, the autoscaler) read through `follower`; they `subscribe`
    to it before `run`. `on_status` hears of every status that is written.
    """

    def __init__(
        self,
        store: ResourceStore,
        reconcilers: Iterable[Reconciler],
        clock: Clock,
        *,
        also_follow: Iterable[KindRef] = (),
        on_status: OnStatus | None = None,
        metrics: Metrics | None = None,
        rng: random.Random | None = None,
        limits: LoopLimits | None = None,
    ) -> None:
        reconcilers = tuple(reconcilers)
        metrics = metrics or Metrics()
        rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        kinds = {kind for reconciler in reconcilers for kind in (reconciler.kind, *reconciler.related)}
        self.follower = Follower(store, kinds | set(also_follow), self._observe, rng=rng, metrics=metrics)
        limits = limits or LoopLimits()
        self._lanes = [
            _Lane(store, each, clock, self.follower, on_status=on_status, metrics=metrics, rng=rng, limits=limits)
            for each in reconcilers
        ]

    async def run(self) -> None:
        """Reconcile until cancelled; then everything that runs is cancelled and nothing is left behind."""
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                lane.open(tasks)
            try:
                await self.follower.run()
            finally:
                # Before the group cancels the runs that are under way, so that none of them starts another.
                for lane in self._lanes:
                    lane.close()

    def _observe(self, batch: Sequence[Observed]) -> None:
        for lane in self._lanes:
            for observed in batch:
                lane.observe(observed)
            lane.advance()


class _Lane:
    """One reconciler's work."""

    def __init__(
        self,
        store: ResourceStore,
        reconciler: Reconciler,
        clock: Clock,
        view: Follower,
        *,
        on_status: OnStatus | None,
        metrics: Metrics,
        rng: random.Random,
        limits: LoopLimits,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._related = dict(reconciler.related)
        self._clock = clock
        self._view = view
        self._on_status = on_status
        self._rng = rng
        self._backoff = limits.backoff
        self._failures: dict[Key, int] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._queue = WorkQueue(self._start, parallel=limits.parallel, seen=view.seen)
        kind = str(reconciler.kind)
        self._runs = metrics.counter("penstock_reconcile_total", "Decisions carried out or tried.", kind=kind)
        self._errors = metrics.counter("penstock_reconcile_errors_total", "Decisions that failed.", kind=kind)
        self._duration = metrics.histogram(
            "penstock_reconcile_duration_seconds", "From the start of a decision to its last write.", kind=kind
        )
        depth = metrics.gauge("penstock_reconcile_queue_depth", "Objects that wait for a decision.", kind=kind)
        depth.read = self._queue.__len__

    def open(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def close(self) -> None:
        self._tasks = None
        self._queue.close()

    def observe(self, observed: Observed) -> None:
        """Touch what this change matters to."""
        key = observed.key
        if key.kind == self._reconciler.kind:
            self._queue.touch(key)
        name = self._related.get(key.kind)
        if name is None:
            return
        # Both states: an object that no longer names this one has to learn of it, too.
        for state in (observed.before, observed.after):
            if state is None:
                continue
            try:
                touched = tuple(name(state, self._view))
            except Exception:  # boundary: one resource that a mapping cannot read must not hide the changes of others
                self._errors.value += 1
                logger.exception("related resources could not be named", extra={"facts": {"key": str(key)}})
                continue
            for other in touched:
                self._queue.touch(other)

    def advance(self) -> None:
        self._queue.advance()

    def _start(self, key: Key) -> None:
        if self._tasks is not None:
            self._tasks.create_task(self._work(key), name=f"reconcile {key}")

    async def _work(self, key: Key) -> None:
        """One run for one object, and when to look again."""
        resource = self._view.get(key)
        if resource is None:
            self._failures.pop(key, None)
            self._queue.done(key, again_in_s=None, written={})
            return
        execution = Execution(self._store, self._view, self._view.kinds, resource, self._on_status)
        now = asyncio.get_running_loop().time
        began = now()
        self._runs.value += 1
        try:
            outcome = self._reconciler.decide(resource, self._view, self._clock.now())
            await execution.carry_out(outcome)
            again_in_s = None if outcome.again_in_s is None else max(outcome.again_in_s, _MIN_AGAIN_S)
            self._failures.pop(key, None)
        except PenstockError as error:
            again_in_s = self._failed(key, error)
        except Exception as error:  # boundary: a decision's bug must not end the other objects' reconciliation
            logger.exception("a decision failed unexpectedly", extra={"facts": {"key": str(key)}})
            again_in_s = self._failed(key, error)
        self._duration.observe(now() - began)
        self._queue.done(key, again_in_s=again_in_s, written=execution.written)

    def _failed(self, key: Key, error: Exception) -> float:
        """Count the failure; seconds until the next try."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if isinstance(error, Conflict) and failures <= _PROMPT_CONFLICTS:
            return 0.0
        self._errors.value += 1
        delay_s = self._backoff.delay_s(failures, self._rng)
        if isinstance(error, Overloaded):
            delay_s = max(delay_s, error.retry_after_s)
        if isinstance(error, PenstockError):
            facts = {"key": str(key), "error": str(error), "failures": failures, "again_in_s": round(delay_s, 3)}
            logger.warning("reconciliation failed and will be tried again", extra={"facts": facts})
        return delay_s
