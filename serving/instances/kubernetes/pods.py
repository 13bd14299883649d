"""Instances as pods, over the resource store: a Deployment for each Revision, and the pods that the cluster makes.

What is known of them comes from a follower that the composition runs; what is changed goes to the store with optimistic
concurrency. Nothing is kept here that a successor could not read from the store: `run` ends what a former process began
to end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from core.control.backoff import Backoff
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.errors import Conflict, InvalidInput, NotFound, PenstockError, Unavailable
from core.resources import Key, KindRef, Resource
from core.resources.builtin import DEPLOYMENT, POD, WORKLOADS
from serving.instances.kubernetes.deployment import (
    deployment_of,
    is_active,
    is_marked,
    is_owned,
    marked,
    refusal,
    scaled,
    without,
)
from serving.instances.kubernetes.known import Known
from serving.instances.kubernetes.logs import PodLogs, followed, told
from serving.instances.kubernetes.template import REVISION_LABEL
from serving.instances.port import CannotRun, InstanceSpec, Listener, LogLine

__all__ = ["FOLLOWED", "KINDS", "PodInstances"]

_log = logging.getLogger(__name__)

#: The kinds that the follower handed in must hold. Only what carries `template.REVISION_LABEL` is looked at.
FOLLOWED: Final[frozenset[KindRef]] = frozenset({DEPLOYMENT, POD})

#: Those kinds for a store behind an API: of a cluster's pods only the functions' are listed and watched.
KINDS: Final = tuple(dataclasses.replace(kind, selector=REVISION_LABEL) for kind in WORKLOADS if kind.ref in FOLLOWED)

#: Cluster controllers write to Deployments and pods as well, so that a write may find its resource changed; as often in
#: a row is no coincidence.
MAX_ATTEMPTS: Final = 8

#: Between tries of a stop while the API server is away.
STOP_BACKOFF: Final = Backoff(first_s=0.1, cap_s=5.0)

Place = tuple[str, str]


class PodInstances:
    """Implements `serving.instances.port.Instances`.

    `follower` must hold the kinds of `FOLLOWED` and not have been started before this is made. `run` it in a task
    beside the autoscaler.
    """

    def __init__(
        self, *, store: ResourceStore, follower: Follower, logs: PodLogs, rng: random.Random | None = None
    ) -> None:
        self._store = store
        self._follower = follower
        self._logs = logs
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._revisions: dict[Place, Known] = {}
        #: Which revision's an instance is, by its namespace and name.
        self._holders: dict[Place, Known] = {}
        self._ends: dict[Place, asyncio.Event] = {}
        self._listeners: list[Listener] = []
        self._touched: set[Place] = set()
        self._changed = asyncio.Event()
        follower.subscribe(self._observe)

    async def run(self) -> None:
        """Until cancelled: see to it that pods that leave do go, also those that a former process named."""
        await self._follower.synced.wait()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                touched, self._touched = self._touched, set()
                for place in touched:
                    known = self._revisions.get(place)
                    for pod in known.overdue() if known is not None else ():
                        tasks.create_task(self._insist(pod), name=f"delete {pod.meta.name}")

    def watch(self, listener: Listener) -> None:
        self._listeners.append(listener)
        for known in self._revisions.values():
            for instance in known.told.values():
                listener(instance)

    async def scale(self, spec: InstanceSpec, count: int) -> None:
        wanted = deployment_of(spec)
        known = self._at((spec.namespace, spec.revision))
        async with known.lock:
            for _ in range(MAX_ATTEMPTS):
                try:
                    await self._scale(known, wanted, count)
                    break
                except (Conflict, NotFound):
                    await self._read_again(known, wanted.key)
            else:
                raise Conflict(f"{wanted.key} changes all the time. It will be scaled a little later.")
        refused = refusal(known.deployment) if known.deployment is not None else None
        if refused is not None and count > sum(1 for one in known.told.values() if one.phase != "draining"):
            raise refused

    async def stop(self, namespace: str, name: str) -> None:
        place, failures = (namespace, name), 0
        while (known := self._holders.get(place)) is not None:
            try:
                await self._take_out(known, name)
                break
            except PenstockError as error:
                failures += 1
                await self._wait_out(error, failures, name)
        if place in self._holders:
            await self._ends.setdefault(place, asyncio.Event()).wait()

    def log(self, namespace: str, revision: str, *, tail: int | None, follow: bool) -> AsyncGenerator[LogLine]:
        def present() -> dict[str, Resource]:
            known = self._revisions.get((namespace, revision))
            return dict(known.pods) if known is not None else {}

        return followed(self._logs, present, tail) if follow else told(self._logs, present(), tail)

    # Writing

    async def _scale(self, known: Known, wanted: Resource, count: int) -> None:
        held = known.deployment
        try:
            if held is None:
                known.keep(await self._create(wanted.with_spec({**wanted.spec, "replicas": count})))
                return
            if not is_owned(held, wanted):
                raise CannotRun("NotOwned", f"{held.key} belongs to somebody else. Delete it, or rename the Revision.")
            changed = scaled(held, wanted, known.pods, count)
            if changed is not held:
                known.keep(await self._store.update(changed))
        except CannotRun:
            raise
        except InvalidInput as error:
            raise CannotRun("InvalidPod", f"The cluster does not take the Revision's pods: {error}") from error

    async def _create(self, deployment: Resource) -> Resource:
        try:
            return await self._store.create(deployment)
        except NotFound as error:
            # Its namespace is gone, and the Revision will be soon: nothing to try again at once.
            raise Unavailable(f"{deployment.key} cannot be made now: {error}") from error

    async def _take_out(self, known: Known, name: str) -> None:
        """Mark the pod, take a replica for it, and name it: once, whoever asks, and however often."""
        pod = known.pods.get(name)
        if pod is None or not is_active(pod) or known.is_leaving(name):
            return
        if known.deployment is not None:
            await self._mark(known, pod)
            known.chosen.add(name)
            async with known.lock:
                # All that were marked meanwhile go with one write: a revision may lose hundreds at once.
                if name in known.chosen:
                    await self._shrink(known)
        if known.deployment is None:
            # The Revision is deleted, its Deployment too; the pods would be collected some time later.
            await self._delete(pod)

    async def _mark(self, known: Known, pod: Resource) -> None:
        for _ in range(MAX_ATTEMPTS):
            if is_marked(pod):
                return
            try:
                known.wrote(await self._store.update(marked(pod)))
                return
            except Conflict:
                pod = await self._store.get(pod.key)
            except NotFound:
                return
        raise Conflict(f"{pod.key} changes all the time. It will be stopped a little later.")

    async def _shrink(self, known: Known) -> None:
        for _ in range(MAX_ATTEMPTS):
            deployment, names = known.deployment, frozenset(known.chosen)
            if deployment is None:
                return
            try:
                changed = without(deployment, names, known.pods)
                if changed is not deployment:
                    known.keep(await self._store.update(changed))
                    self._tell(known)
                known.chosen -= names
                return
            except (Conflict, NotFound):
                await self._read_again(known, deployment.key)
        raise Conflict("A Deployment changes all the time. It will be scaled a little later.")

    async def _insist(self, pod: Resource) -> None:
        """Delete the pod, whatever comes in between."""
        failures = 0
        while True:
            try:
                await self._delete(pod)
                return
            except PenstockError as error:
                failures += 1
                await self._wait_out(error, failures, pod.meta.name)

    async def _delete(self, pod: Resource) -> None:
        try:
            await self._store.delete(pod.key, uid=pod.meta.uid)
        except (NotFound, Conflict):
            return

    async def _wait_out(self, error: PenstockError, failures: int, name: str) -> None:
        if failures == 1:
            facts = {"instance": name, "error": str(error)}
            _log.warning("an instance cannot be stopped just now; trying again", extra={"facts": facts})
        await asyncio.sleep(STOP_BACKOFF.delay_s(failures, self._rng))

    async def _read_again(self, known: Known, key: Key) -> None:
        try:
            known.replace(await self._store.get(key))
        except NotFound:
            known.replace(None)

    # Watching

    def _observe(self, batch: Sequence[Observed]) -> None:
        touched: dict[Place, Known] = {}
        for observed in batch:
            if observed.key.kind not in FOLLOWED:
                continue
            before, after = _place(observed.before), _place(observed.after)
            if before is not None and observed.before is not None and before != after:
                touched[before] = self._at(before)
                touched[before].lose(observed.before)
            if after is not None and observed.after is not None:
                touched[after] = self._at(after)
                touched[after].keep(observed.after)
        for place, known in touched.items():
            self._tell(known)
            if known.is_nothing:
                del self._revisions[place]
        if touched:
            self._touched.update(touched)
            self._changed.set()

    def _tell(self, known: Known) -> None:
        for instance in known.news():
            place = (instance.namespace, instance.name)
            if instance.phase == "gone":
                del self._holders[place]
                ended = self._ends.pop(place, None)
                if ended is not None:
                    ended.set()
            else:
                self._holders[place] = known
            for listener in self._listeners:
                listener(instance)

    def _at(self, place: Place) -> Known:
        return self._revisions.setdefault(place, Known())


def _place(resource: Resource | None) -> Place | None:
    """The Revision that a Deployment or pod of ours is for. A pod without a controller is somebody's copy of one."""
    if resource is None or not any(owner.controller for owner in resource.meta.owner_references):
        return None
    revision = resource.meta.labels.get(REVISION_LABEL)
    return (resource.meta.namespace, revision) if revision else None
