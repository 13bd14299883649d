"""Several gateways, the control side and instances on virtual time, with a network and functions in memory.

The functions keep the oracle: how many requests each instance works on at once. A function goes on with a request whose
gateway was killed, as functions do that do not notice; one whose client hangs up ends it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import msgspec

from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.control.port import Change
from core.net.types import (
    Address,
    BodySink,
    ConnectFailed,
    ConnectionLost,
    Headers,
    NetError,
    RequestHead,
    Response,
    ResponseListener,
)
from core.resources import Key, KindRef, ObjectMeta, Registry, Resource
from core.resources.builtin import ENDPOINT_SLICE
from core.telemetry import Metrics
from serving.autoscaler import FOLLOWED, Autoscaler
from serving.demand import DemandReport
from serving.gateways import Identity
from serving.instances.memory import MemoryInstances
from serving.instances.spec import FOLLOWED as VARIABLE_SOURCES
from serving.instances.spec import instance_spec
from serving.node import GatewayNode
from serving.reconcile import reconcilers
from serving.resources import KINDS, SERVICE
from serving.scaling import ScalingSettings
from tests.support.gateway_world import Outside
from tests.support.virtual_time import VirtualClock

SYSTEM = "penstock"
HOST = b"hello.default.localhost:8080"
CONTROL: Address = ("10.0.1.1", 8082)
#: From one end of the network to the other.
HOP_S = 0.001


class Lagging(MemoryStore):
    """A store that tells each follower of changes a while later, each time another while."""

    def __init__(self, rng: random.Random, *, max_lag_s: float) -> None:
        super().__init__()
        self._rng = rng
        self._max_lag_s = max_lag_s

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        async for change in super().watch(kind, since, namespace):
            if self._max_lag_s:
                await asyncio.sleep(self._rng.random() * self._max_lag_s)
            yield change


class Work:
    """A request that an instance works on: the gateway's `UpstreamRequest`."""

    def __init__(self, world: Several, asker: Gate, address: Address, length: int | None, listener: Any) -> None:
        self._world = world
        self._asker = asker
        self.address = address
        self._listener = listener
        self._over = False
        self._begun = False
        #: A body that was not sent whole is never answered.
        self._complete = length == 0
        self._handle = asyncio.get_running_loop().call_later(HOP_S, self._arrive)

    def write(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        if not self._complete and self._begun and not self._over:
            self._serve()
        self._complete = True

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def cancel(self) -> None:
        self._handle.cancel()
        self._finish()

    def _arrive(self) -> None:
        if not self._asker.alive:
            return
        if self.address not in self._world.listening():
            self._over = True
            self._listener.failed(ConnectFailed("refused"))
            return
        self._begun = True
        self._world.begin(self.address)
        self._world.works[self] = None
        if self._complete:
            self._serve()

    def _serve(self) -> None:
        served_s = self._world.served_s()
        self._handle = asyncio.get_running_loop().call_later(served_s, self._answer)

    def _answer(self) -> None:
        self._finish()
        if self._asker.alive:
            self._listener.whole(200, [], b"ok")

    def cut(self, asker: Gate) -> None:
        """The gateway is gone: a function whose request did not come whole sees that."""
        if self._asker is asker and not self._complete:
            self._finish()

    def crash(self) -> None:
        """The instance's process ends."""
        self._handle.cancel()
        self._finish()
        if self._asker.alive:
            self._world.broken += 1
            self._listener.failed(ConnectionLost("crashed", sent=True, fresh=True))

    def _finish(self) -> None:
        if self._begun and not self._over:
            self._world.running[self.address] -= 1
            self._world.works.pop(self, None)
        self._over = True


class Link:
    """A request between two gateways: the `UpstreamRequest` of one, the `Exchange` of the other."""

    def __init__(
        self, giver: Gate, taker: Gate, head: RequestHead, listener: ResponseListener, expecting: bool
    ) -> None:
        self.giver = giver
        self.taker = taker
        self.accepted = not expecting
        self._head = head
        self._listener: Any = listener
        self._sink: BodySink | None = None
        self._over = False
        self._paused = False
        self._waiting: list[Callable[[], None]] = []
        self._soon(self._arrive)

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(HOP_S, call, *args)

    # --- to the taker

    def _arrive(self) -> None:
        if self._over or not self.giver.alive:
            return
        if not self.taker.accepting:
            self._over = True
            self._listener.failed(ConnectFailed("refused"))
            return
        self.taker.links[self] = None
        self._sink = self.taker.node.handler(self._head, self)
        if self._head.content_length == 0:
            self._deliver(self._sink.end)

    def _deliver(self, call: Callable[[], None]) -> None:
        """The request's body, as far as the taker wants it."""
        if self._over:
            return
        if self._paused or self._sink is None:
            self._waiting.append(call)
        else:
            call()

    def write(self, chunk: bytes) -> None:
        assert self.accepted, "a body was sent before it was asked for"
        self._soon(lambda: self._deliver(lambda: self._sink.body(chunk)))  # type: ignore[union-attr]  # delivered to it

    def end(self) -> None:
        assert self.accepted, "a body was sent before it was asked for"
        self._soon(lambda: self._deliver(self._sink.end))  # type: ignore[union-attr]  # delivered to it

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self.taker.links.pop(self, None)
            if self._sink is not None and self.taker.alive:
                self._soon(self._sink.lost)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._soon(self._flush)

    def _flush(self) -> None:
        while self._waiting and not self._paused and not self._over:
            self._waiting.pop(0)()

    # --- to the giver

    def proceed(self) -> None:
        if not self.accepted:
            self.accepted = True
            self._soon(self._tell, "proceed")

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self._end()
        if not self._over:
            self._soon(self._tell_last, "whole", status, headers, body)

    def start(self, status: int, headers: Headers, content_length: int | None) -> None:
        raise AssertionError("the functions here answer whole")

    def abort(self) -> None:
        self.cut()

    def cut(self) -> None:
        """The connection ends."""
        self._end()
        if not self._over:
            error = ConnectionLost("cut", sent=True, fresh=True)
            self._soon(self._tell_last, "failed", error)

    def _end(self) -> None:
        self.taker.links.pop(self, None)

    def _tell(self, method: str, *args: Any) -> None:
        if not self._over and self.giver.alive:
            getattr(self._listener, method)(*args)

    def _tell_last(self, method: str, *args: Any) -> None:
        self._tell(method, *args)
        self._over = True


class Gate:
    """A gateway process: what `GatewayNode` needs, and its death."""

    def __init__(self, world: Several, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.address: Address = (f"10.0.0.{number}", 8080)
        self.alive = True
        self.accepting = False
        self.links: dict[Link, None] = {}
        self.asked: list[Outside] = []
        self.node = GatewayNode(
            store=world.store,
            client=self,
            control_address=CONTROL,
            broker_address=None,
            me=Identity(id=name, namespace=SYSTEM),
            metrics=Metrics(),
            rng=world.rng,
        )

    def send(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int | None,
        listener: ResponseListener,
        *,
        encoded_headers: bytes = b"",
    ) -> Any:
        taker = next((gate for gate in self.world.gates if gate.address == address), None)
        if taker is None:
            return Work(self.world, self, address, content_length, listener)
        expecting = b"expect: 100-continue" in encoded_headers
        head = RequestHead(method, target, dict(headers)[b"host"], headers, content_length, self.address[0])
        self.world.handed += 1
        return Link(self, taker, head, listener, expecting)

    def fetch(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        then: Callable[[Response | NetError], None],
    ) -> Callable[[], None]:
        assert address == CONTROL

        def arrive() -> None:
            self.world.autoscaler.report(msgspec.json.decode(body, type=DemandReport))
            if self.alive:
                then(Response(204, [], b""))

        return asyncio.get_running_loop().call_later(HOP_S, arrive).cancel

    def ask(self, *, length: int = 0) -> Outside:
        """A client's request."""
        outside = Outside()
        head = RequestHead(b"POST", b"/", HOST, [(b"host", HOST)], length, "192.0.2.1")
        outside.sink = self.node.handler(head, outside)
        if not outside.paused:
            self._complete(outside, length)
        else:
            outside.resume = lambda: self._resume(outside, length)  # type: ignore[method-assign]  # a client that waits
        self.asked.append(outside)
        return outside

    def _resume(self, outside: Outside, length: int) -> None:
        if outside.paused:
            outside.paused = False
            asyncio.get_running_loop().call_soon(self._complete, outside, length)

    def _complete(self, outside: Outside, length: int) -> None:
        if outside.sink is not None and not outside.complete and not outside.aborted:
            if length:
                outside.sink.body(b"x" * length)
            outside.sink.end()

    def kill(self) -> None:
        """kill -9: connections to it are cut, and it never says anything again."""
        self.alive = self.accepting = False
        self.world.cut += sum(link.accepted for link in self.links)
        for link in tuple(self.links):
            link.cut()
        for gate in self.world.gates:
            for link in tuple(gate.links):
                if link.giver is self:
                    link.cancel()
        for work in tuple(self.world.works):
            work.cut(self)
        self.world.stop_task(self)


class Several:
    """The platform with several gateways. `limit` is the Service's containerConcurrency."""

    def __init__(self, rng: random.Random, *, limit: int = 1, max_lag_s: float = 0.0) -> None:
        self.rng = rng
        self.limit = limit
        self.store = Lagging(rng, max_lag_s=max_lag_s)
        self.instances = MemoryInstances(start_s=0.3, drain_s=1.0)
        self.clock = VirtualClock()
        self.gates: list[Gate] = []
        self.running: Counter[Address] = Counter()
        self.most = 0
        self.works: dict[Work, None] = {}
        #: Requests handed over, those of them that a killed gateway had begun, and those that an instance broke off.
        self.handed = 0
        self.cut = 0
        self.broken = 0
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self.loop = ControlLoop(
            self.store,
            reconcilers(url_suffix=".localhost:8080"),
            self.clock,
            also_follow=FOLLOWED | VARIABLE_SOURCES,
        )
        self.autoscaler = self._autoscaler()

    def _autoscaler(self) -> Autoscaler:
        return Autoscaler(
            store=self.store,
            follower=self.loop.follower,
            instances=self.instances,
            describe=lambda revision: instance_spec(revision, self.loop.follower.get),
            clock=self.clock,
            settings=ScalingSettings(),
            metrics=Metrics(),
            gateways_in=SYSTEM,
        )

    async def start(self, *names: str, **scaling: Any) -> None:
        """The Service, its first instance, and these gateways."""
        self._tasks["loop"] = asyncio.create_task(self.loop.run())
        self._tasks["autoscaler"] = asyncio.create_task(self.autoscaler.run())
        annotations = {"penstock.dev/source": "hello"}
        for key, value in scaling.items():
            annotations[f"autoscaling.knative.dev/{key.replace('_', '-')}"] = str(value)
        spec = {"containers": [{"image": "x"}], "containerConcurrency": self.limit}
        service = Resource(
            ref=SERVICE,
            meta=ObjectMeta(name="hello", namespace="default"),
            body={"spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}}},
        )
        await self.store.create(Registry(KINDS).get(SERVICE).default(service))
        for name in names:
            await self.join(name)
        await asyncio.sleep(3.0)

    async def succeed(self) -> None:
        """The control process dies, and another one goes on."""
        self._tasks["autoscaler"].cancel()
        await asyncio.gather(self._tasks["autoscaler"], return_exceptions=True)
        self.autoscaler = self._autoscaler()
        self._tasks["autoscaler"] = asyncio.create_task(self.autoscaler.run())

    async def join(self, name: str) -> Gate:
        gate = Gate(self, name, len(self.gates) + 1)
        self.gates.append(gate)
        await gate.node.start()
        await self.list_gateway(gate, ready=False)
        self._tasks[gate] = asyncio.create_task(self._probe(gate))
        return gate

    async def _probe(self, gate: Gate) -> None:
        while not gate.node.synced:  # noqa: ASYNC110 - as a kubelet finds out
            await asyncio.sleep(0.05)
        gate.accepting = True
        if gate.alive:
            await self.list_gateway(gate)

    async def list_gateway(self, gate: Gate, *, ready: bool = True, terminating: bool = False) -> None:
        """As Kubernetes lists the pods of a Service; one slice for each, for brevity."""
        document = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"gateway-{gate.name}",
                "namespace": SYSTEM,
                "labels": {"penstock.dev/component": "gateway"},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [gate.address[0]],
                    "conditions": {"ready": ready and not terminating, "terminating": terminating},
                    "targetRef": {"kind": "Pod", "name": gate.name},
                }
            ],
            "ports": [{"name": "http", "port": gate.address[1]}],
        }
        listing = Resource.from_dict(document)
        if any(held.key == listing.key for held in (await self.store.list(ENDPOINT_SLICE)).items):
            await self.store.update(listing)
        else:
            await self.store.create(listing)

    async def delist(self, gate: Gate) -> None:
        await self.store.delete(Key(ENDPOINT_SLICE, SYSTEM, f"gateway-{gate.name}"))

    async def end(self, gate: Gate) -> None:
        """As Kubernetes ends a pod: it is listed as being ended, drains, and is gone."""
        await self.list_gateway(gate, terminating=True)
        gate.accepting = False
        await gate.node.drain(30.0)
        gate.alive = False
        await self.delist(gate)

    @property
    def alive(self) -> list[Gate]:
        return [gate for gate in self.gates if gate.alive]

    async def owners(self) -> Counter[str]:
        """How many instances each gateway has."""
        slices = (await self.store.list(ENDPOINT_SLICE, "default")).items
        return Counter(held.meta.annotations["penstock.dev/gateway"] for held in slices)

    def stop_task(self, gate: Gate) -> None:
        following = gate.node._following
        if following is not None:
            following.cancel()
        gate.node._reporter.close()
        gateway = gate.node._gateway
        if gateway._timer is not None:
            gateway._timer.cancel()

    async def close(self) -> None:
        for gate in self.alive:
            gate.kill()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self.instances.close()
        assert self.most <= self.limit, f"an instance worked on {self.most} requests at once"

    # --- the functions

    def listening(self) -> Iterator[Address]:
        return (one.address for one in self.instances.instances if one.address is not None)

    def served_s(self) -> float:
        return self.rng.choice([0.02, 0.05, 0.2, 1.0])

    def begin(self, address: Address) -> None:
        self.running[address] += 1
        self.most = max(self.most, self.running[address])

    def crash(self, name: str) -> None:
        """An instance's process ends by itself."""
        address = next(one.address for one in self.instances.instances if one.name == name)
        self.instances.crash(name)
        for work in [work for work in self.works if work.address == address]:
            work.crash()
