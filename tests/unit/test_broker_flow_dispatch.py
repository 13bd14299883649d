"""What a Trigger's flow annotations do to its deliveries, on virtual time."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.dispatch import MAX_OUTSTANDING
from broker.flow.rate import burst_of
from broker.flow.settings import FLOW_GROUP, PARALLELISM
from broker.log.direction import Direction
from broker.log.memory import MemoryLog
from broker.log.port import Entry
from core.errors import Unavailable
from core.events import CloudEvent, binary_head, from_batch, from_http
from core.resources import Resource
from tests.support.broker import Answer, Request, binary, trigger
from tests.support.virtual_time import run_virtual
from tests.unit.test_broker_dispatch import HERE, QUICK, SINK, Plane, _read, plane_test


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


@plane_test
async def test_many_events_behind_one_that_is_retried_keep_no_other_key_waiting():
    plane = Plane(flowing(flow=ORDERED, delivery={**QUICK, "retry": 100}))
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(503 if request.event.id == "0" else 202)
    await asyncio.sleep(1)
    for start in range(0, 3 * MAX_OUTSTANDING, 64):
        await plane.send(*(str(n) for n in range(start, start + 64)), subject="stuck")
        await asyncio.sleep(0.01)
    await plane.send("other", subject="free")
    await asyncio.sleep(0.1)
    assert "other" in plane.subscribers.ids(HERE)
    assert set(plane.subscribers.ids(HERE)) == {"0", "other"}


@plane_test
async def test_an_event_for_an_address_that_is_none_is_given_up_and_the_others_go_on():
    plane = Plane(trigger("t"))
    await asyncio.sleep(1)
    event = from_http(binary("lost"), b"{}")
    only = Direction("uid-t", "ftp://nowhere.test/")
    entry = Entry("default/default", event.attributes, binary_head(event), b"{}", plane.clock.now(), 255, only=only)
    plane.log.append(entry, lambda result: None)
    await plane.send("next")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["next"]
    assert plane.outcomes(1) == [(1, 0, "dropped")]
    assert plane.open() == []


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


# ---- repeats

ONCE = {"deduplicate": "PT10M"}


@plane_test
async def test_an_event_of_a_source_and_id_that_came_within_the_window_is_not_sent_and_the_ledger_says_so():
    plane = Plane(flowing(flow=ONCE), trigger("all", "http://all.test/"))
    await asyncio.sleep(1)
    await plane.send("1", "2", "1")
    await asyncio.sleep(500)
    await plane.send("1")
    await asyncio.sleep(601)
    await plane.send("1")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "2", "1"]
    assert plane.subscribers.ids("all.test") == ["1", "2", "1", "1", "1"]
    assert plane.open() == []
    told = [a for a in plane.log.attempts if a.uid == "uid-t" and a.outcome == "repeat"]
    assert [attempt.seq for attempt in told] == [3, 4]
    assert told[0].reason == "An event of its source and id came within 600 s before it."


@plane_test
async def test_events_of_one_id_from_two_sources_are_no_repeats():
    plane = Plane(flowing(flow=ONCE))
    await asyncio.sleep(1)
    for source in ("/a", "/b"):
        event = CloudEvent.of({"specversion": "1.0", "id": "1", "source": source, "type": "t"}, b"")
        entry = Entry("default/default", event.attributes, binary_head(event), b"", plane.clock.now(), 255)
        plane.log.append(entry, lambda result: None)
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "1"]


@plane_test
async def test_what_came_before_a_restart_still_makes_what_comes_after_it_a_repeat():
    plane = Plane(flowing(flow=ONCE))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(300)))
    await asyncio.sleep(60)
    plane.fanout._dispatchers["uid-t"].stop()
    await plane.send("7", "new")  # while no process delivers
    await asyncio.sleep(300)
    second = Plane(flowing(flow=ONCE), log=plane.log)
    await asyncio.sleep(1)
    await second.send("8", "newer", "new")
    await asyncio.sleep(1)
    assert second.subscribers.ids(HERE) == ["new", "newer"]


@plane_test
async def test_what_was_never_offered_makes_nothing_a_repeat():
    """An event from before the Trigger, or one that its filter of then left out, was not delivered."""
    wants = {"filter": {"attributes": {"type": "a"}}}
    plane = Plane()
    await plane.send("before")
    await asyncio.sleep(5)
    created = "2023-11-14T22:13:24Z"
    plane.apply(flowing(flow=ONCE, **wants).with_meta(creation_timestamp=created))
    await plane.send("left out", type="b")
    await asyncio.sleep(5)
    plane.fanout._dispatchers["uid-t"].stop()
    second = Plane(flowing(flow=ONCE).with_meta(creation_timestamp=created), log=plane.log)
    await asyncio.sleep(1)
    await second.send("before", "left out")
    await asyncio.sleep(1)
    assert second.subscribers.ids(HERE) == ["before", "left out"]


@plane_test
async def test_a_repeat_of_an_event_that_is_still_being_retried_is_one_and_the_event_is_not_lost():
    plane = Plane(flowing(flow=ONCE, delivery=QUICK))
    plane.script(HERE, Answer(503), Answer(503), Answer(202))
    await asyncio.sleep(1)
    await plane.send("1", "1")
    await asyncio.sleep(0.5)
    await plane.fanout.drain(1)
    second = Plane(flowing(flow=ONCE, delivery=QUICK), log=plane.log)
    await asyncio.sleep(30)
    assert second.subscribers.ids(HERE) == ["1"]
    assert second.open() == []


@settings(max_examples=30, deadline=None)
@given(
    sent=st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 400)), min_size=1, max_size=40),
    restarts=st.sets(st.integers(0, 40), max_size=4),
)
def test_which_events_are_repeats_follows_from_the_log_whatever_restarts(sent, restarts):
    async def main() -> None:
        plane = Plane(flowing(flow=ONCE))
        await asyncio.sleep(1)
        last: dict[str, float] = {}
        wanted: list[int] = []
        for number, (event_id, wait_s) in enumerate(sent):
            await asyncio.sleep(wait_s)
            if number in restarts:
                await asyncio.sleep(2)
                plane.fanout._dispatchers["uid-t"].stop()
            now = plane.clock.now()
            if event_id not in last or now - last[event_id] > 600:
                wanted.append(number + 1)
            last[event_id] = now
            await plane.send(event_id)
            if number in restarts:  # while nobody delivered
                plane = Plane(flowing(flow=ONCE), log=plane.log)
                await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        assert plane.open() == []
        assert sorted(a.seq for a in plane.log.attempts if a.outcome == "delivered") == wanted

    run_virtual(main())


@plane_test
async def test_a_replayed_event_is_no_repeat_of_itself():
    plane = Plane(flowing(flow=ONCE))
    await asyncio.sleep(1)
    await plane.send("1")
    await asyncio.sleep(1)
    (first,) = await _read(plane.log)
    again = msgspec.structs.replace(first.entry, only=Direction("uid-t"), cause=1)
    plane.log.append(again, lambda result: None)
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["1", "1"]


# ---- batches

MANY = {"batch": "10", "batch-wait": "5s"}


def ids_of(request: Request) -> list[str]:
    assert request.header(b"content-type") == [b"application/cloudevents-batch+json; charset=utf-8"]
    assert request.header(b"prefer") == []
    return [event.id for event in from_batch(request.header(b"content-type")[0], request.body)]


@plane_test
async def test_events_come_together_as_many_as_asked_for_or_after_the_wait():
    plane = Plane(flowing(flow=MANY))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(23)))
    await asyncio.sleep(1)
    assert [len(ids_of(request)) for request in plane.subscribers.at(HERE)] == [10, 10]
    await asyncio.sleep(10)
    requests = plane.subscribers.at(HERE)
    assert [event_id for request in requests for event_id in ids_of(request)] == [str(n) for n in range(23)]
    assert requests[2].at == pytest.approx(6.0, abs=0.1)
    assert plane.open() == []
    assert plane.outcomes(23) == [(1, 202, "delivered")]


@plane_test
async def test_a_batch_ends_before_it_is_too_large():
    plane = Plane(flowing(flow=MANY))
    await asyncio.sleep(1)
    for n in range(3):
        event = from_http(binary(str(n)), b'"' + b"x" * 600_000 + b'"')
        plane.log.append(
            Entry("default/default", event.attributes, binary_head(event), event.data or b"", plane.clock.now(), 255),
            lambda result: None,
        )
    await asyncio.sleep(10)
    assert [ids_of(request) for request in plane.subscribers.at(HERE)] == [["0"], ["1"], ["2"]]


@plane_test
async def test_a_batch_that_fails_is_retried_whole_and_then_dead_lettered_one_by_one():
    sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 2, "backoffPolicy": "linear", "backoffDelay": "PT1S"}
    plane = Plane(flowing(flow=MANY, delivery=sink, dead_letter_uri=f"http://{SINK}/"))
    plane.script(HERE, Answer(503, body=b"full"))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(12)))
    await asyncio.sleep(2)
    await plane.send("new")
    await asyncio.sleep(60)
    tens = [request for request in plane.subscribers.at(HERE) if len(ids_of(request)) == 10]
    assert len(tens) == 3
    assert all(ids_of(request) == [str(n) for n in range(10)] for request in tens)
    letters = plane.subscribers.at(SINK)
    assert sorted(letter.event.id for letter in letters) == sorted(["new", *(str(n) for n in range(12))])
    assert letters[0].event.attributes["knativeerrorcode"] == "503"
    assert plane.outcomes(1) == [
        (1, 503, "retrying"),
        (2, 503, "retrying"),
        (3, 503, "retrying"),
        (4, 202, "dead-lettered"),
    ]
    assert plane.open() == []


@plane_test
async def test_an_event_in_the_answer_to_a_batch_is_no_reply():
    plane = Plane(flowing(flow=MANY))
    plane.script(HERE, Answer(200, binary("r1"), b"{}"))
    await asyncio.sleep(1)
    await plane.send("1", "2")
    await asyncio.sleep(10)
    assert len(await _read(plane.log)) == 2
    assert plane.open() == []


@plane_test
async def test_events_that_are_delayed_come_together_as_well():
    plane = Plane(flowing(flow={**MANY, "delay": "1m"}))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(12)))
    await asyncio.sleep(59)
    assert plane.subscribers.requests == []
    await asyncio.sleep(10)
    assert [len(ids_of(request)) for request in plane.subscribers.at(HERE)] == [10, 2]


@plane_test
async def test_the_rate_counts_the_events_of_batches():
    plane = Plane(flowing(flow={**MANY, "rate": "2"}))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(40)))
    await asyncio.sleep(60)
    times = [request.at for request in plane.subscribers.at(HERE)]
    assert [later - before for before, later in itertools.pairwise(times)] == [pytest.approx(5.0)] * 3


@plane_test
async def test_batches_that_are_asked_for_no_longer_go_one_by_one_again():
    plane = Plane(flowing(flow=MANY, delivery=QUICK))
    plane.script(HERE, Answer(503))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(12)))
    await asyncio.sleep(0.5)
    plane.script(HERE, Answer(202))
    plane.subscribers.requests.clear()
    plane.apply(trigger("t", delivery=QUICK))
    await asyncio.sleep(10)
    assert sorted(plane.subscribers.ids(HERE), key=int) == [str(n) for n in range(12)]
    assert plane.open() == []


@settings(max_examples=20, deadline=None)
@given(
    flow=st.fixed_dictionaries(
        {},
        optional={
            "parallelism": st.sampled_from(["1", "2", "40"]),
            "rate": st.sampled_from(["1", "7", "500", "100/m"]),
            "delay": st.sampled_from(["3s", "PT1M"]),
            "deduplicate": st.just("1h"),
            "batch": st.sampled_from(["2", "9"]),
            "paused": st.sampled_from(["true", "false"]),
        },
    ),
    others=st.lists(st.sampled_from([{}, {"order": "ordered"}, {"batch": "4"}, {"paused": "true"}, {"rate": "3"}])),
    count=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_lost_whatever_is_asked_for_and_however_it_changes(flow, others, count, seed):
    async def main() -> None:
        rng = random.Random(seed)
        delivery = {"retry": 1000, "backoffPolicy": "linear", "backoffDelay": "PT1S"}
        plane = Plane(flowing(flow=flow, delivery=delivery))
        plane.subscribers.scripts[HERE] = lambda request, n: Answer(
            rng.choice([202, 503, 429, 404]), after_s=rng.uniform(0.01, 2)
        )
        await asyncio.sleep(1)
        changes = [flow, *others, {}]
        for number in range(count):
            await plane.send(str(number), subject=str(number % 3))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.uniform(0, 20))
                plane.apply(flowing(flow=rng.choice(changes), delivery=delivery))
        plane.apply(flowing(flow={}, delivery=delivery))
        plane.script(HERE, Answer(202))
        await asyncio.sleep(5000)
        assert plane.open() == []
        assert {a.seq for a in plane.log.attempts if a.outcome == "delivered"} == set(range(1, count + 1))

    run_virtual(main())


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
async def test_a_look_back_that_fails_is_made_again():
    class Failing(MemoryLog):
        fails = 1

        def seek(self, broker, at, then):
            if self.fails and at < 1_700_000_000:
                self.fails -= 1
                asyncio.get_running_loop().call_soon(then, Unavailable("the disk is away"))
            else:
                super().seek(broker, at, then)

    log = Failing()
    plane = Plane(flowing(flow=ONCE), log=log)
    await asyncio.sleep(1)
    await plane.send("1")
    await asyncio.sleep(5)
    plane.fanout._dispatchers["uid-t"].stop()
    second = Plane(flowing(flow=ONCE), log=log)
    await second.send("1", "2")
    await asyncio.sleep(5)
    assert not log.fails
    assert second.subscribers.ids(HERE) == ["2"]


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
