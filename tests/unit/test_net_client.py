"""The client over loopback sockets, against our server and peers that misbehave, and its clocks without sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from core.net.body import collect
from core.net.client import Client
from core.net.types import (
    Address,
    BodySink,
    ConnectFailed,
    ConnectionLost,
    Exchange,
    NetError,
    RequestHead,
    Response,
    ResponseInvalid,
    ResponseTimeout,
    ResponseTooLarge,
)
from tests.support.http import (
    DEADLINE_S,
    HOST,
    Heard,
    Raw,
    client_of,
    raw_server,
    serving,
)
from tests.support.loops import on_both_loops

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def _echo(head: RequestHead, exchange: Exchange) -> BodySink:
    def then(body: bytes) -> None:
        exchange.respond(200, [(b"method", head.method)], head.target + b"|" + body)

    return collect(exchange, max_bytes=1 << 24, then=then)


async def _get(client: Client, address: Address, target: bytes = b"/", *, max_bytes: int = 1 << 24) -> Response:
    return await client.request(address, b"GET", target, HOST, b"", timeout_s=DEADLINE_S, max_bytes=max_bytes)


def _answering(*answers: bytes) -> Callable[[Raw], Awaitable[None]]:
    """A peer that answers each request on a connection with the next of `answers`, and then closes."""

    async def serve(peer: Raw) -> None:
        for answer in answers:
            await peer.until(b"\r\n\r\n")
            peer.send(answer)

    return serve


async def _keep(peer: Raw) -> None:
    """A peer that answers for ever."""
    while True:
        await peer.until(b"\r\n\r\n")
        peer.send(OK)


async def _mute(peer: Raw) -> None:
    """A peer that reads until the client leaves."""
    await peer.reader.read()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    await made.close()


@on_both_loops
async def test_a_whole_request_gets_the_whole_answer() -> None:
    async with serving(_echo) as server, client_of() as client:
        answer = await client.request(
            server.address, b"POST", b"/a?b", HOST, b"body", timeout_s=DEADLINE_S, max_bytes=100
        )
    assert (answer.status, answer.body, answer.header(b"method")) == (200, b"/a?b|body", b"POST")


@on_both_loops
async def test_a_large_body_goes_there_and_back() -> None:
    body = bytes(range(256)) * (1 << 14)
    async with serving(_echo) as server, client_of() as client:
        answer = await client.request(
            server.address, b"POST", b"/", HOST, body, timeout_s=DEADLINE_S, max_bytes=1 << 24
        )
    assert answer.body == b"/|" + body


@pytest.mark.parametrize(
    ("method", "body", "line"),
    [
        (b"GET", b"", None),
        (b"DELETE", b"", None),
        (b"POST", b"", b"content-length: 0"),
        (b"PUT", b"x", b"content-length: 1"),
        (b"GET", b"x", b"content-length: 1"),
    ],
    ids=["GET", "DELETE", "empty POST", "PUT", "GET with a body"],
)
async def test_a_length_is_stated_where_it_means_something(
    client: Client, method: bytes, body: bytes, line: bytes | None
) -> None:
    heads: list[bytes] = []

    async def serve(peer: Raw) -> None:
        heads.append(await peer.until(b"\r\n\r\n"))
        peer.send(OK)

    async with raw_server(serve) as (address, _):
        await client.request(
            address,
            method,
            b"/x",
            [*HOST, (b"content-length", b"99")],
            body,
            timeout_s=DEADLINE_S,
            max_bytes=10,
            encoded_headers=b"ce-id: 1\r\n",
        )
    lines = heads[0].split(b"\r\n")
    assert lines[:3] == [method + b" /x HTTP/1.1", b"host: test", b"ce-id: 1"]
    assert lines[3:-2] == ([line] if line else [])


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/\r\nX: y", HOST),
        (b"/ HTTP/1.1\r\nX: y", HOST),
        (b"/", [*HOST, (b"x", b"y\r\nz: 1")]),
        (b"/", [(b"x\n", b"")]),
    ],
    ids=["CRLF in the target", "space in the target", "CRLF in a value", "LF in a name"],
)
async def test_what_would_smuggle_another_line_is_refused_and_nothing_sent(
    client: Client, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    def then(result: Response | NetError) -> None:
        raise AssertionError("nothing was sent")

    with pytest.raises(ValueError, match=r"request line|CR, LF or NUL"):
        client.fetch(("127.0.0.1", 1), b"GET", target, headers, b"", timeout_s=1, max_bytes=1, then=then)
    with pytest.raises(ValueError, match=r"request line|CR, LF or NUL"):
        client.send(("127.0.0.1", 1), b"GET", target, headers, 0, Heard())


BROKEN: dict[str, tuple[bytes, type[NetError]]] = {
    "nothing": (b"", ConnectionLost),
    "part of a head": (b"HTTP/1.1 200 OK\r\nconte", ConnectionLost),
    "only an interim answer": (b"HTTP/1.1 103 Early Hints\r\n\r\n", ConnectionLost),
    "part of a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart", ConnectionLost),
    "part of a chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\npart", ConnectionLost),
    "no last chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n", ConnectionLost),
    "both lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ResponseInvalid,
    ),
    "not HTTP": (b"220 mail.example ESMTP\r\n\r\n", ResponseInvalid),
    "a bad chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", ResponseInvalid),
    "an endless head": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, ResponseInvalid),
    "a switch of protocols": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ResponseInvalid),
    "interim answers without end": (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, ResponseInvalid),
    "too large, stated": (b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n", ResponseTooLarge),
    "too large, all of it there": (b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n" + b"x" * 101, ResponseTooLarge),
    "too large, chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n",
        ResponseTooLarge,
    ),
    "too large, until close": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, ResponseTooLarge),
}


@pytest.mark.parametrize(("answer", "kind"), BROKEN.values(), ids=BROKEN.keys())
async def test_an_unusable_answer_is_an_error_of_its_kind(client: Client, answer: bytes, kind: type[NetError]) -> None:
    async with raw_server(_answering(answer)) as (address, _):
        with pytest.raises(kind):
            await _get(client, address, max_bytes=100)


WHOLE = {
    "stated length": OK,
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx: y\r\n\r\n",
    "until close": b"HTTP/1.1 200 OK\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nok",
    "after interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
}


@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE.keys())
async def test_an_answer_is_read_to_its_end(client: Client, answer: bytes) -> None:
    async with raw_server(_answering(answer)) as (address, _):
        assert (await _get(client, address)).body == b"ok"


class Proceeding(Heard):
    def proceed(self) -> None:
        self.calls.append(("proceed",))


async def test_a_listener_that_wants_to_hears_of_100_continue(client: Client) -> None:
    async with raw_server(_answering(WHOLE["after interim answers"])) as (address, _):
        listener = Proceeding()
        client.send(address, b"POST", b"/", HOST, 0, listener, encoded_headers=b"expect: 100-continue\r\n")
        await listener.done()
        assert [call[0] for call in listener.calls] == ["proceed", "head", "body", "end"]


async def test_no_answer_in_time_is_a_time_out(client: Client) -> None:
    async with raw_server(_mute) as (address, _):
        with pytest.raises(ResponseTimeout):
            await client.request(address, b"GET", b"/", HOST, b"", timeout_s=0.01, max_bytes=1)


async def test_an_answer_to_head_has_a_length_and_no_body(client: Client) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    async with raw_server(_answering(head, head, OK)) as (address, connections):
        answer = await client.request(address, b"HEAD", b"/", HOST, b"", timeout_s=DEADLINE_S, max_bytes=10)
        assert answer.body == b""
        listener = Heard()
        client.send(address, b"HEAD", b"/", HOST, 0, listener)
        await listener.done()
        assert listener.calls == [("head", 200, 1000), ("end",)]
        assert (await _get(client, address)).body == b"ok"
        assert len(connections) == 1


CERTIFICATE = Path(__file__).parents[1] / "support" / "tls" / "localhost.crt"


@on_both_loops
async def test_https_is_spoken_with_peers_that_are_trusted_and_with_no_others() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(CERTIFICATE, CERTIFICATE.with_suffix(".key"))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours)
    address = ("localhost", server.sockets[0].getsockname()[1])
    trusting, doubting = Client(tls=ssl.create_default_context(cafile=str(CERTIFICATE))), Client()
    get = (address, b"GET", b"/", [(b"host", b"localhost")], b"")
    assert (await trusting.request(*get, timeout_s=DEADLINE_S, max_bytes=10, tls=True)).body == b"ok"
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        await doubting.request(*get, timeout_s=DEADLINE_S, max_bytes=10, tls=True)
    await trusting.close()
    await doubting.close()
    server.close()
