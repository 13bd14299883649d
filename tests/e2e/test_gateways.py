"""Several real gateway processes before real functions: the limit of each instance holds, and any gateway may die.

The control side runs in the test's process. Gateways are listed, probed and missed by the test, as a cluster would.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.clock import SystemClock
from core.control.gc import GarbageCollector
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.net.client import Client
from core.net.types import Address, NetError
from core.resources import Key, ObjectMeta, Registry, Resource
from core.resources.builtin import ENDPOINT_SLICE
from core.telemetry import Metrics
from penstock.apiserver.app import create_app
from penstock.apiserver.listener import serving
from penstock.kinds import registry
from serving.app import create_router
from serving.autoscaler import FOLLOWED, Autoscaler
from serving.instances.local import LocalProcesses
from serving.instances.spec import FOLLOWED as VARIABLE_SOURCES
from serving.instances.spec import instance_spec
from serving.reconcile import reconcilers
from serving.resources import KINDS, SERVICE
from serving.scaling import ScalingSettings
from tests.support.functions import until
from tests.support.gateway_process import NAMESPACE

pytestmark = pytest.mark.e2e

LIMIT = 2
CLIENTS = 8
HOST = b"counting.default.localhost"
START_TIMEOUT_S = 60.0

#: Writes how many requests it works on, whenever there is one more, to a file of its process.
COUNTING = """
import asyncio, os
from pathlib import Path

RECORD = Path(__file__).parent / "counts"
running = 0

async def app(scope, receive, send):
    global running
    if scope["type"] != "http":
        return
    running += 1
    with (RECORD / str(os.getpid())).open("a") as record:
        print(running, file=record)
    try:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.1)
    finally:
        running -= 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"counted"})
"""


class Gateway:
    """A gateway's process, and what its clients were told."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, address: Address) -> None:
        self.name = name
        self.process = process
        self.address = address
        self.told: Counter[int | str] = Counter()

    async def ask(self, client: Client, size: int) -> None:
        try:
            answer = await client.request(
                self.address, b"POST", b"/", [(b"host", HOST)], b"x" * size, timeout_s=60.0, max_bytes=1000
            )
        except NetError as error:
            self.told[type(error).__name__] += 1
            await asyncio.sleep(0.1)
        else:
            self.told[answer.status] += 1

    async def load(self, client: Client, ended: asyncio.Event, size: int) -> None:
        while not ended.is_set():
            await self.ask(client, size)


class Cluster:
    """The control side, and gateways in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.gateways: list[Gateway] = []
        self.client = Client()

    @asynccontextmanager
    async def running(self, count: int, **scaling: int) -> AsyncIterator[None]:
        clock, kinds = SystemClock(), registry()
        loop = ControlLoop(
            self.store, reconcilers(url_suffix=".localhost"), clock, also_follow=FOLLOWED | VARIABLE_SOURCES
        )
        instances = LocalProcesses(directory=self.folder / "instances", root=self.folder, environment=dict(os.environ))
        await instances.start()
        autoscaler = Autoscaler(
            store=self.store,
            follower=loop.follower,
            instances=instances,
            describe=lambda revision: instance_spec(revision, loop.follower.get),
            clock=clock,
            settings=ScalingSettings(),
            metrics=Metrics(),
            gateways_in=NAMESPACE,
        )
        collector = GarbageCollector(self.store, loop.follower)
        router = create_router(autoscaler=autoscaler, instances=instances)
        app = create_app(store=self.store, registry=kinds, clock=clock, metrics=Metrics(), extra_routers=(router,))
        listener = socket.create_server(("127.0.0.1", 0))
        tasks = [asyncio.create_task(each) for each in (loop.run(), autoscaler.run(), collector.run())]
        async with serving(app, listener, drain_s=1.0):
            try:
                await self._deploy(**scaling)
                names = [f"gateway-{number}" for number in range(count)]
                await asyncio.gather(*(self._start(name, listener.getsockname()[1]) for name in names))
                await until(lambda: self._answers(autoscaler), START_TIMEOUT_S)
                for gateway in self.gateways:
                    await self._serves(gateway)
                yield
            finally:
                await self.client.close()
                for gateway in self.gateways:
                    if gateway.process.returncode is None:
                        gateway.process.kill()
                    await gateway.process.wait()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await instances.close(within_s=0)

    async def _deploy(self, **scaling: int) -> None:
        source = self.folder / "counting"
        (source / "counts").mkdir(parents=True)
        (source / "function.py").write_text(COUNTING)
        annotations = {"penstock.dev/source": "counting"}
        annotations |= {f"autoscaling.knative.dev/{name.replace('_', '-')}": str(n) for name, n in scaling.items()}
        spec = {"containers": [{"image": "counting"}], "containerConcurrency": LIMIT}
        service = Resource(
            ref=SERVICE,
            meta=ObjectMeta(name="counting", namespace="default"),
            body={"spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}}},
        )
        await self.store.create(Registry(KINDS).get(SERVICE).default(service))

    async def _start(self, name: str, api_port: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.gateway_process", name, str(api_port), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            word, port = (await process.stdout.readline()).split()
        assert word == b"ready"
        gateway = Gateway(name, process, ("127.0.0.1", int(port)))
        self.gateways.append(gateway)
        await self.list_gateway(gateway)

    async def list_gateway(self, gateway: Gateway, *, terminating: bool = False) -> None:
        name, port = gateway.name, gateway.address[1]
        conditions = {"ready": not terminating, "serving": not terminating, "terminating": terminating}
        document: dict[str, Any] = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"penstock.dev/component": "gateway"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["127.0.0.1"], "conditions": conditions, "targetRef": {"kind": "Pod", "name": name}}
            ],
            "ports": [{"name": "http", "port": port}],
        }
        write = self.store.update if terminating else self.store.create
        await write(Resource.from_dict(document))

    def _answers(self, autoscaler: Autoscaler) -> bool:
        decisions = autoscaler.decisions("default", "counting")
        return bool(decisions) and decisions[-1].ready >= decisions[-1].desired > 0

    async def _serves(self, gateway: Gateway) -> None:
        """Wait until it has the tables, as a cluster's readiness probe would."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not gateway.told[200]:
                await gateway.ask(self.client, 0)
        gateway.told.clear()

    async def kill(self, gateway: Gateway) -> None:
        """kill -9, and what a cluster does once it sees that."""
        gateway.process.send_signal(signal.SIGKILL)
        await gateway.process.wait()
        await self.delist(gateway)

    async def delist(self, gateway: Gateway) -> None:
        await self.store.delete(Key(ENDPOINT_SLICE, NAMESPACE, gateway.name))

    async def owners(self) -> Counter[str]:
        slices = (await self.store.list(ENDPOINT_SLICE, "default")).items
        return Counter(held.meta.annotations["penstock.dev/gateway"] for held in slices)

    def counts(self) -> dict[str, list[int]]:
        """What each instance's process has recorded."""
        records = (self.folder / "counting" / "counts").iterdir()
        return {record.name: [int(line) for line in record.read_text().split()] for record in records}


async def _under_load(cluster: Cluster) -> Gateway:
    """Everybody asks, then the gateway with most instances is killed, and everybody goes on. Returns the dead one."""
    ended = asyncio.Event()
    sizes = [0, 100, 100_000, 1_000_000]
    load = [
        asyncio.create_task(gateway.load(cluster.client, ended, sizes[number % len(sizes)]))
        for gateway in cluster.gateways
        for number in range(CLIENTS)
    ]
    await until(lambda: all(gateway.told[200] >= 20 for gateway in cluster.gateways), START_TIMEOUT_S)
    ((name, _),) = (await cluster.owners()).most_common(1)
    (dead,) = [gateway for gateway in cluster.gateways if gateway.name == name]
    await cluster.kill(dead)
    others = [gateway for gateway in cluster.gateways if gateway is not dead]
    before = {gateway.name: gateway.told[200] for gateway in others}
    await until(lambda: all(gateway.told[200] >= before[gateway.name] + 40 for gateway in others), START_TIMEOUT_S)
    ended.set()
    await asyncio.gather(*load)
    return dead


@pytest.mark.parametrize(
    ("instances", "gateways"), [(1, 3), (3, 3), (4, 2)], ids=["one for three", "one for each", "two for each"]
)
async def test_the_limit_holds_and_nothing_is_refused_when_a_gateway_is_killed(
    tmp_path: Path, instances: int, gateways: int
) -> None:
    cluster = Cluster(tmp_path)
    async with cluster.running(gateways, min_scale=instances, max_scale=instances, initial_scale=instances):
        dead = await _under_load(cluster)
        counts = cluster.counts()
        assert len(counts) == instances
        assert {max(each) for each in counts.values()} == {LIMIT}
        assert dead.name not in await cluster.owners()
        for gateway in cluster.gateways:
            if gateway is not dead:
                # What the dead one had begun for another gateway was broken off.
                assert set(gateway.told) <= {200, 502}
                assert gateway.told[502] <= LIMIT * instances


async def test_a_gateway_that_is_told_to_end_loses_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with cluster.running(2, min_scale=1, max_scale=1):
        ((name, _),) = (await cluster.owners()).most_common(1)
        (ending,) = [gateway for gateway in cluster.gateways if gateway.name == name]
        (staying,) = [gateway for gateway in cluster.gateways if gateway.name != name]
        asked = [asyncio.create_task(gateway.ask(cluster.client, 100)) for gateway in cluster.gateways * 10]
        await until(lambda: staying.told[200] >= 2, START_TIMEOUT_S)
        await cluster.list_gateway(ending, terminating=True)
        ending.process.send_signal(signal.SIGTERM)
        await ending.process.wait()
        await cluster.delist(ending)
        await asyncio.gather(*asked)
        assert ending.told == staying.told == {200: 10}
        assert {max(each) for each in cluster.counts().values()} == {LIMIT}
        assert await cluster.owners() == {staying.name: 1}
