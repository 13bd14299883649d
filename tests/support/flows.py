"""The whole event half on virtual time: store, reconcilers, a broker process, and subscribers that answer by script.

Manifests go in as a client's do, through admission; what is sent to the platform's own ingress gets there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import yaml

from broker.kinds import KINDS
from broker.learning import EventTypeLearner
from broker.log.memory import MemoryLog
from broker.log.port import Record
from broker.node import BrokerNode
from broker.reconcile import reconcilers
from broker.resources import DEFAULT_CLASS
from core.control.gc import GarbageCollector
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.errors import NotFound
from core.net.names import Names
from core.net.types import Address, Headers, NetError, Response
from core.resources import Key, KindRef, Registry, Resource
from core.telemetry import Metrics
from penstock.apiserver.admission import Place, admit, for_create, for_update, read_resource
from tests.support.broker import Answer, Request, Spoken, Subscribers, ask, binary
from tests.support.virtual_time import VirtualClock, run_virtual

__all__ = ["World", "in_world", "replies"]

_REGISTRY = Registry(KINDS)
_INGRESS = "broker-ingress.knative-eventing.svc.cluster.local"


class _Network(Subscribers):
    """Subscribers, and the platform's ingress among them."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

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
        encoded_headers: bytes = b"",
        tls: bool = False,
    ) -> Callable[[], None]:
        if dict(headers)[b"host"] != _INGRESS.encode():
            return super().fetch(
                address,
                method,
                target,
                headers,
                body,
                timeout_s=timeout_s,
                max_bytes=max_bytes,
                then=then,
                encoded_headers=encoded_headers,
                tls=tls,
            )
        lines = [line.split(b": ", 1) for line in encoded_headers.split(b"\r\n")[:-1]]
        task = asyncio.create_task(self._ingress(target, [(line[0], line[1]) for line in lines], body, then))
        return lambda: bool(task.cancel()) and None

    async def _ingress(
        self, target: bytes, headers: Headers, body: bytes, then: Callable[[Response | NetError], None]
    ) -> None:
        exchange = ask(self._world.node.handler, target.decode(), headers, body)
        await exchange.answered.wait()
        then(Response(exchange.status, exchange.headers, exchange.body))


class World:
    """Everything put together. `apply` takes manifests, `send` publishes, `settle` lets everything take its course."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(clock=self.clock)
        self.log = MemoryLog()
        #: Everything that was stored, in order.
        self.records: list[Record] = []
        self.log.tail(self.records.append)
        self.subscribers = _Network(self)
        self.loop = ControlLoop(
            self.store, reconcilers(), self.clock, also_follow=(kind.ref for kind in KINDS), metrics=Metrics()
        )
        self.collector = GarbageCollector(self.store, self.loop.follower, metrics=Metrics())
        self.learner = EventTypeLearner(self.store)
        self.node = BrokerNode(
            hear=self.learner.hear,
            store=self.store,
            logs={DEFAULT_CLASS: self.log},
            client=self.subscribers,
            names=Names(broker=("127.0.0.1", 8081)),
            clock=self.clock,
            metrics=Metrics(),
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> World:
        self._tasks = [
            asyncio.create_task(each) for each in (self.loop.run(), self.collector.run(), self.learner.run())
        ]
        await self.node.start()
        await self.settle()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.drain(1)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.store.close()

    async def settle(self, seconds: float = 10.0) -> None:
        await asyncio.sleep(seconds)

    # ---- resources

    async def apply(self, manifests: str) -> None:
        for document in yaml.safe_load_all(manifests):
            kind = _REGISTRY.get(KindRef.parse(document["apiVersion"], document["kind"]))
            given = read_resource(document, kind, Place("default"), "Strict").resource
            try:
                old = await self.store.get(given.key)
            except NotFound:
                await self.store.create(admit(for_create(given, kind), kind, None))
            else:
                await self.store.update(admit(for_update(given, old, kind), kind, old))
        await self.settle()

    async def get(self, kind: KindRef, name: str) -> Resource:
        return await self.store.get(Key(kind, "default", name))

    async def delete(self, kind: KindRef, name: str) -> None:
        await self.store.delete(Key(kind, "default", name))
        await self.settle()

    async def names(self, kind: KindRef) -> list[str]:
        return [resource.meta.name for resource in (await self.store.list(kind)).items]

    async def conditions(self, kind: KindRef, name: str) -> dict[str, tuple[str, str]]:
        """Status and reason by type."""
        held = (await self.get(kind, name)).status["conditions"]
        return {entry["type"]: (entry["status"], entry.get("reason", "")) for entry in held}

    # ---- events

    async def send(self, path: str, event_id: str = "e1", event_type: str = "test.made", **extensions: str) -> Spoken:
        """Publish, and wait until everything that follows from it has happened."""
        exchange = ask(self.node.handler, path, binary(event_id, event_type, **extensions))
        await exchange.answered.wait()
        await self.settle()
        return exchange

    def script(self, host: str, *answers: Answer | Callable[[Request], Answer]) -> None:
        """Answer so, one after the other; the last one from then on."""

        def answer(request: Request, n: int) -> Answer:
            chosen = answers[min(n, len(answers) - 1)]
            return chosen if isinstance(chosen, Answer) else chosen(request)

        self.subscribers.scripts[host] = answer

    def ids(self, host: str) -> list[str]:
        return self.subscribers.ids(host)

    def outcomes(self) -> list[tuple[int, int, str]]:
        return [(attempt.number, attempt.status, attempt.outcome) for attempt in self.log.attempts]


def replies(suffix: str, event_type: str = "test.answered") -> Callable[[Request], Answer]:
    """Answers each event with one whose id is the event's with `suffix` added."""
    return lambda request: Answer(200, binary(request.event.id + suffix, event_type), b'{"r": 1}')


def in_world(body: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs an async test in a world of its own, on virtual time."""

    async def main() -> None:
        async with World() as world:
            await body(world)

    def test() -> None:
        run_virtual(main())

    test.__name__ = body.__name__
    test.__doc__ = body.__doc__
    return test
