"""Events tell what became of a resource, once, within limits, and never in the way of the work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from core.clock import rfc3339
from core.control.events import EventRecorder, EventSweeper, Note, notes
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.control.reconcile import Outcome
from core.errors import Unavailable
from core.resources import KindRef, ObjectMeta, Resource
from core.resources.builtin import EVENT
from core.telemetry import Metrics
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

FLOW = KindRef("test.penstock.dev", "v1", "Flow")
DROPPED = "penstock_events_dropped_total"


def flow(name: str = "a", **condition: str) -> Resource:
    body: dict[str, Any] = {"spec": {}}
    if condition:
        conditions = [{"type": "Addressable", "status": "True"}, {"type": "Ready", **condition}]
        body["status"] = {"conditions": conditions}
    meta = ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", resource_version="3")
    return Resource(ref=FLOW, meta=meta, body=body)


FAILED = flow(status="False", reason="NoBroker", message="The Broker is missing.")
READY = flow(status="True")
UNKNOWN = flow(status="Unknown")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param(flow(), UNKNOWN, [], id="it begins"),
        pytest.param(UNKNOWN, READY, [Note("Normal", "Ready", "Flow is ready.")], id="it is ready"),
        pytest.param(READY, READY, [], id="it stays ready"),
        pytest.param(READY, FAILED, [Note("Warning", "NoBroker", "The Broker is missing.")], id="it fails"),
        pytest.param(FAILED, FAILED, [], id="it stays failed"),
        pytest.param(FAILED, READY, [Note("Normal", "Ready", "Flow is ready.")], id="it recovers"),
        pytest.param(
            FAILED,
            flow(status="False", reason="NoSink", message="m"),
            [Note("Warning", "NoSink", "m")],
            id="it fails otherwise",
        ),
        pytest.param(
            UNKNOWN, flow(status="False"), [Note("Warning", "NotReady", "Flow is not ready.")], id="no reason"
        ),
        pytest.param(READY, UNKNOWN, [], id="it is in doubt"),
        pytest.param(READY, flow(), [], id="its status is gone"),
    ],
)
def test_a_change_of_the_happy_condition_is_worth_telling(before: Resource, after: Resource, told: list[Note]):
    assert list(notes(before, after)) == told


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = FaultyStore(MemoryStore(clock=self.clock))
        self.metrics = Metrics()
        self.recorder = EventRecorder(self.store, self.clock, "penstock-control", metrics=self.metrics)

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.recorder.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def events(self) -> list[Resource]:
        """What is written once everything that waits is."""
        await asyncio.sleep(1)
        return list((await self.store.inner.list(EVENT)).items)

    @property
    def dropped(self) -> float:
        return self.metrics.counter(DROPPED, "").value


def test_an_event_says_of_whom_when_and_by_whom():
    async def main() -> None:
        world = World()
        async with world.recording():
            world.recorder.status_changed(READY, FAILED)
            (event,) = await world.events()
        assert event.meta.namespace == "default"
        assert event.meta.name.startswith("a.")
        assert event.body["involvedObject"] == {
            "apiVersion": "test.penstock.dev/v1",
            "kind": "Flow",
            "namespace": "default",
            "name": "a",
            "uid": "uid-a",
            "resourceVersion": "3",
        }
        told = {name: event.body[name] for name in ("type", "reason", "message", "count")}
        assert told == {"type": "Warning", "reason": "NoBroker", "message": "The Broker is missing.", "count": 1}
        assert event.body["source"] == {"component": "penstock-control"}
        assert event.body["firstTimestamp"] == event.body["lastTimestamp"] == rfc3339(1_700_000_000.0)

    run_virtual(main())


def test_the_same_again_is_counted_and_told_anew_after_a_while():
    async def main() -> None:
        world = World()
        async with world.recording():
            for _ in range(3):
                world.recorder.status_changed(READY, FAILED)
                await asyncio.sleep(60)
            (event,) = await world.events()
            assert event.body["count"] == 3
            assert event.body["firstTimestamp"] < event.body["lastTimestamp"]
            await asyncio.sleep(700)
            world.recorder.status_changed(READY, FAILED)
            assert [found.body["count"] for found in await world.events()].count(1) == 1

    run_virtual(main())


def test_an_event_that_was_swept_meanwhile_is_begun_again():
    async def main() -> None:
        world = World()
        async with world.recording():
            world.recorder.status_changed(READY, FAILED)
            (event,) = await world.events()
            await world.store.inner.delete(event.key)
            world.recorder.status_changed(READY, FAILED)
            (again,) = await world.events()
        assert again.meta.uid != event.meta.uid

    run_virtual(main())


def test_one_resource_that_tells_much_is_told_now_and_then_and_others_as_before():
    async def main() -> None:
        world = World()
        async with world.recording():
            for number in range(40):
                world.recorder.tell(READY, Note("Normal", "Counted", str(number)))
            world.recorder.tell(flow("b"), Note("Normal", "Counted", "0"))
            found = await world.events()
            assert len(found) == 26
            assert world.dropped == 15
            await asyncio.sleep(600)
            for number in range(40, 50):
                world.recorder.tell(READY, Note("Normal", "Counted", str(number)))
            assert len(await world.events()) == 28

    run_virtual(main())


def test_a_store_that_is_away_costs_events_and_nothing_else():
    async def main() -> None:
        world = World()
        async with world.recording():
            world.store.go_down()
            world.recorder.status_changed(READY, FAILED)
            await asyncio.sleep(1)
            world.store.come_up()
            assert await world.events() == []
            world.recorder.status_changed(FAILED, READY)
            assert len(await world.events()) == 1
        assert world.dropped == 1

    run_virtual(main())


def test_what_waits_for_a_slow_store_is_bounded():
    async def main() -> None:
        world = World()
        for number in range(1_100):
            world.recorder.tell(flow(f"f{number}"), Note("Normal", "Ready", "It is."))
        assert world.dropped == 100
        async with world.recording():
            assert len(await world.events()) == 1_000

    run_virtual(main())


class Decider:
    """Says that a Flow is ready."""

    kind = FLOW
    related: dict[KindRef, Any] = {}  # noqa: RUF012 - never changed

    def decide(self, resource: Resource, view: Any, now: float) -> Outcome:
        return Outcome(status=READY.status)


def test_the_control_loop_tells_of_what_it_wrote_and_of_nothing_that_failed():
    async def main() -> None:
        world = World()
        await world.store.inner.create(flow())
        world.store.fail_next = {"update_status": [Unavailable("Not now.")]}
        loop = ControlLoop(world.store, [Decider()], world.clock, on_status=world.recorder.status_changed)
        task = asyncio.create_task(loop.run())
        async with world.recording():
            (event,) = await world.events()
        assert (event.body["reason"], event.body["count"]) == ("Ready", 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(main())


def test_old_events_are_swept_and_foreign_ones_judged_by_what_they_say():
    async def main() -> None:
        world = World()
        sweeping = asyncio.create_task(EventSweeper(world.store, world.clock).run())
        for name, body in (
            ("ours", {"lastTimestamp": rfc3339(world.clock.now())}),
            ("lasting", {"lastTimestamp": rfc3339(world.clock.now() + 5_000)}),
            ("silent", {}),
            ("odd", {"lastTimestamp": None}),
        ):
            await world.store.inner.create(
                Resource(ref=EVENT, meta=ObjectMeta(name=name, namespace="default"), body=body)
            )
        await asyncio.sleep(3_500)
        assert len(await world.events()) == 4
        world.store.fail_next = {"list": [Unavailable("Not now.")]}
        await asyncio.sleep(1_000)
        assert [event.meta.name for event in await world.events()] == ["lasting"]
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

    run_virtual(main())
