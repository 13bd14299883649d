"""The loop on virtual time over the in-memory store, with faults where a test says so."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from core.control.loop import ControlLoop, LoopLimits
from core.control.memory import MemoryStore
from core.control.port import ResourceStore
from core.control.reconcile import Apply, Delete, Outcome, Reconciler, Remove, View
from core.errors import Conflict, NotFound, Overloaded, Unavailable
from core.resources import Key, KindRef, ObjectMeta, Resource, owner_reference
from core.telemetry import Metrics
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

FLOW = KindRef("test.penstock.dev", "v1", "Flow")
PIPE = KindRef("test.penstock.dev", "v1", "Pipe")
NOTE = KindRef("test.penstock.dev", "v1", "Note")

Related = Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]


def flow(name: str = "a", size: int = 1, **meta: object) -> Resource:
    return Resource(ref=FLOW, meta=ObjectMeta(name=name, namespace="default", **meta), body={"spec": {"size": size}})


def pipe(name: str, size: int = 1, owner: Resource | None = None, **meta: object) -> Resource:
    owners = (owner_reference(owner),) if owner else ()
    held = ObjectMeta(name=name, namespace="default", owner_references=owners, **meta)
    return Resource(ref=PIPE, meta=held, body={"spec": {"size": size}})


def key(name: str = "a", kind: KindRef = FLOW) -> Key:
    return Key(kind, "default", name)


@dataclass
class Scripted:
    """A reconciler whose decision a test gives; remembers what it was asked and when."""

    decision: Callable[[Resource, View, float], Outcome]
    related: Related = field(default_factory=dict)
    kind: KindRef = FLOW
    asked: list[tuple[str, float]] = field(default_factory=list)

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        self.asked.append((resource.meta.name, now - 1_700_000_000.0))
        return self.decision(resource, view, now)

    def times(self, name: str = "a") -> list[float]:
        return [at for asked, at in self.asked if asked == name]


def owners_of(resource: Resource, view: View) -> Iterable[Key]:
    return [Key(FLOW, resource.meta.namespace, ref.name) for ref in resource.meta.owner_references]


@asynccontextmanager
async def looping(
    store: ResourceStore, *reconcilers: Reconciler, metrics: Metrics | None = None, parallel: int = 8
) -> AsyncIterator[ControlLoop]:
    loop = ControlLoop(
        store,
        reconcilers,
        VirtualClock(),
        also_follow=(FLOW,),
        metrics=metrics,
        rng=random.Random(1),
        limits=LoopLimits(parallel=parallel),
    )
    running = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        assert not running.done() or running.exception() is None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left


def store() -> FaultyStore:
    return FaultyStore(MemoryStore(clock=VirtualClock()))


def sized(resource: Resource, view: View, now: float) -> Outcome:
    """Status follows spec."""
    return Outcome(status={"size": resource.spec["size"]})


async def settle() -> None:
    await asyncio.sleep(0.01)


# --- what a decision leads to ---


def test_what_exists_and_what_comes_is_decided_and_its_status_written():
    async def main() -> None:
        held = store()
        await held.create(flow("a", 1))
        async with looping(held, Scripted(sized)):
            await settle()
            assert (await held.get(key("a"))).status == {"size": 1}
            await held.create(flow("b", 2))
            await settle()
            assert (await held.get(key("b"))).status == {"size": 2}
            await held.update(flow("b", 3))
            await settle()
            assert (await held.get(key("b"))).status == {"size": 3}

    run_virtual(main())


def test_a_decision_that_changes_nothing_writes_nothing_and_ends():
    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        reconciler = Scripted(sized)
        async with looping(held, reconciler):
            await asyncio.sleep(3600)
            # Once for the object, once for the status that the first run wrote.
            assert len(reconciler.asked) == 2
            assert held.calls["update_status"] == 1

    run_virtual(main())


def test_apply_creates_then_updates_then_leaves_alone():
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        return Outcome(actions=(Apply(pipe("p", resource.spec["size"], resource, labels={"by": "flow"})),))

    async def main() -> None:
        held = store()
        made = await held.create(flow("a", 1))
        async with looping(held, Scripted(decision, {PIPE: owners_of})):
            await settle()
            first = await held.get(key("p", PIPE))
            assert (first.spec, first.meta.labels) == ({"size": 1}, {"by": "flow"})
            assert first.meta.owner_references[0].uid == made.meta.uid
            await held.update(first.with_meta(labels={"by": "flow", "mine": "yes"}))
            await held.update(flow("a", 2))
            await settle()
            second = await held.get(key("p", PIPE))
            assert (second.spec, second.meta.labels) == ({"size": 2}, {"by": "flow", "mine": "yes"})
            assert second.meta.uid == first.meta.uid
            assert held.calls["create"] == 2

    run_virtual(main())


def test_a_changed_or_deleted_dependent_is_put_right_again():
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        return Outcome(actions=(Apply(pipe("p", 1, resource)),))

    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        async with looping(held, Scripted(decision, {PIPE: owners_of})):
            await settle()
            made = await held.get(key("p", PIPE))
            await held.update(made.with_spec({"size": 99}))
            await settle()
            assert (await held.get(key("p", PIPE))).spec == {"size": 1}
            await held.delete(key("p", PIPE))
            await settle()
            assert (await held.get(key("p", PIPE))).spec == {"size": 1}

    run_virtual(main())


def test_apply_to_a_kind_that_is_not_followed_asks_the_store():
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        note = Resource(ref=NOTE, meta=ObjectMeta(name="n", namespace="default"), body={"text": resource.spec["size"]})
        return Outcome(actions=(Apply(note),))

    async def main() -> None:
        held = store()
        await held.create(flow("a", 1))
        async with looping(held, Scripted(decision)):
            await settle()
            await held.update(flow("a", 2))
            await settle()
            assert (await held.get(key("n", NOTE))).body == {"text": 2}

    run_virtual(main())


def test_delete_spares_a_namesake_with_another_uid_and_forgives_what_is_gone():
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        gone = (Delete(key("never", PIPE), "x"), Delete(key("p", PIPE), "another"))
        mine = tuple(Delete(item.key, item.meta.uid) for item in view.owned(resource, PIPE))
        return Outcome(status={"done": True}, actions=(*gone, *mine))

    async def main() -> None:
        held = store()
        made = await held.create(flow("a"))
        await held.create(pipe("p"))
        await held.create(pipe("q", 1, made))
        async with looping(held, Scripted(decision, {PIPE: owners_of})):
            await settle()
            assert [item.meta.name for item in (await held.list(PIPE)).items] == ["p"]
            assert (await held.get(key("a"))).status == {"done": True}

    run_virtual(main())


def test_a_finalizer_is_added_by_apply_and_removed_when_the_work_is_done():
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp is None:
            if "f/x" in resource.meta.finalizers:
                return Outcome(status={"ready": True})
            return Outcome(actions=(Apply(resource.with_meta(finalizers=("f/x",))),), status={"ready": True})
        return Outcome(actions=(Remove("f/x"),), status={"ready": False})

    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        async with looping(held, Scripted(decision)):
            await settle()
            made = await held.get(key("a"))
            assert made.meta.finalizers == ("f/x",)
            assert made.status == {"ready": True}
            await held.delete(key("a"))
            await settle()
            with pytest.raises(NotFound):
                await held.get(key("a"))

    run_virtual(main())


# --- order and concurrency ---


def test_an_object_is_never_decided_while_its_last_outcome_is_carried_out():
    async def main() -> None:
        held = store()
        held.write_takes_s = 1.0
        under_way: Counter[str] = Counter()
        most: Counter[str] = Counter()

        def decision(resource: Resource, view: View, now: float) -> Outcome:
            name = resource.meta.name
            under_way[name] += 1
            most[name] = max(most[name], under_way[name])
            asyncio.get_running_loop().call_later(0.999, under_way.subtract, {name: 1})
            return Outcome(status={"at": now})

        await held.inner.create(flow("a"))
        async with looping(held, Scripted(decision)):
            for size in range(40):
                await asyncio.sleep(0.25)
                await held.inner.update(flow("a", size + 2))
        assert most["a"] == 1

    run_virtual(main())


@pytest.mark.parametrize(("parallel", "takes_s"), [(1, 12), (4, 3), (12, 1)])
def test_different_objects_go_side_by_side_within_the_limit(parallel: int, takes_s: int):
    async def main() -> None:
        held = store()
        held.write_takes_s = 1.0
        for number in range(12):
            await held.inner.create(flow(f"a{number:02}"))
        async with looping(held, Scripted(sized), parallel=parallel):
            await asyncio.sleep(takes_s - 0.5)
            written = [bool(item.status) for item in (await held.list(FLOW)).items]
            assert not all(written)
            await asyncio.sleep(1)
            written = [bool(item.status) for item in (await held.list(FLOW)).items]
            assert all(written)

    run_virtual(main())


def test_a_change_during_the_run_leads_to_another_run_that_sees_it():
    async def main() -> None:
        held = store()
        held.write_takes_s = 1.0
        await held.inner.create(flow("a", 1))
        async with looping(held, Scripted(sized)):
            await asyncio.sleep(0.5)
            await held.inner.update(flow("a", 2))
            await asyncio.sleep(5)
            assert (await held.get(key("a"))).status == {"size": 2}

    run_virtual(main())


def test_after_its_own_writes_an_object_waits_for_the_cache_and_does_not_repeat_them():
    """The watch lags: deciding on the old cache would create a second pipe each time."""

    def decision(resource: Resource, view: View, now: float) -> Outcome:
        missing = resource.spec["size"] - len(view.owned(resource, PIPE))
        made = pipe("", 1, resource, generate_name="p-")
        return Outcome(actions=tuple(Apply(made) for _ in range(missing)), status={"at": now})

    async def main() -> None:
        held = store()
        held.watch_lags_s = 0.5
        await held.create(flow("a", 3))
        reconciler = Scripted(decision, {PIPE: owners_of})
        async with looping(held, reconciler):
            for _ in range(20):
                await asyncio.sleep(0.1)
                current = await held.inner.get(key("a"))
                await held.inner.update(current.with_meta(annotations={"touched": str(_)}))
            await asyncio.sleep(20)
            assert len((await held.list(PIPE)).items) == 3

    run_virtual(main())


def test_related_resources_wake_both_who_they_name_and_who_they_named():
    def named(resource: Resource, view: View) -> Iterable[Key]:
        return [key(resource.spec["flow"])]

    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        await held.create(flow("b"))
        reconciler = Scripted(lambda resource, view, now: Outcome(), {PIPE: named})
        async with looping(held, reconciler):
            await settle()
            reconciler.asked.clear()
            made = await held.create(pipe("p").with_spec({"flow": "a"}))
            await settle()
            assert [name for name, _ in reconciler.asked] == ["a"]
            reconciler.asked.clear()
            await held.update(made.with_spec({"flow": "b"}))
            await settle()
            assert sorted(name for name, _ in reconciler.asked) == ["a", "b"]
            reconciler.asked.clear()
            await held.delete(key("p", PIPE))
            await settle()
            assert [name for name, _ in reconciler.asked] == ["b"]

    run_virtual(main())


def test_again_in_is_kept_and_ends_with_the_object():
    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        reconciler = Scripted(lambda resource, view, now: Outcome(again_in_s=10))
        async with looping(held, reconciler):
            await asyncio.sleep(35)
            assert reconciler.times() == pytest.approx([0, 10, 20, 30], abs=0.01)
            await held.delete(key("a"))
            await asyncio.sleep(100)
            assert len(reconciler.asked) == 4

    run_virtual(main())


def test_a_decision_that_wants_to_be_made_again_at_once_does_not_spin():
    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        reconciler = Scripted(lambda resource, view, now: Outcome(again_in_s=0))
        async with looping(held, reconciler):
            await asyncio.sleep(1)
            assert 50 < len(reconciler.asked) <= 101

    run_virtual(main())


# --- failures ---


def test_a_conflict_is_retried_at_once_from_the_newer_state():
    async def main() -> None:
        held = store()
        held.watch_lags_s = 0.2
        made = await held.create(flow("a", 1))
        reconciler = Scripted(sized)
        async with looping(held, reconciler):
            await asyncio.sleep(1)
            await held.update(flow("a", 2))
            await held.update(flow("a", 3))
            await asyncio.sleep(1)
            assert (await held.get(made.key)).status == {"size": 3}
            # The first status, the conflict, and the retry: not again on a state that is known to be old.
            assert held.calls["update_status"] == 3

    run_virtual(main())


def test_conflicts_without_end_are_slowed_down():
    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        held.fail_next["update_status"] = [Conflict("Somebody was faster.") for _ in range(1_000)]
        reconciler = Scripted(sized)
        async with looping(held, reconciler):
            await asyncio.sleep(60)
            assert 4 <= len(reconciler.asked) <= 20

    run_virtual(main())


def test_a_create_that_lost_a_race_becomes_an_update():
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        return Outcome(actions=(Apply(pipe("p", 1, resource)),))

    async def main() -> None:
        held = store()
        held.watch_lags_s, held.lagging = 1.0, PIPE
        async with looping(held, Scripted(decision, {PIPE: owners_of})):
            await settle()
            await held.inner.create(pipe("p", 5))
            made = await held.inner.create(flow("a"))
            await asyncio.sleep(10)
            settled = await held.get(key("p", PIPE))
            assert settled.spec == {"size": 1}
            assert settled.meta.owner_references[0].uid == made.meta.uid
            assert held.calls["create"] == 1

    run_virtual(main())


def test_an_outage_is_waited_out_with_growing_delays_and_then_work_goes_on():
    async def main() -> None:
        held = store()
        await held.create(flow("a", 1))
        reconciler = Scripted(sized)
        async with looping(held, reconciler):
            await settle()
            await held.create(flow("b", 2))
            held.go_down()
            await asyncio.sleep(600)
            held.come_up()
            await asyncio.sleep(31)
            assert (await held.get(key("b"))).status == {"size": 2}
            assert len(reconciler.asked) < 60

    run_virtual(main())


def test_delays_after_failures_double_up_to_the_cap_and_a_success_forgets_them():
    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        held.fail_next["update_status"] = [Unavailable("Not now.") for _ in range(14)]
        reconciler = Scripted(sized)
        async with looping(held, reconciler):
            await asyncio.sleep(400)
            gaps = [later - sooner for sooner, later in zip(reconciler.times(), reconciler.times()[1:], strict=False)]
            for failures, gap in enumerate(gaps[:14], start=1):
                full = min(30.0, 0.05 * 2 ** (failures - 1))
                assert full / 2 - 0.001 <= gap <= full + 0.001
            held.fail_next["update_status"] = [Unavailable("Not now.")]
            await held.update(flow("a", 2))
            await asyncio.sleep(0.1)
            assert (await held.get(key("a"))).status == {"size": 2}

    run_virtual(main())


def test_an_overloaded_store_is_left_alone_for_as_long_as_it_asks():
    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        held.fail_next["update_status"] = [Overloaded("Too many requests.", 7.0)]
        reconciler = Scripted(sized)
        async with looping(held, reconciler):
            await asyncio.sleep(10)
            assert reconciler.times()[:2] == pytest.approx([0, 7], abs=0.01)

    run_virtual(main())


def test_a_bug_in_one_decision_is_logged_counted_and_does_not_stop_the_others(caplog: pytest.LogCaptureFixture):
    def decision(resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.name == "bad":
            raise ZeroDivisionError("a bug")
        return sized(resource, view, now)

    async def main() -> None:
        held = store()
        metrics = Metrics()
        await held.create(flow("bad"))
        await held.create(flow("good"))
        reconciler = Scripted(decision)
        async with looping(held, reconciler, metrics=metrics):
            await asyncio.sleep(1)
            assert (await held.get(key("good"))).status == {"size": 1}
            assert 3 <= len(reconciler.times("bad")) <= 8
        text = metrics.expose()
        failed = len(reconciler.times("bad"))
        assert f'penstock_reconcile_errors_total{{kind="Flow.test.penstock.dev"}} {failed}' in text
        assert 'penstock_reconcile_queue_depth{kind="Flow.test.penstock.dev"} 0' in text
        assert "penstock_reconcile_duration_seconds_count" in text

    run_virtual(main())
    assert "a decision failed unexpectedly" in caplog.text


def test_a_bug_in_naming_related_resources_does_not_stop_the_loop(caplog: pytest.LogCaptureFixture):
    def named(resource: Resource, view: View) -> Iterable[Key]:
        raise KeyError("a bug")

    async def main() -> None:
        held = store()
        async with looping(held, Scripted(sized, {PIPE: named})):
            await held.create(pipe("p"))
            await held.create(flow("a"))
            await settle()
            assert (await held.get(key("a"))).status == {"size": 1}

    run_virtual(main())
    assert "related resources could not be named" in caplog.text


def test_stopping_cancels_work_and_leaves_no_task_or_timer():
    async def main() -> None:
        held = store()
        held.write_takes_s = 1_000.0
        for name in "abc":
            await held.inner.create(flow(name))
        reconciler = Scripted(lambda resource, view, now: Outcome(status={"x": 1}, again_in_s=1))
        async with looping(held, reconciler, parallel=2):
            await asyncio.sleep(1)
            assert len(reconciler.asked) == 2
        await asyncio.sleep(10_000)
        assert len(reconciler.asked) == 2

    run_virtual(main())


def test_two_reconcilers_of_one_kind_both_decide():
    def labelled(resource: Resource, view: View, now: float) -> Outcome:
        return Outcome(actions=(Apply(resource.with_meta(labels={"seen": "yes"})),))

    async def main() -> None:
        held = store()
        await held.create(flow("a"))
        async with looping(held, Scripted(sized), Scripted(labelled)):
            await asyncio.sleep(1)
            made = await held.get(key("a"))
            assert (made.status, made.meta.labels) == ({"size": 1}, {"seen": "yes"})

    run_virtual(main())
