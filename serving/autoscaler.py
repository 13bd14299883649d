"""The autoscaler: follows PodAutoscalers, turns demand into decisions, and decisions into instances.

Each revision has a worker that does one thing after the other: publish ready instances (EndpointSlices), decide, ask
for or retire instances, write the PodAutoscaler's status. It runs every tick, when an instance changes, when its
PodAutoscaler changes, and at once when a gateway holds a request that no instance can take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from core.clock import Clock
from core.control.cache import Follower, Observed
from core.control.lifecycle import same_json
from core.control.port import ResourceStore
from core.errors import Conflict, NotFound, PenstockError
from core.resources import Key, KindRef, Resource
from core.resources.builtin import ENDPOINT_SLICE
from core.telemetry import Metrics
from serving.demand import DemandReport
from serving.instances.port import CannotRun, Instance, Instances, InstanceSpec
from serving.published import GatewayList, Published, Situation, is_published
from serving.reconcile.podautoscaler import Failure, scaling_status
from serving.resources import LABEL_REVISION, LABEL_SERVICE, POD_AUTOSCALER, REVISION
from serving.routing import Return
from serving.scaler import Plan, Scaler, ScalingDecision
from serving.scaling import ScalingSettings

__all__ = ["FOLLOWED", "Autoscaler"]

_log = logging.getLogger(__name__)

#: The kinds that the follower handed in must hold.
FOLLOWED: Final[frozenset[KindRef]] = frozenset({POD_AUTOSCALER, REVISION, ENDPOINT_SLICE})

#: Demand is put into the windows' one-second buckets this often.
SAMPLE_EVERY_S: Final = 1.0

#: From the deletion of an instance's EndpointSlice to its SIGTERM: time for gateways to hear of it, which takes them a
#: few milliseconds. One that does not hear in time finds the connection refused and tries another instance.
DRAIN_NOTICE_S: Final = 0.25

#: Before a worker tries again what the store refused: a restart of the store takes about as long.
RETRY_S: Final = 0.5

#: Before trying again what was decided on old state: the follower brings the new one within milliseconds.
OUTDATED_S: Final = 0.02

_DESIRED_HELP: Final = "Instances that the last decision asked for."
_READY_HELP: Final = "Instances that are ready."
_STARTS_HELP: Final = "From the decision to make an instance until it was ready."


class Autoscaler:
    """Scales every revision that has a PodAutoscaler. `run` it in a task, beside the follower's own.

    `follower` must hold the kinds of `FOLLOWED` and not have been started before this is made. `describe` says what a
    Revision's instances run, or raises CannotRun. `gateways_in` is the namespace where gateways are listed; "" where
    there is one only.
    """

    def __init__(
        self,
        *,
        store: ResourceStore,
        follower: Follower,
        instances: Instances,
        describe: Callable[[Resource], InstanceSpec],
        clock: Clock,
        settings: ScalingSettings,
        metrics: Metrics,
        gateways_in: str = "",
    ) -> None:
        gateways = GatewayList(gateways_in) if gateways_in else None
        self._shared = _Shared(store, follower, instances, describe, clock, metrics, gateways)
        self._store = store
        self._follower = follower
        self._instances = instances
        self._clock = clock
        self._settings = settings
        self._workers: dict[tuple[str, str], _Worker] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._wakeups = metrics.counter(
            "penstock_autoscaler_wakeups_total", "Demand reports of requests that no instance could take."
        )
        follower.subscribe(self._on_resources)

    async def run(self) -> None:
        """Scale until cancelled. Instances stay as they are when it ends."""
        await self._follower.synced.wait()
        if self._shared.gateways is not None:
            self._relist_gateways(self._shared.gateways)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for scaler in self._follower.list(POD_AUTOSCALER):
                    self._open(scaler)
                self._instances.watch(self._on_instance)
                await self._tick()
            finally:
                self._tasks = None
                self._workers.clear()

    def report(self, report: DemandReport) -> None:
        """Take in what a gateway tells; revisions that do not exist (any more) are passed over."""
        now = self._clock.now()
        for demand in report.revisions:
            worker = self._workers.get((demand.namespace, demand.name))
            if worker is not None and worker.scaler.report(report.gateway, demand, now):
                self._wakeups.value += 1
                worker.poke()
        for told in report.returned:
            worker = self._workers.get((told.namespace, told.revision))
            if worker is not None:
                worker.returned(report.gateway, told)

    def decisions(self, namespace: str, service: str) -> list[ScalingDecision]:
        """The last decisions for the revisions of a Service, oldest first."""
        found = [
            decision
            for (place, _), worker in self._workers.items()
            if place == namespace and worker.scaler.resource.meta.labels.get(LABEL_SERVICE) == service
            for decision in worker.scaler.decisions
        ]
        return sorted(found, key=lambda decision: decision.time)

    def revisions(self, namespace: str, service: str) -> list[str]:
        """Names of the Revisions of a Service, oldest first."""
        found = [
            revision.meta
            for revision in self._follower.list(REVISION, namespace)
            if revision.meta.labels.get(LABEL_SERVICE) == service
        ]
        return [meta.name for meta in sorted(found, key=lambda meta: (meta.creation_timestamp or "", meta.name))]

    async def withdraw(self) -> None:
        """Delete every EndpointSlice of ours, before all instances are stopped with the platform."""
        for held in self._own_slices():
            with contextlib.suppress(PenstockError):
                await self._store.delete(held.key)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        decided = loop.time()
        stale = await self._drop_stale_slices(again=False)
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            is_due = loop.time() - decided >= self._settings.tick_s - 1e-6
            if is_due:
                decided = loop.time()
                stale = stale and await self._drop_stale_slices(again=True)
            now = self._clock.now()
            for worker in list(self._workers.values()):
                if worker.scaler.idle:
                    continue
                if is_due:
                    worker.poke()
                else:
                    worker.scaler.sample(now)

    def _on_resources(self, batch: Sequence[Observed]) -> None:
        if self._tasks is None:
            return
        gateways = self._shared.gateways
        if gateways is not None and any(each.key.namespace == gateways.namespace for each in batch):
            self._relist_gateways(gateways)
        for observed in batch:
            key = observed.key
            worker = self._workers.get((key.namespace, key.name))
            if key.kind == POD_AUTOSCALER:
                self._on_scaler(worker, observed)
            elif key.kind == REVISION and worker is not None and observed.after is not None:
                worker.poke()

    def _on_scaler(self, worker: _Worker | None, observed: Observed) -> None:
        after = observed.after
        if worker is not None and (after is None or after.meta.uid != worker.scaler.resource.meta.uid):
            del self._workers[(observed.key.namespace, observed.key.name)]
            worker.end()
            worker = None
        if after is None or after.meta.deletion_timestamp:
            return
        if worker is None:
            self._open(after)
        elif _is_changed(worker.scaler.resource, after):
            worker.scaler.update(after)
            worker.poke()
        else:
            worker.scaler.resource = after

    def _open(self, scaler: Resource) -> None:
        place = (scaler.meta.namespace, scaler.meta.name)
        if self._tasks is None or place in self._workers:
            return
        worker = _Worker(self._shared, Scaler(scaler, self._settings), self._slices_of(*place), self._tasks)
        self._workers[place] = worker
        worker.poke()

    def _on_instance(self, instance: Instance) -> None:
        worker = self._workers.get((instance.namespace, instance.revision))
        if worker is not None:
            worker.note(instance)
        elif instance.phase not in ("draining", "gone") and self._tasks is not None:
            # Left over from a Revision that was deleted while nobody watched.
            self._tasks.create_task(self._instances.stop(instance.namespace, instance.name))

    def _own_slices(self) -> list[Resource]:
        return [one for one in self._follower.list(ENDPOINT_SLICE) if is_published(one)]

    def _slices_of(self, namespace: str, revision: str) -> dict[str, Resource]:
        held = [one for one in self._own_slices() if one.meta.labels.get(LABEL_REVISION) == revision]
        return {one.meta.name: one for one in held if one.meta.namespace == namespace}

    def _relist_gateways(self, gateways: GatewayList) -> None:
        try:
            is_changed = gateways.relist(self._follower.list(ENDPOINT_SLICE, gateways.namespace), self._clock.now())
        except msgspec.ValidationError as error:
            _log.error("the gateways' EndpointSlices cannot be read", extra={"facts": {"error": str(error)}})
            return
        if is_changed:
            for worker in self._workers.values():
                worker.poke()

    async def _drop_stale_slices(self, *, again: bool) -> bool:
        """Those that a former process wrote for revisions that are gone; a worker drops its own. Whether there may be
        some left, because the store is away or refused. That is logged the first time, when it is not done `again`."""
        for held in self._own_slices():
            if (held.meta.namespace, held.meta.labels.get(LABEL_REVISION, "")) in self._workers:
                continue
            try:
                await self._store.delete(held.key)
            except NotFound:
                continue
            except PenstockError as error:
                if not again:
                    facts = {"name": str(held.key), "error": str(error)}
                    _log.warning("an EndpointSlice of a former Revision stays for now", extra={"facts": facts})
                return True
        return False


def _is_changed(before: Resource, after: Resource) -> bool:
    """Whether anything but status differs that scaling depends on."""
    return before.meta.generation != after.meta.generation or before.meta.annotations != after.meta.annotations


class _Shared(msgspec.Struct, frozen=True):
    """What every worker needs of the autoscaler."""

    store: ResourceStore
    follower: Follower
    instances: Instances
    describe: Callable[[Resource], InstanceSpec]
    clock: Clock
    metrics: Metrics
    gateways: GatewayList | None


class _Worker:
    """Brings one revision's instances, EndpointSlices and status to what its scaler decides, one step at a time."""

    def __init__(self, shared: _Shared, scaler: Scaler, slices: dict[str, Resource], tasks: asyncio.TaskGroup) -> None:
        self.scaler = scaler
        self._shared = shared
        self._published = Published(shared.store, slices, shared.gateways)
        self._look_again: asyncio.TimerHandle | None = None
        self._tasks = tasks
        self._dirty = asyncio.Event()
        self._ended = False
        #: How many instances the last pass asked for.
        self._making = 0
        self._checked = False
        #: When each instance that was asked for and has not appeared yet was found missing, by the loop's clock.
        self._missing: deque[float] = deque()
        #: The same for those that appeared and are not ready yet, by name.
        self._starting: dict[str, float] = {}
        #: Retiring ones that gateways are being told of: stop has not been called for them yet.
        self._noticed: set[str] = set()
        meta = scaler.resource.meta
        self._labels = {"namespace": meta.namespace, "revision": meta.name}
        metrics = shared.metrics
        self._desired = metrics.gauge("penstock_autoscaler_desired_instances", _DESIRED_HELP, **self._labels)
        self._ready = metrics.gauge("penstock_autoscaler_ready_instances", _READY_HELP, **self._labels)
        self._starts = metrics.histogram("penstock_instance_start_seconds", _STARTS_HELP)
        tasks.create_task(self._run(), name=f"scale {meta.namespace}/{meta.name}")

    def poke(self) -> None:
        """Something changed: look again."""
        self._dirty.set()

    def note(self, instance: Instance) -> None:
        if instance.phase in ("draining", "gone"):
            self._noticed.discard(instance.name)
        elif self._missing and instance.name not in self.scaler.instances:
            self._starting[instance.name] = self._missing.popleft()
        self.scaler.note(instance)
        began = self._starting.get(instance.name)
        if began is not None and instance.phase not in ("starting", "waiting"):
            del self._starting[instance.name]
            if instance.phase == "ready":
                self._starts.observe(asyncio.get_running_loop().time() - began)
        self.poke()

    def returned(self, gateway: str, told: Return) -> None:
        """A gateway has given an instance back."""
        if self._published.returned(gateway, told):
            self.poke()

    def end(self) -> None:
        """The PodAutoscaler is gone: stop everything, and be done."""
        self._ended = True
        self.poke()

    async def _run(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._ended:
                break
            try:
                await self._once()
            except (Conflict, NotFound):
                self._again(OUTDATED_S)
            except PenstockError as error:
                facts = {**self._labels, "error": str(error)}
                _log.warning("scaling was interrupted and will be tried again", extra={"facts": facts})
                self._again(RETRY_S)
            except Exception:  # noqa: BLE001 - boundary: one revision's trouble must not end the scaling of the others
                _log.exception("scaling failed unexpectedly", extra={"facts": self._labels})
                self._again(RETRY_S)
        await self._finish()

    def _again(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.poke)

    async def _finish(self) -> None:
        for name in ("penstock_autoscaler_desired_instances", "penstock_autoscaler_ready_instances"):
            self._shared.metrics.forget(name, **self._labels)
        if self._look_again is not None:
            self._look_again.cancel()
        await self._published.clear()
        stop, namespace = self._shared.instances.stop, self.scaler.resource.meta.namespace
        await asyncio.gather(*(stop(namespace, name) for name in list(self.scaler.instances)))

    async def _once(self) -> None:
        """One pass. What takes a held request furthest comes first."""
        await self._publish()
        revision = self._revision()
        if revision is None:
            return
        plan = self.scaler.plan(self._shared.clock.now())
        if plan.make or self._missing or not self._checked or self.scaler.refusal is not None:
            await self._scale(revision, plan)
        if plan.stop:
            self.scaler.retiring.update(plan.stop)
            self._noticed.update(plan.stop)
            await self._publish()
            for name in plan.stop:
                self._tasks.create_task(self._retire(name), name=f"retire {name}")
        # What is being made is missing until it is there, and asked for again in every pass.
        if plan.stop or (plan.make and plan.make != self._making):
            facts = {**self._labels, "making": plan.make, "ending": len(plan.stop)}
            _log.info("scaling a revision", extra={"facts": facts | {"why": self.scaler.decisions[-1].explanation}})
        self._making = plan.make
        await self._write_status()

    def _revision(self) -> Resource | None:
        meta = self.scaler.resource.meta
        return self._shared.follower.get(Key(REVISION, meta.namespace, meta.name))

    async def _scale(self, revision: Resource, plan: Plan) -> None:
        """Say how many instances there are to be; with none, find out whether it could be done."""
        now = asyncio.get_running_loop().time()
        while len(self._missing) > plan.make:
            self._missing.pop()
        self._missing.extend([now] * (plan.make - len(self._missing)))
        try:
            spec = self._shared.describe(revision)
            await self._shared.instances.scale(spec, plan.count + len(self._noticed))
        except CannotRun as error:
            self.scaler.refusal = Failure(error.reason, str(error))
        else:
            self.scaler.refusal = None
        self._checked = True

    async def _retire(self, name: str) -> None:
        await asyncio.sleep(DRAIN_NOTICE_S)
        # No await in between: an instance that is told to stop is not counted by `scale` any more.
        self._noticed.discard(name)
        await self._shared.instances.stop(self.scaler.resource.meta.namespace, name)

    async def _publish(self) -> None:
        """Make the EndpointSlices say which instances are ready, where, and whose they are."""
        scaler, retiring = self.scaler, self.scaler.retiring
        staying = [one for one in scaler.instances.values() if one.phase != "draining" and one.name not in retiring]
        situation = Situation(need=scaler.need(), now=self._shared.clock.now())
        again_s = await self._published.publish(staying, self._revision(), situation)
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        if again_s is not None:
            self._look_again = asyncio.get_running_loop().call_later(again_s, self.poke)

    async def _write_status(self) -> None:
        scaler = self.scaler
        state = scaler.state
        if state is None:
            return
        self._desired.value, self._ready.value = max(state.desired, 0), scaler.ready
        now = self._shared.clock.now()
        status = scaling_status(scaler.resource, state=state, ready=scaler.ready, failure=scaler.failure, now=now)
        if not same_json(status, scaler.resource.status):
            scaler.resource = await self._shared.store.update_status(scaler.resource.with_status(status))
