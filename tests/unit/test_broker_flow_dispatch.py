"""What a Trigger's flow annotations do to its deliveries, on virtual time."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.flow.rate import burst_of
from broker.flow.settings import FLOW_GROUP, PARALLELISM
from core.resources import Resource
from tests.support.broker import Answer, Request, trigger
from tests.support.virtual_time import run_virtual
from tests.unit.test_broker_dispatch import HERE, QUICK, SINK, Plane, plane_test


def flowing(name: str = "t", uri: str = "http://subscriber.test/", *, flow: dict[str, str], **spec: Any) -> Resource:
    """A Trigger with these `delivery.penstock.dev/` annotations."""
    return trigger(name, uri, annotations={f"{FLOW_GROUP}/{key}": text for key, text in flow.items()}, **spec)


# ---- order

ORDERED = {"order": "ordered"}


@plane_test
async def test_events_of_one_key_are_delivered_one_after_another_and_others_pass_them():
    plane = Plane(flowing(flow=ORDERED))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(after_s=1 if request.event.id == "a1" else 0.01)
    await asyncio.sleep(1)
    await plane.send("a1", "a2", subject="a")
    await plane.send("b1", "b2", subject="b")
    await plane.send("none")
    await asyncio.sleep(10)
    assert plane.subscribers.ids(HERE) == ["a1", "b1", "none", "b2", "a2"]


@plane_test
async def test_an_event_that_is_retried_holds_back_its_key_only():
    plane = Plane(flowing(flow=ORDERED, delivery=QUICK))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(503 if request.event.id == "a1" and n < 5 else 202)
    await asyncio.sleep(1)
    await plane.send("a1", "a2", subject="a")
    await plane.send("b1", "b2", "b3", subject="b")
    await asyncio.sleep(0.5)
    assert plane.subscribers.ids(HERE) == ["a1", "b1", "b2", "b3"]
    await asyncio.sleep(10)
    assert plane.subscribers.ids(HERE)[4:] == ["a1", "a1", "a2"]


@plane_test
async def test_the_next_of_a_key_comes_after_the_dead_letter_of_the_one_before():
    sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 0}
    plane = Plane(flowing(flow=ORDERED, delivery=sink, dead_letter_uri=f"http://{SINK}/"))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(400 if request.event.id == "a1" else 202)
    plane.script(SINK, Answer(202, after_s=5))
    await asyncio.sleep(1)
    await plane.send("a1", "a2", subject="a")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["a1"]
    await asyncio.sleep(10)
    assert plane.subscribers.ids(HERE) == ["a1", "a2"]
    assert plane.open() == []


@plane_test
async def test_order_that_is_asked_for_later_waits_for_what_is_under_way():
    plane = Plane(trigger("t"))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(after_s=5 if n < 2 else 0.01)
    await asyncio.sleep(1)
    await plane.send("1", "2", subject="a")
    await asyncio.sleep(1)
    plane.apply(flowing(flow=ORDERED))
    await plane.send("3", "4", subject="a")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "2"]
    await asyncio.sleep(10)
    assert plane.subscribers.ids(HERE) == ["1", "2", "3", "4"]


@plane_test
async def test_order_that_is_asked_for_no_longer_frees_what_waited():
    plane = Plane(flowing(flow=ORDERED))
    plane.script(HERE, Answer(after_s=50))
    await asyncio.sleep(1)
    await plane.send("1", "2", "3", subject="a")
    await asyncio.sleep(1)
    plane.apply(trigger("t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "2", "3"]


@settings(max_examples=30, deadline=None)
@given(
    keys=st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    restarts=st.lists(st.integers(1, 40), max_size=3),
)
def test_whatever_fails_and_restarts_each_key_keeps_its_order_and_nothing_is_lost(keys, seed, restarts):
    """An event's first delivery that succeeds comes after that of every earlier event of its key."""

    async def main() -> None:
        rng = random.Random(seed)
        spec = flowing(flow=ORDERED, delivery={"retry": 100, "backoffPolicy": "linear", "backoffDelay": "PT1S"})
        plane = Plane(spec)
        delivered: list[str] = []
        overlaps: list[str] = []
        busy: dict[str, int] = {}

        def script(request: Request, n: int) -> Answer:
            key = request.event.attributes.get("subject")
            after_s, fails = rng.uniform(0.01, 3), rng.random() < 0.4
            if key is not None:
                if busy.get(key):
                    overlaps.append(request.event.id)
                busy[key] = 1

                def ended() -> None:
                    busy[key] = 0

                asyncio.get_running_loop().call_later(after_s - 0.001, ended)
            if not fails:
                delivered.append(request.event.id)
            return Answer(rng.choice([500, 429, 404]) if fails else 202, after_s=after_s)

        plane.subscribers.scripts[HERE] = script
        await asyncio.sleep(1)
        for number, key in enumerate(keys):
            await plane.send(str(number), **({"subject": key} if key else {}))
        for after in restarts:
            await asyncio.sleep(after)
            await plane.fanout.drain(60)
            plane = Plane(spec, log=plane.log)
            plane.subscribers.scripts[HERE] = script
        await asyncio.sleep(3000)
        assert plane.open() == []
        assert set(delivered) == {str(number) for number in range(len(keys))}
        assert not overlaps
        first = {event_id: delivered.index(event_id) for event_id in set(delivered)}
        for key in "abc":
            places = [first[str(number)] for number, held in enumerate(keys) if held == key]
            assert places == sorted(places)

    run_virtual(main())


# ---- parallelism, rate, delay


@pytest.mark.parametrize("parallelism", [1, 3, 100])
def test_as_many_are_under_way_as_the_trigger_asks_for(parallelism: int):
    async def main() -> None:
        plane = Plane(flowing(flow={"parallelism": str(parallelism)}), trigger("plain", "http://plain.test/"))
        await asyncio.sleep(1)
        await plane.send(*(str(n) for n in range(200)))
        await asyncio.sleep(60)
        assert plane.subscribers.most[HERE] == parallelism
        assert plane.subscribers.most["plain.test"] == PARALLELISM
        assert len(plane.subscribers.at(HERE)) == 200

    run_virtual(main())


def windows_hold(times: Sequence[float], rate: float) -> bool:
    return all(
        last - first + 1 <= rate * (times[last] - times[first]) + burst_of(rate) + 1e-6
        for first in range(len(times))
        for last in range(first, len(times))
    )


@plane_test
async def test_no_more_are_sent_than_the_rate_retries_included():
    plane = Plane(flowing(flow={"rate": "5"}, delivery=QUICK))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(503 if n % 3 == 0 else 202)
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(50)))
    await asyncio.sleep(60)
    assert plane.open() == []
    times = [request.at for request in plane.subscribers.at(HERE)]
    assert len(times) > 50
    assert windows_hold(times, 5.0)
    assert times[-1] - times[0] < len(times) / 5.0 + 5, "the rate is reached"


@plane_test
async def test_a_slow_rate_holds_back_no_other_trigger_and_no_dead_letter():
    sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 0}
    plane = Plane(
        flowing(flow={"rate": "1/m"}, delivery=sink, dead_letter_uri=f"http://{SINK}/"),
        trigger("other", "http://other.test/"),
    )
    plane.script(HERE, Answer(400))
    await asyncio.sleep(1)
    await plane.send("1", "2", "3")
    await asyncio.sleep(1)
    assert plane.subscribers.ids("other.test") == ["1", "2", "3"]
    assert plane.subscribers.ids(HERE) == plane.subscribers.ids(SINK) == ["1"]
    await asyncio.sleep(125)
    assert plane.subscribers.ids(HERE) == plane.subscribers.ids(SINK) == ["1", "2", "3"]


@plane_test
async def test_an_event_is_delivered_no_sooner_than_its_delay_after_it_arrived():
    plane = Plane(flowing(flow={"delay": "PT10S"}, delivery=QUICK))
    plane.script(HERE, Answer(503), Answer(202))
    await asyncio.sleep(1)
    await plane.send("1")
    await asyncio.sleep(3)
    await plane.send("2")
    await asyncio.sleep(60)
    one, two, again = plane.subscribers.at(HERE)
    assert one.at == pytest.approx(11.0, abs=0.01)
    assert (again.event.id, two.event.id) == ("2", "1"), "a retry is not delayed again"
    assert again.at == pytest.approx(14.0, abs=0.01)


@plane_test
async def test_a_delay_counts_from_the_arrival_whatever_restarts_meanwhile():
    spec = flowing(flow={"delay": "PT1H"})
    plane = Plane(spec)
    await asyncio.sleep(1)
    await plane.send("1", "2")
    await asyncio.sleep(1800)
    await plane.fanout.drain(1)
    second = Plane(spec, log=plane.log)
    await asyncio.sleep(1700)
    assert second.subscribers.requests == []
    await asyncio.sleep(110)
    assert second.subscribers.ids(HERE) == ["1", "2"]


# ---- pause


@plane_test
async def test_a_paused_trigger_gets_nothing_until_it_is_resumed_and_then_everything():
    plane = Plane(flowing(flow={"paused": "true"}), trigger("other", "http://other.test/"))
    await asyncio.sleep(1)
    await plane.send("1", "2")
    await asyncio.sleep(1000)
    assert plane.subscribers.at(HERE) == []
    assert plane.subscribers.ids("other.test") == ["1", "2"]
    assert plane.fanout.backlog("uid-t") == 2
    plane.apply(flowing(flow={"paused": "false"}), trigger("other", "http://other.test/"))
    await plane.send("3")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "2", "3"]
    assert plane.open() == []


@plane_test
async def test_a_pause_lets_what_is_under_way_end_and_keeps_retries_and_letters():
    sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 1, "backoffPolicy": "linear", "backoffDelay": "PT1S"}
    spec = {"delivery": sink, "dead_letter_uri": f"http://{SINK}/"}
    plane = Plane(trigger("t", **spec))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(400 if request.event.id == "bad" else 503, after_s=1)
    await asyncio.sleep(1)
    await plane.send("bad", "again")
    await asyncio.sleep(0.5)
    plane.apply(flowing(flow={"paused": "true"}, **spec))
    await asyncio.sleep(1000)
    assert len(plane.subscribers.requests) == 2
    assert plane.open() == [1, 2]
    plane.script(HERE, Answer(202))
    plane.apply(trigger("t", **spec))
    await asyncio.sleep(5)
    assert plane.subscribers.ids(SINK) == ["bad"]
    assert plane.subscribers.ids(HERE) == ["bad", "again", "again"]
    assert plane.open() == []


@plane_test
async def test_retention_keeps_what_a_paused_trigger_has_not_had():
    plane = Plane(flowing(flow={"paused": "true"}))
    await asyncio.sleep(1)
    await plane.send("1")
    await asyncio.sleep(40 * 86_400)
    assert await plane.log.retain(plane.clock.now()) == 0
    plane.apply(trigger("t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1"]
    assert await plane.log.retain(plane.clock.now()) == 1


# ---- faults and restarts


@plane_test
async def test_attempts_go_on_counting_after_a_restart_and_the_next_one_keeps_its_time():
    delivery = {"retry": 3, "backoffPolicy": "linear", "backoffDelay": "PT20S"}
    plane = Plane(trigger("t", delivery=delivery))
    plane.script(HERE, Answer(503))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(50)
    assert [number for number, _, _ in plane.outcomes()] == [1, 2]
    second_at = plane.subscribers.at(HERE)[1].at
    plane.fanout._dispatchers["uid-t"].stop()  # killed: what it left word of is all that is known
    second = Plane(trigger("t", delivery=delivery), log=plane.log)
    second.script(HERE, Answer(503))
    await asyncio.sleep(2000)
    third, fourth = second.subscribers.at(HERE)
    assert 40 <= third.at - second_at <= 48.1
    assert 60 <= fourth.at - third.at <= 72.1
    assert [(number, outcome) for number, _, outcome in second.outcomes()][2:] == [(3, "retrying"), (4, "dropped")]


@plane_test
async def test_an_event_whose_letter_was_going_out_is_given_once_more_to_the_subscriber_after_a_restart():
    sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 2, "backoffPolicy": "linear", "backoffDelay": "PT1S"}
    spec = trigger("t", delivery=sink, dead_letter_uri=f"http://{SINK}/")
    plane = Plane(spec)
    plane.script(HERE, Answer(503, body=b"why"))
    plane.script(SINK, Answer(503))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(6)
    assert len(plane.subscribers.at(HERE)) == 3
    await plane.fanout.drain(1)
    second = Plane(spec, log=plane.log)
    second.script(HERE, Answer(503, body=b"why"))
    await asyncio.sleep(60)
    assert len(second.subscribers.at(HERE)) == 1
    (letter,) = second.subscribers.at(SINK)
    assert "knativeerrordata" in letter.event.attributes
    assert second.open() == []


@plane_test
async def test_an_event_that_a_fault_kept_from_being_taken_is_found_again_soon():
    plane = Plane(trigger("t"), trigger("other", "http://other.test/"))
    await asyncio.sleep(1)
    dispatcher = plane.fanout._dispatchers["uid-t"]
    fails = iter([True, False])

    class Faulty(type(dispatcher._ready)):
        def append(self, item):
            if next(fails, False):
                raise RuntimeError("a fault")
            super().append(item)

    dispatcher._ready = Faulty()
    await plane.send("1", "2")
    await asyncio.sleep(0.5)
    await plane.send("3")
    await asyncio.sleep(5)
    assert sorted(plane.subscribers.ids(HERE)) == ["1", "2", "3"]
    assert plane.subscribers.ids("other.test") == ["1", "2", "3"]
    assert plane.open() == []


@plane_test
async def test_an_index_that_fails_by_a_fault_loses_no_event():
    plane = Plane(trigger("t", filter={"attributes": {"type": "a"}}))
    await asyncio.sleep(1)

    class Broken:
        def match(self, attributes):
            raise RuntimeError("a fault")

    index = plane.fanout._takers
    plane.fanout._takers = {"default/default": Broken()}
    await plane.send("1", type="a")
    await plane.send("no", type="b")
    plane.fanout._takers = index
    await asyncio.sleep(5)
    await plane.send("2", type="a")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "2"]
