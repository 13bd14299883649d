"""The gateway's decisions over time: on virtual time, with in-memory stand-ins for the two ends of core.net."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from core.limits import MAX_HELD_REQUESTS
from core.net.types import (
    Address,
    BodySink,
    ConnectFailed,
    ConnectionLost,
    Headers,
    NetError,
    RequestHead,
    Response,
    ResponseInvalid,
    ResponseListener,
)
from core.telemetry import Metrics
from serving.demand import DemandReporter
from serving.forwarding import MAX_ATTEMPTS
from serving.gateway import SWEEP_EVERY_S, Gateway
from serving.lane import MAX_HELD_BODY_BYTES, MAX_KEPT_BYTES, Answer
from serving.routing import Endpoint, RevisionKey, RevisionLimits, RouteTarget, RoutingTable, Snapshot
from serving.throttler import MAX_BACK_OFF_S
from tests.support.virtual_time import run_virtual

APP = RevisionKey("shop", "app-1")
NEXT = RevisionKey("shop", "app-2")
HOST = b"app.shop.localhost:8080"


@dataclass
class Attempt:
    """One request at an instance: `core.net.types.UpstreamRequest`, driven by the test through `listener`."""

    address: Address
    method: bytes
    target: bytes
    headers: Headers
    listener: ResponseListener
    written: list[bytes] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False
    paused: bool = False

    def write(self, chunk: bytes) -> None:
        self.written.append(chunk)

    def end(self) -> None:
        self.ended = True

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def answer(self, status: int = 200, body: bytes = b"ok") -> None:
        """As it comes in several reads; `answer_whole` is how it comes in one."""
        self.listener.head(status, [(b"x-from", self.address[0].encode())], len(body))
        if body:
            self.listener.body(body)
        self.listener.end()

    def answer_whole(self, status: int = 200, body: bytes = b"ok") -> None:
        assert isinstance(self.listener, Answer)
        self.listener.whole(status, [(b"x-from", self.address[0].encode())], body)


class Outside:
    """A client of the gateway: `core.net.types.Exchange`. `status` is None until an answer began."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.content = b""
        self.complete = False
        self.aborted = False
        self.paused = False
        self.sink: BodySink | None = None

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.start(status, headers, len(body))
        self.content = body
        self.end()

    def start(self, status: int, headers: Headers, content_length: int | None) -> None:
        assert self.status is None, "answered twice"
        self.status = status
        self.headers = dict(headers)

    def write(self, chunk: bytes) -> None:
        assert self.status is not None
        assert not self.complete
        self.content += chunk

    def end(self) -> None:
        assert not self.complete
        assert not self.aborted
        self.complete = True

    def abort(self) -> None:
        assert not self.complete
        self.aborted = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    @property
    def reason(self) -> bytes | None:
        return self.headers.get(b"penstock-reason")

    def leave(self) -> None:
        assert self.sink is not None
        self.sink.lost()


class World:
    """A gateway with its two ends in memory."""

    def __init__(self, *, broker: Address | None = None, synced: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        self.attempts: list[Attempt] = []
        self.reports: list[tuple[float, str, int]] = []
        self.reporter = DemandReporter(
            gateway_id="g", address=("127.0.0.1", 8082), fetch=self._fetch, monotonic=loop.time
        )
        self.gateway = Gateway(
            send=self._send,
            reporter=self.reporter,
            metrics=self.metrics,
            rng=random.Random(1),
            monotonic=loop.time,
            broker=broker,
        )
        self.limits: dict[RevisionKey, RevisionLimits] = {APP: RevisionLimits()}
        self.split: list[tuple[RevisionKey, int]] = [(APP, 100)]
        self.endpoints: dict[RevisionKey, tuple[Endpoint, ...]] = {}
        if synced:
            self.swap()

    def swap(self) -> None:
        target = RouteTarget.of("shop/app", self.split)
        table = RoutingTable({b"app.shop.localhost": target} if self.split else {})
        self.gateway.swap(Snapshot(table=table, limits=dict(self.limits), endpoints=dict(self.endpoints)))

    def instances(self, *names: str, of: RevisionKey = APP, limits: RevisionLimits | None = None) -> None:
        self.endpoints[of] = tuple(Endpoint(name, (name, 80)) for name in names)
        if limits is not None:
            self.limits[of] = limits
        self.swap()

    def ask(
        self, method: bytes = b"GET", *, host: bytes = HOST, length: int | None = 0, target: bytes = b"/"
    ) -> Outside:
        outside = Outside()
        head = RequestHead(method, target, host, [(b"host", host)], length, "10.0.0.9")
        outside.sink = self.gateway.handle(head, outside)
        if length == 0:
            outside.sink.end()
        return outside

    def value(self, line: str) -> float:
        """The sample of the metric whose name and labels are `line`."""
        for sample in self.metrics.expose().splitlines():
            name, _, value = sample.rpartition(" ")
            if name == line:
                return float(value)
        raise AssertionError(f"no sample {line} in {self.metrics.expose()}")

    def close(self) -> None:
        self.reporter.close()

    def _send(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int | None,
        listener: ResponseListener,
        *,
        encoded_headers: bytes = b"",
    ) -> Attempt:
        self.attempts.append(Attempt(address, method, target, headers, listener))
        return self.attempts[-1]

    def _fetch(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        then: Callable[[Response | NetError], None],
    ) -> Callable[[], None]:
        for told in msgspec.json.decode(body)["revisions"]:
            self.reports.append((asyncio.get_running_loop().time(), told["name"], told["queued"]))
        handle = asyncio.get_running_loop().call_soon(then, Response(202, [], b""))
        return handle.cancel


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run the coroutine function `test` on virtual time."""

    async def main() -> None:
        await test()

    def run() -> None:
        run_virtual(main())

    run.__name__ = test.__name__  # type: ignore[attr-defined]  # a function has a name
    return run


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


@virtually
async def test_before_the_first_table_a_client_is_told_to_come_back() -> None:
    world = World(synced=False)
    outside = world.ask()
    assert (outside.status, outside.reason) == (503, b"not-synced")
    assert outside.headers[b"retry-after"] == b"1"
    world.swap()
    assert world.ask().status is None
    world.close()


@virtually
async def test_an_unknown_host_is_told_what_hosts_look_like() -> None:
    world = World()
    outside = world.ask(host=b"nobody.shop.localhost")
    assert (outside.status, outside.reason) == (404, b"unknown-host")
    assert b"<service>.<namespace>.localhost" in outside.content
    assert world.value("penstock_gateway_unrouted_requests_total") == 1
    world.close()


@virtually
async def test_a_route_that_has_nothing_rolled_out_yet_says_so() -> None:
    world = World()
    target: RouteTarget[RevisionKey] = RouteTarget.of("shop/app", [])
    table = RoutingTable({b"app.shop.localhost": target})
    world.gateway.swap(Snapshot(table=table, limits={}, endpoints={}))
    outside = world.ask()
    assert (outside.status, outside.reason) == (503, b"no-revision")
    assert b"shop/app" in outside.content
    world.close()


@virtually
async def test_the_brokers_hosts_lead_to_the_broker_even_before_the_first_table() -> None:
    world = World(broker=("127.0.0.1", 8081), synced=False)
    outside = world.ask(b"POST", host=b"broker-ingress.knative-eventing.svc.cluster.local", target=b"/shop/default")
    assert [attempt.address for attempt in world.attempts] == [("127.0.0.1", 8081)]
    world.attempts[0].answer(202, b"")
    assert outside.status == 202
    await asyncio.sleep(2)
    assert world.reports == []
    world.close()


@virtually
async def test_publishers_wait_while_the_broker_restarts() -> None:
    world = World(broker=("127.0.0.1", 8081))
    outside = world.ask(b"POST", host=b"broker-ingress.localhost:8080", target=b"/shop/default")
    world.attempts[0].listener.failed(ConnectFailed("refused"))
    await asyncio.sleep(0.3)
    world.attempts[1].answer(202, b"")
    assert outside.status == 202
    assert world.reports == []
    world.close()


@virtually
async def test_a_swap_leaves_requests_where_they_are_and_sends_new_ones_the_new_way() -> None:
    world = World()
    world.instances("a")
    old = world.ask()
    world.split = [(NEXT, 100)]
    world.limits[NEXT] = RevisionLimits()
    world.instances("b", of=NEXT)
    new = world.ask()
    assert [attempt.address[0] for attempt in world.attempts] == ["a", "b"]
    for attempt in world.attempts:
        attempt.answer()
    assert (old.headers[b"x-from"], new.headers[b"x-from"]) == (b"a", b"b")
    world.close()


@virtually
async def test_what_waits_for_a_deleted_revision_is_routed_anew() -> None:
    world = World()
    body = world.ask(b"POST", length=3)
    assert body.sink is not None
    body.sink.body(b"abc")
    body.sink.end()
    world.split = [(NEXT, 100)]
    world.limits = {NEXT: RevisionLimits()}
    world.instances("b", of=NEXT)
    [attempt] = world.attempts
    assert (attempt.address[0], attempt.written, attempt.ended) == ("b", [b"abc"], True)
    attempt.answer()
    assert body.status == 200
    world.close()


@virtually
async def test_what_was_routed_anew_has_its_place_among_those_that_wait_there() -> None:
    world = World()
    asked = [world.ask(target=b"/anew") for _ in range(3)]
    asked[0].leave()
    asked[1].leave()
    world.split = [(NEXT, 100)]
    world.limits = {NEXT: RevisionLimits(concurrency=2)}
    world.instances("b", of=NEXT)
    world.ask(target=b"/later")
    for attempt in (world.attempts[1], world.attempts[0]):
        attempt.listener.failed(ConnectFailed("refused"))
    world.instances("c", of=NEXT)
    assert [attempt.target for attempt in world.attempts[2:]] == [b"/anew", b"/later"]
    world.close()


@virtually
async def test_what_waits_for_a_deleted_route_is_told_so() -> None:
    world = World()
    outside = world.ask()
    world.split, world.limits = [], {}
    world.swap()
    assert outside.status == 404
    outside.leave()
    assert world.gateway.active == 0
    assert 'revision="app-1"' not in world.metrics.expose()
    world.close()


@virtually
async def test_what_runs_at_a_deleted_revision_ends_there_and_is_routed_anew_if_it_fails() -> None:
    world = World()
    world.instances("a")
    ends, fails = world.ask(), world.ask()
    world.split = [(NEXT, 100)]
    world.limits = {NEXT: RevisionLimits()}
    world.endpoints = {}
    world.instances("b", of=NEXT)
    world.attempts[0].answer()
    world.attempts[1].listener.failed(ConnectFailed("gone"))
    assert world.attempts[2].address[0] == "b"
    world.attempts[2].answer()
    assert (ends.status, fails.status) == (200, 200)
    world.close()


@virtually
async def test_a_revision_that_a_route_names_before_it_is_known_gets_requests_once_its_limit_is_known() -> None:
    world = World()
    world.limits = {}
    world.instances("a")
    asked = [world.ask() for _ in range(3)]
    assert not world.attempts
    world.instances("a", limits=RevisionLimits(concurrency=2))
    assert len(world.attempts) == 2
    for attempt in world.attempts:  # the third comes as the first ends
        attempt.answer()
    assert [outside.status for outside in asked] == [200, 200, 200]
    world.close()


@virtually
async def test_an_instance_that_goes_while_it_works_finishes_its_requests() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=1))
    first = world.ask()
    world.instances()
    second = world.ask()
    world.attempts[0].answer()
    assert first.status == 200
    assert second.status is None
    world.instances("b")
    world.attempts[1].answer()
    assert second.headers[b"x-from"] == b"b"
    world.close()


@virtually
async def test_draining_waits_for_requests_and_then_gives_up_what_is_left() -> None:
    world = World()
    world.instances("a", limits=RevisionLimits(concurrency=2))
    ends, hangs, waits = world.ask(), world.ask(), world.ask()
    world.attempts[1].listener.head(200, [], None)
    drained = asyncio.create_task(world.gateway.drain(5.0))
    await asyncio.sleep(1)
    world.attempts[0].answer()
    assert (ends.status, drained.done()) == (200, False)
    assert len(world.attempts) == 3
    await drained
    assert asyncio.get_running_loop().time() == pytest.approx(5.0)
    assert hangs.aborted
    assert (waits.status, waits.reason) == (503, b"stopping")
    assert world.gateway.active == 0
    world.close()


@virtually
async def test_draining_ends_with_the_last_request() -> None:
    world = World()
    world.instances("a")
    outside = world.ask()
    drained = asyncio.create_task(world.gateway.drain(60.0))
    await asyncio.sleep(1)
    world.attempts[0].answer()
    await drained
    assert outside.status == 200
    assert asyncio.get_running_loop().time() < 1.5
    await world.gateway.drain(60.0)
    world.close()
