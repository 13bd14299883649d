"""The harness on the in-memory store, with real folders, our own client, and a real HTTP sink."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.clock import SystemClock
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.errors import Conflict
from core.events import CloudEvent, from_http, new_event
from core.net.body import collect
from core.net.client import Client
from core.net.names import Names
from core.net.server import HttpServer
from core.net.types import BodySink, Exchange, RequestHead
from core.resources import Key, KindRef, ObjectMeta, Resource
from core.resources.builtin import SECRET
from core.telemetry import Metrics
from sources.checkpoints import MemoryCheckpoints
from sources.factories import FACTORIES
from sources.harness import SourceRunner
from sources.port import Emit, Source, SourceContext, SourceFactory
from sources.reconcile import DEPLOYED, reconcilers
from sources.resources import OBJECT_STORE_SOURCE

DEADLINE_S = 20.0
DEMO = KindRef("sources.example.com", "v1", "DemoSource")


class Sink:
    """A real HTTP server that keeps the events it accepts, and answers `status`."""

    def __init__(self) -> None:
        self.events: list[CloudEvent] = []
        self.refused = 0
        self.status = 202
        self.changed = asyncio.Event()
        self._server: HttpServer | None = None
        self._port = 0

    def _handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        def done(body: bytes) -> None:
            if self.status < 300:
                self.events.append(from_http(head.headers, body))
            else:
                self.refused += 1
            exchange.respond(self.status, [])
            self.changed.set()

        return collect(exchange, max_bytes=1 << 20, then=done)

    async def up(self) -> None:
        """Start to listen; again on the same port as before."""
        listening = socket.create_server(("127.0.0.1", self._port))
        listening.setblocking(False)
        self._server = HttpServer(self._handle)
        await self._server.start(listening)
        self._port = self._server.address[1]

    async def down(self) -> None:
        if self._server is not None:
            await self._server.drain(0.0)
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/default/main"

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Bench:
    """A store, a sink, and what a SourceRunner needs beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = MemoryStore(clock=SystemClock())
        self.sink = Sink()
        self.client = Client()
        self.checkpoints = Marks()
        self.metrics = Metrics()

    @asynccontextmanager
    async def running(self, factories: Mapping[KindRef, SourceFactory] = FACTORIES) -> AsyncIterator[None]:
        runner = SourceRunner(
            store=self.store,
            factories=factories,
            requester=self.client,
            names=Names(),
            checkpoints=self.checkpoints,
            clock=SystemClock(),
            metrics=self.metrics,
            root=self.root,
        )
        task = asyncio.create_task(runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def create(self, resource: Resource) -> Resource:
        """Create it, and give it the status that the reconciler would."""
        return await self.resolve((await self.store.create(resource)).key)

    async def resolve(self, key: Key, url: str | None = None) -> Resource:
        """Do what the reconciler does about the sink, again where somebody else wrote in between."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                held = await self.store.get(key)
                status = {**held.status, "observedGeneration": held.meta.generation, "sinkUri": url or self.sink.url}
                try:
                    return await self.store.update_status(held.with_status(status))
                except Conflict:
                    continue

    async def until_deployed(self, key: Key, text: str) -> dict[str, Any]:
        """Wait until the condition Deployed reads so."""
        return await self.until_condition(key, DEPLOYED, text)

    async def until_condition(self, key: Key, kind: str, text: str) -> dict[str, Any]:
        """Wait until the condition reads so ("True", "False FolderMissing")."""
        async with asyncio.timeout(DEADLINE_S):
            listing = await self.store.list(key.kind)
            found = [resource for resource in listing.items if resource.key == key]
            watch = self.store.watch(key.kind, listing.version)
            try:
                while not (entry := _condition(found[-1], kind, text)):
                    change = await anext(watch)
                    if change.resource is not None and change.resource.key == key:
                        found.append(change.resource)
            finally:
                await watch.aclose()
            return entry


class Marks(MemoryCheckpoints):
    """The fake, with a view for assertions."""

    def held(self, source: str) -> dict[str, str]:
        return dict(self._marks.get(source, {}))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nothing announces: looked at on every turn of the loop."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def _condition(resource: Resource, kind: str, text: str) -> dict[str, Any]:
    for entry in resource.status.get("conditions", []):
        if entry["type"] == kind and f"{entry['status']} {entry.get('reason', '')}".strip() == text:
            return dict(entry)
    return {}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.sink.up()
    yield made
    await made.client.close()
    await made.sink.down()


def uploads(path: str = "uploads", create: bool = True, name: str = "uploads", **spec: object) -> Resource:
    held = {"bucket": "uploads", "store": {"folder": {"path": path, "create": create}}, "sink": {}, **spec}
    return Resource(ref=OBJECT_STORE_SOURCE, meta=ObjectMeta(name=name, namespace="default"), body={"spec": held})


def demo(**spec: object) -> Resource:
    return Resource(ref=DEMO, meta=ObjectMeta(name="demo", namespace="default"), body={"spec": spec})


async def test_an_upload_under_the_platforms_root_reaches_the_sink(bench: Bench) -> None:
    async with bench.running():
        source = await bench.create(uploads(ceOverrides={"extensions": {"team": "blue"}}))
        await bench.until_deployed(source.key, "True")
        (bench.root / "uploads" / "cat.jpg").write_bytes(b"meow")
        await bench.sink.until(lambda: len(bench.sink.events) == 1)
    event = bench.sink.events[0]
    assert event.subject == "cat.jpg"
    assert event.attributes["team"] == "blue"
    assert 'outcome="accepted"} 1' in bench.metrics.expose()


async def test_a_source_waits_until_its_status_names_a_sink(bench: Bench) -> None:
    async with bench.running():
        source = await bench.store.create(uploads())
        other = await bench.create(uploads(path="other", name="other"))
        await bench.until_deployed(other.key, "True")
        assert not (bench.root / "uploads").exists()
        await bench.resolve(source.key)
        await bench.until_deployed(source.key, "True")


async def test_nothing_is_lost_while_the_sink_is_down_or_answers_503(bench: Bench) -> None:
    async with bench.running():
        source = await bench.create(uploads())
        await bench.until_deployed(source.key, "True")
        await bench.sink.down()
        for number in range(40):
            (bench.root / "uploads" / f"{number:02}").write_bytes(b"x")
        bench.sink.status = 503
        await bench.sink.up()
        await bench.sink.until(lambda: bench.sink.refused >= 2)
        bench.sink.status = 202
        await bench.sink.until(lambda: len(bench.sink.events) == 40)
    assert sorted(str(event.subject) for event in bench.sink.events) == [f"{number:02}" for number in range(40)]


async def test_a_restarted_harness_repeats_nothing_and_misses_nothing(bench: Bench) -> None:
    async with bench.running():
        source = await bench.create(uploads())
        await bench.until_deployed(source.key, "True")
        (bench.root / "uploads" / "a").write_bytes(b"x")
        await bench.sink.until(lambda: len(bench.sink.events) == 1)
        await until(lambda: bool(bench.checkpoints.held(source.meta.uid)))
    (bench.root / "uploads" / "b").write_bytes(b"x")
    async with bench.running():
        await bench.sink.until(lambda: len(bench.sink.events) == 2)
    assert [event.subject for event in bench.sink.events] == ["a", "b"]


async def test_a_missing_folder_is_in_the_condition_until_it_is_there(bench: Bench) -> None:
    async with bench.running():
        source = await bench.create(uploads(create=False))
        entry = await bench.until_deployed(source.key, "False FolderMissing")
        assert str(bench.root / "uploads") in entry["message"]
        (bench.root / "uploads").mkdir()
        await bench.until_deployed(source.key, "True")


async def test_a_changed_sink_gets_the_events_that_come_after_the_change(bench: Bench) -> None:
    second = Sink()
    await second.up()
    try:
        async with bench.running():
            source = await bench.create(uploads())
            await bench.until_deployed(source.key, "True")
            (bench.root / "uploads" / "a").write_bytes(b"x")
            await bench.sink.until(lambda: len(bench.sink.events) == 1)
            await bench.resolve(source.key, second.url)
            (bench.root / "uploads" / "b").write_bytes(b"x")
            await second.until(lambda: any(event.subject == "b" for event in second.events))
    finally:
        await second.down()


async def test_a_changed_spec_replaces_the_source_once_its_status_has_caught_up(bench: Bench) -> None:
    started: list[object] = []

    def factory(resource: Resource, context: SourceContext) -> Source:
        started.append(resource.spec["number"])
        return Quiet(context)

    async with bench.running({DEMO: factory}):
        source = await bench.create(demo(number=1))
        await bench.until_deployed(source.key, "True")
        changed = await bench.store.update((await bench.store.get(source.key)).with_spec({"number": 2}))
        other = await bench.create(demo(number=9).with_meta(name="other"))
        await bench.until_deployed(other.key, "True")
        assert started == [1, 9], "while the status speaks of the older spec, what runs goes on"
        await bench.resolve(changed.key)
        await until(lambda: started == [1, 9, 2])


async def test_a_deleted_source_stops_and_its_checkpoints_and_metrics_go(bench: Bench) -> None:
    stopped = asyncio.Event()

    def factory(resource: Resource, context: SourceContext) -> Source:
        return Quiet(context, stopped)

    async with bench.running({DEMO: factory}):
        source = await bench.create(demo())
        await bench.until_deployed(source.key, "True")
        await bench.checkpoints.write(source.meta.uid, {"a": "1"})
        await bench.store.delete(source.key)
        await until(lambda: stopped.is_set() and not bench.checkpoints.held(source.meta.uid))
    assert 'name="demo"' not in bench.metrics.expose()


async def test_checkpoints_of_a_source_that_was_deleted_while_nobody_looked_are_dropped(bench: Bench) -> None:
    await bench.checkpoints.write("long-gone", {"a": "1"})
    async with bench.running():
        source = await bench.create(uploads())
        await bench.until_deployed(source.key, "True")
        assert "long-gone" not in await bench.checkpoints.sources()


async def test_a_source_that_raises_is_shown_logged_and_run_again_and_others_go_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    def factory(resource: Resource, context: SourceContext) -> Source:
        return Flaky(context, runs) if resource.meta.name == "demo" else Quiet(context)

    with caplog.at_level(logging.CRITICAL, logger="sources.harness"):
        async with bench.running({DEMO: factory}):
            source = await bench.create(demo())
            other = await bench.create(demo().with_meta(name="other"))
            entry = await bench.until_deployed(source.key, "False SourceFailed")
            assert "the upstream is on fire" in entry["message"]
            await bench.until_deployed(other.key, "True")
            await bench.until_deployed(source.key, "True")
            await bench.sink.until(lambda: len(bench.sink.events) == 1)
    assert len(runs) == 2


async def test_a_source_that_fails_while_it_is_stopped_is_stopped(bench: Bench) -> None:
    class FailsAtTheEnd:
        def __init__(self, context: SourceContext) -> None:
            self._context = context

        async def run(self, emit: Emit) -> None:
            self._context.ready()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                # What a TaskGroup does of which a task fails in that moment.
                raise ExceptionGroup("at the end", [OSError("connection lost")])

    async with asyncio.timeout(DEADLINE_S), bench.running({DEMO: lambda resource, context: FailsAtTheEnd(context)}):
        source = await bench.create(demo())
        await bench.until_deployed(source.key, "True")


async def test_a_source_reads_secrets_of_its_own_namespace(bench: Bench) -> None:
    found: list[Mapping[str, bytes]] = []
    body = {"data": {"user": "bWU=", "both": "b2xk"}, "stringData": {"both": "new"}}
    for namespace, more in (("default", {}), ("other", {"stringData": {"user": "somebody else"}})):
        meta = ObjectMeta(name="login", namespace=namespace)
        await bench.store.create(Resource(ref=SECRET, meta=meta, body={**body, **more}))
    async with bench.running({DEMO: lambda resource, context: Reads(context, found)}):
        source = await bench.create(demo())
        await bench.until_deployed(source.key, "True")
    assert found == [{"user": b"me", "both": b"new"}]


@pytest.mark.parametrize(
    ("body", "said"),
    [(None, 'Secret "default/login" does not exist'), ({"data": {"user": "!"}}, r"data\[user\].*Base64")],
    ids=["missing", "no Base64"],
)
async def test_a_secret_that_cannot_be_read_is_in_the_condition(
    bench: Bench, body: dict[str, object] | None, said: str
) -> None:
    if body is not None:
        meta = ObjectMeta(name="login", namespace="default")
        await bench.store.create(Resource(ref=SECRET, meta=meta, body=body))
    async with bench.running({DEMO: lambda resource, context: Reads(context, [])}):
        source = await bench.create(demo())
        reason = "SourceFailed" if body is None else "SourceInvalid"
        entry = await bench.until_deployed(source.key, f"False {reason}")
        assert re.search(said, entry["message"]), entry["message"]


async def test_what_a_source_measures_ends_when_it_does(bench: Bench) -> None:
    class Measures:
        def __init__(self, context: SourceContext) -> None:
            self._context = context

        async def run(self, emit: Emit) -> None:
            self._context.gauge("lag", "How far behind", topic="a").value = 7
            self._context.counter("seen_total", "What was seen").value += 1
            self._context.ready()
            await asyncio.get_running_loop().create_future()

    async with bench.running({DEMO: lambda resource, context: Measures(context)}):
        source = await bench.create(demo())
        await bench.until_deployed(source.key, "True")
        assert 'lag{kind="DemoSource",namespace="default",name="demo",topic="a"} 7' in bench.metrics.expose()
        await bench.store.delete(source.key)
        await until(lambda: 'name="demo"' not in bench.metrics.expose())


async def test_what_the_sink_does_not_take_goes_where_the_delivery_spec_says(bench: Bench) -> None:
    letters = Sink()
    await letters.up()
    bench.sink.status = 400
    try:
        async with bench.running({DEMO: lambda resource, context: Flaky(context, [1])}):
            source = await bench.store.create(demo(delivery={"deadLetterSink": {"uri": letters.url}}))
            held = await bench.store.get(source.key)
            await bench.store.update_status(held.with_status({"deadLetterSinkUri": letters.url}))
            await bench.resolve(source.key)
            await letters.until(lambda: len(letters.events) == 1)
    finally:
        await letters.down()
    assert letters.events[0].attributes["knativeerrorcode"] == "400"


async def test_a_sink_address_that_cannot_be_used_is_in_the_condition(bench: Bench) -> None:
    async with bench.running():
        created = await bench.store.create(uploads())
        source = await bench.resolve(created.key, "mailto:somebody@example.com")
        entry = await bench.until_deployed(source.key, "False SourceInvalid")
        assert "mailto:somebody@example.com" in entry["message"]


async def test_with_the_reconcilers_a_source_becomes_ready_and_follows_its_broker(bench: Bench) -> None:
    ref = KindRef("eventing.knative.dev", "v1", "Broker")
    sink = {"ref": {"apiVersion": ref.api_version, "kind": ref.kind, "name": "default"}}
    broker = Resource(ref=ref, meta=ObjectMeta(name="default", namespace="default"), body={"spec": {}})
    loop = ControlLoop(bench.store, reconcilers(), SystemClock())
    control = asyncio.create_task(loop.run())
    try:
        async with bench.running():
            source = await bench.store.create(uploads(sink=sink))
            await bench.until_condition(source.key, "Ready", "False NotFound")
            held = await bench.store.create(broker)
            await bench.store.update_status(held.with_status({"address": {"url": bench.sink.url}}))
            await bench.until_condition(source.key, "Ready", "True")
            (bench.root / "uploads" / "a").write_bytes(b"x")
            await bench.sink.until(lambda: len(bench.sink.events) == 1)
            await bench.store.delete(broker.key)
            await bench.until_condition(source.key, DEPLOYED, "Unknown WaitingForSink")
            (bench.root / "uploads" / "b").write_bytes(b"x")
            held = await bench.store.create(broker)
            await bench.store.update_status(held.with_status({"address": {"url": bench.sink.url}}))
            await bench.until_condition(source.key, "Ready", "True")
            await bench.sink.until(lambda: len(bench.sink.events) == 2)
    finally:
        control.cancel()
        await asyncio.wait([control])
    assert [event.subject for event in bench.sink.events] == ["a", "b"]


class Quiet:
    """A source to which nothing happens."""

    def __init__(self, context: SourceContext, stopped: asyncio.Event | None = None) -> None:
        self._context = context
        self._stopped = stopped

    async def run(self, emit: Emit) -> None:
        self._context.ready()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._stopped is not None:
                self._stopped.set()


class Reads:
    """A source that reads a Secret."""

    def __init__(self, context: SourceContext, found: list[Mapping[str, bytes]]) -> None:
        self._context = context
        self._found = found

    async def run(self, emit: Emit) -> None:
        self._found.append(await self._context.secret("login"))
        self._context.ready()
        await asyncio.get_running_loop().create_future()


class Flaky:
    """A source that fails the first time it is run."""

    def __init__(self, context: SourceContext, runs: list[int]) -> None:
        self._context = context
        self._runs = runs

    async def run(self, emit: Emit) -> None:
        self._runs.append(1)
        if len(self._runs) == 1:
            raise RuntimeError("the upstream is on fire")
        self._context.ready()
        await emit(new_event(type="demo", source="/demo", now=0.0))
        await asyncio.get_running_loop().create_future()
