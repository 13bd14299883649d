"""The load generator against a small server on the loopback interface."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from bench.http1 import LOST, UNREADABLE, Pool
from bench.loader import Loader
from bench.loops import ClosedLoop
from bench.messages import Connect, Connected, Deliveries, DeliveriesResult, Failed, Open, Request

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
DEADLINE_S = 10


class Scripted(asyncio.Protocol):
    """Answers every request with what `script` gives for its number; b"" closes the connection instead."""

    def __init__(self, script: Callable[[int], bytes], seen: list[int]) -> None:
        self._script = script
        self._seen = seen
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen.append(data.count(b"\r\n\r\n"))
        answer = self._script(len(self._seen) - 1)
        if answer:
            self._transport.write(answer)
        else:
            self._transport.close()


@asynccontextmanager
async def serving(script: Callable[[int], bytes]) -> AsyncIterator[tuple[int, list[int]]]:
    seen: list[int] = []
    server = await asyncio.get_running_loop().create_server(lambda: Scripted(script, seen), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def connected(port: int, connections: int) -> AsyncIterator[Pool]:
    pool = Pool("127.0.0.1", port)
    await pool.connect(connections)
    try:
        yield pool
    finally:
        await pool.close()


async def statuses(pool: Pool, count: int) -> list[int]:
    """Send `count` requests at once; their statuses in the order of the answers."""
    found: list[int] = []
    complete = asyncio.Event()

    def done(status: int) -> None:
        found.append(status)
        if len(found) == count:
            complete.set()

    for _ in range(count):
        pool.send(REQUEST, done)
    await asyncio.wait_for(complete.wait(), DEADLINE_S)
    return found


async def test_more_requests_than_connections_wait_and_each_is_answered_once() -> None:
    async with serving(lambda number: OK) as (port, seen), connected(port, 3) as pool:
        assert await statuses(pool, 50) == [200] * 50
    assert seen == [1] * 50  # one at a time on each connection


async def test_a_connection_that_is_closed_fails_its_request_and_is_made_anew() -> None:
    async with serving(lambda number: b"" if number == 1 else OK) as (port, _), connected(port, 1) as pool:
        assert await statuses(pool, 4) == [200, LOST, 200, 200]
        assert pool.reconnects == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + OK, id="more than one answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nhi", id="no end"),
    ],
)
async def test_an_unreadable_answer_fails_its_request_and_ends_the_connection(answer: bytes) -> None:
    async with serving(lambda number: answer if number == 0 else OK) as (port, _), connected(port, 1) as pool:
        assert await statuses(pool, 2) == [UNREADABLE, 200]
        assert pool.reconnects == 1


async def test_a_server_that_goes_away_fails_what_waits() -> None:
    seen: list[int] = []
    server = await asyncio.get_running_loop().create_server(lambda: Scripted(lambda number: b"", seen), "127.0.0.1", 0)
    async with connected(server.sockets[0].getsockname()[1], 1) as pool:
        server.close()  # the one connection stays, and the server ends it at its first request
        assert await statuses(pool, 5) == [LOST] * 5
    assert seen == [1]


async def test_a_closed_loop_over_real_connections_counts_each_failure() -> None:
    script = {3: b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", 7: b""}
    async with serving(lambda number: script.get(number, OK)) as (port, seen), connected(port, 4) as pool:
        loop = ClosedLoop(pool, count=100, width=4, request=lambda index: REQUEST, expect=200)
        await asyncio.wait_for(loop.run(DEADLINE_S), 2 * DEADLINE_S)
    assert loop.failures == {"status 503": 1, "no answer": 1}
    assert len(seen) == 100


@asynccontextmanager
async def loading() -> AsyncIterator[Loader]:
    loader = Loader()
    await loader.start()
    try:
        yield loader
    finally:
        await loader.close()


async def test_a_target_that_does_not_listen_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connecting is refused
        async with loading() as loader:
            answer = await loader.run(Connect(target="x", host="127.0.0.1", port=taken.getsockname()[1], connections=1))
    assert isinstance(answer, Failed)
    assert "refused" in answer.reason.lower() or "Connect call failed" in answer.reason


class Relay(asyncio.Protocol):
    """A broker in small: answers 202 and passes each event on to the sink, `copies(number of the event)` times."""

    def __init__(self, sink: list[asyncio.Transport], copies: Callable[[int], int]) -> None:
        self._sink = sink
        self._copies = copies
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        number = int(data.rpartition(b"ce-id: t-")[2].split(b"\r\n", 1)[0])
        self._transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        for _ in range(self._copies(number)):
            self._sink[0].write(data)


@pytest.mark.parametrize(
    ("copies", "lost", "duplicates"),
    [
        pytest.param(lambda number: 1, 0, 0, id="each once"),
        pytest.param(lambda number: 0 if number in (3, 4) else 1, 2, 0, id="two are lost"),
        pytest.param(lambda number: 3 if number == 5 else 1, 0, 2, id="one comes three times"),
    ],
)
async def test_deliveries_are_matched_to_what_was_published(
    monkeypatch: pytest.MonkeyPatch, copies: Callable[[int], int], lost: int, duplicates: int
) -> None:
    monkeypatch.setattr("bench.loader.DELIVERY_TIMEOUT_S", 0.2)  # how long the lost ones are waited for
    loop = asyncio.get_running_loop()
    sink: list[asyncio.Transport] = []
    relay = await loop.create_server(lambda: Relay(sink, copies), "127.0.0.1", 0)
    async with loading() as loader:
        port = relay.sockets[0].getsockname()[1]
        answer = await loader.run(Connect(target="broker", host="127.0.0.1", port=port, connections=1))
        assert isinstance(answer, Connected)
        to_sink, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", answer.sink)
        sink.append(to_sink)
        request = Request(
            before=b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nce-id: t-", after=b"\r\n\r\n", numbered=True
        )
        publish = Open(target="broker", count=10, rate_per_s=1_000, request=request, expect=202)
        result = await loader.run(Deliveries(publish=publish))
        to_sink.close()
    relay.close()
    await relay.wait_closed()
    assert isinstance(result, DeliveriesResult)
    assert (result.lost, result.duplicates) == (lost, duplicates)
    assert len(result.latencies_s) == 10 - lost
    assert all(latency_s > 0 for latency_s in result.latencies_s)
