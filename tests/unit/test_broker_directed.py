"""Events for one Trigger alone: the path that takes them, how they are stored, and who gets them. On virtual time."""

import asyncio

import pytest

from broker.directed import Wish, parse_wish
from broker.ingress import Ingress
from broker.log.direction import Direction, directed_head, split_head
from broker.log.memory import MemoryLog
from broker.log.port import Entry, LogFull, Record
from broker.resources import DEFAULT_CLASS
from broker.table import TableBuilder
from core.errors import InvalidInput, PenstockError
from core.events import binary_head, from_http
from core.net.pages import HEALTH, Pages
from core.telemetry import Metrics
from tests.support.broker import Answer, Spoken, ask, binary, broker, trigger
from tests.support.virtual_time import VirtualClock, run_virtual
from tests.unit.test_broker_dispatch import HERE, QUICK, SINK, Plane, plane_test

PATH = "/default/default/triggers/scan"


def made(log: MemoryLog) -> Ingress:
    metrics = Metrics()
    pages = Pages(metrics=metrics, checks={HEALTH: str})
    ingress = Ingress(logs={DEFAULT_CLASS: log}, clock=VirtualClock(), metrics=metrics, pages=pages.handle)
    triggers = [trigger("scan"), trigger("far", broker="other"), trigger("lost", broker="redis")]
    redis = broker("redis").with_meta(annotations={"eventing.knative.dev/broker.class": "Redis"})
    ingress.swap(TableBuilder().build([broker(), broker("other"), redis], triggers))
    return ingress


async def posted(ingress: Ingress, target: str, method: str = "POST", body: bytes = b"{}") -> Spoken:
    exchange = ask(ingress.handle, target, binary("e1"), body, method=method)
    async with asyncio.timeout(10):
        await exchange.answered.wait()
    return exchange


# ---- the path


@pytest.mark.parametrize(
    ("query", "direction", "cause"),
    [
        pytest.param("", Direction("uid-scan"), None, id="the subscriber"),
        pytest.param("?cause=41", Direction("uid-scan"), 41, id="with a cause"),
        pytest.param(
            "?revision=scan-00002",
            Direction("uid-scan", "http://scan-00002.default.revision.localhost/"),
            None,
            id="a revision",
        ),
    ],
)
def test_an_event_for_a_trigger_is_stored_for_it_alone_and_answered_with_its_position(query, direction, cause):
    async def main() -> None:
        log = MemoryLog()
        heard: list[Record] = []
        log.tail(heard.append)
        answer = await posted(made(log), PATH + query)
        (record,) = heard
        assert (answer.status, answer.header(b"penstock-position")) == (202, b"%d" % record.seq)
        assert (record.entry.only, record.entry.cause, record.entry.via) == (direction, cause, None)
        assert record.entry.attributes["id"] == "e1"

    run_virtual(main())


@pytest.mark.parametrize(
    ("target", "method", "status", "words"),
    [
        pytest.param("/default/none/triggers/scan", "POST", 404, "no Broker 'none'", id="no broker"),
        pytest.param("/default/default/triggers/none", "POST", 404, "no Trigger 'none'", id="no trigger"),
        pytest.param("/default/default/triggers/far", "POST", 404, "of the Broker default/other", id="another's"),
        pytest.param("/default/redis/triggers/lost", "POST", 503, "its class, Redis", id="its log is away"),
        pytest.param(PATH + "?cause=x", "POST", 400, "cause='x' must be the position", id="bad cause"),
        pytest.param(PATH + "?revision=a.b", "POST", 400, "revision='a.b' must be the name", id="bad revision"),
        pytest.param(PATH + "?to=http://x", "POST", 400, "'to' is no parameter", id="unknown parameter"),
        pytest.param(PATH, "GET", 405, "POST", id="another method"),
        pytest.param("/default/default/undelivered/1", "POST", 405, "DELETE", id="another method for a position"),
        pytest.param("/default/default/undelivered/x", "DELETE", 404, "no position 'x'", id="no position"),
        pytest.param("/default/default/undelivered/1", "DELETE", 400, "'of' is missing", id="of nobody"),
        pytest.param("/default/default/undelivered/1?of=a%20b", "DELETE", 400, "of='a b' must be", id="bad uid"),
        pytest.param("/default/none/undelivered/1?of=u", "DELETE", 404, "no Broker 'none'", id="a position of none"),
    ],
)
def test_what_cannot_be_directed_is_refused_with_the_reason(target: str, method: str, status: int, words: str):
    async def main() -> None:
        answer = await posted(made(MemoryLog()), target, method)
        assert (answer.status, words in answer.body.decode()) == (status, True), answer.body

    run_virtual(main())


def test_an_event_that_is_sent_again_by_hand_settles_the_one_that_it_repeats():
    async def main() -> None:
        log = MemoryLog()
        answer = await posted(made(log), PATH + "?cause=41&of=uid-old&left=2")
        seq = int(answer.header(b"penstock-position") or 0)
        (note,) = log.attempts
        assert (note.seq, note.uid, note.number, note.outcome) == (41, "uid-old", 2, "redriven")
        assert f"position {seq}" in (note.reason or "")

    run_virtual(main())


def test_an_undelivered_event_is_dropped_by_hand():
    async def main() -> None:
        log = MemoryLog()
        answer = await posted(made(log), "/default/default/undelivered/41?of=uid-scan&left=0", "DELETE", b"")
        (note,) = log.attempts
        assert (answer.status, note.seq, note.uid, note.number) == (202, 41, "uid-scan", 0)
        assert note.outcome == "discarded"

    run_virtual(main())


def test_what_is_no_event_is_refused_and_a_full_log_is_said():
    class Full(MemoryLog):
        def append(self, entry: Entry, then) -> None:
            then(LogFull("full"))

    async def main() -> None:
        exchange = ask(made(MemoryLog()).handle, PATH, [(b"content-type", b"application/json")])
        assert (exchange.status, b"specversion" in exchange.body) == (400, True), exchange.body
        assert (await posted(made(Full()), PATH)).status == 507

    run_virtual(main())


def test_a_query_names_what_it_may():
    assert parse_wish(b"") == Wish()
    assert parse_wish(b"revision=a&cause=3") == Wish("a", 3)
    with pytest.raises(InvalidInput, match="cause=''"):
        parse_wish(b"cause=")


# ---- as it is stored


@pytest.mark.parametrize("only", [None, Direction("uid-1"), Direction("uid-1", "http://a.b.revision.localhost/")])
def test_whom_an_event_is_for_is_kept_before_its_head(only: Direction | None):
    head = b"ce-specversion: 1.0\r\nce-id: a\r\n"
    assert split_head(directed_head(head, only)) == (head, only)
    assert (directed_head(head, only) == head) == (only is None)


# ---- who gets it


def append(plane: Plane, event_id: str, only: Direction) -> None:
    def stored(result: Record | PenstockError) -> None:
        assert isinstance(result, Record), result

    event = from_http(binary(event_id), b"{}")
    entry = Entry("default/default", event.attributes, binary_head(event), b"{}", plane.clock.now(), 255, 1, only=only)
    plane.log.append(entry, stored)


NEVER = {"attributes": {"type": "never"}}


@plane_test
async def test_a_directed_event_reaches_its_trigger_whatever_the_filter_says_and_nobody_else():
    plane = Plane(trigger("t", filter=NEVER), trigger("all", "http://other.test/"))
    await asyncio.sleep(1)
    append(plane, "e1", Direction("uid-t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["e1"]
    assert plane.subscribers.ids("other.test") == []
    assert plane.outcomes() == [(1, 202, "delivered")]


@plane_test
async def test_a_directed_event_is_read_from_the_log_by_its_trigger_alone():
    waiting = (trigger("t", None, filter=NEVER), trigger("all", None))
    plane = Plane(*waiting)
    await asyncio.sleep(1)
    append(plane, "e1", Direction("uid-t"))
    await plane.send("e2")
    await asyncio.sleep(1)
    plane.apply(trigger("t", filter=NEVER), trigger("all", "http://other.test/"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["e1"]
    assert plane.subscribers.ids("other.test") == ["e2"]


@plane_test
async def test_a_directed_event_can_go_to_another_destination_with_the_triggers_own_retries_and_dead_letter_sink():
    plane = Plane(trigger("t", dead_letter_uri=f"http://{SINK}/", delivery={**QUICK, "retry": 1}))
    plane.script("r-1.default.revision.localhost", Answer(500))
    await asyncio.sleep(1)
    append(plane, "e1", Direction("uid-t", "http://r-1.default.revision.localhost/"))
    await asyncio.sleep(5)
    assert plane.subscribers.ids("r-1.default.revision.localhost") == ["e1", "e1"]
    assert plane.subscribers.ids(HERE) == []
    (letter,) = plane.subscribers.at(SINK)
    assert letter.event.attributes["knativeerrordest"] == "http://r-1.default.revision.localhost/"


@plane_test
async def test_the_reply_to_a_directed_event_goes_to_the_whole_broker():
    plane = Plane(trigger("t", filter=NEVER), trigger("all", "http://other.test/"))
    plane.script(HERE, Answer(200, binary("re-e1"), b"{}"))
    await asyncio.sleep(1)
    append(plane, "e1", Direction("uid-t"))
    await asyncio.sleep(1)
    assert plane.subscribers.ids("other.test") == ["re-e1"]


@plane_test
async def test_an_event_for_a_trigger_that_is_gone_reaches_nobody_and_holds_up_nothing():
    plane = Plane(trigger("t"))
    await asyncio.sleep(1)
    append(plane, "e1", Direction("uid-gone"))
    await plane.send("e2")
    await asyncio.sleep(1)
    assert plane.subscribers.ids(HERE) == ["e2"]
