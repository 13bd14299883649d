"""What the gateway tells a client that asks who served it: the revision, and the wait for a cold start."""

from __future__ import annotations

import asyncio

from core.limits import MAX_HELD_REQUESTS
from core.net.served import ASKS
from core.net.types import ConnectFailed
from serving.answer import PeerAnswer
from serving.routing import Endpoint, RevisionLimits
from tests.support.gateway_world import APP, World, virtually

REVISION, COLD_START = b"penstock-revision", b"penstock-cold-start"


@virtually
async def test_a_client_that_does_not_ask_is_told_nothing() -> None:
    world = World()
    outside = world.ask(headers=[(b"penstock-explain", b"?0")])
    await asyncio.sleep(1)
    world.instances("a")
    world.attempts[0].answer_whole()
    assert outside.headers == {b"x-from": b"a"}
    world.close()


@virtually
async def test_a_client_that_asks_is_told_the_revision_and_no_wait_where_an_instance_was_ready() -> None:
    world = World()
    world.instances("a")
    whole, parts = world.ask(headers=[ASKS]), world.ask(headers=[(b"forwarded", b"for=1.2.3.4"), ASKS])
    world.attempts[0].answer_whole()
    world.attempts[1].answer()
    assert whole.headers == parts.headers == {b"x-from": b"a", REVISION: b"app-1"}
    world.close()


@virtually
async def test_the_wait_for_a_cold_start_is_told_in_seconds_and_the_wait_for_a_slot_is_none() -> None:
    world = World()
    cold = world.ask(headers=[ASKS])
    await asyncio.sleep(0.75)
    world.instances("a", limits=RevisionLimits(concurrency=1))
    queued = world.ask(headers=[ASKS])
    await asyncio.sleep(1)
    world.attempts[0].answer()
    world.attempts[1].answer()
    assert (cold.headers[REVISION], cold.headers[COLD_START]) == (b"app-1", b"0.750")
    assert queued.headers[REVISION] == b"app-1"
    assert COLD_START not in queued.headers
    world.close()


@virtually
async def test_a_wait_after_the_only_instance_was_lost_counts_until_the_request_is_sent_for_good() -> None:
    world = World()
    world.instances("a")
    outside = world.ask(headers=[ASKS])
    await asyncio.sleep(1)
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    world.instances()
    await asyncio.sleep(0.5)
    world.instances("b")
    world.attempts[-1].answer()
    assert outside.headers[COLD_START] == b"0.500"
    world.close()


@virtually
async def test_the_gateways_own_answers_tell_it_as_well() -> None:
    world = World()
    waits = world.ask(headers=[ASKS])
    held = [world.ask() for _ in range(MAX_HELD_REQUESTS - 1)]
    full, silent = world.ask(headers=[ASKS]), world.ask()
    assert (full.reason, full.headers[REVISION]) == (b"queue-full", b"app-1")
    assert (silent.reason, silent.headers.get(REVISION)) == (b"queue-full", None)
    for each in held:
        each.leave()
    await asyncio.sleep(RevisionLimits().timeout_s + 1)
    assert (waits.reason, waits.headers[REVISION]) == (b"no-instance-in-time", b"app-1")
    assert float(waits.headers[COLD_START]) >= RevisionLimits().timeout_s
    world.close()


@virtually
async def test_of_two_gateways_the_one_that_was_asked_tells_once() -> None:
    giver, taker = World(), World()
    giver.endpoints[APP] = (Endpoint("g2", ("g2", 8080), peer=True),)
    giver.swap()
    taker.instances("a")
    outside = giver.ask(headers=[ASKS])
    [handed] = giver.attempts
    [(_, host), *others] = handed.headers
    taken = taker.ask(host=host, headers=others)
    taker.attempts[0].answer_whole()
    assert ASKS in taker.attempts[0].headers
    assert taken.headers == {b"x-from": b"a"}
    assert isinstance(handed.listener, PeerAnswer)
    handed.listener.proceed()
    handed.answer()
    assert outside.headers == {b"x-from": b"g2", REVISION: b"app-1"}
    giver.close()
    taker.close()
