"""However the network cuts a byte stream into pieces, the same calls come out: protocols without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.net.client import Client
from core.net.connection import ServerConnection
from core.net.server import HttpServer
from core.net.types import BodySink, Exchange, RequestHead
from core.net.wire import LAST_CHUNK, chunk
from tests.support.http import HOST, Deaf, DeafLoop, Heard, run_deaf, turns_until
from tests.support.virtual_time import run_virtual

NAME = st.sampled_from([b"Accept", b"X-Long-Name-Of-Ours", b"ce-id", b"Content-Type"])
HEADERS = st.lists(st.tuples(NAME, st.sampled_from([b"a", b"", b"application/json; charset=utf-8"])), max_size=3)
BODY = st.one_of(st.none(), st.binary(max_size=30), st.lists(st.binary(min_size=1, max_size=20), max_size=4))


def _message(start: bytes, headers: list[tuple[bytes, bytes]], body: bytes | list[bytes] | None) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    if body is None:
        return b"%b\r\n%bContent-Length: 0\r\n\r\n" % (start, lines)
    if isinstance(body, bytes):
        return b"%b\r\n%bContent-Length: %d\r\n\r\n%b" % (start, lines, len(body), body)
    return b"%b\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (start, lines, b"".join(map(chunk, body)) + LAST_CHUNK)


def _pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True) if a < b]


class _Echo(Heard):
    """A sink that answers when the request is complete: at once, or in a later turn of the loop."""

    def __init__(self, head: RequestHead, exchange: Exchange, late: bool) -> None:
        super().__init__()
        self.head_read = (head.method, head.target, list(head.headers), head.content_length)
        self.exchange = exchange
        self.late = late

    def end(self) -> None:
        super().end()
        if self.late:
            asyncio.get_running_loop().call_soon(self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        self.exchange.respond(200, [], self.received)


async def _serve(pieces: list[bytes], late: bool) -> tuple[list[Any], bytes]:
    sinks: list[_Echo] = []

    def handler(head: RequestHead, exchange: Exchange) -> BodySink:
        sinks.append(_Echo(head, exchange, late))
        return sinks[-1]

    connection = ServerConnection(HttpServer(handler))
    transport = Deaf(connection)
    for piece in pieces:
        await transport.feed(piece)
    for _ in range(30):
        await asyncio.sleep(0)
    heard = [(sink.head_read, sink.received, [name for name in sink.names if name != "body"]) for sink in sinks]
    return heard, transport.take()


@given(
    st.lists(st.tuples(st.sampled_from([b"POST", b"PUT", b"DELETE"]), HEADERS, BODY), min_size=1, max_size=4),
    st.lists(st.integers(0, 2000), max_size=12),
    st.booleans(),
)
def test_requests_are_read_the_same_however_they_are_cut(
    requests: list[tuple[bytes, list[tuple[bytes, bytes]], bytes | list[bytes] | None]], cuts: list[int], late: bool
) -> None:
    stream = b"".join(
        _message(b"%b /%d HTTP/1.1\r\nHost: h" % (method, number), headers, body)
        for number, (method, headers, body) in enumerate(requests)
    )
    heard, written = run_virtual(_serve(_pieces(stream, cuts), late))
    assert (heard, written) == run_virtual(_serve([stream], late=False))
    bodies = [b"".join(body) if isinstance(body, list) else body or b"" for _, _, body in requests]
    assert [received for _, received, _ in heard] == bodies
    assert all(names == ["end"] for _, _, names in heard)
    assert written.count(b"HTTP/1.1 200 OK") == len(requests)


async def _send(loop: DeafLoop, client: Client, pieces: list[bytes], method: bytes) -> tuple[bytes, list[Any]]:
    listener = Heard()
    client.send(("peer", 80), method, b"/", HOST, 0, listener)
    await turns_until(lambda: bool(loop.transports))
    for piece in pieces:
        await loop.transports[0].feed(piece)
    return listener.received, [call for call in listener.calls if call[0] != "body"]


@given(
    st.sampled_from([b"200 OK", b"204 No Content", b"404", b"500 "]),
    HEADERS,
    BODY,
    st.booleans(),
    st.sampled_from([b"GET", b"HEAD"]),
    st.lists(st.integers(0, 500), max_size=12),
)
def test_an_answer_is_read_the_same_however_it_is_cut(
    status: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes | list[bytes] | None,
    interim: bool,
    method: bytes,
    cuts: list[int],
) -> None:
    if status.startswith(b"204") or method == b"HEAD":
        body = None
    stream = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" if interim else b""
    stream += _message(b"HTTP/1.1 " + status, headers, body)
    received, calls = run_deaf(lambda loop, client: _send(loop, client, _pieces(stream, cuts), method))
    assert received == (b"".join(body) if isinstance(body, list) else body or b"")
    assert [call[0] for call in calls] == ["head", "end"]
    assert calls[0][1] == int(status[:3])
