"""Dead letters and replays through the management API: a log in a file, and the real ingress behind it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.ingress import Ingress
from broker.ledger import Attempt, OutcomeName
from broker.log.direction import Direction
from broker.log.port import Record
from broker.log.query import LogReader
from broker.log.sqlite import SqliteLog
from broker.messaging import IN_MEMORY_CHANNEL, SUBSCRIPTION
from broker.resending.app import create_router
from broker.resending.forward import Forward
from broker.resending.letters import Letters, Wanted
from broker.resending.replaying import REPLAY_ATTRIBUTE, window
from broker.resources import CLASS_ANNOTATION, DEFAULT_CLASS
from broker.table import TableBuilder
from core.clock import SystemClock
from core.errors import Unavailable
from core.net.names import Names
from core.net.pages import HEALTH, Pages
from core.net.types import Address, ConnectFailed, Headers, Response
from core.resources import Key, KindRef, ObjectMeta, Resource
from core.telemetry import Metrics
from penstock.apiserver.app import create_own_app
from tests.conformance.event_log import BROKER, OTHER, append, entry
from tests.support.broker import ask, broker, trigger
from tests.unit.test_broker_app import Held

ORDERS = trigger("orders", filter={"attributes": {"type": "test.made"}})
PICKY = trigger("picky", filter={"attributes": {"subject": "yes"}})
FAR = trigger("far", broker="other")
REVISION = Resource(
    ref=KindRef("serving.knative.dev", "v1", "Revision"), meta=ObjectMeta(name="orders-2", namespace="default"), body={}
)
CHANNEL = Resource(
    ref=IN_MEMORY_CHANNEL, meta=ObjectMeta(name="box", namespace="default", uid="uid-box"), body={"spec": {}}
)
SUBSCRIPTION_OF = Resource(
    ref=SUBSCRIPTION,
    meta=ObjectMeta(name="reader", namespace="default", uid="uid-reader"),
    body={
        "spec": {
            "channel": {"apiVersion": "messaging.knative.dev/v1", "kind": "InMemoryChannel", "name": "box"},
            "subscriber": {"uri": "http://reader.test/"},
        },
        "status": {"physicalSubscription": {"subscriberUri": "http://reader.test/"}},
    },
)

#: Deeper than Python recurses.
DEEP = msgspec.Raw(b'{"not":' * 2000 + b'{"exact":{"type":"a"}}' + b"}" * 2000)
#: One letter, named twice.
TWICE = ["default/orders/1", "default/orders/1"]


class Wire:
    """From the control side to the ingress' handler, without a socket."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress: Ingress | None = ingress

    async def request(
        self, address: Address, method: bytes, target: bytes, headers: Headers, body: bytes, **_: Any
    ) -> Response:
        if self.ingress is None:
            raise ConnectFailed("refused")
        exchange = ask(self.ingress.handle, target.decode(), headers, body, method=method.decode())
        async with asyncio.timeout(10):
            await exchange.answered.wait()
        return Response(exchange.status, exchange.headers, exchange.body)


class World:
    def __init__(
        self,
        log: SqliteLog,
        path: Path,
        default: Resource | None = None,
        *,
        log_class: str = DEFAULT_CLASS,
        also: Mapping[str, LogReader] | None = None,
    ) -> None:
        self.log = log
        resources = [default or broker(), broker("other"), CHANNEL, ORDERS, PICKY, FAR, SUBSCRIPTION_OF, REVISION]
        metrics = Metrics()
        pages = Pages(metrics=metrics, checks={HEALTH: str})
        ingress = Ingress(logs={log_class: log}, clock=SystemClock(), metrics=metrics, pages=pages.handle)
        ingress.swap(TableBuilder().build(resources[:3], resources[3:7]))
        self.wire = Wire(ingress)
        self.view = Held(*resources)
        self.reader = LogReader(path)
        forward = Forward(self.wire, Names(broker=("127.0.0.1", 1)))
        router = create_router(readers={**(also or {}), log_class: self.reader}, view=self.view, forward=forward)
        self.app = create_own_app([router])
        for each in (ORDERS, PICKY, FAR):
            log.subscribe(each.meta.uid, OTHER if each is FAR else BROKER, f"default/{each.meta.name}", 0)

    async def fail(
        self, record: Record, uid: str = "uid-orders", outcome: OutcomeName = "dropped", at: float = 1000.0
    ) -> None:
        self.log.note(Attempt(record.seq, uid, at, 1, 500, 0.1, "retrying", "answered 500"))
        self.log.note(Attempt(record.seq, uid, at + 1, 2, 500, 0.1, outcome, "Given up after 2 attempts."))
        await self.log.flush()

    async def call(self, method: str, path: str, query: str = "", body: Any = None) -> tuple[int, Any]:
        content = b"" if body is None else msgspec.json.encode(body)
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        path = f"/penstock/v1{path}"
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "http_version": "1.1"}
        scope |= {"headers": [(b"host", b"localhost")], "scheme": "http", "asgi": {"version": "3.0"}}
        scope |= {"query_string": query.encode()}
        await self.app(scope, receive, send)
        answer = b"".join(message.get("body", b"") for message in sent)
        await self.log.flush()
        return sent[0]["status"], msgspec.json.decode(answer)

    async def letters(self, query: str = "") -> list[str]:
        status, answer = await self.call("GET", "/dead-letters", query)
        assert status == 200, answer
        return [letter["id"] for letter in answer["letters"]]

    def stored(self, after: int) -> Sequence[Record]:
        return [found.record for found in self.reader.after(after, 100).events if found.record is not None]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    yield World(log, tmp_path / "log.db")
    await log.close()


# ---- dead letters: list and show


async def test_what_was_given_up_is_listed_for_each_trigger_with_the_reason(world: World):
    first, second, fine = await append(world.log, entry("a"), entry("b", subject="x"), entry("c"))
    await world.fail(first)
    await world.fail(second, "uid-picky", "dead")
    world.log.note(Attempt(fine.seq, "uid-orders", 1000.0, 1, 202, 0.1, "delivered"))
    await world.fail(second)
    status, answer = await world.call("GET", "/dead-letters")
    assert (status, answer["next"]) == (200, None)
    assert [letter["id"] for letter in answer["letters"]] == [
        "default/orders/1",
        "default/orders/2",
        "default/picky/2",
    ]
    letter = answer["letters"][0]
    assert (letter["event_id"], letter["type"], letter["outcome"], letter["status"]) == (
        "a",
        "test.made",
        "dropped",
        500,
    )
    assert (letter["attempts"], letter["reason"]) == (2, "Given up after 2 attempts.")


async def test_letters_are_chosen_by_trigger_reason_time_and_event(world: World):
    records = await append(world.log, entry("a"), entry("b"), entry("c"), entry("d", OTHER))
    await world.fail(records[0])
    await world.fail(records[1], "uid-picky", "corrupt", at=5000.0)
    await world.fail(records[2], outcome="dead-lettered")
    await world.fail(records[3], "uid-far", "dead")
    assert await world.letters() == ["default/orders/1", "default/picky/2", "default/far/4"]
    assert await world.letters("trigger=picky") == ["default/picky/2"]
    assert await world.letters("namespace=elsewhere") == []
    assert await world.letters("reason=dead&reason=corrupt") == ["default/picky/2", "default/far/4"]
    assert await world.letters("reason=dead-lettered") == ["default/orders/3"]
    assert await world.letters("since=4000") == ["default/picky/2"]
    assert await world.letters("event=d") == ["default/far/4"]
    status, answer = await world.call("GET", "/dead-letters", "reason=lost")
    assert (status, "reason must be of" in answer["message"]) == (400, True)


async def test_many_letters_come_in_parts_and_nothing_twice(world: World):
    for record in await append(world.log, *(entry(str(n)) for n in range(7))):
        await world.fail(record)
    told: list[str] = []
    after = ""
    while True:
        status, answer = await world.call("GET", "/dead-letters", f"limit=3{after}")
        assert status == 200
        told += [letter["event_id"] for letter in answer["letters"]]
        if answer["next"] is None:
            break
        after = f"&after={answer['next']}"
    assert told == [str(n) for n in range(7)]
    status, answer = await world.call("GET", "/dead-letters", "after=x")
    assert (status, "after='x' is no position" in answer["message"]) == (400, True)


async def test_a_letter_is_shown_with_its_event_and_each_attempt(world: World):
    (record,) = await append(world.log, entry("a", data=b'{"n": 1}', datacontenttype="application/json"))
    await world.fail(record)
    status, answer = await world.call("GET", "/dead-letters/default/orders/1")
    assert (status, answer["event"]["id"], answer["event"]["data"]) == (200, "a", {"n": 1})
    assert [(each["number"], each["outcome"]) for each in answer["attempts"]] == [(1, "retrying"), (2, "dropped")]
    status, answer = await world.call("GET", "/dead-letters/default/picky/1")
    assert (status, "no dead letter default/picky/1" in answer["message"]) == (404, True)


# ---- dead letters: redrive and drop


async def test_a_redriven_letter_is_an_event_for_its_trigger_alone_and_leaves_the_list(world: World):
    (record,) = await append(world.log, entry("a", subject="x"))
    await world.fail(record)
    status, answer = await world.call("POST", "/dead-letters/default/orders/1/redrive", body={"replay": "r-1"})
    assert (status, answer) == (200, {"position": 2, "event_id": "a"})
    (again,) = world.stored(1)
    assert (again.entry.only, again.entry.cause) == (Direction("uid-orders"), 1)
    assert again.entry.attributes == {**record.entry.attributes, REPLAY_ATTRIBUTE: "r-1"}
    assert await world.letters() == []
    status, answer = await world.call("POST", "/dead-letters/default/orders/1/redrive", body={"replay": "r-1"})
    assert (status, "redriven or dropped meanwhile" in answer["message"]) == (404, True)
    await world.fail(again, at=2e9)
    _, answer = await world.call("GET", "/dead-letters")
    assert [(letter["id"], letter["repeats"]) for letter in answer["letters"]] == [("default/orders/2", 1)]


async def test_a_letter_is_redriven_as_it_was_edited_and_to_a_revision(world: World):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    event = {"specversion": "1.0", "id": "a", "source": "/mended", "type": "test.made", "data": {"n": 2}}
    body = {"replay": "r-1", "event": event, "revision": "orders-2"}
    status, answer = await world.call("POST", "/dead-letters/default/orders/1/redrive", body=body)
    assert status == 200, answer
    (again,) = world.stored(1)
    assert (again.entry.attributes["source"], msgspec.json.decode(again.entry.data)) == ("/mended", {"n": 2})
    assert again.entry.only == Direction("uid-orders", "http://orders-2.default.revision.localhost/")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param({"replay": "A b"}, 400, "replay='A b' must be", id="replay"),
        pytest.param({}, 400, "replay", id="no replay"),
        pytest.param(msgspec.Raw(b'{"replay": "\xe9"}'), 400, "cannot be read", id="no UTF-8"),
        pytest.param({"replay": "r", "revision": "none"}, 404, "no Revision 'none'", id="revision"),
        pytest.param({"replay": "r", "event": {"id": "a"}}, 400, "specversion", id="no event"),
        pytest.param({"replay": "r", "to": "x"}, 400, "to", id="unknown"),
    ],
)
async def test_a_redrive_that_is_not_possible_changes_nothing(world: World, body: Any, status: int, words: str):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    told = await world.call("POST", "/dead-letters/default/orders/1/redrive", body=body)
    assert (told[0], words in told[1]["message"]) == (status, True), told
    assert await world.letters() == ["default/orders/1"]
    assert world.stored(1) == []


async def test_a_letter_of_a_trigger_that_is_gone_says_so_and_can_be_dropped(world: World):
    (record,) = await append(world.log, entry("a"))
    world.log.subscribe("uid-gone", BROKER, "default/gone", 0)
    await world.fail(record, "uid-gone")
    world.log.unsubscribe("uid-gone")
    await world.log.flush()
    assert await world.letters() == ["default/gone/1"]
    status, answer = await world.call("POST", "/dead-letters/default/gone/1/redrive", body={"replay": "r"})
    assert (status, "There is no Trigger 'gone'" in answer["message"]) == (404, True)
    assert (await world.call("DELETE", "/dead-letters/default/gone/1")) == (200, {"id": "default/gone/1"})
    assert await world.letters() == []


async def test_what_is_dropped_for_one_trigger_stays_for_the_other(world: World):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    await world.fail(record, "uid-picky")
    await world.call("DELETE", "/dead-letters/default/orders/1")
    assert await world.letters() == ["default/picky/1"]
    assert world.reader.undelivered(0, 10) == (1,)
    await world.call("DELETE", "/dead-letters/default/picky/1")
    assert world.reader.undelivered(0, 10) == ()


async def test_what_a_subscription_to_a_channel_did_not_get_is_a_letter_as_well(world: World):
    name = "default/subscriptions/reader"
    (record,) = await append(world.log, entry("a", "default/channels/box"))
    world.log.subscribe("uid-reader", "default/channels/box", name, 0)
    await world.fail(record, "uid-reader")
    assert await world.letters() == [f"{name}/1"]
    assert await world.letters("trigger=subscriptions/reader") == [f"{name}/1"]
    status, answer = await world.call("POST", f"/dead-letters/{name}/1/redrive", body={"replay": "r"})
    assert (status, answer) == (200, {"position": 2, "event_id": "a"})
    assert await selected(world, trigger="subscriptions/reader") == ["a"]
    await world.fail(world.stored(1)[0], "uid-reader", at=2e9)
    assert (await world.call("DELETE", f"/dead-letters/{name}/2"))[0] == 200
    assert await world.letters() == []


async def test_many_letters_are_settled_at_once_and_one_that_fails_keeps_the_others_from_nothing(world: World):
    records = await append(world.log, *(entry(str(n)) for n in range(20)))
    for record in records:
        await world.fail(record)
        await world.fail(record, "uid-picky")
    named = [f"default/orders/{record.seq}" for record in records]
    body = {"replay": "r-1", "letters": [*named, "default/orders/99"]}
    status, answer = await world.call("POST", "/dead-letters/redrive", body=body)
    assert (status, len(world.stored(20))) == (200, 20)
    assert [told["position"] for told in answer["letters"]] == [*range(21, 41), None]
    last = answer["letters"][-1]
    assert (last["gone"], last["again"], "no dead letter default/orders/99" in last["error"]) == (True, False, True)
    assert await world.letters() == [f"default/picky/{record.seq}" for record in records]
    world.wire.ingress, ingress = None, world.wire.ingress
    body = {"letters": [f"default/picky/{record.seq}" for record in records]}
    _, answer = await world.call("POST", "/dead-letters/drop", body=body)
    assert {told["again"] for told in answer["letters"]} == {True}
    world.wire.ingress = ingress
    _, answer = await world.call("POST", "/dead-letters/drop", body=body)
    assert {told["error"] for told in answer["letters"]} == {None}
    assert await world.letters() == []
    assert world.reader.undelivered(0, 100) == ()


async def test_letters_of_one_event_that_are_settled_at_once_let_it_go(world: World):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    await world.fail(record, "uid-picky")
    await world.call("POST", "/dead-letters/drop", body={"letters": ["default/orders/1", "default/picky/1"]})
    assert world.reader.undelivered(0, 10) == ()


async def test_a_letter_that_cannot_be_sent_again_stays_when_the_others_of_its_event_can(world: World):
    (record,) = await append(world.log, entry("a"))
    world.log.subscribe("uid-gone", BROKER, "default/gone", 0)
    for uid in ("uid-orders", "uid-gone"):
        await world.fail(record, uid)
    body = {"replay": "r", "letters": ["default/gone/1", "default/orders/1"]}
    _, answer = await world.call("POST", "/dead-letters/redrive", body=body)
    assert [told["position"] for told in answer["letters"]] == [None, 2]
    assert await world.letters() == ["default/gone/1"]


async def test_a_letter_that_is_named_twice_is_sent_once_and_the_others_of_its_event_stay(world: World):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    await world.fail(record, "uid-picky")
    _, answer = await world.call("POST", "/dead-letters/redrive", body={"replay": "r", "letters": TWICE})
    assert [told["position"] for told in answer["letters"]] == [2, 2]
    assert len(world.stored(1)) == 1
    assert await world.letters() == ["default/picky/1"]


async def test_a_letter_that_its_sink_took_is_none_of_those_that_are_left(world: World):
    (record,) = await append(world.log, entry("a"))
    world.log.subscribe("uid-third", BROKER, "default/third", 0)
    await world.fail(record, outcome="dead-lettered")
    await world.fail(record, "uid-picky")
    await world.fail(record, "uid-third")
    await world.call("POST", "/dead-letters/drop", body={"letters": ["default/orders/1", "default/picky/1"]})
    assert await world.letters() == ["default/third/1"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/dead-letters/redrive", {"replay": "r"}, id="redrive"),
        pytest.param("/dead-letters/drop", {}, id="drop"),
    ],
)
async def test_a_letter_in_another_log_than_its_brokers_settles_no_event_of_that_one(
    world: World, tmp_path: Path, path: str, body: dict[str, Any]
):
    await world.fail(*await append(world.log, entry("a")))
    (tmp_path / "other").mkdir()
    moved = broker().with_meta(annotations={CLASS_ANNOTATION: "Redis"})
    other = SqliteLog(tmp_path / "other" / "log.db")
    await other.open()
    there = World(other, tmp_path / "other" / "log.db", moved, log_class="Redis", also={DEFAULT_CLASS: world.reader})
    await append(other, entry("b"))
    _, answer = await there.call("POST", path, body={**body, "letters": ["default/orders/1"]})
    assert "in another log" in answer["letters"][0]["error"]
    assert there.reader.deliveries((1,)) == {}
    assert await world.letters() == ["default/orders/1"]
    await other.close()


async def test_while_the_broker_is_away_nothing_is_lost_and_that_is_said(world: World):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    world.wire.ingress = None
    status, answer = await world.call("POST", "/dead-letters/default/orders/1/redrive", body={"replay": "r"})
    assert (status, "does not answer" in answer["message"]) == (503, True)
    assert await world.letters() == ["default/orders/1"]


class Gone:
    """A reader whose log is away."""

    def undelivered(self, *_: object, **__: object) -> tuple[int, ...]:
        raise Unavailable("The event log cannot be read now: refused.")

    deliveries = undelivered


async def test_a_log_that_is_away_is_said_and_the_letters_of_the_others_are_listed(world: World):
    (record,) = await append(world.log, entry("a"))
    await world.fail(record)
    letters = Letters({"Redis": Gone(), DEFAULT_CLASS: world.reader})  # type: ignore[dict-item]  # all that is asked
    told = letters.list(Wanted(), 10)
    assert ([letter.id for letter in told.letters], [each.log for each in told.away]) == (
        ["default/orders/1"],
        ["Redis"],
    )
    assert letters.find("default/orders", 1).found.seq == 1
    with pytest.raises(Unavailable, match="cannot be read now"):
        letters.find("default/orders", 2)


# ---- replays


async def selected(world: World, **ask: Any) -> list[str]:
    body = {"namespace": "default", "trigger": "orders", **ask}
    status, answer = await world.call("POST", "/replays/selection", body=body)
    assert status == 200, answer
    return [found["id"] for found in answer["selection"]["candidates"]]


async def test_events_are_selected_by_time_by_the_triggers_filter_or_another_and_by_id(world: World):
    given = [entry(name, at=1000.0 + n, subject="yes" if name in "bd" else "no") for n, name in enumerate("abcde")]
    given.append(entry("other", OTHER, at=1002.0))
    records = await append(world.log, *given)
    await append(world.log, msgspec.structs.replace(given[0], only=Direction("uid-orders"), cause=records[0].seq))
    assert await selected(world) == ["a", "b", "c", "d", "e"]
    assert await selected(world, since=1001.0, until=1003.0) == ["b", "c"]
    assert await selected(world, since=1002.5) == ["d", "e"]
    assert await selected(world, until=999.0) == []
    assert await selected(world, trigger="picky") == ["b", "d"]
    assert await selected(world, filters=[{"exact": {"subject": "no"}}]) == ["a", "c", "e"]
    assert await selected(world, trigger="picky", ids=["a", "e", "none"]) == ["a", "e"]
    assert await selected(world, trigger="far") == ["other"]


async def test_a_selection_comes_in_parts_and_ends_where_it_was_begun(world: World):
    await append(world.log, *(entry(str(n)) for n in range(5)))
    body: dict[str, Any] = {"namespace": "default", "trigger": "orders", "limit": 2}
    told: list[str] = []
    while True:
        _, answer = await world.call("POST", "/replays/selection", body=body)
        selection = answer["selection"]
        told += [found["id"] for found in selection["candidates"]]
        await append(world.log, entry("late"))
        if selection["next"] is None:
            break
        body |= {"after": selection["next"], "through": selection["through"]}
    assert told == [str(n) for n in range(5)]


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        pytest.param({"trigger": "none"}, 404, "no Trigger 'none'", id="trigger"),
        pytest.param({"filters": [{"exact": {}}]}, 400, "exact", id="filter"),
        pytest.param({"filters": [{"sort": {}}]}, 400, "sort", id="unknown dialect"),
        pytest.param({"after": 2**63, "through": 2**64}, 400, "$.after", id="positions that no log has"),
        pytest.param({"after": -(10**30), "through": 5}, 400, "$.after", id="positions before the first"),
        pytest.param({"limit": 0}, 400, "$.limit", id="none"),
        pytest.param({"ids": ["x"] * 1001}, 400, "$.ids", id="too many ids"),
        pytest.param({"filters": [DEEP]}, 400, "nested too deeply", id="too deep a filter"),
        pytest.param({"what": DEEP}, 400, "nested too deeply", id="too deep"),
    ],
)
async def test_a_selection_that_cannot_be_made_says_why(world: World, ask: Any, status: int, words: str):
    told = await world.call("POST", "/replays/selection", body={"namespace": "default", "trigger": "orders", **ask})
    assert (told[0], words in told[1]["message"]) == (status, True), told


async def test_a_replay_sends_events_again_and_leaves_out_what_it_sent_before_when_it_is_resumed(world: World):
    records = await append(world.log, entry("a"), entry("b"), entry("c"))
    body = {"replay": "r-1", "namespace": "default", "trigger": "orders", "positions": [1, 2, 99]}
    status, answer = await world.call("POST", "/replays", body=body)
    assert (status, answer) == (200, {"sent": 2, "before": 0, "missing": 1, "positions": [4, 5]})
    again = world.stored(3)
    assert [record.entry.attributes[REPLAY_ATTRIBUTE] for record in again] == ["r-1", "r-1"]
    assert [record.entry.cause for record in again] == [records[0].seq, records[1].seq]
    body |= {"positions": [1, 2, 3], "resumed": True}
    assert (await world.call("POST", "/replays", body=body))[1] == {
        "sent": 1,
        "before": 2,
        "missing": 0,
        "positions": [4, 5, 6],
    }
    assert (await world.call("POST", "/replays", body={**body, "replay": "r-2"}))[1]["sent"] == 3


@pytest.mark.parametrize("position", [-1, 2**63, 10**30])
async def test_a_position_that_no_log_has_is_refused(world: World, position: int):
    ask = {"namespace": "default", "trigger": "orders", "positions": [position]}
    for path, more in (("/replays", {"replay": "r"}), ("/replays/states", {})):
        status, answer = await world.call("POST", path, body={**ask, **more})
        assert (status, "$.positions[0]" in answer["message"]) == (400, True), answer


async def test_how_events_that_were_sent_again_stand_is_told(world: World):
    records = await append(world.log, *(entry(name) for name in "abcd"))
    world.log.note(Attempt(records[0].seq, "uid-orders", 1000.0, 1, 202, 0.1, "delivered"))
    world.log.note(Attempt(records[1].seq, "uid-orders", 1000.0, 1, 500, 0.1, "retrying", "answered 500"))
    world.log.note(Attempt(records[2].seq, "uid-picky", 1000.0, 1, 202, 0.1, "delivered"))
    await world.fail(records[3])
    body = {"namespace": "default", "trigger": "orders", "positions": [1, 2, 3, 4]}
    _, answer = await world.call("POST", "/replays/states", body=body)
    assert answer["states"] == {"delivered": 1, "retrying": 1, "pending": 1, "dropped": 1}


async def test_a_replay_to_what_does_not_exist_is_refused(world: World):
    await append(world.log, entry("a"))
    body = {"replay": "r-1", "namespace": "default", "trigger": "orders", "positions": [1]}
    assert (await world.call("POST", "/replays", body={**body, "revision": "none"}))[0] == 404
    assert (await world.call("POST", "/replays", body={**body, "positions": list(range(500))}))[0] == 400
    assert world.stored(1) == []


async def test_a_window_of_time_is_found_in_a_log_with_gaps(world: World):
    given = [entry(str(n), OTHER if n % 3 else BROKER, at=1000.0 + n) for n in range(30)]
    await append(world.log, *given)
    for since in range(995, 1035):
        found = window(world.reader, "default", "default", float(since), None)
        events = world.reader.after(found.after, 100, broker="default").events
        assert [event.at for event in events] == [1000.0 + n for n in range(0, 30, 3) if 1000 + n >= since]
    assert world.view.get(Key(REVISION.ref, "default", "orders-2")) is not None
