"""The test kubelet's process: registers its nodes, binds pods to them, and runs a worker for each pod.

`cluster` starts it: ``python -m tests.support.kubelet.agent --nodes '[{"name": "worker-0"}]' ...``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import uvloop

from tests.support.kubelet import logs
from tests.support.kubelet.api import AWAY, Api, ApiError
from tests.support.kubelet.claims import Claims
from tests.support.kubelet.images import Images
from tests.support.kubelet.nodes import NodeShape, heartbeat, register
from tests.support.kubelet.pod import Machine, PodWorker
from tests.support.kubelet.sandbox import Network
from tests.support.kubelet.scheduling import place
from tests.support.kubelet.spec import Node, Pod, parse
from tests.support.kubelet.status import condition

__all__ = ["Agent", "main"]

_LOG = logging.getLogger("kubelet")
#: What did not get a node is tried again with every change, and at least this often.
_RETRY_S: Final = 1.0


class Agent:
    """Follows pods and nodes; owns the workers of the pods that are bound to its nodes."""

    def __init__(self, machine: Machine, names: set[str]) -> None:
        self._machine = machine
        self._names = names
        self._pods: dict[str, Pod] = {}
        self._nodes: dict[str, Node] = {}
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._schedule = asyncio.Event()
        self._told: dict[str, str] = {}

    def runs(self, namespace: str, pod: str, container: str) -> bool:
        """Whether the container may still write to its log."""
        del container
        return any(worker.pod.key == f"{namespace}/{pod}" for worker in self._workers.values())

    async def run(self) -> None:
        api = self._machine.api
        async with asyncio.TaskGroup() as group:
            group.create_task(api.follow("/api/v1/nodes", self._node_changed, self._nodes_synced))
            group.create_task(api.follow("/api/v1/pods", self._pod_changed, self._pods_synced))
            group.create_task(Claims(api, self._machine.folder).run())
            group.create_task(self._schedule_pods())
            for name in self._names:
                group.create_task(heartbeat(api, name))

    # Following

    def _nodes_synced(self, items: list[Any]) -> None:
        self._nodes = {node.metadata.name: node for node in (parse(Node, item) for item in items)}
        self._schedule.set()

    def _node_changed(self, kind: str, item: Any) -> None:
        node = parse(Node, item)
        if kind == "DELETED":
            self._nodes.pop(node.metadata.name, None)
        else:
            self._nodes[node.metadata.name] = node
        self._schedule.set()

    def _pods_synced(self, items: list[Any]) -> None:
        pods = [parse(Pod, item) for item in items]
        present = {pod.metadata.uid for pod in pods}
        for uid in [uid for uid in self._pods if uid not in present]:
            self._forget(uid)
        for pod in pods:
            self._take(pod)

    def _pod_changed(self, kind: str, item: Any) -> None:
        pod = parse(Pod, item)
        if kind == "DELETED":
            self._forget(pod.metadata.uid)
        else:
            self._take(pod)

    def _take(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        self._pods[uid] = pod
        self._schedule.set()
        if uid in self._workers:
            self._workers[uid].update(pod)
        elif pod.spec.node_name in self._names and (not pod.terminal or pod.metadata.deletion_timestamp is not None):
            worker = self._workers[uid] = PodWorker(self._machine, pod)
            self._tasks[uid] = asyncio.ensure_future(self._work(uid, worker))

    def _forget(self, uid: str) -> None:
        self._pods.pop(uid, None)
        self._told.pop(uid, None)
        self._schedule.set()
        if uid in self._workers:
            self._workers[uid].gone()

    async def _work(self, uid: str, worker: PodWorker) -> None:
        """A worker's boundary: its fault is its pod's alone."""
        try:
            await worker.run()
        except Exception:  # noqa: BLE001 - a task's boundary, which logs
            _LOG.exception("%s", worker.pod.key)
        finally:
            del self._workers[uid], self._tasks[uid]

    # Scheduling

    async def _schedule_pods(self) -> None:
        while True:
            await self._schedule.wait()
            self._schedule.clear()
            done = True
            for pod in [pod for pod in self._pods.values() if not pod.spec.node_name and not pod.terminal]:
                if pod.metadata.deletion_timestamp is None:
                    done = await self._bind(pod) and done
            if not done:
                await asyncio.sleep(_RETRY_S)
                self._schedule.set()

    async def _bind(self, pod: Pod) -> bool:
        """Whether it need not be tried again before something changes."""
        metadata = pod.metadata
        placement = place(pod, list(self._nodes.values()), self._pods.values())
        path = f"/api/v1/namespaces/{metadata.namespace}/pods/{metadata.name}"
        try:
            if placement.node:
                target = {"kind": "Node", "apiVersion": "v1", "name": placement.node}
                body = {"metadata": {"name": metadata.name, "uid": metadata.uid}, "target": target}
                await self._machine.api.create(f"{path}/binding", body)
                # The watch will tell; until then the next pod is not to count on the same room.
                spec = msgspec.structs.replace(pod.spec, node_name=placement.node)
                if metadata.uid in self._pods and not self._pods[metadata.uid].spec.node_name:
                    self._pods[metadata.uid] = msgspec.structs.replace(pod, spec=spec)
            elif self._told.get(metadata.uid) != placement.reason:
                unplaced = condition("PodScheduled", False, time.time(), "Unschedulable")
                await self._tell(pod, path, unplaced | {"message": placement.reason})
        except ApiError as error:
            _LOG.info("binding %s: %s", pod.key, error)
            return error.status in {404, 409}
        except AWAY as error:
            _LOG.info("binding %s: %s", pod.key, error)
            return False
        return True

    async def _tell(self, pod: Pod, path: str, unplaced: dict[str, Any]) -> None:
        others = [one for one in pod.status.conditions if one["type"] != "PodScheduled"]
        body = {"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [*others, unplaced]}}
        await self._machine.api.merge(f"{path}/status", body)
        self._told[pod.metadata.uid] = unplaced["message"]


async def run(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    shapes = msgspec.json.decode(options.nodes, type=list[NodeShape])
    async with Api(options.kubeconfig) as api, aiohttp.ClientSession() as client:
        machine = Machine(
            api=api,
            client=client,
            network=Network(),
            images=Images(options.images),
            folder=folder,
            node_address=options.address,
            restart_base_s=options.restart_base,
        )
        agent = Agent(machine, {shape.name for shape in shapes})
        server, port = await logs.serve(
            folder, agent.runs, address=options.address, certificate=options.certificate, key=options.key
        )
        try:
            for shape in shapes:
                await register(api, shape, options.address, port)
            await agent.run()
        finally:
            await server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.kubelet.agent")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--nodes", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--restart-base", type=float, default=1.0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
