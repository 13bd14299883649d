"""The gateway over real loopback sockets: core.net's server and client, small asyncio instances behind it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from core.net.client import Client
from core.net.server import HttpServer
from core.net.types import Address, Headers, NetError, Response
from core.telemetry import Metrics
from serving.demand import DemandReporter
from serving.gateway import Gateway
from serving.node import CLIENT_LIMITS
from serving.routing import Endpoint, RevisionKey, RevisionLimits, RouteTarget, RoutingTable, Snapshot
from tests.support.functions import Call, Function, Script, connect, read_answer, read_head, until

APP, NEXT = RevisionKey("shop", "app-1"), RevisionKey("shop", "app-2")
HOST = b"app.shop.localhost"


class Running:
    """A gateway that listens, and a client for asking it."""

    def __init__(self, gateway: Gateway, server: HttpServer, client: Client) -> None:
        self.gateway = gateway
        self.server = server
        self.client = client
        self.limits = RevisionLimits()

    @property
    def address(self) -> Address:
        return self.server.address

    def swap(self, *endpoints: Endpoint, others: tuple[Endpoint, ...] = (), split: tuple[int, int] = (100, 0)) -> None:
        target = RouteTarget.of("shop/app", [(APP, split[0]), (NEXT, split[1])])
        self.gateway.swap(
            Snapshot(
                table=RoutingTable({HOST: target}),
                limits={APP: self.limits, NEXT: self.limits},
                endpoints={APP: endpoints, NEXT: others},
            )
        )

    async def ask(
        self, method: bytes = b"GET", target: bytes = b"/", body: bytes = b"", headers: Headers | None = None
    ) -> Response:
        fields = [(b"host", HOST), *(headers or [])]
        return await self.client.request(self.address, method, target, fields, body, timeout_s=10.0, max_bytes=1 << 20)

    async def quiet(self) -> None:
        await until(lambda: self.gateway.active == 0)


@asynccontextmanager
async def running(*endpoints: Endpoint, limits: RevisionLimits | None = None) -> AsyncIterator[Running]:
    metrics = Metrics()
    upstreams, client = Client(limits=CLIENT_LIMITS), Client(limits=CLIENT_LIMITS)
    # Nobody listens there: reports are lost, which must not matter.
    reporter = DemandReporter(gateway_id="g", address=("127.0.0.1", 1), fetch=upstreams.fetch, monotonic=time.monotonic)
    gateway = Gateway(
        send=upstreams.send, reporter=reporter, metrics=metrics, rng=random.Random(3), monotonic=time.monotonic
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = HttpServer(gateway.handle)
    await server.start(sock)
    it = Running(gateway, server, client)
    it.limits = limits or RevisionLimits()
    it.swap(*endpoints)
    try:
        yield it
    finally:
        reporter.close()
        await client.close()
        await server.drain(0.0)
        await gateway.drain(0.0)
        await upstreams.close()


async def echo(call: Call) -> None:
    call.answer(200, await call.body(), headers=f"x-target: {call.target}\r\n")


def named(name: str) -> Script:
    async def script(call: Call) -> None:
        await call.body()
        call.answer(200, name.encode())

    return script


async def test_a_request_passes_with_its_host_and_without_the_headers_of_the_hop() -> None:
    seen: list[Call] = []

    async def script(call: Call) -> None:
        seen.append(call)
        call.answer(
            200, await call.body(), headers="keep-alive: timeout=5\r\nconnection: x-hop\r\nx-hop: 1\r\nx-own: 2\r\n"
        )

    async with Function(script) as function, running(function.endpoint) as it, connect(it.address) as (reader, writer):
        writer.write(
            b"POST /a%20b?c=d HTTP/1.1\r\nHost: App.Shop.localhost\r\nConnection: keep-alive, X-Secret\r\n"
            b"X-Secret: 1\r\nKeep-Alive: timeout=1\r\nTE: trailers\r\nX-Plain: yes\r\nContent-Length: 4\r\n\r\nbody"
        )
        status, headers, body = await read_answer(reader)
    assert (status, body) == (200, b"body")
    assert headers == {"x-own": "2", "content-length": "4"}
    [call] = seen
    assert (call.method, call.target) == ("POST", "/a%20b?c=d")
    names = {name for name, _ in call.headers}
    assert names == {
        "host",
        "x-plain",
        "content-length",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "forwarded",
    }
    assert call.header("host") == "App.Shop.localhost"
    assert call.header("x-forwarded-for") == "127.0.0.1"
    assert call.header("forwarded") == 'for=127.0.0.1;host="app.shop.localhost";proto=http'


async def test_a_request_waits_for_an_instance_and_is_then_served() -> None:
    async with Function(echo) as function, running() as it:
        asked = [asyncio.create_task(it.ask(b"POST", body=b"x" * size)) for size in (0, 10, 200_000)]
        await until(lambda: it.gateway.active == 3)
        it.swap(function.endpoint)
        assert [len((await task).body) for task in asked] == [0, 10, 200_000]


async def test_under_load_the_limit_is_never_exceeded_and_everything_is_answered() -> None:
    async def script(call: Call) -> None:
        await call.body()
        await asyncio.sleep(0)
        call.answer()

    async with Function(script, "a") as a, Function(script, "b") as b, running() as it:
        it.limits = RevisionLimits(concurrency=2)
        it.swap(a.endpoint, b.endpoint)
        answers = await asyncio.gather(*(it.ask(b"POST", body=b"1") for _ in range(200)))
        assert Counter(answer.status for answer in answers) == {200: 200}
        assert (a.most, b.most) == (2, 2)
        assert a.calls + b.calls == 200
        assert abs(a.calls - b.calls) < 60


async def test_waiting_requests_are_served_in_the_order_they_came() -> None:
    order: list[str] = []

    async def script(call: Call) -> None:
        order.append(call.target)
        call.answer()

    async with Function(script) as function, running(limits=RevisionLimits(concurrency=1)) as it:
        asked = []
        for number in range(20):
            asked.append(asyncio.create_task(it.ask(target=b"/%d" % number)))
            await until(lambda: it.gateway.active == len(asked))
        it.swap(function.endpoint)
        await asyncio.gather(*asked)
    assert order == [f"/{number}" for number in range(20)]


@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["without body", "with a short body"])
async def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(body: bytes) -> None:
    async with Function(echo) as function, running() as it:
        async with connect(it.address) as (_, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b" % (HOST, len(body), body))
            await until(lambda: it.gateway.active == 1)
        await it.quiet()
        it.swap(function.endpoint)
        assert (await it.ask()).status == 200
        assert function.calls == 1


async def test_a_client_that_hangs_up_while_it_is_served_frees_the_slot_and_the_instance_sees_it() -> None:
    seen = asyncio.Event()

    async def script(call: Call) -> None:
        if call.target == "/slow":
            assert not await call.reader.read(1)
            seen.set()
            call.writer.close()
        else:
            call.answer()

    async with Function(script) as function, running(function.endpoint, limits=RevisionLimits(concurrency=1)) as it:
        async with connect(it.address) as (_, writer):
            writer.write(b"GET /slow HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST)
            await until(lambda: function.running == 1)
            waiting = asyncio.create_task(it.ask(target=b"/next"))
            await until(lambda: it.gateway.active == 2)
        assert (await waiting).status == 200
        await asyncio.wait_for(seen.wait(), 10)


async def test_an_instance_that_dies_mid_answer_breaks_the_answer_visibly() -> None:
    async def script(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await call.writer.drain()
        call.writer.close()

    async with Function(script) as function, running(function.endpoint) as it, connect(it.address) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST)
        assert (await read_head(reader))[0] == 200
        assert await reader.readexactly(9) == b"4\r\nhalf\r\n"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        await it.quiet()


async def test_an_instance_that_dies_before_its_answer_is_a_502_and_the_request_is_not_repeated() -> None:
    async def script(call: Call) -> None:
        await call.body()
        call.writer.transport.abort()

    async with Function(script) as function, running(function.endpoint) as it:
        answer = await it.ask(b"POST", body=b"x")
        assert (answer.status, answer.header(b"penstock-reason")) == (502, b"broken-answer")
        assert function.calls == 1


async def test_a_kept_connection_that_the_instance_closes_is_replaced_where_that_is_safe() -> None:
    async def script(call: Call) -> None:
        await call.body()
        if call.number == 1:
            call.answer()
        else:
            call.writer.close()

    async with Function(script) as function, running(function.endpoint) as it:
        for _ in range(2):
            assert (await it.ask()).status == 200
        assert function.calls == 3
        unsafe = await it.ask(b"POST", body=b"x")
        assert unsafe.status == 502
        assert function.calls == 4


async def test_a_port_where_nobody_listens_is_passed_over() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = Endpoint("dead", unused.getsockname())
        async with Function(echo, "alive") as function, running(dead, function.endpoint) as it:
            answers = await asyncio.gather(*(it.ask(b"POST", body=b"%d" % n) for n in range(20)))
            assert [answer.body for answer in answers] == [b"%d" % n for n in range(20)]


async def test_head_and_bodiless_answers_keep_their_framing() -> None:
    async def script(call: Call) -> None:
        if call.method == "HEAD":
            call.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n")
        else:
            call.writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with Function(script) as function, running(function.endpoint) as it, connect(it.address) as (reader, writer):
        for method, expected in (
            (b"HEAD", (200, {"content-length": "13"})),
            (b"GET", (204, {})),
            (b"HEAD", (200, {"content-length": "13"})),
        ):
            writer.write(b"%b / HTTP/1.1\r\nHost: %b\r\n\r\n" % (method, HOST))
            assert await read_head(reader) == expected


async def test_bodies_stream_both_ways_before_they_are_complete() -> None:
    async def script(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        async for piece in call.chunks():
            call.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        call.writer.write(b"0\r\n\r\n")

    async with Function(script) as function, running(function.endpoint) as it, connect(it.address) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % HOST)
        assert (await read_head(reader))[0] == 200
        for word in (b"ping", b"pong"):
            writer.write(b"4\r\n%b\r\n" % word)
            assert await asyncio.wait_for(reader.readexactly(9), 10) == b"4\r\n%b\r\n" % word
        writer.write(b"0\r\n\r\n")
        assert await asyncio.wait_for(reader.readexactly(5), 10) == b"0\r\n\r\n"


BLOCK = bytes(range(256)) * 256
BLOCKS = 640  # 40 MiB
#: Kernel buffers of two loopback connections at both ends (up to 6 MiB each), and core.net's own of 256 KiB.
MOST_ON_THE_WAY = 28 * 1024 * 1024


async def push(writer: asyncio.StreamWriter, sent: list[int]) -> None:
    for _ in range(BLOCKS):
        writer.write(BLOCK)
        await writer.drain()
        sent[0] += len(BLOCK)


async def stalled(sent: list[int]) -> None:
    """Wait until the sender makes no more progress."""
    before = -1
    async with asyncio.timeout(10):
        while before != sent[0]:
            before = sent[0]
            await asyncio.sleep(0.1)


async def test_an_instance_that_reads_slowly_slows_the_client_down() -> None:
    read_on, digest = asyncio.Event(), hashlib.sha256()

    async def script(call: Call) -> None:
        await read_on.wait()
        async for piece in call.chunks():
            digest.update(piece)
        call.answer()

    async with Function(script) as function, running(function.endpoint) as it, connect(it.address) as (reader, writer):
        writer.write(b"PUT / HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n" % (HOST, len(BLOCK) * BLOCKS))
        sent = [0]
        pushing = asyncio.create_task(push(writer, sent))
        await stalled(sent)
        assert sent[0] < MOST_ON_THE_WAY
        read_on.set()
        await pushing
        assert (await read_answer(reader))[0] == 200
    assert digest.digest() == hashlib.sha256(BLOCK * BLOCKS).digest()


async def test_a_client_that_reads_slowly_slows_the_instance_down() -> None:
    sent = [0]

    async def script(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(BLOCK) * BLOCKS))
        await push(call.writer, sent)

    async with Function(script) as function, running(function.endpoint) as it, connect(it.address) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST)
        await read_head(reader)
        await stalled(sent)
        assert sent[0] < MOST_ON_THE_WAY
        digest = hashlib.sha256()
        for _ in range(BLOCKS):
            digest.update(await asyncio.wait_for(reader.readexactly(len(BLOCK)), 10))
    assert digest.digest() == hashlib.sha256(BLOCK * BLOCKS).digest()


async def test_swapping_tables_under_load_loses_no_request() -> None:
    async with AsyncExitStack() as stack:
        functions = [await stack.enter_async_context(Function(named(f"f{n}"), f"f{n}")) for n in range(4)]
        it = await stack.enter_async_context(running(functions[0].endpoint, limits=RevisionLimits(concurrency=3)))
        answers: list[Response | NetError] = []
        rng = random.Random(11)
        done = False

        def reached(goal: int) -> bool:
            return len(answers) >= goal

        async def load() -> None:
            while not done:
                answers.append(await it.ask(b"POST", body=b"x"))

        tasks = [asyncio.create_task(load()) for _ in range(12)]
        for _ in range(60):
            chosen = rng.sample(functions, rng.randint(0, 4))
            share = rng.choice([0, 30, 100])
            others = rng.sample(functions, rng.randint(0, 4))
            it.swap(
                *(function.endpoint for function in chosen),
                others=tuple(function.endpoint for function in others),
                split=(100 - share, share),
            )
            # Where one of them has no instance, its requests wait until a later table.
            if chosen and others:
                await until(partial(reached, len(answers) + 10))
        it.swap(functions[0].endpoint, others=(functions[1].endpoint,))
        done = True
        await asyncio.gather(*tasks)
        assert Counter(a.status if isinstance(a, Response) else str(a) for a in answers) == {200: len(answers)}
        assert len(answers) > 200
        assert max(function.most for function in functions) <= 6, "two revisions of limit 3 share each instance here"
        await it.quiet()


async def test_a_split_reaches_both_revisions_in_their_shares() -> None:
    async with Function(named("one")) as one, Function(named("two")) as two, running() as it:
        it.swap(one.endpoint, others=(two.endpoint,), split=(75, 25))
        answers = await asyncio.gather(*(it.ask() for _ in range(400)))
        seen = Counter(answer.body for answer in answers)
        assert seen[b"one"] + seen[b"two"] == 400
        # The generator is seeded; five standard deviations leave room for the order of arrival only.
        assert abs(seen[b"two"] - 100) < 44


async def test_a_drain_lets_a_request_finish_and_refuses_new_connections() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        call.answer()

    async with Function(script) as function, running(function.endpoint) as it:
        asked = asyncio.create_task(it.ask())
        await until(lambda: function.running == 1)
        drained = asyncio.gather(it.server.drain(10.0), it.gateway.drain(10.0))
        await asyncio.sleep(0)
        release.set()
        assert (await asked).status == 200
        await drained
        with pytest.raises(NetError):
            await it.ask()
