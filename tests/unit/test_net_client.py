"""The client over loopback sockets, against our server and peers that misbehave, and its clocks without sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from core.net.body import collect
from core.net.client import Client, ClientLimits
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
    Deaf,
    Heard,
    Raw,
    Recorder,
    client_of,
    raw_server,
    serving,
    turns_until,
)
from tests.support.loops import on_both_loops
from tests.support.virtual_time import VirtualTimeLoop

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


async def test_one_connection_is_used_again_and_again(client: Client) -> None:
    async with raw_server(_keep) as (address, connections):
        for _ in range(3):
            await _get(client, address)
        assert len(connections) == 1


async def test_the_connection_used_last_is_used_first(client: Client) -> None:
    async with raw_server(_keep) as (address, connections):
        await asyncio.gather(*(_get(client, address) for _ in range(3)))
        assert len(connections) == 3
        peers = {client_port(connection) for connection in connections}
        for _ in range(3):
            await _get(client, address)
        assert len(connections) == 3
        assert len(peers) == 3


def client_port(connection: Raw) -> int:
    port: int = connection.writer.get_extra_info("peername")[1]
    return port


async def test_connections_to_an_address_are_bounded_and_the_others_wait_in_order() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of(ClientLimits(max_connections_per_address=2)) as client:
        requests = [asyncio.ensure_future(_get(client, server.address, b"/%d" % number)) for number in range(6)]
        for number in range(6):
            await recorder.request(number)
            assert len(server.connections) <= 2
            recorder.exchanges[number].respond(200, [], b"")
        await asyncio.gather(*requests)
    assert [head.target for head in recorder.heads] == [b"/%d" % number for number in range(6)]


async def test_too_many_waiting_requests_are_refused_at_once() -> None:
    limits = ClientLimits(max_connections_per_address=1, max_waiting_per_address=1)
    async with raw_server(_mute) as (address, _), client_of(limits) as client:
        held = [client.send(address, b"GET", b"/", HOST, 0, Heard()) for _ in range(1)]
        listeners = [Heard() for _ in range(3)]
        held += [client.send(address, b"GET", b"/", HOST, 0, listener) for listener in listeners]
        assert all(listener.calls == [] for listener in listeners)  # never from within send
        await listeners[-1].done()
        assert isinstance(listeners[-1].calls[0][1], ConnectFailed)
        assert "Too many" in str(listeners[-1].calls[0][1])
        for request in held:
            request.cancel()


async def test_a_cancelled_request_leaves_the_line() -> None:
    limits = ClientLimits(max_connections_per_address=1, max_waiting_per_address=1)
    recorder = Recorder()
    async with serving(recorder) as server, client_of(limits) as client:
        first = asyncio.ensure_future(_get(client, server.address, b"/first"))
        await recorder.request()
        given_up = Heard()
        client.send(server.address, b"GET", b"/given-up", HOST, 0, given_up).cancel()
        second = asyncio.ensure_future(_get(client, server.address, b"/second"))
        await asyncio.sleep(0)
        recorder.exchanges[0].respond(200, [])
        head, exchange, _ = await recorder.request(1)
        exchange.respond(200, [])
        await asyncio.gather(first, second)
    assert head.target == b"/second"
    assert given_up.calls == []


async def test_no_connection_is_a_connect_failure(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailed, match="Cannot connect"):
            await _get(client, unused.getsockname())


async def test_a_host_that_is_no_name_is_a_connect_failure(client: Client) -> None:
    with pytest.raises(ConnectFailed):
        await _get(client, ("a" * 70, 1))


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


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        OK + b"x",
    ],
    ids=["close", "HTTP/1.0", "a second answer", "stray bytes"],
)
async def test_a_connection_whose_state_is_in_doubt_is_not_used_again(client: Client, answer: bytes) -> None:
    async with raw_server(_answering(answer, OK)) as (address, connections):
        assert (await _get(client, address)).body == b"ok"
        assert (await _get(client, address)).body == b"ok"
        assert len(connections) == 2


async def test_what_a_peer_sends_unasked_closes_the_connection(client: Client) -> None:
    async with raw_server(_keep) as (address, connections):
        await _get(client, address)
        connections[0].send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await turns_until(connections[0].reader.at_eof)
        assert (await _get(client, address)).body == b"ok"
        assert len(connections) == 2


@pytest.mark.parametrize("answers", [(), (OK,)], ids=["fresh", "used before"])
async def test_a_connection_that_breaks_before_an_answer_tells_whether_it_was_used_before(
    client: Client, answers: tuple[bytes, ...]
) -> None:
    async def serve(peer: Raw) -> None:
        await _answering(*answers)(peer)
        await peer.until(b"\r\n\r\n")  # and closes, having seen the request

    async with raw_server(serve) as (address, _):
        for _ in answers:
            await _get(client, address)
        with pytest.raises(ConnectionLost) as lost:
            await _get(client, address)
    assert (lost.value.sent, lost.value.fresh) == (True, not answers)


async def test_a_used_connection_that_breaks_within_an_answer_counts_as_fresh(client: Client) -> None:
    async with raw_server(_answering(OK, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart")) as (address, _):
        await _get(client, address)
        with pytest.raises(ConnectionLost) as lost:
            await _get(client, address)
    assert lost.value.fresh


async def test_an_idle_connection_that_the_peer_closed_is_passed_over(client: Client) -> None:
    async with raw_server(_answering(OK)) as (address, connections):
        for number in range(3):
            assert (await _get(client, address)).body == b"ok"
            await turns_until(lambda: not client._pools)  # the client heard of it
            assert len(connections) == number + 1


async def test_no_answer_in_time_is_a_time_out(client: Client) -> None:
    async with raw_server(_mute) as (address, _):
        with pytest.raises(ResponseTimeout):
            await client.request(address, b"GET", b"/", HOST, b"", timeout_s=0.01, max_bytes=1)


async def test_a_fetch_given_up_is_not_told_and_its_connection_closed(client: Client) -> None:
    results: list[Response | NetError] = []
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(peer: Raw) -> None:
        await peer.until(b"\r\n\r\n")
        asked.set()
        await peer.reader.read()
        left.set()

    async with raw_server(serve) as (address, _):
        cancel = client.fetch(address, b"GET", b"/", HOST, b"", timeout_s=9, max_bytes=9, then=results.append)
        async with asyncio.timeout(DEADLINE_S):
            await asked.wait()
            cancel()
            cancel()
            await left.wait()
    assert results == []


async def test_a_cancelled_coroutine_gives_its_request_up(client: Client) -> None:
    recorder = Recorder()
    async with serving(recorder) as server:
        task = asyncio.ensure_future(_get(client, server.address))
        _, _, sink = await recorder.request()
        task.cancel()
        await sink.until(lambda heard: "lost" in heard.names)
        with pytest.raises(asyncio.CancelledError):
            await task


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


async def _get_answered(client: Client, address: Address, recorder: Recorder) -> None:
    task = asyncio.ensure_future(_get(client, address))
    _, exchange, _ = await recorder.request(len(recorder.heads))
    exchange.respond(200, [])
    await task


@on_both_loops
async def test_an_answer_before_the_request_is_complete_is_delivered_and_the_connection_closed() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of() as client:
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
async def test_a_request_of_another_length_than_stated_is_not_completed(
    client: Client, stated: int, written: bytes
) -> None:
    recorder = Recorder()
    async with serving(recorder) as server:
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


async def test_a_listener_that_raises_ends_its_own_request_only(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Heard):
        def body(self, chunk: bytes) -> None:
            raise LookupError("boom")

    recorder = Recorder()
    async with serving(recorder) as server:
        client.send(server.address, b"GET", b"/", HOST, 0, Raising())
        _, exchange, sink = await recorder.request()
        exchange.start(200, [], None)
        exchange.write(b"x")
        await sink.until(lambda heard: "lost" in heard.names)
        await _get_answered(client, server.address, recorder)
    assert "boom" in caplog.text


async def test_a_listener_may_take_a_short_answer_whole(client: Client) -> None:
    class Whole(Heard):
        def whole(self, status: int, headers: Any, body: bytes) -> None:
            self._note("whole", status, body)
            self.over.set()

    listener = Whole()
    async with raw_server(_keep) as (address, connections):
        for _ in range(2):
            client.send(address, b"GET", b"/", HOST, 0, listener)
            await listener.done()
            listener.over.clear()
        assert len(connections) == 1
    assert listener.calls == [("whole", 200, b"ok")] * 2


async def test_closing_fails_what_is_under_way_and_what_waits() -> None:
    limits = ClientLimits(max_connections_per_address=1)
    async with raw_server(_mute) as (address, connections):
        client = Client(limits=limits)
        sent, waiting = Heard(), Heard()
        client.send(address, b"GET", b"/", HOST, 0, sent)
        client.send(address, b"GET", b"/", HOST, 0, waiting)
        await turns_until(lambda: bool(connections))
        await client.close()
        assert isinstance(sent.calls[0][1], ConnectionLost)
        assert isinstance(waiting.calls[0][1], ConnectFailed)
        with pytest.raises(RuntimeError, match="closed"):
            client.send(address, b"GET", b"/", HOST, 0, Heard())


async def test_an_answer_until_close_that_closing_cuts_off_is_not_taken_for_complete() -> None:
    async def serve(peer: Raw) -> None:
        await peer.until(b"\r\n\r\n")
        peer.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        await _mute(peer)

    async with raw_server(serve) as (address, _):
        client = Client()
        listener = Heard()
        client.send(address, b"GET", b"/", HOST, 0, listener)
        await listener.until(lambda heard: heard.received == b"part")
        await client.close()
    assert listener.names == ["head", "body", "failed"]


class _Network(VirtualTimeLoop):
    """Virtual time, and connections without sockets that take `connecting_s` to come."""

    connecting_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.transports: list[Deaf] = []

    async def create_connection(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(self.connecting_s)
        protocol = protocol_factory()
        transport = Deaf(protocol)
        self.transports.append(transport)
        return transport, protocol


def _on_network(main: Callable[[_Network, Client], Awaitable[None]], *, connecting_s: float = 0.0) -> None:
    async def run() -> None:
        network = asyncio.get_running_loop()
        assert isinstance(network, _Network)
        network.connecting_s = connecting_s
        client = Client(limits=ClientLimits(idle_timeout_s=4, connect_timeout_s=5))
        await main(network, client)
        await client.close()

    with asyncio.Runner(loop_factory=_Network) as runner:
        runner.run(run())


PEER = ("peer", 80)


def test_a_connection_that_does_not_come_is_given_up_after_its_time() -> None:
    async def main(network: _Network, client: Client) -> None:
        with pytest.raises(ConnectFailed, match="no answer in 5 s"):
            await client.request(PEER, b"GET", b"/", HOST, b"", timeout_s=60, max_bytes=1)
        assert network.time() == pytest.approx(5)

    _on_network(main, connecting_s=100)


@pytest.mark.parametrize("connecting_s", [0, 3], ids=["connected", "connecting"])
def test_a_whole_request_has_its_time_connecting_included(connecting_s: float) -> None:
    async def main(network: _Network, client: Client) -> None:
        with pytest.raises(ResponseTimeout):
            await client.request(PEER, b"GET", b"/", HOST, b"", timeout_s=2, max_bytes=1)
        assert 2 <= network.time() < 2.2
        assert all(transport.aborted for transport in network.transports)

    _on_network(main, connecting_s=connecting_s)


def test_an_idle_connection_is_closed_before_common_servers_close_it() -> None:
    async def main(network: _Network, client: Client) -> None:
        task = asyncio.ensure_future(client.request(PEER, b"GET", b"/", HOST, b"", timeout_s=9, max_bytes=9))
        await turns_until(lambda: bool(network.transports))
        await network.transports[0].feed(OK)
        await task
        await asyncio.sleep(2.5)
        assert not network.transports[0].closed
        await asyncio.sleep(2)
        assert network.transports[0].closed

    _on_network(main)


def test_a_body_written_before_there_is_a_connection_is_bounded_by_telling_its_writer() -> None:
    async def main(network: _Network, client: Client) -> None:
        listener = Heard()
        request = client.send(PEER, b"POST", b"/", HOST, None, listener)
        for _ in range(5):
            request.write(bytes(64 << 10))
        assert listener.calls == [("writable", False)]
        await asyncio.sleep(2)
        assert listener.calls == [("writable", False), ("writable", True)]
        assert len(network.transports[0].written) > 5 * (64 << 10)
        request.cancel()

    _on_network(main, connecting_s=1)
