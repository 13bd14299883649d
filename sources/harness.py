"""Runs the sources that the store asks for: one owned task each, started, stopped and replaced as resources change.

A source runs while its status names a sink for its current generation. It is stopped when it is deleted or its sink is
unknown, and replaced when its spec or its sink's address changes. A source that raises is logged, shown in its
condition Deployed, and run again after a back-off. How to write one: `sources.port`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from core.clock import Clock
from core.control.backoff import Backoff
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.errors import InvalidInput, NotFound, PenstockError
from core.net.names import Names
from core.resources import Condition, Key, KindRef, Resource
from core.telemetry import Counter, Gauge, Metrics
from sources.checkpoints import Checkpoints, SourceMarks
from sources.delivery import Delivery, DeliveryMetrics, Requester, policy_of
from sources.port import Marks, SourceFactory, raise_if_cancelled
from sources.reconcile import DEPLOYED, deployed_of, with_deployed
from sources.resources import delivery_of, sink_of
from sources.secrets import read_secret

__all__ = ["SourceRunner"]

_log: Final = logging.getLogger(__name__)

#: A source that keeps failing is run again at this pace; one that fails once is back at once for a person.
RESTART_BACKOFF: Final = Backoff(first_s=0.5, cap_s=60.0)
#: A source that ran for so long had recovered: its next failure is a first one.
RECOVERED_S: Final = 60.0
#: A status write that fails is repeated; what it says is shown to people, who do not look more often.
REPORT_BACKOFF: Final = Backoff(first_s=0.1, cap_s=5.0)

_STARTING: Final = Condition(type=DEPLOYED, status="Unknown", reason="Starting", message="The source is starting.")
_RUNNING: Final = Condition(type=DEPLOYED, status="True")


class SourceRunner:
    """The harness. `run` it in a task that its owner keeps; cancelling it stops all sources."""

    def __init__(
        self,
        *,
        store: ResourceStore,
        factories: Mapping[KindRef, SourceFactory],
        requester: Requester,
        names: Names,
        checkpoints: Checkpoints,
        clock: Clock,
        metrics: Metrics,
        root: Path,
    ) -> None:
        """`factories` makes a source for each kind to run (`sources.factories.FACTORIES`); `root` is where relative
        paths start."""
        self._store = store
        self._factories = dict(factories)
        self._requester = requester
        self._names = names
        self._checkpoints = checkpoints
        self._clock = clock
        self._metrics = metrics
        self._root = root
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._follower = Follower(store, self._factories, self._changed, metrics=metrics)
        self._running: dict[str, _Running] = {}
        self._deleted: dict[str, Key] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Run sources until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run(), name="follow sources")
            await self._follower.synced.wait()
            failures, swept = 0, False
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self._match(tasks)
                    if not swept:
                        await self._drop_orphans()
                    failures, swept = 0, True
                except PenstockError as error:
                    # Somebody else wrote first, or the store is away: what is left to do is found again.
                    failures += 1
                    if failures > 2:
                        _log.warning("sources cannot be brought up to date", extra={"facts": {"error": str(error)}})
                    self._wake.set()
                    await asyncio.sleep(REPORT_BACKOFF.delay_s(failures, self._rng))

    def _changed(self, batch: Sequence[Observed]) -> None:
        for observed in batch:
            if observed.before is not None and not _same(observed.before, observed.after):
                self._deleted[observed.before.meta.uid] = observed.before.key
        self._wake.set()

    async def _drop_orphans(self) -> None:
        """Drop the checkpoints of sources that were deleted while nobody looked."""
        for uid in await self._checkpoints.sources():
            if not self._follower.holds_uid(uid):
                await self._checkpoints.drop(uid)

    async def _match(self, tasks: asyncio.TaskGroup) -> None:
        """Make what runs the same as what is wanted."""
        resources = {r.meta.uid: r for kind in self._factories for r in self._follower.list(kind)}
        for uid, running in list(self._running.items()):
            resource = resources.get(uid)
            if resource is None or running.is_outdated_by(resource):
                del self._running[uid]
                await running.stop()
        for uid, key in list(self._deleted.items()):
            if uid not in resources:
                await self._checkpoints.drop(uid)
                self._forget_metrics(key)
            del self._deleted[uid]
        for uid, resource in resources.items():
            if uid not in self._running and _sink_uri(resource):
                self._running[uid] = self._start(resource, tasks)
        for uid, running in list(self._running.items()):
            await self._report(resources[uid], running)

    def _start(self, resource: Resource, tasks: asyncio.TaskGroup) -> _Running:
        context = _Context(
            resource=resource,
            marks=SourceMarks(self._checkpoints, resource.meta.uid),
            clock=self._clock,
            root=self._root,
            metrics=self._metrics,
            store=self._store,
            wake=self._wake,
        )
        task = tasks.create_task(self._supervise(resource, context), name=f"source {resource.key}")
        return _Running(resource, context, task)

    async def _supervise(self, resource: Resource, context: _Context) -> None:
        """Run one source again and again. Ended by cancellation only."""
        now = asyncio.get_running_loop().time
        failures = 0
        while True:
            began = now()
            try:
                await self._run_once(resource, context)
                error: Exception | None = None
            except Exception as raised:  # noqa: BLE001 - task boundary: a source's bug must not end the other sources
                raise_if_cancelled()
                error = _first_of(raised)
            failures = 1 if now() - began >= RECOVERED_S else failures + 1
            delay_s = RESTART_BACKOFF.delay_s(failures, self._rng)
            said = str(error) if isinstance(error, PenstockError) else repr(error) if error else "it ended by itself"
            reason = "SourceInvalid" if isinstance(error, InvalidInput) else "SourceFailed"
            context.trouble(reason, f"The source stopped and is started again: {said}")
            facts = {"source": str(resource.key), "error": said, "again_in_s": round(delay_s, 3), "failures": failures}
            expected = error is None or isinstance(error, PenstockError)
            _log.error("a source stopped", extra={"facts": facts}, exc_info=None if expected else error)
            await asyncio.sleep(delay_s)

    async def _run_once(self, resource: Resource, context: _Context) -> None:
        _, overrides = sink_of(resource)
        try:
            delivery = Delivery(
                requester=self._requester,
                names=self._names,
                sink=_sink_uri(resource),
                extensions=overrides.extensions,
                metrics=DeliveryMetrics(self._metrics, _labels(resource.key)),
                facts={"source": str(resource.key)},
                rng=self._rng,
                policy=policy_of(delivery_of(resource), _text(resource.status.get("deadLetterSinkUri"))),
            )
        except ValueError as error:
            raise InvalidInput(f"The sink's address cannot be used: {error}.") from error
        source = self._factories[resource.ref](resource, context)
        await source.run(delivery.emit)

    async def _report(self, resource: Resource, running: _Running) -> None:
        """Write the source's own condition where the stored one differs. Raises Conflict, Unavailable."""
        condition = running.context.condition
        if deployed_of(resource) == condition or not _sink_uri(resource):
            return
        try:
            await self._store.update_status(with_deployed(resource, condition, self._clock.now()))
        except NotFound:
            return  # deleted meanwhile; the follower says so in a moment

    def _forget_metrics(self, key: Key) -> None:
        labels = _labels(key)
        for outcome in ("accepted", "dead-letter", "refused"):
            self._metrics.forget("penstock_source_events_total", **labels, outcome=outcome)
        self._metrics.forget("penstock_source_retries_total", **labels)
        self._metrics.forget("penstock_source_waiting_events", **labels)


class _Running(msgspec.Struct, frozen=True):
    """A source that runs, and the state of its resource that it was started with."""

    resource: Resource
    context: _Context
    task: asyncio.Task[None]

    def is_outdated_by(self, resource: Resource) -> bool:
        """Whether the source must stop. While the status speaks of an older spec, what runs goes on."""
        if resource.meta.deletion_timestamp is not None:
            return True
        if resource.status.get("observedGeneration") != resource.meta.generation:
            return False
        return _sinks(resource) != _sinks(self.resource) or resource.spec != self.resource.spec

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.context.forget_measures()


class _Context:
    """What a source gets: `sources.port.SourceContext`."""

    def __init__(
        self,
        *,
        resource: Resource,
        marks: Marks,
        clock: Clock,
        root: Path,
        metrics: Metrics,
        store: ResourceStore,
        wake: asyncio.Event,
    ) -> None:
        self.namespace = resource.meta.namespace
        self.name = resource.meta.name
        self.uid = resource.meta.uid
        self.marks = marks
        self.clock = clock
        self.root = root
        self.condition = _STARTING
        self._metrics = metrics
        self._labels = _labels(resource.key)
        self._measured: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
        self._store = store
        self._wake = wake

    async def secret(self, name: str) -> Mapping[str, bytes]:
        return await read_secret(self._store, self.namespace, name)

    def counter(self, name: str, help_text: str, **labels: str) -> Counter:
        self._measured.add((name, tuple(labels.items())))
        return self._metrics.counter(name, help_text, **self._labels, **labels)

    def gauge(self, name: str, help_text: str, **labels: str) -> Gauge:
        self._measured.add((name, tuple(labels.items())))
        return self._metrics.gauge(name, help_text, **self._labels, **labels)

    def forget_measures(self) -> None:
        """The source runs no more: what it measured ends."""
        for name, labels in self._measured:
            self._metrics.forget(name, **self._labels, **dict(labels))
        self._measured.clear()

    def ready(self) -> None:
        self._set(_RUNNING)

    def trouble(self, reason: str, message: str) -> None:
        self._set(Condition(type=DEPLOYED, status="False", reason=reason, message=message))

    def count(self, outcome: str, number: int = 1) -> None:
        help_text = "Occurrences that a source met and told no event of, by reason"
        self._metrics.counter("penstock_source_untold_total", help_text, **self._labels, reason=outcome).value += number

    def _set(self, condition: Condition) -> None:
        if condition != self.condition:
            self.condition = condition
            self._wake.set()


def _same(before: Resource, after: Resource | None) -> bool:
    return after is not None and after.meta.uid == before.meta.uid


def _sink_uri(resource: Resource) -> str:
    """The sink's address where the source may run; "" where it may not (yet)."""
    if resource.meta.deletion_timestamp is not None:
        return ""
    if resource.status.get("observedGeneration") != resource.meta.generation:
        return ""
    return _text(resource.status.get("sinkUri"))


def _sinks(resource: Resource) -> tuple[str, str]:
    """Where its events go, and those that the sink does not take."""
    return _sink_uri(resource), _text(resource.status.get("deadLetterSinkUri"))


def _text(value: object) -> str:
    """A status can be written by anybody, in any shape."""
    return value if isinstance(value, str) else ""


def _labels(key: Key) -> dict[str, str]:
    return {"kind": key.kind.kind, "namespace": key.namespace, "name": key.name}


def _first_of(error: Exception) -> Exception:
    """What a task group's error is about."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
