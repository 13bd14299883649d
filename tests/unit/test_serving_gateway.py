"""The gateway's decisions over time: on virtual time, with in-memory stand-ins for the two ends of core.net."""

from __future__ import annotations

import asyncio

import pytest

from core.limits import MAX_HELD_REQUESTS
from core.net.types import (
    ConnectFailed,
    ConnectionLost,
    NetError,
    ResponseInvalid,
)
from serving.forwarding import MAX_ATTEMPTS
from serving.gateway import SWEEP_EVERY_S
from serving.lane import MAX_HELD_BODY_BYTES, MAX_KEPT_BYTES
from serving.routing import RevisionLimits
from serving.throttler import MAX_BACK_OFF_S
from tests.support.gateway_world import APP, World, virtually
from tests.support.virtual_time import run_virtual


@virtually
async def test_a_request_goes_to_an_instance_and_its_answer_back() -> None:
    world = World()
    world.instances("a")
    outside = world.ask(target=b"/hi?x=1")
    [attempt] = world.attempts
    assert (attempt.address, attempt.method, attempt.target) == (("a", 80), b"GET", b"/hi?x=1")
    assert attempt.ended
    attempt.answer(201, b"made")
    assert (outside.status, outside.content, outside.complete) == (201, b"made", True)
    assert outside.headers == {b"x-from": b"a"}
    assert world.gateway.active == 0
    labels = 'namespace="shop",revision="app-1"'
    assert world.value(f'penstock_gateway_requests_total{{{labels},code="2xx"}}') == 1
    assert world.value(f"penstock_gateway_request_seconds_count{{{labels}}}") == 1
    world.close()


@virtually
async def test_an_answer_that_came_whole_is_passed_on_whole() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=1))
    first, second = world.ask(), world.ask()
    world.attempts[0].answer_whole(201, b"made")
    assert (first.status, first.content, first.complete) == (201, b"made", True)
    world.attempts[1].answer_whole(500, b"")
    assert second.status == 500
    assert world.gateway.active == 0
    world.close()


@virtually
async def test_a_request_for_a_revision_at_zero_waits_and_wakes_the_autoscaler_at_once() -> None:
    world = World()
    first, second = world.ask(), world.ask()
    assert world.gateway.active == 2
    await asyncio.sleep(0)
    assert world.reports == [(0.0, "app-1", 2)]
    assert world.value('penstock_gateway_held_requests{namespace="shop",revision="app-1"}') == 2
    await asyncio.sleep(0.7)
    world.instances("a", limits=RevisionLimits(concurrency=1))
    assert [attempt.address[0] for attempt in world.attempts] == ["a"]
    assert world.value('penstock_gateway_hold_seconds_bucket{namespace="shop",revision="app-1",le="0.5"}') == 0
    assert world.value('penstock_gateway_hold_seconds_bucket{namespace="shop",revision="app-1",le="1.0"}') == 1
    world.attempts[0].answer(200, b"1")
    world.attempts[1].answer(200, b"2")
    assert (first.content, second.content) == (b"1", b"2")
    world.close()


@virtually
async def test_requests_over_the_limit_wait_without_a_wake_up_and_go_in_order() -> None:
    world = World()
    world.instances("a", "b", limits=RevisionLimits(concurrency=2))
    asked = [world.ask(target=b"/%d" % n) for n in range(7)]
    assert len(world.attempts) == 4
    await asyncio.sleep(0)
    assert world.reports == []
    for n in range(7):
        world.attempts[n].answer(200, world.attempts[n].target)
        assert len(world.attempts) == min(7, 5 + n)
    assert [outside.content for outside in asked] == [b"/%d" % n for n in range(7)]
    world.close()


@virtually
async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    world = World()
    held = [world.ask() for _ in range(MAX_HELD_REQUESTS)]
    refused = world.ask()
    assert (refused.status, refused.reason) == (503, b"queue-full")
    assert int(refused.headers[b"retry-after"]) >= 1
    assert refused.sink is not None
    refused.sink.lost()  # its connection may close now or later
    held[0].leave()
    assert world.ask().status is None
    assert world.value('penstock_gateway_requests_total{namespace="shop",revision="app-1",code="5xx"}') == 1
    assert world.value('penstock_gateway_requests_total{namespace="shop",revision="app-1",code="aborted"}') == 1
    world.close()


@virtually
async def test_a_client_that_leaves_while_it_waits_leaves_the_queue() -> None:
    world = World()
    gone, stays = world.ask(), world.ask()
    gone.leave()
    world.instances("a")
    assert len(world.attempts) == 1
    world.attempts[0].answer()
    assert (gone.status, stays.status) == (None, 200)
    world.close()


@virtually
async def test_a_client_that_leaves_while_it_is_served_frees_its_slot_and_cancels() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=1))
    gone, waiting = world.ask(), world.ask()
    gone.leave()
    assert world.attempts[0].cancelled
    world.attempts[1].answer()
    assert waiting.status == 200
    world.close()


@virtually
async def test_a_wait_without_instance_ends_after_the_revisions_time() -> None:
    world = World()
    world.limits[APP] = RevisionLimits(timeout_s=5.0)
    world.swap()
    early = world.ask()
    await asyncio.sleep(2)
    late = world.ask()
    await asyncio.sleep(3.2)
    assert (early.status, early.reason) == (504, b"no-instance-in-time")
    assert b"within 5 seconds" in early.content
    assert late.status is None
    await asyncio.sleep(2)
    assert late.status == 504
    assert world.gateway.active == 0
    world.close()


@virtually
async def test_the_time_of_a_request_spans_its_wait_and_its_run() -> None:
    world = World()
    world.limits[APP] = RevisionLimits(timeout_s=5.0)
    world.swap()
    outside = world.ask()
    await asyncio.sleep(4)
    world.instances("a")
    assert len(world.attempts) == 1
    await asyncio.sleep(1.2)
    assert (outside.status, outside.reason) == (504, b"no-answer-in-time")
    assert world.attempts[0].cancelled
    world.close()


@virtually
async def test_an_answer_that_takes_too_long_is_cut_off_where_it_is() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(timeout_s=5.0, concurrency=1))
    outside, waiting = world.ask(), world.ask()
    world.attempts[0].listener.head(200, [], None)
    world.attempts[0].listener.body(b"half")
    await asyncio.sleep(5.2)
    assert outside.aborted
    assert outside.content == b"half"
    assert world.attempts[0].cancelled
    assert waiting.status == 504
    world.close()


@virtually
async def test_an_answer_must_begin_within_its_own_time_where_the_revision_says_so() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(timeout_s=10.0, response_start_s=2.0))
    silent, begun = world.ask(), world.ask()
    world.attempts[1].listener.head(200, [], None)
    await asyncio.sleep(2.2)
    assert (silent.status, silent.reason) == (504, b"no-answer-in-time")
    assert b"within 2 seconds" in silent.content
    assert begun.status == 200
    assert not begun.aborted
    world.attempts[1].listener.end()
    world.close()


def test_nothing_ticks_once_everything_is_quiet() -> None:
    async def main() -> None:
        world = World()
        world.instances("a")
        world.ask()
        world.attempts[0].answer()
        await asyncio.sleep(3)
        await asyncio.Event().wait()

    # The virtual loop says so when no timer is left that would end a wait.
    with pytest.raises(RuntimeError, match="nothing is scheduled"):
        run_virtual(main())


@virtually
async def test_a_refused_connection_is_tried_at_another_instance() -> None:
    world = World()
    world.instances("a", "b")
    outside = world.ask()
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    assert [attempt.address[0] for attempt in world.attempts] == ["a", "b"]
    world.attempts[1].answer()
    assert outside.status == 200
    assert world.value('penstock_gateway_retries_total{namespace="shop",revision="app-1"}') == 1
    world.close()


@virtually
async def test_with_all_instances_failing_a_request_waits_for_the_next_one() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=1))
    first, second = world.ask(target=b"/1"), world.ask(target=b"/2")
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    await asyncio.sleep(0)
    assert world.reports == [(0.0, "app-1", 2)]
    assert (first.status, second.status) == (None, None)
    world.instances("b")
    assert [attempt.target for attempt in world.attempts] == [b"/1", b"/1"]
    world.attempts[1].answer()
    world.attempts[2].answer()
    assert (first.status, second.status) == (200, 200)
    world.close()


@virtually
async def test_a_failed_instance_is_tried_again_after_a_moment_until_attempts_run_out() -> None:
    world = World()
    world.instances("a")
    outside = world.ask()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert (len(world.attempts), outside.status) == (attempt, None)
        world.attempts[-1].listener.failed(ConnectFailed("refused"))
        assert len(world.attempts) == attempt
        await asyncio.sleep(MAX_BACK_OFF_S + 2 * SWEEP_EVERY_S)
    assert len(world.attempts) == MAX_ATTEMPTS
    assert (outside.status, outside.reason) == (502, b"broken-answer")
    world.close()


@virtually
async def test_a_body_is_sent_again_from_its_start() -> None:
    world = World()
    world.instances("a", "b")
    outside = world.ask(b"POST", length=6)
    assert outside.sink is not None
    outside.sink.body(b"one")
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    outside.sink.body(b"two")
    outside.sink.end()
    assert world.attempts[1].written == [b"one", b"two"]
    assert world.attempts[1].ended
    world.attempts[1].answer()
    assert outside.status == 200
    world.close()


@virtually
async def test_a_body_that_grew_too_long_to_keep_is_not_sent_again_without_its_start() -> None:
    world = World()
    world.instances("a", "b")
    outside = world.ask(b"POST", length=None)
    assert outside.sink is not None
    for _ in range(9):
        outside.sink.body(b"x" * (MAX_KEPT_BYTES // 8))
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    assert len(world.attempts) == 1
    assert outside.status == 502
    world.close()


@virtually
async def test_a_stale_connection_is_no_reason_to_leave_the_instance_alone() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=1))
    outside = world.ask()
    world.attempts[0].listener.failed(ConnectionLost("closed", sent=True, fresh=False))
    assert len(world.attempts) == 2
    world.attempts[1].answer()
    assert outside.status == 200
    world.close()


BROKEN: dict[str, NetError] = {
    "died after the request was sent": ConnectionLost("closed", sent=True, fresh=True),
    "not HTTP": ResponseInvalid("not HTTP"),
}


@pytest.mark.parametrize("error", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_a_502_before_the_head_and_a_cut_after_it(error: NetError) -> None:
    async def main() -> None:
        world = World()
        world.instances("a", limits=RevisionLimits(concurrency=1))
        before = world.ask(b"POST")
        world.attempts[0].listener.failed(error)
        assert (before.status, before.reason) == (502, b"broken-answer")
        after = world.ask()
        world.attempts[1].listener.head(200, [], None)
        world.attempts[1].listener.body(b"half")
        world.attempts[1].listener.failed(error)
        assert (after.content, after.aborted) == (b"half", True)
        unsent = world.ask()
        world.attempts[2].listener.head(200, [], 10)
        world.attempts[2].listener.failed(error)
        assert (unsent.status, unsent.aborted) == (502, False)
        # Each gave its slot back.
        world.ask()
        assert len(world.attempts) == 4
        world.close()

    run_virtual(main())


@virtually
async def test_a_short_body_is_taken_in_while_its_request_waits_and_a_long_one_is_not() -> None:
    world = World()
    short = world.ask(b"POST", length=MAX_HELD_BODY_BYTES)
    long = world.ask(b"POST", length=MAX_HELD_BODY_BYTES + 1)
    unknown = world.ask(b"POST", length=None)
    assert (short.paused, long.paused, unknown.paused) == (False, True, True)
    assert short.sink is not None
    short.sink.body(b"x" * MAX_HELD_BODY_BYTES)
    short.sink.end()
    world.instances("a")
    assert (long.paused, unknown.paused) == (False, False)
    assert world.attempts[0].written == [b"x" * MAX_HELD_BODY_BYTES]
    assert world.attempts[0].ended
    world.close()


@virtually
async def test_back_pressure_goes_through_both_ways() -> None:
    world = World()
    world.instances("a")
    outside = world.ask(b"POST", length=None)
    [attempt] = world.attempts
    attempt.listener.writable(False)
    assert outside.paused
    attempt.listener.writable(True)
    assert not outside.paused
    assert outside.sink is not None
    outside.sink.writable(False)
    assert attempt.paused
    outside.sink.writable(True)
    assert not attempt.paused
    outside.sink.end()
    attempt.answer()
    world.close()


@virtually
async def test_a_client_that_reads_slowly_is_remembered_across_attempts() -> None:
    world = World()
    world.instances("a", "b")
    outside = world.ask()
    assert outside.sink is not None
    outside.sink.writable(False)
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    assert world.attempts[1].paused
    world.close()


@virtually
async def test_an_answer_that_comes_before_the_body_ends_is_passed_on() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=1))
    outside = world.ask(b"POST", length=100)
    assert outside.sink is not None
    outside.sink.body(b"some")
    world.attempts[0].answer(413, b"too much")
    assert outside.status == 413
    outside.sink.body(b"more")
    outside.sink.end()
    assert world.attempts[0].written == [b"some"]
    assert world.gateway.active == 0
    world.close()


BODILESS = {"HEAD": (b"HEAD", 200, 13), "204": (b"GET", 204, 0), "304": (b"GET", 304, 0), "empty": (b"GET", 200, 0)}


@pytest.mark.parametrize(("method", "status", "length"), BODILESS.values(), ids=BODILESS)
def test_answers_without_body_are_complete(method: bytes, status: int, length: int) -> None:
    async def main() -> None:
        world = World()
        world.instances("a")
        outside = world.ask(method)
        world.attempts[0].listener.head(status, [], length)
        world.attempts[0].listener.end()
        assert (outside.status, outside.content, outside.complete) == (status, b"", True)
        world.close()

    run_virtual(main())
