"""The server over loopback sockets, on both event loops that it runs on."""

from __future__ import annotations

import pytest

from core.net.body import collect
from core.net.types import BodySink, Exchange, RequestHead
from tests.support.http import Heard, Recorder, raw, serving
from tests.support.loops import on_both_loops


def _get(target: str = "/", *lines: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def _post(body: bytes, *lines: str) -> bytes:
    head = "\r\n".join(["POST / HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode() + body


def _echo(head: RequestHead, exchange: Exchange) -> BodySink:
    return collect(exchange, max_bytes=1 << 20, then=lambda body: exchange.respond(200, [], head.target + b"|" + body))


@on_both_loops
async def test_a_request_is_handed_over_as_its_head_and_then_its_body() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(b"POST /a?b HTTP/1.1\r\nHost: H:8080\r\nContent-Length: 4\r\nX-Y:  z\r\n\r\nbo")
        head, exchange, sink = await recorder.request()
        await sink.until(lambda heard: heard.received == b"bo")
        peer.send(b"dy")
        await sink.done()
        exchange.respond(200, [(b"a", b"b")], b"hello")
        assert await peer.answer() == (b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 5\r\n\r\n", b"hello")
    assert (head.method, head.target, head.host) == (b"POST", b"/a?b", b"h:8080")
    assert (head.content_length, head.peer, head.http_1_0) == (4, "127.0.0.1", False)
    assert list(head.headers) == [(b"host", b"H:8080"), (b"x-y", b"z")]
    assert sink.received == b"body"
    assert sink.names[-1] == "end"


@on_both_loops
async def test_a_connection_serves_many_requests() -> None:
    async with serving(_echo) as server, raw(server.address) as peer:
        for number in range(3):
            peer.send(_get(f"/{number}"))
            assert (await peer.answer())[1] == b"/%d|" % number
        peer.send(_post(b"x"))
        assert (await peer.answer())[1] == b"/|x"


@on_both_loops
async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get("/1") + _post(b"two") + _get("/3"))
        for number in range(3):
            _, exchange, sink = await recorder.request(number)
            await sink.done()
            assert len(recorder.heads) == number + 1  # the next one waits for this one's answer
            exchange.respond(200, [], b"%d" % number)
            assert (await peer.answer())[1] == b"%d" % number
    assert recorder.sinks[1].received == b"two"


@on_both_loops
async def test_pipelined_requests_answered_at_once_are_all_answered() -> None:
    async with serving(_echo) as server, raw(server.address) as peer:
        peer.send(b"".join(_get(f"/{number}") for number in range(500)))
        for number in range(500):
            assert (await peer.answer())[1] == b"/%d|" % number


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.0\r\n\r\n", _get("/", "Connection: close"), _get("/", "Connection: x, Close")],
    ids=["HTTP/1.0", "close", "close in a list"],
)
@on_both_loops
async def test_the_connection_closes_after_the_answer_if_the_client_asks_for_it(sent: bytes) -> None:
    async with serving(_echo) as server, raw(server.address) as peer:
        peer.send(sent)
        answer = await peer.rest()
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\n/|")


@on_both_loops
async def test_a_request_after_one_that_asked_to_close_is_not_served() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get("/1", "Connection: close") + _get("/2"))
        _, exchange, _ = await recorder.request()
        exchange.respond(200, [], b"only")
        assert (await peer.rest()).endswith(b"only")
    assert len(recorder.heads) == 1


@on_both_loops
async def test_a_streamed_answer_without_a_length_is_chunked() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get())
        _, exchange, _ = await recorder.request()
        exchange.start(200, [], None)
        exchange.write(b"hello")
        exchange.write(b"")
        assert b"transfer-encoding: chunked" in await peer.until(b"\r\n\r\n")
        assert await peer.until(b"hello\r\n") == b"5\r\nhello\r\n"
        exchange.end()
        assert await peer.until(b"\r\n\r\n") == b"0\r\n\r\n"
        peer.send(_get())
        await recorder.request(1)


@on_both_loops
async def test_a_streamed_answer_to_http_1_0_ends_with_the_connection() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(b"GET / HTTP/1.0\r\n\r\n")
        _, exchange, _ = await recorder.request()
        exchange.start(200, [], None)
        exchange.write(b"hello")
        exchange.end()
        assert await peer.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello"


@pytest.mark.parametrize(
    ("method", "status", "length_line"),
    [("HEAD", 200, b"content-length: 5\r\n"), ("GET", 204, b""), ("GET", 304, b"")],
    ids=["HEAD", "204", "304"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
@on_both_loops
async def test_answers_that_have_no_body_have_none(method: str, status: int, length_line: bytes, whole: bool) -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        _, exchange, _ = await recorder.request()
        if whole:
            exchange.respond(status, [], b"hello")
        else:
            exchange.start(status, [], 5)
            exchange.write(b"hello")
            exchange.end()
        peer.send(_get())
        await recorder.request(1)
        recorder.exchanges[1].respond(200, [], b"next")
        first = await peer.until(b"\r\n\r\n")
        assert first.split(b"\r\n", 1)[1] == length_line + b"\r\n"
        assert (await peer.answer())[1] == b"next"


@on_both_loops
async def test_a_body_over_the_limit_is_answered_413() -> None:
    def small(head: RequestHead, exchange: Exchange) -> BodySink:
        return collect(exchange, max_bytes=10, then=lambda body: exchange.respond(200, [], body))

    async with serving(small) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11)
        assert (await peer.rest()).startswith(b"HTTP/1.1 413 ")


@on_both_loops
async def test_a_stated_length_over_the_limit_is_answered_413_before_any_of_it_is_read() -> None:
    def small(head: RequestHead, exchange: Exchange) -> BodySink:
        return collect(exchange, max_bytes=10, head=head, then=lambda body: exchange.respond(200, [], body))

    async with serving(small) as server, raw(server.address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n")
        assert (await peer.answer())[0].startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("where", ["handler", "body", "end"])
@on_both_loops
async def test_a_handler_that_raises_is_answered_500_and_logged(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Heard):
        def body(self, chunk: bytes) -> None:
            if where == "body":
                raise LookupError("boom")

        def end(self) -> None:
            if where == "end":
                raise LookupError("boom")

    def handler(head: RequestHead, exchange: Exchange) -> BodySink:
        if where == "handler":
            raise LookupError("boom")
        return Raising()

    async with serving(handler) as server:
        async with raw(server.address) as peer:
            peer.send(_post(b"hi"))
            answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"boom" not in answer
        assert b"connection: close" in answer
        async with raw(server.address) as peer:  # the server goes on
            peer.send(_get("/", "Connection: close"))
    assert "boom" in caplog.text


@on_both_loops
async def test_a_handler_that_raises_mid_answer_ends_the_connection() -> None:
    class Raising(Heard):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__()
            self.exchange = exchange

        def end(self) -> None:
            self.exchange.start(200, [], None)
            self.exchange.write(b"half")
            raise LookupError("boom")

    async with serving(lambda head, exchange: Raising(exchange)) as server, raw(server.address) as peer:
        peer.send(_get())
        with pytest.raises(ConnectionResetError):
            await peer.rest()


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\0"], ids=["CRLF", "LF", "NUL"])
@on_both_loops
async def test_an_answer_with_a_header_that_would_end_its_line_becomes_500(value: bytes) -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get())
        _, exchange, _ = await recorder.request()
        exchange.respond(200, [(b"x", value)], b"body")
        head, body = await peer.answer()
    assert head.startswith(b"HTTP/1.1 500 ")
    assert value not in head
    assert body == b""


@on_both_loops
async def test_an_exchange_is_answered_once() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get("/1") + _get("/2"))
        _, exchange, _ = await recorder.request()
        exchange.start(200, [], 1)
        with pytest.raises(RuntimeError, match="once"):
            exchange.respond(200, [])
        exchange.write(b"1")
        exchange.end()
        await recorder.request(1)
        exchange.respond(200, [], b"late")  # must not become the answer to the second request
        exchange.write(b"late")
        exchange.end()
        exchange.abort()
        recorder.exchanges[1].respond(200, [], b"2")
        assert [(await peer.answer())[1] for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize("body", [b"four", b"sixsix"], ids=["shorter", "longer"])
@on_both_loops
async def test_an_answer_of_another_length_than_stated_is_cut_off(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get())
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], 5)
        exchange.write(body)
        exchange.end()
        with pytest.raises(ConnectionResetError):
            await peer.rest()
    assert "lost" not in sink.names  # the handler did it, so it is not told
    assert "its stated length" in caplog.text


@on_both_loops
async def test_an_aborted_answer_is_seen_to_be_broken_even_without_a_length() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(b"GET / HTTP/1.0\r\n\r\n")
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], None)
        exchange.write(b"half")
        await peer.until(b"half")
        exchange.abort()
        with pytest.raises(ConnectionResetError):
            await peer.rest()
    assert "lost" not in sink.names


@pytest.mark.parametrize("sent", [_get(), _post(b"xx")[:-1]], ids=["complete", "incomplete"])
@on_both_loops
async def test_a_client_that_leaves_is_lost_once_and_answers_to_it_do_nothing(sent: bytes) -> None:
    recorder = Recorder()
    async with serving(recorder) as server:
        async with raw(server.address) as peer:
            peer.send(sent)
            _, exchange, sink = await recorder.request()
        await sink.until(lambda heard: "lost" in heard.names)
        exchange.respond(200, [], b"late")
        exchange.pause()
        exchange.resume()
    assert sink.names.count("lost") == 1


@on_both_loops
async def test_a_client_that_leaves_after_its_answer_is_not_lost() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, raw(server.address) as peer:
        peer.send(_get())
        _, exchange, sink = await recorder.request()
        exchange.respond(200, [])
        await peer.answer()
    assert "lost" not in sink.names
