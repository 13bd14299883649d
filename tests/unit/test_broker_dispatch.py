"""One Trigger's deliveries on virtual time: an in-memory log, and subscribers that answer by script."""

import asyncio
import base64
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from broker.dispatch import MAX_OUTSTANDING
from broker.fanout import Fanout
from broker.flow.settings import PARALLELISM
from broker.log.memory import MemoryLog
from broker.log.port import Entry, Page, Record
from broker.resources import BROKER, DEFAULT_CLASS
from broker.services import Services
from broker.table import TableBuilder
from core.errors import PenstockError, Unavailable
from core.events import CloudEvent, binary_head, from_http
from core.limits import MAX_ATTRIBUTES_BYTES
from core.net.names import Names
from core.net.types import ConnectFailed, ConnectionLost, Headers
from core.resources import Resource
from tests.support.broker import Answer, Request, Subscribers, binary, broker, trigger
from tests.support.virtual_time import VirtualClock, run_virtual

HERE = "subscriber.test"
SINK = "sink.test"
QUICK = {"retry": 3, "backoffPolicy": "linear", "backoffDelay": "PT1S"}


class Plane:
    """A log, a fan-out and subscribers, put together. `apply` sets the resources, `send` appends events."""

    def __init__(self, *resources: Resource, log: MemoryLog | None = None) -> None:
        self.subscribers = Subscribers()
        self.clock = VirtualClock()
        self.log = log or MemoryLog()
        self.fanout = Fanout(
            Services(
                log=self.log,
                ledger=self.log,
                client=self.subscribers,
                names=Names(),
                clock=self.clock,
                rng=random.Random(1),
                count=lambda trigger, outcome, latency_s: None,
            ),
            {DEFAULT_CLASS},
        )
        self._builder = TableBuilder()
        self._version = 0
        self.apply(*resources)

    def apply(self, *resources: Resource) -> None:
        self._version += 1
        stamped = [resource.with_meta(resource_version=str(self._version)) for resource in resources]
        brokers = [resource for resource in stamped if resource.ref == BROKER] or [broker()]
        self.fanout.swap(self._builder.build(brokers, [r for r in stamped if r.ref != BROKER]))

    def script(self, host: str, *answers: Answer) -> None:
        """Answer so, one after the other; the last one from then on."""
        self.subscribers.scripts[host] = lambda request, n: answers[min(n, len(answers) - 1)]

    async def send(self, *ids: str, **attributes: str) -> None:
        for event_id in ids:
            headers = binary(event_id, attributes.get("type", "test.made"))
            event = from_http(
                [*headers, *((f"ce-{n}".encode(), v.encode()) for n, v in attributes.items() if n != "type")], b"{}"
            )
            self.log.append(_entry(event, self.clock.now()), _durable)
        await asyncio.sleep(0)

    def outcomes(self, seq: int = 1) -> list[tuple[int, int, str]]:
        return [(a.number, a.status, a.outcome) for a in self.log.attempts if a.seq == seq]

    def open(self, name: str = "t") -> list[int]:
        return sorted(self.log.subscribe(f"uid-{name}", "default/default", "", 0).open)


def _entry(event: CloudEvent, at: float) -> Entry:
    return Entry("default/default", event.attributes, binary_head(event), event.data or b"", at, 255)


def _durable(result: Record | PenstockError) -> None:
    assert isinstance(result, Record), result


def plane_test(body: Callable[[], Any]) -> Callable[[], None]:
    """Runs an async test on virtual time."""

    def test() -> None:
        run_virtual(body())

    test.__name__ = body.__name__
    return test


# ---- delivering


@plane_test
async def test_an_event_is_delivered_whole_in_binary_mode_and_asks_for_replies():
    plane = Plane(trigger("t", f"http://{HERE}/in?x=1"))
    await asyncio.sleep(1)
    await plane.send("e1", subject="a b")
    await asyncio.sleep(1)
    (request,) = plane.subscribers.at(HERE)
    assert request.url == f"http://{HERE}/in?x=1"
    assert request.header(b"prefer") == [b"reply"]
    assert request.header(b"kn-namespace") == [b"default"]
    assert request.header(b"ce-id") == [b"e1"]
    assert request.event.attributes["subject"] == "a b"
    assert request.body == b"{}"
    assert plane.outcomes() == [(1, 202, "delivered")]
    assert plane.open() == []


@plane_test
async def test_an_event_is_delivered_in_structured_mode_where_that_is_asked_for():
    plane = Plane(trigger("t", delivery={"format": "json"}))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(1)
    (request,) = plane.subscribers.at(HERE)
    assert request.header(b"content-type") == [b"application/cloudevents+json; charset=utf-8"]
    assert msgspec.json.decode(request.body)["id"] == "e1"


@plane_test
async def test_only_matching_events_are_delivered_each_to_every_trigger_that_matches():
    wants = {"filter": {"attributes": {"type": "a"}}}
    plane = Plane(
        trigger("one", "http://one.test/", **wants), trigger("two", "http://two.test/", **wants), trigger("all")
    )
    await asyncio.sleep(1)
    await plane.send("e1", type="a")
    await plane.send("e2", type="b")
    await asyncio.sleep(1)
    assert plane.subscribers.ids("one.test") == plane.subscribers.ids("two.test") == ["e1"]
    assert plane.subscribers.ids(HERE) == ["e1", "e2"]


@plane_test
async def test_deliveries_under_way_stay_within_the_window():
    plane = Plane(trigger("t"))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(5 * PARALLELISM)))
    await asyncio.sleep(10)
    assert plane.subscribers.most[HERE] == PARALLELISM
    assert sorted(plane.subscribers.ids(HERE), key=int) == [str(n) for n in range(5 * PARALLELISM)]


@plane_test
async def test_a_dead_subscriber_delays_no_other():
    plane = Plane(trigger("dead", "http://dead.test/", delivery=QUICK), trigger("fine"))
    plane.script("dead.test", Answer(error=ConnectFailed("refused")))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(100)))
    await asyncio.sleep(0.1)
    assert len(plane.subscribers.at(HERE)) == 100


# ---- retries


@plane_test
async def test_a_failed_delivery_is_tried_again_after_its_back_off_until_it_works():
    plane = Plane(trigger("t", delivery=QUICK))
    plane.script(HERE, Answer(500), Answer(error=ConnectFailed("refused")), Answer(202))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(30)
    first, second, third = (request.at for request in plane.subscribers.at(HERE))
    assert 1.0 <= second - first <= 1.3
    assert 2.0 <= third - second <= 2.5
    assert plane.outcomes() == [(1, 500, "retrying"), (2, 0, "retrying"), (3, 202, "delivered")]
    assert plane.log.attempts[1].reason == "refused"


@plane_test
async def test_an_event_in_back_off_holds_no_place_in_the_window():
    plane = Plane(trigger("t", delivery={**QUICK, "backoffDelay": "PT10S"}))
    failing = {str(n) for n in range(PARALLELISM)}
    plane.subscribers.scripts[HERE] = lambda request, n: Answer(503 if request.event.id in failing else 202)
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(2 * PARALLELISM)))
    await asyncio.sleep(1)
    assert len(plane.open()) == PARALLELISM
    assert len(plane.subscribers.at(HERE)) == 2 * PARALLELISM


@plane_test
async def test_retry_after_is_followed():
    plane = Plane(trigger("t", delivery=QUICK))
    plane.script(HERE, Answer(429, [(b"retry-after", b"20")]), Answer(202))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(60)
    first, second = (request.at for request in plane.subscribers.at(HERE))
    assert 20.0 <= second - first <= 20.1


@plane_test
async def test_an_idle_connection_that_breaks_costs_no_attempt_but_not_without_end():
    plane = Plane(trigger("t", delivery={"retry": 0}))
    lost = Answer(error=ConnectionLost("closed", sent=True, fresh=False))
    plane.script(HERE, lost, lost, Answer(202))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(1)
    assert len(plane.subscribers.at(HERE)) == 2
    assert plane.outcomes() == [(1, 0, "dropped")]


@plane_test
async def test_the_time_out_is_the_policys():
    plane = Plane(trigger("t", delivery={"timeout": "PT7S"}))
    await asyncio.sleep(1)
    await plane.send("e1")
    assert plane.subscribers.requests[0].timeout_s == 7.0


@plane_test
async def test_a_triggers_own_settings_come_first_then_its_brokers():
    own = trigger("t", delivery={"retry": 1})
    plane = Plane(broker(delivery={"retry": 9, "backoffPolicy": "linear", "backoffDelay": "PT5S"}), own)
    plane.script(HERE, Answer(500))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(60)
    first, second = (request.at for request in plane.subscribers.at(HERE))
    assert 5.0 <= second - first <= 6.1


# ---- giving up


@pytest.mark.parametrize(
    ("statuses", "requests"),
    [
        pytest.param((200, 201, 202, 203, 204, 299), 1, id="2xx"),
        pytest.param((300, 301, 302, 304, 307, 308), -1, id="3xx"),
        pytest.param((400, 401, 403, 402, 405, 410, 413, 415, 418, 422, 451), -1, id="4xx"),
        pytest.param((404, 408, 409, 429), -3, id="4xx that are tried again"),
        pytest.param((500, 501, 502, 503, 504, 511, 599), -3, id="5xx"),
    ],
)
def test_each_answer_of_the_contract_ends_as_its_table_says(statuses: tuple[int, ...], requests: int):
    """How many requests the subscriber gets; negative where the event goes to the dead-letter sink after them."""

    async def main() -> None:
        sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 2, "backoffDelay": "PT1S"}
        plane = Plane(trigger("t", delivery=sink, dead_letter_uri=f"http://{SINK}/"))
        plane.subscribers.scripts[HERE] = lambda request, n: Answer(int(request.event.id))
        await asyncio.sleep(1)
        await plane.send(*map(str, statuses))
        await asyncio.sleep(60)
        got = plane.subscribers.ids(HERE)
        assert {event_id: got.count(event_id) for event_id in got} == dict.fromkeys(map(str, statuses), abs(requests))
        letters = {letter.event.id: letter.event.attributes for letter in plane.subscribers.at(SINK)}
        assert set(letters) == (set(map(str, statuses)) if requests < 0 else set())
        assert all(attributes["knativeerrorcode"] == event_id for event_id, attributes in letters.items())
        assert plane.open() == []

    run_virtual(main())


@plane_test
async def test_what_cannot_be_delivered_goes_to_the_dead_letter_sink_with_the_reason():
    sink = {"deadLetterSink": {"uri": f"http://{SINK}/"}, "retry": 1, "backoffDelay": "PT1S"}
    plane = Plane(trigger("t", delivery=sink, dead_letter_uri=f"http://{SINK}/"))
    plane.script(HERE, Answer(500, body=b"out of order"))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(60)
    (letter,) = plane.subscribers.at(SINK)
    assert letter.header(b"prefer") == [], "nobody would read a reply"
    event = letter.event
    assert event.id == "e1"
    assert event.data == b"{}"
    assert event.attributes["knativeerrordest"] == "http://subscriber.test/"
    assert event.attributes["knativeerrorcode"] == "500"
    assert base64.b64decode(event.attributes["knativeerrordata"]) == b"out of order"
    assert plane.outcomes() == [(1, 500, "retrying"), (2, 500, "retrying"), (3, 202, "dead-lettered")]
    assert plane.open() == []


@plane_test
async def test_a_refused_event_is_not_retried_before_it_goes_to_the_brokers_sink():
    status = {"deadLetterSinkUri": f"http://{SINK}/"}
    plane = Plane(broker(status=status, delivery={"deadLetterSink": {"uri": f"http://{SINK}/"}}), trigger("t"))
    plane.script(HERE, Answer(400))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(1)
    assert len(plane.subscribers.at(HERE)) == 1
    assert plane.subscribers.ids(SINK) == ["e1"]


@plane_test
async def test_a_sink_that_fails_is_retried_and_then_the_event_is_kept_as_dead():
    delivery = {**QUICK, "retry": 2, "deadLetterSink": {"uri": f"http://{SINK}/"}}
    plane = Plane(trigger("t", delivery=delivery, dead_letter_uri=f"http://{SINK}/"))
    plane.script(HERE, Answer(400))
    plane.script(SINK, Answer(503))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(60)
    assert len(plane.subscribers.at(SINK)) == 3
    assert plane.outcomes()[-1] == (4, 503, "dead")
    assert plane.open() == []


@plane_test
async def test_without_a_sink_the_ledger_says_that_the_event_was_dropped_and_why():
    plane = Plane(trigger("t"))
    plane.script(HERE, Answer(400))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(1)
    assert plane.outcomes() == [(1, 400, "dropped")]
    assert plane.log.attempts[-1].reason == "Not retried: the subscriber answered 400. There is no dead-letter sink."


@plane_test
async def test_a_letter_waits_for_a_sink_that_has_no_address_yet():
    delivery = {"retry": 0, "deadLetterSink": {"uri": f"http://{SINK}/"}}
    plane = Plane(trigger("t", delivery=delivery))
    plane.script(HERE, Answer(500))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(100)
    assert plane.open() == [1]
    plane.apply(trigger("t", delivery=delivery, dead_letter_uri=f"http://{SINK}/"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(SINK) == ["e1"]
    assert plane.open() == []


# ---- replies


@plane_test
async def test_a_reply_is_stored_before_the_delivery_counts_and_goes_to_every_trigger():
    wants = {"filter": {"attributes": {"type": "test.asked"}}}
    plane = Plane(trigger("t", **wants), trigger("all", "http://all.test/"))
    plane.script(HERE, Answer(200, binary("r1", "test.answered", knativebrokerttl="3"), b'{"r": 1}'))
    await asyncio.sleep(1)
    await plane.send("e1", type="test.asked")
    await asyncio.sleep(1)
    assert sorted(plane.subscribers.ids("all.test")) == ["e1", "r1"]
    reply = next(request for request in plane.subscribers.at("all.test") if request.event.id == "r1")
    assert reply.body == b'{"r": 1}'
    assert "knativebrokerttl" not in reply.event.attributes
    page = await _read(plane.log)
    assert (page[1].entry.cause, page[1].entry.via, page[1].entry.ttl) == (1, "uid-t", 254)
    assert sorted(plane.outcomes()) == [(1, 200, "delivered"), (1, 202, "delivered")]


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        pytest.param(Answer(200, binary("r1"), b"{}"), True, id="200 binary"),
        pytest.param(
            Answer(
                200,
                [(b"content-type", b"application/cloudevents+json")],
                b'{"specversion":"1.0","id":"r1","source":"/s","type":"t"}',
            ),
            True,
            id="200 structured",
        ),
        pytest.param(Answer(202, binary("r1"), b"{}"), False, id="202 is never a reply"),
        pytest.param(Answer(200, [(b"content-type", b"text/plain")], b"thanks"), False, id="200 with another body"),
        pytest.param(Answer(200), False, id="200 without a body"),
    ],
)
def test_only_an_event_in_a_200_is_a_reply_and_any_2xx_is_delivered(answer: Answer, stored: bool):
    async def main() -> None:
        plane = Plane(trigger("t", filter={"attributes": {"subject": "first"}}))
        plane.script(HERE, answer)
        await asyncio.sleep(1)
        await plane.send("e1", subject="first")
        await asyncio.sleep(1)
        assert plane.outcomes() == [(1, answer.status, "delivered")]
        assert len(await _read(plane.log)) == (2 if stored else 1)

    run_virtual(main())


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"ce-specversion", b"1.0"), (b"ce-id", b"r")], id="attributes missing"),
        pytest.param(binary("r", large="x" * MAX_ATTRIBUTES_BYTES), id="more than can be delivered as headers"),
        pytest.param([*binary("r"), (b"content-encoding", b"gzip")], id="coded"),
        pytest.param([(b"content-type", b"application/cloudevents-batch+json")], id="batch"),
    ],
)
def test_a_malformed_reply_fails_the_delivery_and_is_retried(headers: Headers):
    async def main() -> None:
        plane = Plane(trigger("t", delivery=QUICK))
        plane.script(HERE, Answer(200, headers, b"{}"), Answer(202))
        await asyncio.sleep(1)
        await plane.send("e1")
        await asyncio.sleep(10)
        assert plane.outcomes() == [(1, 200, "retrying"), (2, 202, "delivered")]
        assert "not a valid event" in (plane.log.attempts[0].reason or "")

    run_virtual(main())


@plane_test
async def test_a_reply_that_cannot_be_stored_waits_for_the_log_and_costs_no_attempt():
    class Refusing(MemoryLog):
        refuse = False

        def append(self, entry, then):
            if self.refuse:
                then(Unavailable("the disk is away"))
            else:
                super().append(entry, then)

    log = Refusing()
    plane = Plane(trigger("t", filter={"attributes": {"type": "test.asked"}}, delivery=QUICK), log=log)
    plane.script(HERE, Answer(200, binary("r1"), b"{}"))
    await asyncio.sleep(1)
    await plane.send("e1", type="test.asked")
    log.refuse = True
    await asyncio.sleep(300)
    assert plane.outcomes() == []
    log.refuse = False
    await asyncio.sleep(2)
    assert plane.outcomes() == [(1, 200, "delivered")]
    assert len(plane.subscribers.at(HERE)) == 1
    assert log.last() == 2, "the reply is stored"


@plane_test
async def test_a_reply_that_cannot_be_stored_before_the_end_leaves_its_event_to_the_next_process():
    class Refusing(MemoryLog):
        def append(self, entry, then):
            if entry.cause is not None:
                then(Unavailable("the disk is away"))
            else:
                super().append(entry, then)

    plane = Plane(trigger("t", filter={"attributes": {"type": "test.asked"}}), log=Refusing())
    plane.script(HERE, Answer(200, binary("r1"), b"{}"))
    await asyncio.sleep(1)
    await plane.send("e1", type="test.asked")
    await asyncio.sleep(5)
    async with asyncio.timeout(5):
        await plane.fanout.drain(10)
    assert plane.open() == [1]


@plane_test
async def test_an_endless_loop_of_replies_ends_as_a_dead_letter_that_says_so():
    delivery = {"deadLetterSink": {"uri": f"http://{SINK}/"}}
    plane = Plane(trigger("t", delivery=delivery, dead_letter_uri=f"http://{SINK}/"))
    plane.script(HERE, Answer(200, binary("again"), b"{}"))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(60)
    assert len(plane.subscribers.at(HERE)) == 255
    (letter,) = plane.subscribers.at(SINK)
    assert letter.event.attributes["knativeerrorcode"] == "400"
    assert b"too many times" in base64.b64decode(letter.event.attributes["knativeerrordata"])


BROKER_HOST = "broker-ingress.localhost"


@pytest.mark.parametrize("delivery", [{}, {"format": "json"}], ids=["binary", "structured"])
def test_brokers_that_pass_an_event_on_to_each_other_in_a_circle_end_with_a_dead_letter(delivery: dict[str, Any]):
    async def main() -> None:
        sink = {**delivery, "deadLetterSink": {"uri": f"http://{SINK}/"}}
        spec = {"delivery": sink, "dead_letter_uri": f"http://{SINK}/"}
        plane = Plane(trigger("t", f"http://{BROKER_HOST}/default/default", **spec))

        def ingress(request: Request, n: int) -> Answer:
            ttl = int(request.event.attributes["knativebrokerttl"]) - 1  # as `broker.ingress` counts
            if ttl <= 0:
                return Answer(400, body=b"The event has passed too many Brokers.")
            attributes = {k: v for k, v in request.event.attributes.items() if k != "knativebrokerttl"}
            event = CloudEvent(attributes=attributes, data=request.event.data)
            plane.log.append(msgspec.structs.replace(_entry(event, plane.clock.now()), ttl=ttl), _durable)
            return Answer(202)

        plane.subscribers.scripts[BROKER_HOST] = ingress
        await asyncio.sleep(1)
        await plane.send("e1")
        await asyncio.sleep(60)
        assert len(plane.subscribers.at(BROKER_HOST)) == 255
        (letter,) = plane.subscribers.at(SINK)
        assert b"too many Brokers" in base64.b64decode(letter.event.attributes["knativeerrordata"])
        assert "knativebrokerttl" not in letter.event.attributes

    run_virtual(main())


# ---- Triggers come, change and go


@plane_test
async def test_a_trigger_without_an_address_gets_its_events_once_it_has_one():
    plane = Plane(trigger("t", None))
    await asyncio.sleep(1)
    await plane.send("e1", "e2")
    await asyncio.sleep(100)
    assert plane.subscribers.requests == []
    plane.apply(trigger("t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["e1", "e2"]


@plane_test
async def test_a_new_trigger_gets_what_comes_after_it_and_not_what_came_before():
    plane = Plane()
    await plane.send("before")
    await asyncio.sleep(1.5)
    await plane.send("same second")  # Kubernetes does not say which of the two came first
    await asyncio.sleep(0.1)
    plane.apply(trigger("t").with_meta(creation_timestamp="2023-11-14T22:13:21Z"))
    await plane.send("after")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["same second", "after"]


@plane_test
async def test_a_trigger_that_is_heard_of_late_gets_what_arrived_since_its_creation():
    plane = Plane()
    await plane.send("early")
    await asyncio.sleep(10)
    await plane.send("since")  # nine seconds after the Trigger was created, five before this process hears of it
    await asyncio.sleep(5)
    plane.apply(trigger("t").with_meta(creation_timestamp="2023-11-14T22:13:21Z"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["since"]


@plane_test
async def test_a_changed_subscriber_applies_to_what_is_pending():
    plane = Plane(trigger("t", delivery=QUICK))
    plane.script(HERE, Answer(503))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(0.5)
    plane.apply(trigger("t", "http://other.test/", delivery=QUICK))
    await asyncio.sleep(10)
    assert plane.subscribers.ids("other.test") == ["e1"]
    assert len(plane.subscribers.at(HERE)) == 1


@plane_test
async def test_a_trigger_gets_what_its_expression_lets_through_and_nothing_that_it_fails_on():
    plane = Plane(trigger("t", filters=[{"cesql": "type LIKE 'test.%' AND INT(amount) > 5 AND region != 'us'"}]))
    await plane.send("eu", amount="10", region="eu")
    await plane.send("small", amount="5", region="eu")
    await plane.send("us", amount="10", region="us")
    await plane.send("much", amount="much", region="eu")
    await plane.send("nowhere", amount="10")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["eu"]


@plane_test
async def test_a_deleted_trigger_gets_nothing_more_and_its_position_goes():
    plane = Plane(trigger("t", delivery=QUICK), trigger("other", "http://other.test/"))
    plane.script(HERE, Answer(503))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(0.5)
    plane.apply(trigger("other", "http://other.test/"))
    await plane.send("e2")
    await asyncio.sleep(100)
    assert len(plane.subscribers.at(HERE)) == 1
    assert plane.subscribers.ids("other.test") == ["e1", "e2"]
    assert set(plane.log.subscriptions()) == {"uid-other"}


@plane_test
async def test_the_reply_of_a_delivery_under_way_is_kept_though_its_trigger_is_deleted():
    plane = Plane(trigger("t"))
    plane.script(HERE, Answer(200, binary("r1"), b"{}", after_s=5))
    await asyncio.sleep(1)
    await plane.send("e1")
    plane.apply()
    await asyncio.sleep(10)
    assert [record.entry.attributes["id"] for record in await _read(plane.log)] == ["e1", "r1"]


@plane_test
async def test_a_trigger_whose_filter_cannot_be_read_gets_nothing_and_keeps_its_position():
    plane = Plane(trigger("t"))
    await asyncio.sleep(1)
    plane.apply(trigger("t", filters=[{"cesql": "TRUE("}]))
    await plane.send("e1")
    await asyncio.sleep(10)
    assert plane.subscribers.requests == []
    plane.apply(trigger("t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["e1"]


# ---- limits and restarts


@plane_test
async def test_a_backlog_beyond_the_limit_stays_in_the_log_and_is_delivered_once_the_subscriber_is_back():
    plane = Plane(trigger("t", delivery={"retry": 50, "backoffPolicy": "linear", "backoffDelay": "PT1S"}))
    plane.script(HERE, Answer(error=ConnectFailed("refused")))
    await asyncio.sleep(1)
    count = 3 * MAX_OUTSTANDING
    for start in range(0, count, 100):
        await plane.send(*(str(n) for n in range(start, min(start + 100, count))))
        await asyncio.sleep(0.01)
    await asyncio.sleep(20)
    assert len(plane.open()) == MAX_OUTSTANDING
    assert plane.fanout.backlog("uid-t") >= count
    plane.script(HERE, Answer(202))
    plane.subscribers.requests.clear()
    await asyncio.sleep(200)
    assert sorted(set(plane.subscribers.ids(HERE)), key=int) == [str(n) for n in range(count)]
    assert plane.open() == []
    assert plane.fanout.backlog("uid-t") == 0


@plane_test
async def test_more_than_a_page_of_what_was_not_acknowledged_is_delivered_by_the_next_process():
    first = Plane(trigger("t", delivery={**QUICK, "backoffDelay": "PT1000S"}))
    first.script(HERE, Answer(503))
    await asyncio.sleep(1)
    names = [str(n) for n in range(MAX_OUTSTANDING)]
    for name in names:
        await first.send(name, subject="x" * 5_000)
    await asyncio.sleep(1)
    assert len(first.open()) == MAX_OUTSTANDING
    await first.fanout.drain(1)
    second = Plane(trigger("t"), log=first.log)
    await asyncio.sleep(3000)
    assert sorted(second.subscribers.ids(HERE), key=int) == names
    assert second.open() == []


@plane_test
async def test_what_was_not_acknowledged_is_delivered_again_by_the_next_process():
    first = Plane(trigger("t", delivery={**QUICK, "backoffDelay": "PT1000S"}))
    first.subscribers.scripts[HERE] = lambda request, n: Answer(503 if request.event.id in "bd" else 202)
    await asyncio.sleep(1)
    await first.send(*"abcde")
    await asyncio.sleep(10)
    await first.fanout.drain(1)
    second = Plane(trigger("t"), log=first.log)
    await asyncio.sleep(1)
    await second.send("f")
    await asyncio.sleep(1)
    assert second.subscribers.ids(HERE) == ["f"], "the others are not due yet"
    await asyncio.sleep(1300)
    assert second.subscribers.ids(HERE) == ["f", "b", "d"]
    assert first.outcomes(2) == [(1, 503, "retrying"), (2, 202, "delivered")]


@plane_test
async def test_draining_waits_for_what_is_under_way_and_sends_nothing_new():
    plane = Plane(trigger("t"))
    plane.script(HERE, Answer(202, after_s=5))
    await asyncio.sleep(1)
    await plane.send(*(str(n) for n in range(2 * PARALLELISM)))
    began = asyncio.get_running_loop().time()
    await plane.fanout.drain(60)
    assert asyncio.get_running_loop().time() - began == pytest.approx(5, abs=0.1)
    assert len(plane.subscribers.at(HERE)) == PARALLELISM
    assert len(plane.open()) == PARALLELISM, "what was not sent is left for the next process"


@plane_test
async def test_draining_gives_up_after_its_time():
    plane = Plane(trigger("t"))
    plane.script(HERE, Answer(202, after_s=500))
    await asyncio.sleep(1)
    await plane.send("e1")
    began = asyncio.get_running_loop().time()
    await plane.fanout.drain(3)
    assert asyncio.get_running_loop().time() - began == pytest.approx(3)
    assert plane.open() == [1]


@plane_test
async def test_a_corrupt_event_is_told_in_the_ledger_and_the_rest_is_delivered():
    class Corrupting(MemoryLog):
        def _page(self, broker: str, after: int, limit: int) -> Page:
            page = super()._page(broker, after, limit)
            return msgspec.structs.replace(page, records=page.records[1:], corrupt=(page.records[0].seq,))

    plane = Plane(trigger("t", None), log=Corrupting())
    await asyncio.sleep(1)
    await plane.send("bad", "good")
    plane.apply(trigger("t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["good"]
    assert plane.outcomes(1) == [(0, 0, "corrupt")]


async def _read(log: MemoryLog) -> list[Record]:
    found: asyncio.Future[Page | PenstockError] = asyncio.get_running_loop().create_future()
    log.read("default/default", 0, 1000, found.set_result)
    page = await found
    assert isinstance(page, Page)
    return list(page.records)


# ---- who served it


@plane_test
async def test_a_function_is_asked_who_serves_and_what_its_gateway_told_is_in_the_ledger():
    host = "scan.default.svc.cluster.local"
    plane = Plane(trigger("t", f"http://{host}/", delivery=QUICK))
    cold = [(b"penstock-revision", b"scan-00001"), (b"penstock-cold-start", b"0.812")]
    plane.script(
        host,
        Answer(503, cold),
        Answer(error=ConnectFailed("refused")),
        Answer(202, [(b"penstock-revision", b"scan-00002")]),
    )
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(20)
    assert [request.header(b"penstock-explain") for request in plane.subscribers.at(host)] == [[b"?1"]] * 3
    told = [(attempt.revision, attempt.cold_start_s) for attempt in plane.log.attempts]
    assert told == [("scan-00001", 0.812), (None, None), ("scan-00002", None)]


@plane_test
async def test_who_is_no_function_is_not_asked_and_not_believed():
    plane = Plane(trigger("t"))
    plane.script(HERE, Answer(202, [(b"penstock-revision", b"mine")]))
    await asyncio.sleep(1)
    await plane.send("e1")
    await asyncio.sleep(1)
    assert plane.subscribers.at(HERE)[0].header(b"penstock-explain") == []
    assert plane.log.attempts[0].revision is None
