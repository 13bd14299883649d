"""Listing and explaining events, from the file of a log that is being written."""

import sqlite3
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from fastapi import FastAPI

from broker.app import create_router
from broker.flow.settings import PAUSED
from broker.ledger import Attempt
from broker.log.direction import Direction
from broker.log.query import LogReader
from broker.log.sqlite import SqliteLog
from broker.resources import DEFAULT_CLASS
from core.resources import Key, KindRef, Resource
from penstock.cli.story import event_line, explanation_lines
from tests.conformance.event_log import BROKER, OTHER, append, entry
from tests.support.broker import broker, trigger


class Held:
    """A view of just these resources."""

    def __init__(self, *resources: Resource) -> None:
        self._held = resources

    def get(self, key: Key) -> Resource | None:
        return next((resource for resource in self._held if resource.key == key), None)

    def list(self, kind: KindRef, namespace: str | None = None) -> Sequence[Resource]:
        return [resource for resource in self._held if resource.ref == kind]

    def owned(self, owner: Resource, kind: KindRef) -> Sequence[Resource]:
        return []


TRIGGERS = (
    trigger("scan", filter={"attributes": {"type": "test.made"}}),
    trigger("picky", filters=[{"exact": {"type": "test.made"}}, {"suffix": {"subject": ".png"}}]),
)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    made = SqliteLog(tmp_path / "log.db")
    await made.open()
    yield made
    await made.close()


async def get(
    tmp_path: Path, path: str, query: str = "", *resources: Resource, posted: bytes | None = None
) -> tuple[int, Any]:
    """Status and JSON of one GET, or of a POST, to an application that holds nothing but the router."""
    app = FastAPI()
    view = Held(broker(), *(resources or TRIGGERS))
    app.include_router(create_router(readers={DEFAULT_CLASS: LogReader(tmp_path / "log.db")}, view=view))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": posted or b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    method = "GET" if posted is None else "POST"
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}}
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], msgspec.json.decode(body)


async def listed(tmp_path: Path, query: str = "") -> tuple[list[str], str]:
    status, answer = await get(tmp_path, "/penstock/v1/events", query)
    assert status == 200, answer
    return [event["id"] for event in answer["events"]], answer["next"]


async def test_before_there_is_a_log_there_are_no_events(tmp_path: Path):
    assert await listed(tmp_path) == ([], "0")
    assert await listed(tmp_path, "after=7") == ([], "7")
    status, answer = await get(tmp_path, "/penstock/v1/events/x/explain")
    assert (status, answer) == (404, {"message": "No stored event has the id 'x'."})


async def test_a_log_that_is_no_database_is_told_as_unavailable(tmp_path: Path):
    (tmp_path / "log.db").write_bytes(b"not a database at all" * 100)
    status, answer = await get(tmp_path, "/penstock/v1/events")
    assert status == 503
    assert "is damaged: file is not a database" in answer["message"]
    assert "restore the file from a backup" in answer["message"]


async def test_events_are_listed_with_their_attributes_and_how_they_stand(tmp_path: Path, log: SqliteLog):
    (record,) = await append(log, entry("e1", subject="cat.png", data=b"12345"))
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    log.note(Attempt(record.seq, "uid-scan", 1001.0, 1, 503, 0.25, "retrying", "answered 503"))
    log.note(Attempt(record.seq, "uid-scan", 1002.0, 2, 202, 0.05, "delivered"))
    await log.flush()
    _, answer = await get(tmp_path, "/penstock/v1/events")
    (event,) = answer["events"]
    assert event == {
        "seq": record.seq,
        "broker": "default/default",
        "time": "1970-01-01T00:16:40.000000Z",
        "size": 5,
        "id": "e1",
        "type": "test.made",
        "source": "/test",
        "subject": "cat.png",
        "attributes": {"specversion": "1.0", "id": "e1", "source": "/test", "type": "test.made", "subject": "cat.png"},
        "cause": None,
        "only": None,
        "repeats": None,
        "corrupt": False,
        "matches": True,
        "next": str(record.seq),
        "deliveries": [
            {"trigger": "default/scan", "state": "delivered", "status": 202, "attempts": 2, "reason": None},
            {"trigger": "default/picky", "state": "pending", "status": 0, "attempts": 0, "reason": None},
        ],
    }


async def test_what_sent_nothing_to_anybody_is_no_attempt(tmp_path: Path, log: SqliteLog):
    dropped, repeat = await append(log, entry("e1"), entry("e1"))
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    log.note(Attempt(dropped.seq, "uid-scan", 1001.0, 1, 500, 0.1, "dropped", "gave up"))
    log.note(Attempt(dropped.seq, "uid-scan", 1002.0, 0, 0, 0.0, "discarded", "Dropped by hand."))
    log.note(Attempt(repeat.seq, "uid-scan", 1001.0, 0, 0, 0.0, "repeat", "It came before."))
    await log.flush()
    _, answer = await get(tmp_path, "/penstock/v1/events")
    told = [(each["state"], each["attempts"]) for event in answer["events"] for each in event["deliveries"][:1]]
    assert told == [("discarded", 1), ("repeat", 0)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("", "abcde", id="newest"),
        pytest.param("limit=2", "de", id="the newest two"),
        pytest.param("after=0&limit=2", "ab", id="the first two"),
        pytest.param("after=2", "cde", id="after a position"),
        pytest.param("after=99", "", id="after the end"),
        pytest.param("broker=other", "b", id="by Broker"),
        pytest.param("namespace=default&broker=default", "acde", id="by namespace and Broker"),
        pytest.param("namespace=elsewhere", "", id="by another namespace"),
        pytest.param("type=test.other", "d", id="by type"),
        pytest.param("after=1&limit=1&type=test.made", "b", id="all together"),
    ],
)
async def test_events_are_listed_by_place_broker_and_type(tmp_path: Path, log: SqliteLog, query: str, expected: str):
    await append(log, entry("a"), entry("b", OTHER), entry("c"), entry("d", type="test.other"), entry("e"))
    ids, after = await listed(tmp_path, query)
    assert "".join(ids) == expected
    if ids:
        assert int(after) >= "abcde".index(ids[-1]) + 1


async def test_a_tail_sees_each_event_once_while_it_is_written(tmp_path: Path, log: SqliteLog):
    await append(log, *(entry(f"old{n}") for n in range(5)))
    _, after = await listed(tmp_path)
    seen: list[str] = []
    for n in range(5):
        await append(log, entry(f"new{n}"))
        ids, after = await listed(tmp_path, f"after={after}")
        seen += ids
    assert seen == [f"new{n}" for n in range(5)]


async def test_what_is_no_cursor_is_refused_by_name(tmp_path: Path):
    status, answer = await get(tmp_path, "/penstock/v1/events", "after=yesterday")
    assert status == 400
    assert "after='yesterday' is no position" in answer["message"]


async def test_a_limit_out_of_range_is_refused(tmp_path: Path):
    status, _ = await get(tmp_path, "/penstock/v1/events", "limit=100000")
    assert status == 422


async def test_filters_that_are_nested_too_deeply_are_refused(tmp_path: Path):
    deep = '[{"not":' + '{"not":' * 900 + '{"exact":{"type":"a"}}' + "}" * 901 + "]"
    status, answer = await get(tmp_path, "/penstock/v1/events", urllib.parse.urlencode({"filters": deep}))
    assert (status, answer["message"]) == (400, "The request cannot be read: it is nested too deeply.")


async def test_a_question_that_is_no_utf_8_is_refused(tmp_path: Path):
    status, answer = await get(tmp_path, "/penstock/v1/plan", posted=b'{"triggers": [{"namespace": "\xe9"}]}')
    assert (status, "The request cannot be read" in answer["message"]) == (400, True), answer


async def test_an_explanation_tells_for_each_trigger_what_happened_or_why_nothing_did(tmp_path: Path, log: SqliteLog):
    (record,) = await append(log, entry("e/1 x", subject="cat.jpg"))
    log.subscribe("uid-scan", BROKER, "default/scan", 0).take(record.seq)
    log.subscribe("uid-gone", BROKER, "default/gone", 0)
    log.note(Attempt(record.seq, "uid-gone", 1001.0, 1, 0, 0.25, "dropped", "refused"))
    await log.flush()
    log.unsubscribe("uid-gone")
    await log.flush()
    status, answer = await get(tmp_path, "/penstock/v1/events/e/1 x/explain")
    assert status == 200
    (told,) = answer["events"]
    assert told["event"]["id"] == "e/1 x"
    gone, picky, scan = told["triggers"]
    assert (gone["trigger"], gone["matched"], gone["state"]) == ("default/gone", None, "dropped")
    assert gone["attempts"][0]["reason"] == "refused"
    assert gone["attempts"][0]["latency_ms"] == 250.0
    assert (picky["matched"], picky["state"]) == (False, "not wanted")
    clause = {"matched": False, "clause": "filters[1].suffix", "attribute": "subject", "wanted": "ends with '.png'"}
    assert picky["failed"] == {**clause, "value": "cat.jpg"}
    assert (scan["matched"], scan["state"], scan["attempts"]) == (True, "pending", [])


async def test_an_event_older_than_a_trigger_was_not_offered_to_it(tmp_path: Path, log: SqliteLog):
    (record,) = await append(log, entry("e1"))
    log.subscribe("uid-scan", BROKER, "default/scan", record.seq)
    await log.flush()
    _, answer = await get(tmp_path, "/penstock/v1/events/e1/explain")
    states = {told["trigger"]: told["state"] for told in answer["events"][0]["triggers"]}
    assert states == {"default/scan": "not offered", "default/picky": "not wanted"}


async def test_an_event_waits_only_for_triggers_that_want_it_and_have_it_before_them(tmp_path: Path, log: SqliteLog):
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    await append(log, entry("e1", subject="cat.txt"))
    log.subscribe("uid-picky", BROKER, "default/picky", 1)
    await append(log, entry("e2", subject="cat.png"), entry("e3", type="test.other"))
    await log.flush()
    _, answer = await get(tmp_path, "/penstock/v1/events")
    waiting = {
        event["id"]: [(state["trigger"], state["state"]) for state in event["deliveries"]] for event in answer["events"]
    }
    assert waiting == {
        "e1": [("default/scan", "pending")],
        "e2": [("default/scan", "pending"), ("default/picky", "pending")],
        "e3": [],
    }


async def test_an_event_of_a_paused_trigger_says_how_it_goes_on(tmp_path: Path, log: SqliteLog):
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    await append(log, entry("e1"))
    paused = trigger("scan", None, annotations={PAUSED: "true"})
    _, answer = await get(tmp_path, "/penstock/v1/events/e1/explain", "", paused)
    (scan,) = answer["events"][0]["triggers"]
    assert scan["state"] == "pending"
    assert scan["waits_for"] == "it is paused; `penstock trigger resume scan -n default` lets it go on"


async def test_an_event_that_is_delayed_says_until_when(tmp_path: Path, log: SqliteLog):
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    await append(log, entry("e1", at=1000.0))
    delayed = trigger("scan", annotations={"delivery.penstock.dev/delay": "1h"})
    _, answer = await get(tmp_path, "/penstock/v1/events/e1/explain", "", delayed)
    (scan,) = answer["events"][0]["triggers"]
    assert scan["waits_for"] == "it is delivered no sooner than 1970-01-01T01:16:40.000000Z, 3600 s after it arrived"


async def test_an_event_that_waits_for_a_subscriber_says_what_is_missing(tmp_path: Path, log: SqliteLog):
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    await append(log, entry("e1"))
    await log.flush()
    unresolved = trigger("scan", None)
    told = {"type": "SubscriberResolved", "status": "False", "message": 'Service "default/scan" does not exist.'}
    explained = msgspec.structs.replace(unresolved, body={**unresolved.body, "status": {"conditions": [told]}})
    for held, expected in ((unresolved, "Its subscriber has no address yet."), (explained, told["message"])):
        _, answer = await get(tmp_path, "/penstock/v1/events/e1/explain", "", held)
        (scan,) = answer["events"][0]["triggers"]
        assert (scan["state"], scan["waits_for"]) == ("pending", expected)


async def test_replies_are_told_as_a_tree_under_the_trigger_that_answered(tmp_path: Path, log: SqliteLog):
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    (first,) = await append(log, entry("e1"))
    reply = msgspec.structs.replace(entry("r1", type="test.reply"), cause=first.seq, via="uid-scan")
    (second,) = await append(log, reply)
    again = msgspec.structs.replace(entry("r2", type="test.reply"), cause=second.seq, via="uid-scan")
    await append(log, again)
    _, answer = await get(tmp_path, "/penstock/v1/events/e1/explain")
    scan = next(told for told in answer["events"][0]["triggers"] if told["trigger"] == "default/scan")
    (r1,) = scan["replies"]
    assert (r1["event"]["id"], r1["event"]["cause"]) == ("r1", first.seq)
    (r2,) = next(told for told in r1["triggers"] if told["trigger"] == "default/scan")["replies"]
    assert r2["event"]["id"] == "r2"


async def test_an_endless_chain_of_replies_is_cut(tmp_path: Path, log: SqliteLog):
    log.subscribe("uid-scan", BROKER, "default/scan", 0)
    (last,) = await append(log, entry("e1"))
    for n in range(30):
        (last,) = await append(log, msgspec.structs.replace(entry(f"r{n}"), cause=last.seq, via="uid-scan"))
    _, answer = await get(tmp_path, "/penstock/v1/events/e1/explain")
    depth, told = 0, answer["events"][0]
    while not told["cut"]:
        told = next(each for each in told["triggers"] if each["replies"])["replies"][0]
        depth += 1
    assert depth == 10


async def test_an_id_is_found_whether_indexed_yet_or_not(tmp_path: Path, log: SqliteLog):
    for start in range(0, 3000, 500):
        await append(log, *(entry(str(n)) for n in range(start, start + 500)))
    for event_id in ("3", "2999"):
        status, answer = await get(tmp_path, f"/penstock/v1/events/{event_id}/explain")
        assert status == 200
        assert [told["event"]["id"] for told in answer["events"]] == [event_id]


async def test_a_corrupt_event_is_listed_as_such(tmp_path: Path, log: SqliteLog):
    await append(log, entry("e1"))
    with sqlite3.connect(tmp_path / "log.db") as connection:
        connection.execute("UPDATE events SET data = x'00'")
    connection.close()
    _, answer = await get(tmp_path, "/penstock/v1/events")
    assert [(event["corrupt"], event["id"]) for event in answer["events"]] == [(True, "")]


async def test_events_stay_readable_after_the_broker_process_has_gone(tmp_path: Path):
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    await append(log, entry("e1"))
    await log.close()
    assert (await listed(tmp_path))[0] == ["e1"]


async def test_an_event_that_was_sent_again_is_told_under_what_it_repeats_and_of_its_trigger_alone(
    log: SqliteLog, tmp_path: Path
):
    (first,) = await append(log, entry("a", subject="x.png"))
    for name in ("scan", "picky"):
        log.subscribe(f"uid-{name}", BROKER, f"default/{name}", 0)
    log.note(Attempt(first.seq, "uid-scan", 1000.0, 1, 500, 0.1, "dropped", "gave up"))
    log.note(Attempt(first.seq, "uid-scan", 990.0, 0, 0, 0.0, "redriven", "Sent again by hand."))
    only = Direction("uid-picky")
    again = msgspec.structs.replace(entry("a", penstockreplay="r-1"), only=only, cause=first.seq)
    (second,) = await append(log, again)
    await log.flush()
    status, answer = await get(tmp_path, "/penstock/v1/events/a/explain")
    assert status == 200
    (told,) = answer["events"]
    picky, scan = told["triggers"]
    assert (scan["trigger"], scan["state"], scan["repeats"]) == ("default/scan", "redriven", [])
    (repeat,) = picky["repeats"]
    assert (repeat["event"]["only"], repeat["event"]["repeats"]) == ("default/picky", first.seq)
    (alone,) = repeat["triggers"]
    assert (alone["trigger"], alone["state"], alone["matched"]) == ("default/picky", "pending", True)
    lines = [click.unstyle(line) for line in explanation_lines(answer["events"])]
    assert any("⟲ sent again by r-1 for position 1, to picky alone" in line for line in lines), lines
    assert any("by hand" in line and "redriven  Sent again by hand." in line for line in lines), lines
    _, answer = await get(tmp_path, "/penstock/v1/events")
    newest = answer["events"][-1]
    assert (newest["seq"], [each["trigger"] for each in newest["deliveries"]]) == (second.seq, ["default/picky"])
    assert "⟲ test.made" in click.unstyle(event_line(newest))
