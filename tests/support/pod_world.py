"""A cluster in memory, as far as Deployments and pods are concerned: a ReplicaSet that makes and ends pods in
Kubernetes' order, and nodes that run them by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from core.control.cache import Follower, Observed
from core.control.memory import MemoryStore
from core.errors import Conflict, FieldError, InvalidInput, NotFound
from core.resources import Key, ObjectMeta, Resource, owner_reference
from core.resources.builtin import DEPLOYMENT, POD

__all__ = ["PodStore", "PodWorld"]

#: What keeps a deleted pod until its containers have ended, as a kubelet does.
_KUBELET = "tests/kubelet"
_COST = "controller.kubernetes.io/pod-deletion-cost"


class PodStore(MemoryStore):
    """Refuses a Deployment that the Kubernetes API would refuse, for the one reason that tests use."""

    async def create(self, resource: Resource) -> Resource:
        pod = resource.spec.get("template", {}).get("spec", {})
        if resource.ref == DEPLOYMENT and pod.get("restartPolicy", "Always") != "Always":
            rule = "must be Always"
            broken = FieldError(path="spec.template.spec.restartPolicy", rule=rule, value=pod["restartPolicy"])
            raise InvalidInput.of(str(resource.key), [broken])
        return await super().create(resource)


class PodWorld:
    """Plays the controllers and kubelets on `store`. A pod is scheduled at once, ready `start_s` seconds later, takes
    `drain_s` to end, and a crashed container is started again after `restart_s`. `run` it in a task.

    `frozen` keeps the ReplicaSet from doing anything. `logs` is a `PodLogs`.
    """

    def __init__(
        self, store: MemoryStore, *, start_s: float = 0.01, drain_s: float = 0.01, restart_s: float = 0.05
    ) -> None:
        self.store = store
        self.start_s, self.drain_s, self.restart_s = start_s, drain_s, restart_s
        self.frozen = False
        self.logs = PodLogFiles()
        self.next_number = 1
        self._news = asyncio.Event()
        self._follower = Follower(store, (DEPLOYMENT, POD), self._observe)
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[Key] = set()

    async def run(self) -> None:
        following = asyncio.create_task(self._follower.run())
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                for deployment in self._follower.list(DEPLOYMENT):
                    if not self.frozen:
                        await self._replicate(deployment)
                for pod in self._follower.list(POD):
                    self._keep_house(pod)
        finally:
            for task in (following, *self._tasks):
                task.cancel()
            await asyncio.gather(following, *self._tasks, return_exceptions=True)

    # What a test does to the cluster.

    def thaw(self) -> None:
        self.frozen = False
        self._news.set()

    async def change(self, name: str, status: dict[str, Any]) -> None:
        """Set the pod's status."""
        pod = await self.store.get(Key(POD, "default", name))
        await self.store.update_status(pod.with_status({**pod.status, **status}))

    async def unready(self, name: str) -> None:
        await self.change(name, {"conditions": [{"type": "Ready", "status": "False"}]})

    async def evict(self, name: str) -> None:
        """The node is short of memory: the pod fails, and stays as a record of it."""
        await self.change(name, {"phase": "Failed", "reason": "Evicted", "message": "low on memory", "conditions": []})

    async def crash(self, name: str) -> None:
        """Its container ends by itself, and is started again."""
        pod = await self.store.get(Key(POD, "default", name))
        (container,) = pod.status["containerStatuses"]
        ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "it crashed"}}
        again = {**container, "restartCount": container["restartCount"] + 1, "ready": False}
        await self.change(
            name,
            {
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{**container, "state": ended}],
            },
        )
        self._later(self.restart_s, self.change(name, {"containerStatuses": [{**again, "lastState": ended}]}))
        self._later(self.restart_s + self.start_s, self._start(name, again["restartCount"]))

    # ReplicaSet

    async def _replicate(self, deployment: Resource) -> None:
        """Once for each turn: like the real one, on the pods that it knows of."""
        listed = (await self.store.list(POD)).items
        pods = [
            pod
            for pod in listed
            if any(owner.uid == deployment.meta.uid for owner in pod.meta.owner_references)
            and not pod.meta.deletion_timestamp
            and pod.status.get("phase") not in ("Succeeded", "Failed")
        ]
        surplus = len(pods) - int(deployment.spec["replicas"])
        for _ in range(-surplus):
            await self.store.create(self._pod(deployment))
        for pod in sorted(pods, key=_rank)[: max(0, surplus)]:
            await self.store.delete(pod.key)

    def _pod(self, deployment: Resource) -> Resource:
        template = deployment.spec["template"]
        number, self.next_number = self.next_number, self.next_number + 1
        meta = ObjectMeta(
            name=f"{deployment.meta.name}-{number:05d}",
            namespace=deployment.meta.namespace,
            labels=template["metadata"]["labels"],
            annotations=template["metadata"]["annotations"],
            finalizers=(_KUBELET,),
            owner_references=(owner_reference(deployment),),
        )
        return Resource(ref=POD, meta=meta, body={"spec": template["spec"]})

    # Kubelet

    def _keep_house(self, pod: Resource) -> None:
        if pod.meta.deletion_timestamp:
            self._once(pod.key, "ends", self.drain_s, self._end(pod.key))
        elif not pod.status:
            self._once(pod.key, "starts", self.start_s, self._start(pod.meta.name, 0))

    async def _start(self, name: str, restarts: int) -> None:
        container = {"name": "user-container", "restartCount": restarts, "ready": True, "state": {"running": {}}}
        await self.change(
            name,
            {
                "phase": "Running",
                "podIP": f"10.244.0.{int(name[-5:])}",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [container],
            },
        )

    async def _end(self, key: Key) -> None:
        self.logs.end(key.name)
        pod = await self.store.get(key)
        await self.store.update(pod.with_meta(finalizers=()))

    def _once(self, key: Key, what: str, seconds: float, work: Any) -> None:
        marker = Key(key.kind, what, key.name)
        if marker in self._busy:
            work.close()
            return
        self._busy.add(marker)
        self._later(seconds, work)

    def _later(self, seconds: float, work: Any) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(seconds)
                await work
            except (NotFound, Conflict):
                pass  # it was deleted meanwhile
            finally:
                work.close()

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _observe(self, batch: Sequence[Observed]) -> None:
        self._news.set()


class PodLogFiles:
    """Containers' logs in memory; implements `serving.instances.kubernetes.logs.PodLogs`."""

    def __init__(self) -> None:
        self._lines: dict[str, list[tuple[str, str]]] = {}
        self._ended: set[str] = set()
        self._written = asyncio.Condition()
        self._times = iter(range(1, 100_000))
        #: What the next readings raise, in order.
        self.fail_next: list[Exception] = []

    async def write(self, name: str, text: str) -> None:
        time = f"2026-01-01T00:00:00.{next(self._times):09d}Z"
        self._lines.setdefault(name, []).append((time, text))
        async with self._written:
            self._written.notify_all()

    def end(self, name: str) -> None:
        self._ended.add(name)

    async def read(
        self, namespace: str, pod: str, container: str, *, tail: int | None, since: str | None, follow: bool
    ) -> AsyncGenerator[tuple[str, str]]:
        if self.fail_next:
            raise self.fail_next.pop(0)
        if pod in self._ended:
            raise NotFound(f"There is no pod {pod}.")
        lines = self._lines.setdefault(pod, [])
        # A whole second of what is known comes again, as from the Kubernetes API.
        position = 0 if since or tail is None else max(0, len(lines) - tail)
        while True:
            while position < len(lines):
                yield lines[position]
                position += 1
            if not follow or self.fail_next:
                return
            async with self._written:
                while len(lines) == position and not self.fail_next:
                    await self._written.wait()


def _rank(pod: Resource) -> tuple[bool, int, str]:
    """Which pods a ReplicaSet ends first."""
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in pod.status.get("conditions", ()))
    return ready, int(pod.meta.annotations.get(_COST, 0)), pod.meta.name
