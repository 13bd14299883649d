"""Streamed requests and answers: both ways at once, with back-pressure, ended early, cut short."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.net.client import Client, ClientLimits
from core.net.types import Address, UpstreamRequest
from tests.support.http import (
    DEADLINE_S,
    HOST,
    DeafLoop,
    Heard,
    Raw,
    Recorder,
    client_of,
    raw_server,
    run_deaf,
    serving,
    turns_until,
)
from tests.support.loops import on_both_loops

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PEER = ("peer", 80)


async def _get_answered(client: Client, address: Address, recorder: Recorder) -> None:
    request = client.request(address, b"GET", b"/", HOST, b"", timeout_s=DEADLINE_S, max_bytes=10)
    task = asyncio.ensure_future(request)
    _, exchange, _ = await recorder.request(len(recorder.heads))
    exchange.respond(200, [])
    await task


@on_both_loops
async def test_a_streamed_request_and_answer_pass_each_other() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of() as client:
        listener = Heard()
        request = client.send(server.address, b"POST", b"/", HOST, None, listener)
        request.write(b"one")
        _, exchange, sink = await recorder.request()
        await sink.until(lambda heard: heard.received == b"one")
        exchange.start(200, [], None)
        exchange.write(b"uno")
        await listener.until(lambda heard: heard.received == b"uno")
        request.write(b"two")
        request.end()
        await sink.done()
        assert sink.received == b"onetwo"
        exchange.end()
        await listener.done()
        assert listener.calls[0] == ("head", 200, None)
        await _get_answered(client, server.address, recorder)
        assert len(server.connections) == 1  # and the connection is used again


@on_both_loops
async def test_an_answer_before_the_request_is_complete_is_delivered_and_the_connection_closed() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of(ClientLimits(idle_timeout_s=1000)) as client:
        listener = Heard()
        request = client.send(server.address, b"POST", b"/", HOST, 10, listener)
        request.write(b"part")
        _, exchange, _ = await recorder.request()
        exchange.respond(403, [], b"no")
        await listener.done()
        assert listener.calls[0] == ("head", 403, 2)
        assert listener.received == b"no"
        request.write(b"late")
        request.end()
        await turns_until(lambda: not server.connections)


@pytest.mark.parametrize(("stated", "written"), [(4, b"12345"), (6, b"12345")], ids=["longer", "shorter"])
async def test_a_request_of_another_length_than_stated_is_not_completed(stated: int, written: bytes) -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of() as client:
        request = client.send(server.address, b"POST", b"/", HOST, stated, Heard())
        await recorder.request()

        def send() -> None:
            request.write(written)
            request.end()

        with pytest.raises(RuntimeError, match="its stated length"):
            send()
        await recorder.sinks[0].until(lambda heard: "lost" in heard.names)
    assert "end" not in recorder.sinks[0].names


@on_both_loops
async def test_a_slow_peer_stops_the_writer_of_a_request() -> None:
    recorder = Recorder()
    total = 16 << 20
    async with serving(recorder) as server, client_of() as client:
        listener = Heard()
        request = client.send(server.address, b"POST", b"/", HOST, total, listener)
        _, exchange, sink = await recorder.request()
        exchange.pause()
        written = 0
        while listener.calls != [("writable", False)]:
            assert written < total
            request.write(bytes(64 << 10))
            written += 64 << 10
            await asyncio.sleep(0)
        exchange.resume()
        await listener.until(lambda heard: heard.calls[-1] == ("writable", True))
        request.write(bytes(total - written))
        request.end()
        await sink.done()
        assert len(sink.received) == total
        exchange.respond(200, [])
        await listener.done()


@on_both_loops
async def test_a_slow_listener_stops_the_peer() -> None:
    recorder = Recorder()
    total = 16 << 20
    async with serving(recorder) as server, client_of() as client:
        listener = Heard()
        request = client.send(server.address, b"GET", b"/", HOST, 0, listener)
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], total)
        await listener.until(lambda heard: heard.names == ["head"])
        request.pause()
        written = 0
        while ("writable", False) not in sink.calls:
            assert written < total
            exchange.write(bytes(64 << 10))
            written += 64 << 10
            await asyncio.sleep(0)
        assert listener.received == b""
        request.resume()
        assert listener.received == b""  # never from within resume
        exchange.write(bytes(total - written))
        exchange.end()
        await listener.done()
    assert len(listener.received) == total


async def _keep(peer: Raw) -> None:
    """A peer that answers for ever."""
    while True:
        await peer.until(b"\r\n\r\n")
        peer.send(OK)


async def test_a_listener_that_raises_ends_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Heard):
        def body(self, chunk: bytes) -> None:
            raise LookupError("boom")

    recorder = Recorder()
    async with serving(recorder) as server, client_of() as client:
        client.send(server.address, b"GET", b"/", HOST, 0, Raising())
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], None)
        exchange.write(b"x")
        await sink.until(lambda heard: "lost" in heard.names)
        await _get_answered(client, server.address, recorder)
    assert "boom" in caplog.text


async def test_a_listener_may_take_a_short_answer_whole() -> None:
    class Whole(Heard):
        def whole(self, status: int, headers: Any, body: bytes) -> None:
            self._note("whole", status, body)
            self.over.set()

    listener = Whole()
    async with raw_server(_keep) as (address, connections), client_of() as client:
        for _ in range(2):
            client.send(address, b"GET", b"/", HOST, 0, listener)
            await listener.done()
            listener.over.clear()
        assert len(connections) == 1
    assert listener.calls == [("whole", 200, b"ok")] * 2


def test_a_body_written_before_there_is_a_connection_is_bounded_by_telling_its_writer() -> None:
    async def main(loop: DeafLoop, client: Client) -> None:
        listener = Heard()
        request = client.send(PEER, b"POST", b"/", HOST, None, listener)
        for _ in range(5):
            request.write(bytes(64 << 10))
        assert listener.calls == [("writable", False)]
        await asyncio.sleep(2)
        assert listener.calls == [("writable", False), ("writable", True)]
        assert len(loop.transports[0].written) > 5 * (64 << 10)
        request.cancel()

    run_deaf(main, connecting_s=1)


def test_a_listener_that_pauses_hears_nothing_more_even_of_what_was_read_already() -> None:
    class Pausing(Heard):
        request: UpstreamRequest

        def body(self, chunk: bytes) -> None:
            super().body(chunk)
            self.request.pause()

    async def main(loop: DeafLoop, client: Client) -> None:
        listener = Pausing()
        listener.request = client.send(PEER, b"GET", b"/", HOST, 0, listener)
        await turns_until(lambda: bool(loop.transports))
        transport = loop.transports[0]
        await transport.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
        assert listener.received == b"a"
        assert not transport.reading
        for received in (b"ab", b"ab"):
            listener.request.resume()
            await asyncio.sleep(0)
            assert listener.received == received
        assert listener.names == ["head", "body", "body", "end"]
        assert transport.reading

    run_deaf(main)


async def test_interim_answers_are_counted_for_each_request() -> None:
    async def serve(peer: Raw) -> None:
        while True:
            await peer.until(b"\r\n\r\n")
            peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5 + OK)

    async with raw_server(serve) as (address, connections), client_of() as client:
        for _ in range(3):
            answer = await client.request(address, b"GET", b"/", HOST, b"", timeout_s=DEADLINE_S, max_bytes=10)
            assert answer.body == b"ok"
        assert len(connections) == 1
