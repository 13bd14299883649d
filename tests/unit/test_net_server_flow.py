"""Who waits for whom: expectations, pauses, early answers, slow readers, limits on connections, draining."""

from __future__ import annotations

import asyncio

import pytest

from core.net.body import IGNORE, collect
from core.net.connection import ServerConnection
from core.net.server import HttpServer, ServerLimits
from core.net.types import BodySink, Exchange, RequestHead
from tests.support.http import DEADLINE_S, Deaf, Heard, Raw, Recorder, raw, serving, turns_until
from tests.support.loops import on_both_loops


def _get(target: str = "/", *lines: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def _post(body: bytes, *lines: str) -> bytes:
    head = "\r\n".join(["POST / HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode() + body


def _echo(head: RequestHead, exchange: Exchange) -> BodySink:
    return collect(exchange, max_bytes=1 << 20, then=lambda body: exchange.respond(200, [], head.target + b"|" + body))


async def _closed(peer: Raw) -> None:
    assert await peer.rest() == b""


@on_both_loops
async def test_a_client_that_waits_for_it_is_told_to_continue_once_a_sink_is_there() -> None:
    async with serving(_echo) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await peer.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"hi")
        assert (await peer.answer())[1] == b"/|hi"
        peer.send(_get())
        assert (await peer.answer())[1] == b"/|"


@on_both_loops
async def test_a_client_is_not_told_to_continue_while_the_handler_pauses() -> None:
    recorder = Recorder()

    def paused(head: RequestHead, exchange: Exchange) -> BodySink:
        exchange.pause()
        return recorder(head, exchange)

    async with serving(paused) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        _, exchange, sink = await recorder.request()
        exchange.resume()
        assert await peer.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"hi")
        await sink.done()
        assert sink.received == b"hi"


@on_both_loops
async def test_a_handler_can_say_at_once_that_it_goes_on_also_to_a_request_without_a_body() -> None:
    def slow(head: RequestHead, exchange: Exchange) -> BodySink:
        exchange.pause()
        exchange.proceed()
        exchange.proceed()
        exchange.resume()
        return _echo(head, exchange)

    async with serving(slow) as server, raw(server.address) as peer:
        peer.send(_get("/", "Expect: 100-continue"))
        assert await peer.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await peer.answer())[1] == b"/|"
        peer.send(_get("/again"))
        assert (await peer.answer())[1] == b"/again|"


@on_both_loops
async def test_a_client_that_leaves_while_it_waits_to_be_told_to_continue_is_missed() -> None:
    recorder = Recorder()

    def paused(head: RequestHead, exchange: Exchange) -> BodySink:
        exchange.pause()
        return recorder(head, exchange)

    async with serving(paused) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        _, _, sink = await recorder.request()
        await peer.close()
        await sink.done()
        assert sink.names == ["lost"]


async def test_a_client_whose_answer_has_begun_is_not_told_to_continue() -> None:
    recorder = Recorder()

    def starting(head: RequestHead, exchange: Exchange) -> BodySink:
        exchange.start(200, [], 0)
        return recorder(head, exchange)

    connection = ServerConnection(HttpServer(starting))
    transport = Deaf(connection)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert transport.take() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    connection.data_received(b"hi" + _get("/next"))  # it may send its body or not: who knows what these bytes are?
    recorder.exchanges[0].end()
    assert transport.ended
    assert len(recorder.heads) == 1


async def test_an_expectation_without_a_body_does_not_outlive_its_request() -> None:
    recorder = Recorder()
    connection = ServerConnection(HttpServer(recorder))
    transport = Deaf(connection)
    post = _post(b"1234")
    connection.data_received(post)
    recorder.exchanges[0].respond(200, [])
    connection.data_received(_get("/", "Expect: 100-continue"))
    recorder.exchanges[1].respond(200, [])
    connection.data_received(post[:-4])
    recorder.exchanges[2].respond(200, [])
    written = transport.take()
    assert b"100 Continue" not in written
    assert b"connection: close" not in written


@on_both_loops
async def test_a_client_whose_request_is_refused_is_not_told_to_continue() -> None:
    def refuse(head: RequestHead, exchange: Exchange) -> BodySink:
        exchange.respond(403, [], b"no")
        return IGNORE

    async with serving(refuse) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in answer


@on_both_loops
async def test_a_paused_request_is_kept_back_until_it_is_resumed() -> None:
    recorder = Recorder()

    def paused(head: RequestHead, exchange: Exchange) -> BodySink:
        exchange.pause()
        return recorder(head, exchange)

    async with serving(paused) as server, raw(server.address) as peer:
        for number, sent in enumerate([_post(b"hello"), _get()]):
            peer.send(sent)
            _, exchange, sink = await recorder.request(number)
            assert sink.calls == []
            exchange.resume()
            assert sink.calls == []  # never from within resume
            await sink.done()
            exchange.respond(200, [], b"x")
            await peer.answer()
    assert recorder.sinks[0].calls == [("body", b"hello"), ("end",)]
    assert recorder.sinks[1].calls == [("end",)]


async def test_a_sink_that_pauses_hears_nothing_more_even_of_what_was_read_already() -> None:
    class Pausing(Heard):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__()
            self.exchange = exchange

        def body(self, chunk: bytes) -> None:
            super().body(chunk)
            self.exchange.pause()

    sinks: list[Pausing] = []

    def handler(head: RequestHead, exchange: Exchange) -> BodySink:
        sinks.append(Pausing(exchange))
        return sinks[-1]

    connection = ServerConnection(HttpServer(handler))
    Deaf(connection)
    connection.data_received(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    )
    assert sinks[0].calls == [("body", b"a")]
    for _ in range(2):
        sinks[0].exchange.resume()
        await asyncio.sleep(0)
    assert sinks[0].calls == [("body", b"a"), ("body", b"b"), ("end",)]
    sinks[0].exchange.respond(200, [])
    connection.data_received(_post(b"c"))
    assert sinks[1].calls == [("body", b"c")]  # its end waits too
    sinks[1].exchange.resume()
    await asyncio.sleep(0)
    assert sinks[1].calls == [("body", b"c"), ("end",)]


async def test_closing_with_input_left_over_does_not_reset_the_answer_away() -> None:
    recorder = Recorder()
    connection = ServerConnection(HttpServer(recorder))
    transport = Deaf(connection)
    connection.data_received(_get("/1", "Connection: close"))
    connection.data_received(_get("/2"))
    recorder.exchanges[0].respond(200, [])
    assert transport.ended
    assert not transport.closed


@on_both_loops
async def test_an_early_answer_to_a_short_request_keeps_the_connection() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_post(b"x" * 1000)[:-500])
        _, exchange, sink = await recorder.request()
        exchange.respond(403, [], b"no")
        head, _ = await peer.answer()
        assert b"connection: close" not in head
        peer.send(b"x" * 500 + _get())
        await recorder.request(1)
    assert "end" not in sink.names  # after the answer a sink hears nothing more


@on_both_loops
async def test_an_early_answer_to_a_long_request_reaches_the_client_before_the_close() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
        _, exchange, _ = await recorder.request()
        peer.send(b"x" * 100_000)  # unread by the server, this would turn its close into a reset
        exchange.respond(413, [], b"too much")
        answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert answer.endswith(b"too much")


@on_both_loops
async def test_an_answer_that_begins_before_the_request_is_complete_keeps_the_connection_if_it_ends_after() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], 2)
        exchange.write(b"a")
        assert b"connection: close" not in await peer.until(b"\r\n\r\na")
        peer.send(b"1\r\nb\r\n0\r\n\r\n")
        await sink.done()
        exchange.write(b"b")
        exchange.end()
        assert await peer.exactly(1) == b"b"
        peer.send(_get())
        await recorder.request(1)


async def test_an_early_answer_to_a_client_that_reset_its_connection_harms_nobody() -> None:
    class Reset(Deaf):
        def write_eof(self) -> None:
            raise OSError("Transport endpoint is not connected")

    recorder = Recorder()
    connection = ServerConnection(HttpServer(recorder))
    transport = Reset(connection)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    recorder.exchanges[0].respond(502, [])
    assert transport.aborted


async def test_what_a_client_sends_ahead_is_not_read_while_its_request_is_unanswered() -> None:
    recorder = Recorder()
    connection = ServerConnection(HttpServer(recorder))
    transport = Deaf(connection)
    connection.data_received(_get("/1"))
    assert transport.reading  # to hear of the client leaving
    connection.data_received(_get("/2"))
    assert not transport.reading
    recorder.exchanges[0].respond(200, [])
    await recorder.request(1)
    assert transport.reading


@on_both_loops
async def test_a_slow_reader_stops_the_writer_and_a_caught_up_one_starts_it_again() -> None:
    recorder = Recorder()
    total = 8 << 20
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get())
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], total)
        written = 0
        while written < total:
            if sink.calls and sink.calls[-1] == ("writable", False):
                break
            exchange.write(bytes(64 << 10))
            written += 64 << 10
            await asyncio.sleep(0)
        assert written < total  # stopped long before all of it was buffered
        await peer.until(b"\r\n\r\n")
        read = len(await peer.exactly(written))
        await sink.until(lambda heard: heard.calls[-1] == ("writable", True))
        exchange.write(bytes(total - written))
        exchange.end()
        await peer.exactly(total - read)


@on_both_loops
async def test_a_slow_handler_stops_the_client() -> None:
    recorder = Recorder()
    total = 16 << 20
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % total)
        _, exchange, sink = await recorder.request()
        exchange.pause()
        peer.send(bytes(total))
        await _others_are_served(server, recorder)
        assert peer.writer.transport.get_write_buffer_size() > total // 2  # the rest is in the kernel's buffers
        assert sink.received == b""
        exchange.resume()
        await sink.done()
    assert len(sink.received) == total


async def _others_are_served(server: HttpServer, recorder: Recorder) -> None:
    """Many turns of the loop: enough for everything that can happen to have happened."""
    async with raw(server.address) as peer:
        for _ in range(50):
            peer.send(_get())
            _, exchange, _ = await recorder.request(len(recorder.heads))
            exchange.respond(200, [])
            await peer.answer()


@on_both_loops
async def test_a_client_that_sends_requests_and_reads_no_answers_is_not_read_from_for_ever() -> None:
    answer = bytes(64 << 10)
    served = 0
    recorder = Recorder()

    def handler(head: RequestHead, exchange: Exchange) -> BodySink:
        nonlocal served
        if head.target == b"/":
            return recorder(head, exchange)
        served += 1
        exchange.respond(200, [], answer)
        return IGNORE

    async with serving(handler) as server, raw(server.address) as peer:
        peer.send(_get("/big") * 1000)
        await peer.answer()
        await _others_are_served(server, recorder)
        assert served < 500  # of 64 MiB of answers, some buffers' worth
        for _ in range(999):
            await peer.answer()
    assert served == 1000


@on_both_loops
async def test_connections_over_the_limit_are_told_to_come_back() -> None:
    async with serving(_echo, ServerLimits(max_connections=2)) as server:
        async with raw(server.address) as first, raw(server.address) as second:
            for peer in (first, second):
                peer.send(_get())
                await peer.answer()
            async with raw(server.address) as third:
                third.send(_get())
                answer = await third.rest()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in answer
        await turns_until(lambda: not server.connections)
        async with raw(server.address) as peer:
            peer.send(_get())
            assert (await peer.answer())[1] == b"/|"


@on_both_loops
async def test_draining_lets_requests_end_closes_idle_connections_and_accepts_no_more() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as busy, raw(server.address) as idle:
        idle.send(_get("/idle"))
        _, exchange, _ = await recorder.request()
        exchange.respond(200, [])
        await idle.answer()
        busy.send(_get("/busy"))
        _, exchange, _ = await recorder.request(1)
        drained = asyncio.ensure_future(server.drain(DEADLINE_S))
        await _closed(idle)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*server.address)
        assert not drained.done()
        exchange.respond(200, [], b"last")
        answer = await busy.rest()
        assert b"connection: close" in answer
        assert answer.endswith(b"last")
        async with asyncio.timeout(DEADLINE_S):
            await drained


@on_both_loops
async def test_a_server_that_leaves_serves_on_and_each_answer_is_its_connections_last() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as known:
        known.send(_get("/one"))
        _, exchange, _ = await recorder.request()
        exchange.respond(200, [])
        assert b"connection: close" not in (await known.answer())[0]
        server.leave()
        known.send(_get("/two"))
        _, exchange, _ = await recorder.request(1)
        exchange.respond(200, [], b"last")
        assert b"connection: close" in await known.rest()
        async with raw(server.address) as new:
            new.send(_get("/three"))
            _, exchange, _ = await recorder.request(2)
            exchange.respond(200, [], b"served")
            answer = await new.rest()
            assert b"connection: close" in answer
            assert answer.endswith(b"served")


@on_both_loops
async def test_draining_aborts_what_does_not_end_in_time() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get())
        _, _, sink = await recorder.request()
        await server.drain(0.01)
        await sink.until(lambda heard: "lost" in heard.names)
        assert not server.connections
        assert await peer.rest() == b""
