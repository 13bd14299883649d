"""Several gateways on virtual time: whose an instance is, what is handed over, and what becomes of it when one dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest

import serving.node
from serving.gateways import GONE_REST_S, SILENT_REST_S
from tests.support.gateway_world import Outside
from tests.support.gateways_world import Gate, Several
from tests.support.virtual_time import run_virtual


@pytest.fixture(autouse=True)
def virtual_monotonic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node takes the time that its timers go by from the machine."""
    monkeypatch.setattr(serving.node, "time", SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time()))


def virtually(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**given: Any) -> None:
        async def main() -> None:
            await test(**given)

        run_virtual(main())

    return run


@virtually
async def test_instances_that_wait_for_work_are_spread_over_the_gateways() -> None:
    world = Several(random.Random(1))
    await world.start("a", "b", "c", min_scale=6, initial_scale=6)
    assert await world.owners() == {"a": 2, "b": 2, "c": 2}
    await world.close()


@virtually
async def test_a_gateway_without_an_instance_hands_its_requests_to_the_one_that_has_it() -> None:
    world = Several(random.Random(1))
    await world.start("a", "b", "c", min_scale=1, max_scale=1)
    asked = [gate.ask(length=length) for gate in world.gates for length in (0, 100, 100_000)]
    await asyncio.sleep(30)
    assert [outside.status for outside in asked] == [200] * 9
    assert world.handed >= 6
    assert world.most == 1
    await world.close()


@virtually
async def test_a_request_at_zero_wakes_the_revision_from_whichever_gateway() -> None:
    world = Several(random.Random(1))
    await world.start("a", "b", initial_scale=0)
    for gate in world.gates:
        outside = gate.ask()
        await asyncio.sleep(2)
        assert outside.status == 200
        await asyncio.sleep(120)
        assert not world.instances.instances
    await world.close()


@virtually
async def test_a_request_counts_as_demand_once() -> None:
    world = Several(random.Random(1))
    world.served_s = lambda: 10.0  # type: ignore[method-assign]  # slow functions
    await world.start("a", "b", min_scale=1, max_scale=1)
    owner = next(iter(await world.owners()))
    other = next(gate for gate in world.gates if gate.name != owner)
    for _ in range(3):
        other.ask()
    await asyncio.sleep(4)
    (decision,) = world.autoscaler.decisions("default", "hello")[-1:]
    assert decision.demand == pytest.approx(3.0)
    await world.close()


@virtually
async def test_an_instance_that_idles_moves_to_the_gateway_where_requests_wait() -> None:
    world = Several(random.Random(1))
    world.served_s = lambda: 0.5  # type: ignore[method-assign]  # not at random
    await world.start("a", "b", min_scale=4, max_scale=4)
    asked = []
    for _ in range(200):
        asked.append(world.gates[0].ask())
        await asyncio.sleep(0.15)
    assert (await world.owners())["a"] >= 3
    await asyncio.sleep(30)
    assert {outside.status for outside in asked} == {200}
    await world.close()


@virtually
async def test_a_gateway_that_is_ended_gives_its_instances_back_and_no_request_is_lost() -> None:
    world = Several(random.Random(1), limit=2)
    await world.start("a", "b", min_scale=2, max_scale=2)
    asked = [world.gates[0].ask(length=length) for length in (0, 100, 100_000) * 10]
    await asyncio.sleep(0.1)
    ending = asyncio.create_task(world.end(world.gates[0]))
    for _ in range(20):
        asked.append(world.gates[1].ask())
        await asyncio.sleep(0.1)
    await ending
    await asyncio.sleep(20)
    assert {outside.status for outside in asked} == {200}
    assert await world.owners() == {"b": 2}
    await world.close()


@pytest.mark.parametrize("listed", [False, True], ids=["not listed any more", "listed without answering"])
@virtually
async def test_when_a_gateway_is_killed_others_take_its_instances_over_and_refuse_nothing(listed: bool) -> None:
    world = Several(random.Random(1))
    await world.start("a", "b", min_scale=1, max_scale=1)
    owner = next(iter(await world.owners()))
    dead = next(gate for gate in world.gates if gate.name == owner)
    other = next(gate for gate in world.gates if gate.name != owner)
    world.served_s = lambda: 1.0  # type: ignore[method-assign]  # one at a time
    dead.ask()
    asked = [other.ask(length=length) for length in (0, 100, 100_000)]
    await asyncio.sleep(0.5)
    dead.kill()
    if listed:
        await world.list_gateway(dead, ready=False)
    else:
        await world.delist(dead)
    rest_s = SILENT_REST_S if listed else GONE_REST_S
    await asyncio.sleep(rest_s - 0.1)
    assert await world.owners() == {dead.name: 1}
    await asyncio.sleep(0.2)
    assert await world.owners() == {other.name: 1}
    await asyncio.sleep(10)
    assert world.cut == 0
    assert [outside.status for outside in asked] == [200] * 3
    await world.close()


@virtually
async def test_an_instance_that_is_not_ready_for_a_while_comes_back_to_the_gateway_that_has_requests_there() -> None:
    world = Several(random.Random(1))
    await world.start("a", "b", min_scale=2, max_scale=2)
    before = await world.owners()
    world.served_s = lambda: 10.0  # type: ignore[method-assign]  # slow functions
    asked = [gate.ask() for gate in world.gates]
    await asyncio.sleep(0.5)
    for one in world.instances.instances:
        world.instances.crash(one.name)
    await asyncio.sleep(0.5)
    await world.succeed()
    await asyncio.sleep(15)
    assert await world.owners() == before == {"a": 1, "b": 1}
    assert [outside.status for outside in asked] == [200, 200]
    await world.close()


@virtually
async def test_where_there_is_no_gateway_an_instance_waits_for_one() -> None:
    world = Several(random.Random(1))
    await world.start(min_scale=1)
    assert await world.owners() == {"": 1}
    await world.join("a")
    await asyncio.sleep(0.1)
    assert await world.owners() == {"a": 1}
    await world.close()


class Day:
    """Clients, gateways, instances and the control side, all moved by one seeded generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.world = Several(rng, limit=rng.choice([1, 1, 3]), max_lag_s=rng.choice([0.0, 0.02, 0.2]))
        self.ending: list[asyncio.Task[None]] = []
        self.gone: list[Outside] = []
        self.names = iter(f"g{number}" for number in range(1000))

    async def step(self) -> None:
        acts = [self.ask, self.hang_up, self.join, self.kill, self.end, self.crash, self.succeed]
        await self.rng.choices(acts, [40, 2, 0.7, 0.5, 0.5, 0.5, 0.3])[0]()
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.choice([0, 0.01, 0.1, 0.1, 0.5]))

    def serving(self) -> list[Gate]:
        return [gate for gate in self.world.alive if gate.accepting]

    async def ask(self) -> None:
        self.rng.choice(self.serving()).ask(length=self.rng.choice([0, 0, 100, 100_000]))

    async def hang_up(self) -> None:
        under_way = [each for gate in self.world.alive for each in gate.asked if not each.complete]
        if under_way:
            outside = self.rng.choice(under_way)
            outside.resume = lambda: None  # type: ignore[method-assign]  # it will not send its body
            outside.aborted = True
            self.gone.append(outside)
            outside.leave()

    async def join(self) -> None:
        if len(self.serving()) < 5:
            await self.world.join(next(self.names))

    async def kill(self) -> None:
        if len(self.serving()) > 1:
            gate = self.rng.choice(self.serving())
            gate.kill()
            self.ending.append(asyncio.create_task(self.notice(gate)))

    async def notice(self, gate: Gate) -> None:
        await asyncio.sleep(self.rng.choice([0.0, 1.0]))
        if self.rng.random() < 0.5:
            await self.world.list_gateway(gate, ready=False)
            await asyncio.sleep(self.rng.choice([1.0, 15.0]))
        await self.world.delist(gate)

    async def end(self) -> None:
        if len(self.serving()) > 1:
            self.ending.append(asyncio.create_task(self.world.end(self.rng.choice(self.serving()))))
            await asyncio.sleep(0)

    async def crash(self) -> None:
        ready = [one.name for one in self.world.instances.instances if one.phase == "ready"]
        if ready:
            self.world.crash(self.rng.choice(ready))

    async def succeed(self) -> None:
        await self.world.succeed()


@pytest.mark.parametrize("seed", range(20))
@virtually
async def test_on_a_random_day_no_limit_is_exceeded_and_no_request_is_refused(seed: int) -> None:
    day = Day(random.Random(seed))
    world = day.world
    await world.start(next(day.names), next(day.names), min_scale=day.rng.choice([0, 1, 3]), max_scale=8)
    for _ in range(20):
        await day.step()
    await asyncio.gather(*day.ending)
    await asyncio.sleep(330)
    asked = [outside for gate in world.alive for outside in gate.asked if outside not in day.gone]
    # What an instance or a gateway had begun with when it died is told so; everything else is served.
    assert [
        (outside.status, outside.reason, outside.content) for outside in asked if outside.status not in (200, 502)
    ] == []
    assert sum(outside.status == 502 for outside in asked) <= world.cut + world.broken
    assert not any(world.running.values())
    await world.close()
