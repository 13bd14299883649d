"""Leader election on virtual time: at most one works, whatever the store does, and a free Lease is soon taken."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from core.control.leader import Create, Election, ElectionTimes, Renew, Seen, Take, Wait, decide
from core.control.memory import MemoryStore
from core.errors import NotFound
from core.resources import Key, ObjectMeta, Resource
from core.resources.builtin import LEASE
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

KEY = Key(LEASE, "penstock", "control")
TIMES = ElectionTimes()


def lease(holder: str, duration_s: int | None = 15) -> Resource:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": duration_s}
    return Resource(ref=LEASE, meta=ObjectMeta(name="control", namespace="penstock"), body={"spec": spec})


@pytest.mark.parametrize(
    ("seen", "now_s", "decision"),
    [
        pytest.param(Seen(None, 0.0), 5.0, Create(), id="none"),
        pytest.param(Seen(lease(""), 5.0), 5.0, Take(), id="released"),
        pytest.param(Seen(lease("me"), 0.0), 99.0, Renew(), id="ours"),
        pytest.param(Seen(lease("you"), 5.0), 19.9, Wait("you", 20.0), id="held"),
        pytest.param(Seen(lease("you"), 5.0), 20.0, Take(), id="silent"),
        pytest.param(Seen(lease("you", 60), 5.0), 20.0, Wait("you", 65.0), id="held for the time that it says"),
        pytest.param(Seen(lease("you", None), 5.0), 20.0, Take(), id="no duration"),
    ],
)
def test_a_lease_is_taken_when_it_is_free_or_its_holder_was_silent(seen, now_s, decision):
    assert decide(seen, "me", now_s, TIMES) == decision


@pytest.mark.parametrize("times", [(10.0, 10.0, 2.0), (15.0, 2.0, 2.0), (15.0, 10.0, 0.0)])
def test_times_that_cannot_work_are_refused(times: tuple[float, float, float]):
    with pytest.raises(ValueError, match="cannot be renewed"):
        ElectionTimes(lease_s=times[0], renew_s=times[1], retry_s=times[2])


class World:
    """Candidates for one Lease, each with its own way to the store, and who worked when."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.inner = MemoryStore(clock=self.clock, rng=self.rng)
        self.working: list[str] = []
        self.log: list[tuple[str, float]] = []
        self.abandoned: list[str] = []
        self.running: dict[str, asyncio.Task[None]] = {}

    def start(
        self, name: str, *, stops_in_s: float = 0.0, work: Coroutine[Any, Any, None] | None = None
    ) -> FaultyStore:
        store = FaultyStore(self.inner)
        elected = Election(store, KEY, name, self.clock, rng=self.rng, abandon=lambda: self.abandoned.append(name))
        self.running[name] = asyncio.create_task(elected.run(lambda: work or self._work(name, stops_in_s)))
        return store

    async def _work(self, name: str, stops_in_s: float) -> None:
        assert not self.working, f"{name} begins while {self.working} works"
        self.working.append(name)
        self.log.append((name, asyncio.get_running_loop().time()))
        try:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(stops_in_s)
        finally:
            self.working.remove(name)

    async def stop(self, name: str) -> None:
        task = self.running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for name in list(self.running):
            await self.stop(name)
        assert self.working == []

    def check(self) -> None:
        for task in self.running.values():
            if task.done():
                task.result()


def test_one_of_several_works_and_the_next_soon_after_it_ends():
    async def main() -> None:
        world = World()
        for name in "abc":
            world.start(name)
        await asyncio.sleep(60)
        (leader,) = world.working
        ended_s = asyncio.get_running_loop().time()
        await world.stop(leader)
        await asyncio.sleep(3)
        (following,) = world.working
        assert following != leader
        assert world.log[-1][1] - ended_s <= TIMES.retry_s * 1.2
        held = (await world.inner.get(KEY)).spec
        assert (held["holderIdentity"], held["leaseTransitions"]) == (following, 1)
        assert held["leaseDurationSeconds"] == 15
        await world.close()
        assert (await world.inner.get(KEY)).spec["holderIdentity"] == ""

    run_virtual(main())


def test_a_leader_that_loses_the_store_stops_before_another_begins():
    async def main() -> None:
        world = World()
        cut_off = world.start("a", stops_in_s=4.0)
        await asyncio.sleep(1)
        world.start("b")
        await asyncio.sleep(10)
        assert world.working == ["a"]
        cut_off.go_down()
        await asyncio.sleep(12.5)
        assert world.working == ["a"], "it is still ending its work"
        await asyncio.sleep(10)
        assert world.working == ["b"]
        cut_off.come_up()
        await asyncio.sleep(60)
        assert world.working == ["b"]
        assert world.abandoned == []
        await world.close()

    run_virtual(main())


def test_a_short_outage_changes_nothing():
    async def main() -> None:
        world = World()
        stores = [world.start(name) for name in "ab"]
        await asyncio.sleep(10)
        for store in stores:
            store.go_down()
        await asyncio.sleep(7)
        for store in stores:
            store.come_up()
        await asyncio.sleep(60)
        assert len(world.log) == 1
        await world.close()

    run_virtual(main())


def test_work_that_does_not_stop_ends_the_process_before_another_begins():
    async def main() -> None:
        world = World()
        cut_off = world.start("a", stops_in_s=5.5)
        await asyncio.sleep(10)
        cut_off.go_down()
        await asyncio.sleep(12.9)
        assert world.abandoned == []
        await asyncio.sleep(2.2)
        assert world.abandoned == ["a"]
        await asyncio.sleep(5)
        await world.close()

    run_virtual(main())


def test_a_leader_that_is_told_to_end_holds_its_lease_until_its_work_has_ended():
    async def main() -> None:
        world = World()
        world.start("a", stops_in_s=100.0)
        await asyncio.sleep(1)
        world.start("b")
        ending = asyncio.create_task(world.stop("a"))
        await asyncio.sleep(99)
        assert world.working == ["a"]
        await ending
        await asyncio.sleep(3)
        assert world.working == ["b"]
        await world.close()

    run_virtual(main())


def test_a_leader_whose_lease_somebody_took_stops_at_once():
    async def main() -> None:
        world = World()
        world.start("a")
        await asyncio.sleep(5)
        held = await world.inner.get(KEY)
        await world.inner.update(held.with_spec({**held.spec, "holderIdentity": "somebody"}))
        await asyncio.sleep(4.1)
        assert world.working == []
        await asyncio.sleep(20)
        assert world.working == ["a"]
        await world.close()

    run_virtual(main())


def test_a_lease_that_somebody_deleted_is_made_again():
    async def main() -> None:
        world = World()
        world.start("a")
        await asyncio.sleep(5)
        await world.inner.delete(KEY)
        await asyncio.sleep(5)
        assert (await world.inner.get(KEY)).spec["holderIdentity"] == "a"
        assert len(world.log) == 1
        await world.close()

    run_virtual(main())


def test_work_that_fails_releases_the_lease_and_is_told():
    async def failing() -> None:
        raise NotFound("The work is missing.")

    async def main() -> None:
        world = World()
        world.start("a", work=failing())
        with pytest.raises(NotFound, match="missing"):
            await world.running.pop("a")
        assert (await world.inner.get(KEY)).spec["holderIdentity"] == ""

    run_virtual(main())


@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(2**32) for _ in range(20)])
def test_never_two_work_whatever_the_store_does(seed: int):
    async def main() -> None:
        world = World(seed)
        rng = world.rng
        stores = {name: world.start(name, stops_in_s=rng.uniform(0, 4.5)) for name in "abcd"}
        for _ in range(200):
            await asyncio.sleep(rng.expovariate(1 / 4))
            store = rng.choice(list(stores.values()))
            chance = rng.random()
            if chance < 0.3:
                store.go_down()
            elif chance < 0.6:
                store.come_up()
            elif chance < 0.8:
                store.write_takes_s = rng.choice((0.0, 0.5, 3.0, 12.0))
            elif chance < 0.9:
                store.answer_takes_s = rng.choice((0.0, 1.0, 11.0))
            else:
                name = rng.choice(list(stores))
                await world.stop(name)
                stores[name] = world.start(name, stops_in_s=rng.uniform(0, 4.5))
            world.check()
        for store in stores.values():
            store.come_up()
            store.write_takes_s = store.answer_takes_s = 0.0
        await asyncio.sleep(30)
        assert len(world.working) == 1
        assert world.abandoned == []
        await world.close()

    print(f"seed {seed}")
    run_virtual(main())
