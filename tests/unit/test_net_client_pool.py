"""The client's connections: which are used again, how many there are, who waits, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from core.net import liveness
from core.net.client import Client, ClientLimits
from core.net.types import Address, ConnectFailed, ConnectionLost, NetError, Response, ResponseTimeout
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

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
PEER = ("peer", 80)


async def _get(client: Client, address: Address, target: bytes = b"/") -> Response:
    return await client.request(address, b"GET", target, HOST, b"", timeout_s=DEADLINE_S, max_bytes=1 << 20)


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


async def test_one_connection_is_used_again_and_again() -> None:
    async with raw_server(_keep) as (address, connections), client_of() as client:
        for _ in range(3):
            await _get(client, address)
        assert len(connections) == 1


async def test_the_connection_used_last_is_used_first_so_that_the_others_can_go() -> None:
    served: dict[Raw, int] = {}

    async def count(peer: Raw) -> None:
        while True:
            await peer.until(b"\r\n\r\n")
            served[peer] = served.get(peer, 0) + 1
            peer.send(OK)

    async with raw_server(count) as (address, _), client_of() as client:
        await asyncio.gather(*(_get(client, address) for _ in range(3)))
        for _ in range(3):
            await _get(client, address)
    assert sorted(served.values()) == [1, 1, 4]


EMPTY = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
GONE = b"HTTP/1.1 202 Accepted\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_answers_that_are_the_same_empty_one_are_each_an_answer_and_keep_the_connection_or_not() -> None:
    answers = (EMPTY, EMPTY, NOTHING, NOTHING, GONE)
    async with raw_server(_answering(*answers)) as (address, connections), client_of() as client:
        for number in range(2):
            heard = [await _get(client, address) for _ in answers]
            assert [(answer.status, answer.body) for answer in heard] == [(202, b"")] * 2 + [(204, b"")] * 2 + [
                (202, b"")
            ]
            assert len(connections) == number + 1


async def test_an_empty_answer_that_more_follows_is_the_last_on_its_connection() -> None:
    async with raw_server(_answering(EMPTY, EMPTY + b"HTTP")) as (address, connections), client_of() as client:
        for _ in range(3):
            assert (await _get(client, address)).status == 202
        assert len(connections) == 2


async def test_idle_connections_are_bounded() -> None:
    limits = ClientLimits(max_idle_per_address=1)
    async with raw_server(_keep) as (address, connections), client_of(limits) as client:
        await asyncio.gather(*(_get(client, address) for _ in range(3)))
        await turns_until(lambda: sum(peer.reader.at_eof() for peer in connections) == 2)


async def test_a_burst_is_answered_on_few_connections_where_each_request_is_answered_at_once() -> None:
    async with raw_server(_keep) as (address, connections), client_of() as client:
        await asyncio.gather(*(_get(client, address) for _ in range(100)))
        assert len(connections) < 100


async def test_each_request_of_a_burst_gets_a_connection_of_its_own_where_answers_take_long() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of() as client:
        requests = [asyncio.ensure_future(_get(client, server.address)) for _ in range(100)]
        await recorder.request(99)
        assert len(server.connections) == 100
        for exchange in recorder.exchanges:
            exchange.respond(200, [], b"")
        await asyncio.gather(*requests)


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


async def test_one_that_waits_gets_a_new_connection_when_the_old_one_closes() -> None:
    limits = ClientLimits(max_connections_per_address=1)
    async with raw_server(_answering(CLOSING)) as (address, connections), client_of(limits) as client:
        answers = await asyncio.gather(*(_get(client, address) for _ in range(3)))
        assert [answer.body for answer in answers] == [b"ok"] * 3
        assert len(connections) == 3


async def test_one_that_waits_does_not_get_an_answer_that_came_before_its_request() -> None:
    evil = OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    limits = ClientLimits(max_connections_per_address=1)
    async with raw_server(_answering(evil)) as (address, connections), client_of(limits) as client:
        answers = await asyncio.gather(*(_get(client, address) for _ in range(2)))
        assert [answer.body for answer in answers] == [b"ok"] * 2
        assert len(connections) == 2


async def test_too_many_waiting_requests_are_refused_at_once() -> None:
    limits = ClientLimits(max_connections_per_address=1, max_waiting_per_address=1)
    async with raw_server(_mute) as (address, _), client_of(limits) as client:
        listeners = [Heard() for _ in range(3)]
        requests = [client.send(address, b"GET", b"/", HOST, 0, listener) for listener in listeners]
        assert all(listener.calls == [] for listener in listeners)  # never from within send
        await listeners[-1].done()
        assert isinstance(listeners[-1].calls[0][1], ConnectFailed)
        assert "Too many" in str(listeners[-1].calls[0][1])
        for request in requests:
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


async def test_without_a_connection_all_that_wait_fail_at_once() -> None:
    limits = ClientLimits(max_connections_per_address=1)
    async with client_of(limits) as client:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = unused.getsockname()
            results = await asyncio.gather(*(_get(client, address) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectFailed] * 3


async def test_a_host_that_is_no_name_is_a_connect_failure() -> None:
    async with client_of() as client:
        with pytest.raises(ConnectFailed, match="Cannot connect"):
            await _get(client, ("a" * 70, 1))


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
async def test_a_connection_whose_state_is_in_doubt_is_not_used_again(answer: bytes) -> None:
    async with raw_server(_answering(answer, OK)) as (address, connections), client_of() as client:
        assert (await _get(client, address)).body == b"ok"
        assert (await _get(client, address)).body == b"ok"
        assert len(connections) == 2


async def test_what_a_peer_sends_unasked_closes_the_connection() -> None:
    async with raw_server(_keep) as (address, connections), client_of() as client:
        await _get(client, address)
        connections[0].send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await turns_until(connections[0].reader.at_eof)
        assert (await _get(client, address)).body == b"ok"
        assert len(connections) == 2


@pytest.mark.parametrize("answers", [(), (OK,)], ids=["fresh", "used before"])
async def test_a_connection_that_breaks_before_an_answer_tells_whether_it_was_used_before(
    answers: tuple[bytes, ...],
) -> None:
    async def serve(peer: Raw) -> None:
        await _answering(*answers)(peer)
        await peer.until(b"\r\n\r\n")  # and closes, having seen the request

    async with raw_server(serve) as (address, _), client_of() as client:
        for _ in answers:
            await _get(client, address)
        with pytest.raises(ConnectionLost) as lost:
            await _get(client, address)
    assert (lost.value.sent, lost.value.fresh) == (True, not answers)


async def test_a_used_connection_that_breaks_within_an_answer_counts_as_fresh() -> None:
    part = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart"
    async with raw_server(_answering(OK, part)) as (address, _), client_of() as client:
        await _get(client, address)
        with pytest.raises(ConnectionLost) as lost:
            await _get(client, address)
    assert lost.value.fresh


async def test_an_idle_connection_that_the_peer_closed_is_passed_over() -> None:
    async with raw_server(_answering(OK)) as (address, connections), client_of() as client:
        for number in range(3):
            assert (await _get(client, address)).body == b"ok"
            await turns_until(lambda: not client._pools)  # the client heard of it
            assert len(connections) == number + 1


def test_a_connection_that_is_closing_is_passed_over_although_nobody_was_told_yet() -> None:
    async def main(loop: DeafLoop, client: Client) -> None:
        first = asyncio.ensure_future(_get(client, PEER))
        await turns_until(lambda: bool(loop.transports))
        await loop.transports[0].feed(OK)
        await first
        loop.transports[0].close()
        second = Heard()
        client.send(PEER, b"GET", b"/", HOST, 0, second)
        await turns_until(lambda: len(loop.transports) == 2)
        await loop.transports[1].feed(OK)
        assert second.received == b"ok"

    run_deaf(main)


def test_a_connection_that_does_not_come_is_given_up_after_its_time() -> None:
    async def main(loop: DeafLoop, client: Client) -> None:
        with pytest.raises(ConnectFailed, match="no answer in 5 s"):
            await client.request(PEER, b"GET", b"/", HOST, b"", timeout_s=60, max_bytes=1)
        assert loop.time() == pytest.approx(5)

    run_deaf(main, connecting_s=100, limits=ClientLimits(connect_timeout_s=5))


@pytest.mark.parametrize("connecting_s", [0, 3], ids=["connected", "connecting"])
def test_a_whole_request_has_its_time_connecting_included(connecting_s: float) -> None:
    async def main(loop: DeafLoop, client: Client) -> None:
        with pytest.raises(ResponseTimeout):
            await client.request(PEER, b"GET", b"/", HOST, b"", timeout_s=2, max_bytes=1)
        assert 2 <= loop.time() < 2.2
        assert all(transport.aborted for transport in loop.transports)

    run_deaf(main, connecting_s=connecting_s)


def test_an_idle_connection_is_closed_before_common_servers_close_it() -> None:
    async def main(loop: DeafLoop, client: Client) -> None:
        task = asyncio.ensure_future(_get(client, PEER))
        await turns_until(lambda: bool(loop.transports))
        await loop.transports[0].feed(OK)
        await task
        await asyncio.sleep(2.5)
        assert not loop.transports[0].closed
        await asyncio.sleep(2)
        assert loop.transports[0].closed

    run_deaf(main, limits=ClientLimits(idle_timeout_s=4))


async def test_a_fetch_given_up_is_not_told_and_its_connection_closed() -> None:
    results: list[Response | NetError] = []
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(peer: Raw) -> None:
        await peer.until(b"\r\n\r\n")
        asked.set()
        await peer.reader.read()
        left.set()

    async with raw_server(serve) as (address, _), client_of() as client, asyncio.timeout(DEADLINE_S):
        cancel = client.fetch(address, b"GET", b"/", HOST, b"", timeout_s=9, max_bytes=9, then=results.append)
        await asked.wait()
        cancel()
        cancel()
        await left.wait()
    assert results == []


async def test_a_cancelled_coroutine_gives_its_request_up() -> None:
    recorder = Recorder()
    async with serving(recorder) as server, client_of() as client:
        task = asyncio.ensure_future(_get(client, server.address))
        _, _, sink = await recorder.request()
        task.cancel()
        await sink.until(lambda heard: "lost" in heard.names)
        with pytest.raises(asyncio.CancelledError):
            await task


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


MANY = ("many", 80)


async def _named(client: Client) -> bytes:
    """Who answers a request to `MANY`."""
    return (await _get(client, MANY)).body


def _as(name: bytes) -> Callable[[Raw], Awaitable[None]]:
    """A peer that answers everything with its name."""

    async def serve(peer: Raw) -> None:
        while True:
            await peer.until(b"\r\n\r\n")
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(name), name))

    return serve


async def test_connections_to_an_address_of_several_listeners_are_opened_to_them_in_turn() -> None:
    async with raw_server(_as(b"a")) as (a, _), raw_server(_as(b"b")) as (b, _):
        places = (a, b)
        async with client_of(places={MANY: lambda: places}) as client:
            assert sorted(await asyncio.gather(*(_named(client) for _ in range(6)))) == [b"a"] * 3 + [b"b"] * 3


async def test_where_one_of_several_listeners_refuses_another_takes_the_request() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with raw_server(_answering(CLOSING, CLOSING)) as (address, _):
            places = (nobody.getsockname(), address)
            async with client_of(places={MANY: lambda: places}) as client:
                assert await asyncio.gather(*(_named(client) for _ in range(6))) == [b"ok"] * 6


async def test_where_all_listeners_refuse_or_none_is_known_the_error_says_so() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        places: tuple[Address, ...] = (nobody.getsockname(),)
        async with client_of(places={MANY: lambda: places}) as client:
            with pytest.raises(ConnectFailed, match=f"many:80: .*127.0.0.1:{places[0][1]}"):
                await _named(client)
            places = ()
            with pytest.raises(ConnectFailed, match="no listener is known"):
                await _named(client)


async def test_when_the_listeners_change_each_connection_ends_with_its_request_so_that_a_new_one_gets_its_share() -> (
    None
):
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(peer: Raw) -> None:
        await peer.until(b"\r\n\r\n")
        asked.set()
        await go_on.wait()
        peer.send(OK)
        await peer.reader.read()

    async with raw_server(slow) as (a, _), raw_server(_as(b"b")) as (b, _):
        places: tuple[Address, ...] = (a,)
        async with client_of(places={MANY: lambda: places}) as client:
            under_way = asyncio.create_task(_named(client))
            await asked.wait()
            places = (b,)
            assert await _named(client) == b"b"
            go_on.set()
            assert await under_way == b"ok"
            assert await asyncio.gather(*(_named(client) for _ in range(3))) == [b"b"] * 3


async def test_an_idle_connection_to_a_listener_that_is_gone_gets_no_request_more() -> None:
    async with raw_server(_as(b"a")) as (a, connections), raw_server(_as(b"b")) as (b, _):
        places: tuple[Address, ...] = (a,)
        async with client_of(places={MANY: lambda: places}) as client:
            assert await asyncio.gather(*(_named(client) for _ in range(4))) == [b"a"] * 4
            places = (b,)
            assert await _named(client) == b"b"
            assert len(connections) == 4
            await turns_until(lambda: all(peer.reader.at_eof() for peer in connections))


@contextlib.asynccontextmanager
async def _full_windows() -> AsyncIterator[Address]:
    """A listener of which the kernel accepts connections with tiny windows, and nobody reads. Once they are full, the
    client's kernel hears as little of what it sends as it would from a machine that is gone."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()


async def test_what_a_machine_that_is_gone_does_not_acknowledge_fails_before_the_requests_own_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "_UNACKNOWLEDGED_MS", 300)
    async with _full_windows() as address, client_of() as client:
        body = bytes(liveness.SMALL_REQUEST_BYTES - 1024)
        with pytest.raises(ConnectionLost):
            await client.request(address, b"POST", b"/", HOST, body, timeout_s=DEADLINE_S, max_bytes=1)


async def test_a_request_that_may_fill_the_peers_window_is_left_to_its_own_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "_UNACKNOWLEDGED_MS", 300)
    async with _full_windows() as address, client_of() as client:
        body = bytes(liveness.SMALL_REQUEST_BYTES)
        with pytest.raises(ResponseTimeout):
            await client.request(address, b"POST", b"/", HOST, body, timeout_s=1.0, max_bytes=1)


async def test_a_peer_that_acknowledged_a_request_and_is_gone_is_found_out_by_probes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    connect, transports = loop.create_connection, list[asyncio.Transport]()

    async def remember(*args: Any, **kwargs: Any) -> Any:
        made = await connect(*args, **kwargs)
        transports.append(made[0])
        return made

    monkeypatch.setattr(loop, "create_connection", remember)
    async with raw_server(_keep) as (address, _), client_of() as client:
        await _get(client, address)
        sock = transports[0].get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        after_s, every_s, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert after_s + every_s * count == liveness.PEER_GONE_S
