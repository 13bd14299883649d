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
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from msgspec.structs import replace

from core.control.backoff import Backoff
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.errors import Conflict, InvalidInput, NotFound, PenstockError
from core.resources import Key, KindRef, Resource
from core.resources.builtin import DEPLOYMENT, POD, WORKLOADS
from serving.instances.kubernetes.deployment import (
    deployment_of,
    is_active,
    is_marked,
    is_owned,
    leaving,
    marked,
    overdue,
    refusal,
    scaled,
    without,
)
from serving.instances.kubernetes.logs import PodLogs, followed, told
from serving.instances.kubernetes.status import instance_of, steps
from serving.instances.kubernetes.template import REVISION_LABEL
from serving.instances.port import CannotRun, Instance, InstanceSpec, Listener, LogLine

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
        self._revisions: dict[Place, _Revision] = {}
        #: Which revision's an instance is, by its namespace and name.
        self._holders: dict[Place, _Revision] = {}
        self._listeners: list[Listener] = []
        self._attended: Counter[Place] = Counter()
        self._changed = asyncio.Event()
        follower.subscribe(self._observe)

    async def run(self) -> None:
        """Until cancelled: end the pods that leave and that nobody here was asked to stop."""
        await self._follower.synced.wait()
        async with asyncio.TaskGroup() as tasks:
            while True:
                changed = self._changed
                for revision in self._revisions.values():
                    for name in revision.leaving():
                        if not self._attended[revision.namespace, name]:
                            tasks.create_task(self.stop(revision.namespace, name), name=f"stop {name}")
                await changed.wait()

    def watch(self, listener: Listener) -> None:
        self._listeners.append(listener)
        for revision in self._revisions.values():
            for instance in revision.told.values():
                listener(instance)

    async def scale(self, spec: InstanceSpec, count: int) -> None:
        wanted = deployment_of(spec)
        revision = self._at((spec.namespace, spec.revision))
        async with revision.lock:
            for _ in range(MAX_ATTEMPTS):
                try:
                    await self._scale(revision, wanted, count)
                    break
                except (Conflict, NotFound):
                    await self._read_again(revision, wanted.key)
            else:
                raise Conflict(f"{wanted.key} changes all the time. It will be scaled a little later.")
        refused = refusal(revision.deployment) if revision.deployment is not None else None
        if refused is not None and count > sum(1 for one in revision.told.values() if one.phase != "draining"):
            raise refused

    async def stop(self, namespace: str, name: str) -> None:
        self._attended[namespace, name] += 1
        failures = 0
        try:
            while (revision := self._holders.get((namespace, name))) is not None:
                changed = revision.changed
                try:
                    await self._take_out(revision, name)
                    failures = 0
                    await changed.wait()
                except PenstockError as error:
                    failures += 1
                    if failures == 1:
                        facts = {"instance": name, "error": str(error)}
                        _log.warning("an instance cannot be stopped just now; trying again", extra={"facts": facts})
                    await asyncio.sleep(STOP_BACKOFF.delay_s(failures, self._rng))
        finally:
            self._attended[namespace, name] -= 1
            if not self._attended[namespace, name]:
                del self._attended[namespace, name]

    def log(self, namespace: str, revision: str, *, tail: int | None, follow: bool) -> AsyncGenerator[LogLine]:
        def present() -> dict[str, Resource]:
            held = self._revisions.get((namespace, revision))
            return dict(held.pods) if held is not None else {}

        return followed(self._logs, present, tail) if follow else told(self._logs, present(), tail)

    # Writing

    async def _scale(self, revision: _Revision, wanted: Resource, count: int) -> None:
        held = revision.deployment
        try:
            if held is None:
                fresh = wanted.with_spec({**wanted.spec, "replicas": count})
                revision.keep(await self._store.create(fresh))
                return
            if not is_owned(held, wanted):
                raise CannotRun("NotOwned", f"{held.key} belongs to somebody else. Delete it, or rename the Revision.")
            changed = scaled(held, wanted, revision.pods, count)
            if changed is not held:
                revision.keep(await self._store.update(changed))
        except CannotRun:
            raise
        except InvalidInput as error:
            raise CannotRun("InvalidPod", f"The cluster does not take the Revision's pods: {error}") from error

    async def _take_out(self, revision: _Revision, name: str) -> None:
        """Bring this pod nearer to its end: whatever is to be written for that now, and nothing a second time."""
        async with revision.lock:
            pod, deployment = revision.pods.get(name), revision.deployment
            if pod is None or not is_active(pod):
                return
            if deployment is None:
                # The Revision is deleted, its Deployment too; the pods are collected some time later.
                await self._delete(pod)
                return
            if name not in leaving(deployment):
                if not is_marked(pod):
                    await self._mark(revision, pod)
                await self._shrink(revision, deployment, name)
            elif name in overdue(deployment, revision.pods):
                await self._delete(pod)

    async def _mark(self, revision: _Revision, pod: Resource) -> None:
        for _ in range(MAX_ATTEMPTS):
            try:
                revision.keep(await self._store.update(marked(pod)))
                return
            except Conflict:
                pod = await self._store.get(pod.key)
            except NotFound:
                return
        raise Conflict(f"{pod.key} changes all the time. It will be stopped a little later.")

    async def _shrink(self, revision: _Revision, deployment: Resource, name: str) -> None:
        for _ in range(MAX_ATTEMPTS):
            try:
                changed = without(deployment, name, revision.pods)
                if changed is not deployment:
                    revision.keep(await self._store.update(changed))
                self._tell(revision)
                return
            except (Conflict, NotFound):
                await self._read_again(revision, deployment.key)
                if revision.deployment is None:
                    return
                deployment = revision.deployment
        raise Conflict(f"{deployment.key} changes all the time. It will be scaled a little later.")

    async def _delete(self, pod: Resource) -> None:
        try:
            await self._store.delete(pod.key, uid=pod.meta.uid)
        except (NotFound, Conflict):
            return

    async def _read_again(self, revision: _Revision, key: Key) -> None:
        try:
            revision.deployment = await self._store.get(key)
        except NotFound:
            revision.deployment = None

    # Watching

    def _observe(self, batch: Sequence[Observed]) -> None:
        touched: dict[Place, _Revision] = {}
        for observed in batch:
            if observed.key.kind not in FOLLOWED:
                continue
            before, after = _place(observed.before), _place(observed.after)
            if before is not None and before != after:
                touched[before] = self._at(before)
                touched[before].lose(observed.before)
            if after is not None and observed.after is not None:
                touched[after] = self._at(after)
                touched[after].keep(observed.after)
        for place, revision in touched.items():
            self._tell(revision)
            revision.changed = _renewed(revision.changed)
            if revision.is_forgotten:
                del self._revisions[place]
        if touched:
            self._changed = _renewed(self._changed)

    def _tell(self, revision: _Revision) -> None:
        for instance in revision.news():
            if instance.phase == "gone":
                del self._holders[instance.namespace, instance.name]
            else:
                self._holders[instance.namespace, instance.name] = revision
            for listener in self._listeners:
                listener(instance)

    def _at(self, place: Place) -> _Revision:
        return self._revisions.setdefault(place, _Revision(place))


class _Revision:
    """What is known of one Revision's Deployment and pods, and what was told of them."""

    def __init__(self, place: Place) -> None:
        self.namespace, self.name = place
        self.lock = asyncio.Lock()
        #: Set, and replaced by a new one, with each change.
        self.changed = asyncio.Event()
        self.deployment: Resource | None = None
        self.pods: dict[str, Resource] = {}
        self.told: dict[str, Instance] = {}

    @property
    def is_forgotten(self) -> bool:
        return self.deployment is None and not self.pods and not self.told and not self.lock.locked()

    def leaving(self) -> list[str]:
        """Pods that leave and are not being deleted yet."""
        if self.deployment is None:
            return []
        return [name for name in leaving(self.deployment) if name in self.pods and is_active(self.pods[name])]

    def keep(self, resource: Resource) -> None:
        """This state, unless a newer one is known: the follower is behind what was just written."""
        if resource.ref == POD:
            if _is_newer(resource, self.pods.get(resource.meta.name)):
                self.pods[resource.meta.name] = resource
        elif _is_newer(resource, self.deployment):
            self.deployment = resource

    def lose(self, resource: Resource | None) -> None:
        if resource is None:
            return
        if resource.ref == POD:
            self.pods.pop(resource.meta.name, None)
        elif self.deployment is not None and self.deployment.meta.uid == resource.meta.uid:
            self.deployment = None

    def news(self) -> list[Instance]:
        """What a listener has not been told."""
        found: list[Instance] = []
        left = leaving(self.deployment) if self.deployment is not None else frozenset[str]()
        present: set[str] = set()
        for name, pod in self.pods.items():
            instance = instance_of(pod, is_leaving=name in left)
            if instance is None:
                continue
            present.add(name)
            for step in steps(self.told.get(name), instance):
                self.told[name] = step
                found.append(step)
        for name in self.told.keys() - present:
            found.append(replace(self.told.pop(name), phase="gone", address=None))
        return found


def _renewed(event: asyncio.Event) -> asyncio.Event:
    """Wake who waits for this event; the one to wait for from now on."""
    event.set()
    return asyncio.Event()


def _place(resource: Resource | None) -> Place | None:
    """The Revision that a Deployment or pod of ours is for."""
    revision = resource.meta.labels.get(REVISION_LABEL) if resource is not None else None
    return (resource.meta.namespace, revision) if resource is not None and revision else None


def _is_newer(resource: Resource, held: Resource | None) -> bool:
    if held is None or held.meta.uid != resource.meta.uid:
        return True
    return int(resource.meta.resource_version) >= int(held.meta.resource_version)
