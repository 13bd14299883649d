"""Deliveries where several settings meet, and what is left of them when they end, on virtual time."""

import asyncio
from collections import deque

from broker.courier import Delivery
from broker.memo import decode_memo
from broker.table import TableBuilder
from tests.support.broker import Answer, trigger
from tests.unit.test_broker_dispatch import HERE, Plane, plane_test
from tests.unit.test_broker_flow_dispatch import flowing


@plane_test
async def test_an_event_that_came_while_the_window_was_full_is_delivered_when_its_delay_has_passed():
    plane = Plane(flowing(flow={"delay": "PT5S", "parallelism": "1"}))
    plane.script(HERE, Answer(after_s=4))
    await asyncio.sleep(1)
    await plane.send("1")
    await asyncio.sleep(6)
    await plane.send("2")
    await asyncio.sleep(60)
    assert plane.subscribers.ids(HERE) == ["1", "2"]
    assert plane.open() == []


@plane_test
async def test_who_waits_for_a_trigger_to_be_idle_hears_of_it_once_all_events_of_a_batch_are_done():
    plane = Plane(flowing(flow={"batch": "3"}))
    plane.script(HERE, Answer(after_s=1))
    await asyncio.sleep(1)
    await plane.send("1", "2", "3")
    await asyncio.sleep(0.5)
    dispatcher = plane.fanout._dispatchers["uid-t"]
    dispatcher.stop()
    found: list[list[int]] = []
    dispatcher.when_idle(lambda: found.append(sorted(dispatcher.subscription.open)))
    await asyncio.sleep(10)
    assert found == [[]]


@plane_test
async def test_what_is_known_of_retries_that_have_ended_is_forgotten():
    spec = trigger("t", delivery={"retry": 5, "backoffPolicy": "linear", "backoffDelay": "PT20S"})
    plane = Plane(spec)
    plane.script(HERE, Answer(503), Answer(503), Answer(202), Answer(202), Answer(after_s=20))
    await asyncio.sleep(1)
    await plane.send("1", "2")
    await asyncio.sleep(100)
    await plane.send("3")
    await asyncio.sleep(1)
    assert plane.open() == [3]
    await plane.fanout.drain(1)
    second = Plane(spec, log=plane.log)
    second.script(HERE, Answer(503))
    await asyncio.sleep(5)
    await second.fanout.drain(1)
    assert [planned.seq for planned in decode_memo(plane.log.memos["uid-t"]).planned] == [3]


@plane_test
async def test_a_fault_brings_back_nothing_of_the_retries_that_were_planned_before_it():
    spec = trigger("t", delivery={"retry": 5, "backoffPolicy": "linear", "backoffDelay": "PT20S"})
    plane = Plane(spec)
    plane.script(HERE, Answer(503))
    await asyncio.sleep(1)
    await plane.send("1")
    await asyncio.sleep(5)
    dispatcher = plane.fanout._dispatchers["uid-t"]
    dispatcher.mend()
    await asyncio.sleep(5)
    assert dispatcher._planned == {}


@plane_test
async def test_letters_that_wait_for_a_sink_that_is_not_wanted_any_more_are_given_up():
    wanted = {"deadLetterSink": {"ref": {"apiVersion": "v1", "kind": "Service", "name": "later"}}, "retry": 0}
    plane = Plane(trigger("t", delivery=wanted))
    plane.script(HERE, Answer(400))
    await asyncio.sleep(1)
    ids = [str(n) for n in range(600)]
    await plane.send(*ids)
    await asyncio.sleep(5)
    assert len(plane.open()) == 600
    plane.apply(trigger("t", delivery={"retry": 0}))
    await asyncio.sleep(5)
    assert plane.open() == []
    assert plane.outcomes(600)[-1][2] == "dead"


@plane_test
async def test_what_was_not_offered_while_no_window_was_asked_for_makes_nothing_a_repeat_after_a_restart():
    window, wanted, others = {"deduplicate": "PT1H"}, {"attributes": {"type": "a"}}, {"attributes": {"type": "b"}}
    plane = Plane(flowing(flow=window, filter=wanted))
    await asyncio.sleep(1)
    await plane.send("0", type="a")
    await asyncio.sleep(5)
    plane.apply(trigger("t", filter=wanted))
    await asyncio.sleep(5)
    plane.apply(trigger("t", filter=others))
    await plane.send("x", type="a")
    await asyncio.sleep(5)
    await plane.fanout.drain(1)
    second = Plane(flowing(flow=window, filter=wanted), log=plane.log)
    await asyncio.sleep(1)
    await second.send("x", type="a")
    await asyncio.sleep(5)
    assert second.subscribers.ids(HERE) == ["x"]


@plane_test
async def test_what_a_fault_kept_from_being_taken_is_found_though_an_attempt_from_before_ended_another_event():
    spec = trigger("t", delivery={"retry": 5, "backoffPolicy": "linear", "backoffDelay": "PT50S"})
    plane = Plane(spec)
    plane.script(HERE, Answer(after_s=5), Answer(503), Answer(202))
    await asyncio.sleep(1)
    await plane.send("1")
    plane.fanout.swap(TableBuilder().build([], [spec]))
    plane.apply(spec)  # its Broker went and came again while the first was under way, which the log counts
    await asyncio.sleep(10)
    dispatcher = plane.fanout._dispatchers["uid-t"]

    class Faulty(deque[Delivery]):
        def append(self, item: Delivery) -> None:
            dispatcher._ready = deque()
            raise RuntimeError("a fault")

    dispatcher._ready = Faulty()
    await plane.send("2")
    await asyncio.sleep(20)
    assert plane.subscribers.ids(HERE) == ["1", "1", "2"]
