"""A request between two gateways, each side by itself: what is sent when, and what comes back."""

from __future__ import annotations

import asyncio

import pytest

from core.net.types import ConnectFailed, ConnectionLost, NetError, RequestHead
from serving.answer import PeerAnswer
from serving.handover import handed_headers, revision_of
from serving.routing import Endpoint, RevisionLimits
from tests.support.gateway_world import APP, HOST, Attempt, Outside, World, virtually

LIMIT = RevisionLimits(concurrency=1, timeout_s=30.0)
GIVEN_BACK = [(b"penstock-reason", b"not-the-owner")]


def world_with_peers(*peers: str) -> World:
    world = World()
    world.limits[APP] = LIMIT
    tell_peers(world, *peers)
    return world


def tell_peers(world: World, *peers: str) -> None:
    world.endpoints[APP] = tuple(Endpoint(name, (name, 8080), peer=True) for name in peers)
    world.swap()


def accept(attempt: Attempt) -> None:
    """The other gateway begins with the request."""
    assert isinstance(attempt.listener, PeerAnswer)
    attempt.listener.proceed()


def hand_in(world: World, *, peer: str = "10.0.0.2", length: int = 0) -> Outside:
    """A request that another gateway hands over to this one."""
    outside = Outside()
    came = [(b"host", HOST), (b"x-forwarded-for", b"192.0.2.1")]
    headers = handed_headers(came, APP)
    head = RequestHead(b"POST", b"/a?b", dict(headers)[b"host"], headers, length, peer)
    outside.sink = world.gateway.handle(head, outside)
    return outside


# ---- the gateway that hands over


@virtually
async def test_the_head_goes_first_and_the_body_once_the_other_gateway_begins() -> None:
    world = world_with_peers("g2")
    outside = world.ask(b"POST", length=3)
    (attempt,) = world.attempts
    headers = dict(attempt.headers)
    assert attempt.address == ("g2", 8080)
    assert revision_of(headers[b"host"]) == APP
    assert headers[b"penstock-host"] == HOST
    assert b"expect: 100-continue\r\n" in attempt.encoded
    assert b"x-forwarded-for: 10.0.0.9\r\n" in attempt.encoded
    assert outside.sink is not None
    outside.sink.body(b"abc")
    outside.sink.end()
    assert (attempt.written, attempt.ended) == ([], False)
    accept(attempt)
    assert (attempt.written, attempt.ended) == ([b"abc"], True)
    attempt.answer()
    assert outside.status == 200
    world.close()


@virtually
async def test_a_long_body_is_not_taken_in_before_the_other_gateway_begins() -> None:
    world = world_with_peers("g2")
    outside = world.ask(b"POST", length=1_000_000)
    assert outside.paused
    accept(world.attempts[0])
    assert not outside.paused
    world.close()


BEFORE = {
    "refused": ConnectFailed("refused"),
    "killed": ConnectionLost("killed", sent=True, fresh=True),
}


@pytest.mark.parametrize("error", BEFORE.values(), ids=BEFORE.keys())
def test_what_the_other_gateway_had_not_begun_goes_to_another(error: NetError) -> None:
    @virtually
    async def main() -> None:
        world = world_with_peers("g2", "g3")
        outside = world.ask(b"POST", length=3)
        assert outside.sink is not None
        outside.sink.body(b"abc")
        outside.sink.end()
        world.attempts[0].listener.failed(error)
        second = world.attempts[1]
        assert second.address == ("g3", 8080)
        accept(second)
        assert second.written == [b"abc"]
        second.answer_whole()
        assert outside.status == 200
        world.close()

    main()


@virtually
async def test_it_is_tried_for_as_long_as_the_request_may_take_and_not_all_the_time() -> None:
    world = world_with_peers("g2")
    outside = world.ask(b"POST", length=0)
    for _ in range(300):
        for attempt in world.attempts:
            if not attempt.cancelled and not attempt.ended:
                attempt.ended = True
                attempt.listener.failed(ConnectFailed("refused"))
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)
    assert outside.status == 504
    assert 10 < len(world.attempts) < 40
    world.close()


@virtually
async def test_what_the_other_gateway_had_begun_is_broken_off_with_it() -> None:
    world = world_with_peers("g2", "g3")
    outside = world.ask(b"POST", length=0)
    accept(world.attempts[0])
    world.attempts[0].listener.failed(ConnectionLost("killed", sent=True, fresh=True))
    assert outside.status == 502
    assert len(world.attempts) == 1
    world.close()


@virtually
async def test_what_does_no_harm_twice_is_served_by_another_also_when_it_was_begun() -> None:
    world = world_with_peers("g2", "g3")
    outside = world.ask(b"GET")
    accept(world.attempts[0])
    world.attempts[0].listener.failed(ConnectionLost("killed", sent=True, fresh=True))
    assert world.attempts[1].address == ("g3", 8080)
    world.attempts[1].answer()
    assert outside.status == 200
    world.close()


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces"])
def test_what_is_given_back_goes_to_another_gateway_or_to_an_instance_of_its_own(in_pieces: bool) -> None:
    @virtually
    async def main() -> None:
        world = world_with_peers("g2")
        outside = world.ask(b"POST", length=0)
        (first,) = world.attempts
        if in_pieces:
            first.listener.head(421, GIVEN_BACK, 2)
            assert first.cancelled
        else:
            assert isinstance(first.listener, PeerAnswer)
            first.listener.whole(421, GIVEN_BACK, b"no")
        assert outside.status is None
        world.instances("own")
        second = world.attempts[1]
        assert second.address == ("own", 80)
        assert b"expect" not in second.encoded
        second.answer()
        assert outside.status == 200
        world.close()

    main()


@virtually
async def test_a_function_may_answer_421_itself() -> None:
    world = world_with_peers("g2")
    outside = world.ask()
    accept(world.attempts[0])
    world.attempts[0].answer_whole(421)
    assert outside.status == 421
    world.close()


@virtually
async def test_a_client_that_leaves_ends_what_was_handed_over() -> None:
    world = world_with_peers("g2")
    outside = world.ask(b"POST", length=3)
    outside.leave()
    assert world.attempts[0].cancelled
    assert world.gateway.active == 0
    world.close()


@virtually
async def test_what_is_handed_over_counts_at_the_other_gateway_alone() -> None:
    world = world_with_peers("g2")
    outside = world.ask()
    await asyncio.sleep(1.5)
    assert world.demand == [
        {"namespace": "shop", "name": "app-1", "concurrency": 0.0, "rps": 0.0, "queued": 0} | {"elsewhere": 1}
    ]
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    tell_peers(world)
    await asyncio.sleep(1.0)
    assert world.demand[-1]["queued"] == 1
    assert "elsewhere" not in world.demand[-1]
    outside.leave()
    world.close()


# ---- the gateway that takes over


@virtually
async def test_one_that_is_taken_over_waits_in_line_and_is_told_when_its_turn_comes() -> None:
    world = World()
    world.swap(peers=("10.0.0.2",))
    world.instances("a", limits=LIMIT)
    mine = world.ask()
    taken = hand_in(world, length=3)
    assert taken.paused
    assert not taken.told_to_proceed
    world.attempts[0].answer()
    assert mine.status == 200
    assert taken.told_to_proceed
    assert not taken.paused
    sent = world.attempts[1]
    assert sent.target == b"/a?b"
    assert sorted(sent.headers) == [(b"host", HOST), (b"x-forwarded-for", b"192.0.2.1")]
    assert sent.encoded == b""
    sent.answer()
    assert taken.status == 200
    name = 'penstock_gateway_handed_over_requests_total{namespace="shop",revision="app-1"}'
    assert world.value(name) == 1
    world.close()


@virtually
async def test_who_is_no_gateway_cannot_hide_where_its_request_comes_from() -> None:
    world = World()
    world.swap(peers=("10.0.0.2",))
    world.instances("a", limits=LIMIT)
    hand_in(world, peer="203.0.113.7")
    (sent,) = world.attempts
    assert dict(sent.headers)[b"x-forwarded-for"] == b"192.0.2.1, 203.0.113.7"
    assert b"penstock-host" not in dict(sent.headers)
    world.close()


@virtually
async def test_without_an_instance_of_its_own_it_gives_back_and_never_hands_on() -> None:
    world = world_with_peers("g3")
    taken = hand_in(world)
    assert (taken.status, taken.reason) == (421, b"not-the-owner")
    assert world.attempts == []
    world.close()


@virtually
async def test_a_revision_that_is_not_known_yet_is_given_back() -> None:
    world = World(synced=False)
    taken = hand_in(world)
    assert (taken.status, taken.reason) == (421, b"not-the-owner")
    world.close()


@virtually
async def test_when_the_last_instance_goes_what_others_handed_over_goes_back_and_its_own_goes_on() -> None:
    world = World()
    world.instances("a", limits=LIMIT)
    first, mine, taken = world.ask(), world.ask(), hand_in(world)
    tell_peers(world, "g2")
    assert (taken.status, taken.reason) == (421, b"not-the-owner")
    assert [attempt.address[0] for attempt in world.attempts] == ["a", "g2"]
    assert (first.status, mine.status) == (None, None)
    world.attempts[0].answer()
    assert first.status == 200
    world.close()


@virtually
async def test_a_gateway_that_ends_gives_back_what_waits() -> None:
    world = World()
    world.instances("a", limits=LIMIT)
    world.ask()
    taken = hand_in(world)
    await world.gateway.drain(1.0)
    assert (taken.status, taken.reason) == (421, b"not-the-owner")
    world.close()


@virtually
async def test_one_whose_instance_refuses_when_there_is_no_other_goes_back() -> None:
    world = World()
    world.instances("a", limits=LIMIT)
    taken = hand_in(world)
    tell_peers(world, "g2")
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    assert (taken.status, taken.reason) == (421, b"not-the-owner")
    assert world.gateway.active == 0
    world.close()


@virtually
async def test_instances_that_are_asked_back_are_told_of_once_their_requests_are_over() -> None:
    world = World()
    world.instances("a", "b", limits=LIMIT)
    one, two = world.ask(), world.ask()
    world.endpoints[APP] = ()
    world.swap(returned=("a", "b", "c"))
    await asyncio.sleep(0.01)
    assert world.returned == {"c"}
    world.attempts[0].answer()
    await asyncio.sleep(0.2)
    assert world.returned == {"c", one.headers[b"x-from"].decode()}
    world.attempts[1].answer()
    await asyncio.sleep(0.2)
    assert world.returned == {"a", "b", "c"}
    assert two.status == 200
    world.swap(returned=())
    world.returned.clear()
    await asyncio.sleep(3)
    assert world.returned == set()
    world.close()
