"""The gateway while its table changes, before there is one, and when it ends."""

from __future__ import annotations

import asyncio

import pytest

from core.net.types import (
    ConnectFailed,
)
from serving.routing import RevisionKey, RevisionLimits, RouteTarget, RoutingTable, Snapshot
from tests.support.gateway_world import NEXT, World, virtually


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
