"""Whatever happens on the way, the world ends as it is wanted: the loop and garbage collection under random faults.

An oracle computes what must be there from the Flows alone: for each, a status that equals its spec and as many Pipes as
it asks for; and no Pipe of a Flow that is gone.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from core.control.gc import GarbageCollector
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.control.reconcile import Apply, Delete, Outcome, View
from core.errors import Conflict, NotFound, Unavailable
from core.resources import Key, KindRef, ObjectMeta, Resource, owner_reference
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

FLOW = KindRef("test.penstock.dev", "v1", "Flow")
PIPE = KindRef("test.penstock.dev", "v1", "Pipe")
NAMES = ("a", "b", "c")

#: The longest back-off of the loop, and some: after that without faults, everything must have been tried again.
QUIET_S = 60.0


class Plumber:
    """A Flow of size n has pipes named after it, numbered 0 to n - 1, each as long as the Flow asks for."""

    kind = FLOW

    @property
    def related(self):
        return {PIPE: self._owners}

    @staticmethod
    def _owners(pipe: Resource, view: View) -> Iterable[Key]:
        return [Key(FLOW, "default", ref.name) for ref in pipe.meta.owner_references]

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp is not None:
            return Outcome()
        size, length = resource.spec["size"], resource.spec["length"]
        wanted = {f"{resource.meta.name}-{number}" for number in range(size)}
        surplus = [pipe for pipe in view.owned(resource, PIPE) if pipe.meta.name not in wanted]
        return Outcome(
            status={"size": size, "length": length},
            actions=(
                *(Delete(pipe.key, pipe.meta.uid) for pipe in surplus),
                *(Apply(_pipe(name, length, resource)) for name in sorted(wanted)),
            ),
        )


def _pipe(name: str, length: int, owner: Resource) -> Resource:
    meta = ObjectMeta(name=name, namespace="default", owner_references=(owner_reference(owner),))
    return Resource(ref=PIPE, meta=meta, body={"spec": {"length": length}})


def _flow(name: str, size: int, length: int) -> Resource:
    return Resource(
        ref=FLOW, meta=ObjectMeta(name=name, namespace="default"), body={"spec": {"size": size, "length": length}}
    )


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["set", "set", "delete", "vandalize", "touch", "down", "up", "break", "expire", "conflict", "fail", "lag"]
        ),
        st.sampled_from(NAMES),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.0, 0.01, 0.3, 2.0, 40.0]),
    ),
    max_size=25,
)


async def _step(store: FaultyStore, what: str, name: str, number: int) -> None:  # noqa: C901 - one case a fault
    world, key = store.inner, Key(FLOW, "default", name)
    match what:
        case "set":
            try:
                await world.create(_flow(name, number, number))
            except Conflict:
                await world.update(_flow(name, number, number + 1))
        case "delete":
            await world.delete(key)
        case "vandalize":
            pipe = await world.get(Key(PIPE, "default", f"{name}-{number}"))
            if number % 2:
                await world.delete(pipe.key)
            else:
                await world.update(pipe.with_spec({"length": -1}))
        case "touch":
            await world.update((await world.get(key)).with_meta(annotations={"n": str(number)}))
        case "down":
            store.go_down()
        case "up":
            store.come_up()
        case "break":
            store.break_watches(None)
        case "expire":
            store.expire_watches()
        case "conflict":
            store.fail_next["update"] = [Conflict("Somebody was faster.")] * number
        case "fail":
            store.fail_next[("create", "update", "update_status", "delete")[number]] = [Unavailable("Not now.")] * 3
        case "lag":
            store.watch_lags_s, store.lagging = 0.1 * number, (FLOW, PIPE)[number % 2]


async def _run(plan: list[tuple[str, str, int, float]], seed: int) -> None:
    store = FaultyStore(MemoryStore(clock=VirtualClock(), max_changes=30))
    loop = ControlLoop(store, [Plumber()], VirtualClock(), rng=random.Random(seed))
    collector = GarbageCollector(store, loop.follower, rng=random.Random(seed))
    tasks = [asyncio.create_task(loop.run()), asyncio.create_task(collector.run())]
    for what, name, number, wait_s in plan:
        with contextlib.suppress(NotFound):
            await _step(store, what, name, number)
        await asyncio.sleep(wait_s)
    store.come_up()
    store.watch_lags_s = 0.0
    store.fail_next.clear()
    await asyncio.sleep(QUIET_S)
    calls = sum(store.calls.values())
    await asyncio.sleep(3600)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    flows = (await store.inner.list(FLOW)).items
    for flow in flows:
        assert flow.status == flow.spec
    wanted = {
        (f"{flow.meta.name}-{number}", flow.meta.uid): flow.spec["length"]
        for flow in flows
        for number in range(flow.spec["size"])
    }
    pipes = (await store.inner.list(PIPE)).items
    assert {(pipe.meta.name, pipe.meta.owner_references[-1].uid): pipe.spec["length"] for pipe in pipes} == wanted
    # And then it is quiet: nothing is written or asked for any more.
    assert sum(store.calls.values()) == calls


@given(steps, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_world_ends_as_wanted_and_then_nothing_moves(plan: list[tuple[str, str, int, float]], seed: int):
    run_virtual(_run(plan, seed))
