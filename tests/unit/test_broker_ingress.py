"""The ingress' answers, on virtual time and an in-memory log."""

import asyncio

import pytest

from broker.ingress import Ingress
from broker.log.memory import MemoryLog
from broker.log.port import LogFull, Page, Record
from broker.resources import DEFAULT_CLASS
from broker.table import TableBuilder
from core.errors import Overloaded, PenstockError, Unavailable
from core.limits import MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES, MAX_BATCH_BYTES, MAX_EVENT_BYTES
from core.net.pages import HEALTH, Pages
from core.net.types import Headers
from core.telemetry import Metrics
from tests.support.broker import Spoken, ask, binary, broker
from tests.support.virtual_time import VirtualClock, run_virtual

STRUCTURED = [(b"content-type", b"application/cloudevents+json; charset=utf-8")]
BATCH = [(b"content-type", b"application/cloudevents-batch+json")]
EVENT = b'{"specversion":"1.0","id":"s1","source":"/test","type":"test.made","data":{"n": 1}}'


def make(log: MemoryLog | None = None, *, synced: bool = True) -> tuple[Ingress, MemoryLog, Metrics]:
    metrics, log = Metrics(), log or MemoryLog()
    pages = Pages(metrics=metrics, checks={HEALTH: str})
    ingress = Ingress(logs={DEFAULT_CLASS: log}, clock=VirtualClock(), metrics=metrics, pages=pages.handle)
    if synced:
        ingress.swap(TableBuilder().build([broker(), broker("other", namespace="ns2")], []))
    return ingress, log, metrics


async def answered(exchange: Spoken) -> Spoken:
    async with asyncio.timeout(10):
        await exchange.answered.wait()
    return exchange


async def stored(log: MemoryLog, name: str = "default/default") -> list[Record]:
    found: asyncio.Future[Page | PenstockError] = asyncio.get_running_loop().create_future()
    log.read(name, 0, 100, found.set_result)
    page = await found
    assert isinstance(page, Page)
    return list(page.records)


@pytest.mark.parametrize(
    ("headers", "body", "event_id", "data"),
    [
        pytest.param(binary("b1", subject="a%20b"), b'{"n": 1}', "b1", b'{"n": 1}', id="binary"),
        pytest.param(binary("b2"), b"", "b2", b"", id="binary without data"),
        pytest.param(STRUCTURED, EVENT, "s1", b'{"n": 1}', id="structured"),
    ],
)
def test_an_event_is_answered_202_only_once_it_is_stored_and_is_kept_as_sent(headers, body, event_id, data):
    async def main() -> None:
        ingress, log, metrics = make()
        exchange = ask(ingress.handle, headers=headers, body=body)
        assert exchange.status == 0, "answered before it was durable"
        await answered(exchange)
        assert (exchange.status, exchange.body) == (202, b"")
        (record,) = await stored(log)
        assert (record.entry.attributes["id"], record.entry.data, record.entry.ttl) == (event_id, data, 255)
        assert record.entry.at == VirtualClock().now()
        assert not {"knativearrivaltime", "knativebrokerttl"} & set(record.entry.attributes)
        assert 'penstock_broker_events_accepted_total{broker="default/default"} 1' in metrics.expose()

    run_virtual(main())


@pytest.mark.parametrize("target", ["/ns2/other", "/ns2/other/", "/ns2/other?x=1"])
def test_the_path_names_the_broker(target: str):
    async def main() -> None:
        ingress, log, _ = make()
        assert (await answered(ask(ingress.handle, target))).status == 202
        assert len(await stored(log, "ns2/other")) == 1
        assert await stored(log) == []

    run_virtual(main())


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status", "says"),
    [
        pytest.param("POST", "/default/default", [], b"{}", 400, b"ce-specversion", id="no event"),
        pytest.param("POST", "/default/default", binary("")[:-3], b"{}", 400, b"id: is required", id="no id"),
        pytest.param(
            "POST", "/default/default", binary("x", time="soon"), b"", 400, b"time: must be an RFC 3339", id="time"
        ),
        pytest.param("POST", "/default/default", STRUCTURED, b"{", 400, b"not a JSON object", id="broken JSON"),
        pytest.param("POST", "/default/default", STRUCTURED, b"[]", 400, b"not a JSON object", id="a list"),
        pytest.param(
            "POST",
            "/default/default",
            BATCH,
            b"[" + EVENT + b', {"id": ""}]',
            400,
            b"Nothing of the batch is stored. Its event at index 1: The event is invalid: id: is required",
            id="batch with what is no event",
        ),
        pytest.param(
            "POST",
            "/default/default",
            BATCH,
            b"[" + EVENT + b"," + EVENT[:-1] + b', "knativebrokerttl": "1"}]',
            400,
            b"at index 1: The event has passed too many Brokers",
            id="batch with a hop limit",
        ),
        pytest.param(
            "POST", "/default/default", BATCH, b"[" + EVENT, 400, b"not a JSON array", id="batch that is cut off"
        ),
        pytest.param(
            "POST", "/default/default", BATCH, b"[%b]" % b",".join([EVENT] * 1001), 413, b"1001 events", id="many"
        ),
        pytest.param(
            "POST", "/default/default", BATCH, bytes(MAX_BATCH_BYTES + 1), 413, b"4194304", id="batch too large"
        ),
        pytest.param(
            "POST",
            "/default/default",
            [(b"content-type", b"application/cloudevents-batch+avro")],
            b"x",
            415,
            b"avro",
            id="batch of another format",
        ),
        pytest.param(
            "POST",
            "/default/default",
            [*binary("x"), (b"content-encoding", b"gzip")],
            b"x",
            415,
            b"Content-Encoding gzip",
            id="coded",
        ),
        pytest.param(
            "POST",
            "/default/default",
            binary("x", large="x" * MAX_ATTRIBUTES_BYTES),
            b"",
            413,
            b"attributes have 61",
            id="large attributes",
        ),
        pytest.param(
            "POST",
            "/default/default",
            STRUCTURED,
            EVENT[:-1] + b"".join(b',"x%d":1' % n for n in range(MAX_ATTRIBUTES)) + b"}",
            413,
            b"185 attributes",
            id="many attributes",
        ),
        pytest.param(
            "POST",
            "/default/default",
            [(b"content-type", b"application/cloudevents+avro")],
            b"x",
            415,
            b"avro",
            id="avro",
        ),
        pytest.param(
            "POST", "/default/default", binary("x", knativebrokerttl="1"), b"", 400, b"too many Brokers", id="hop limit"
        ),
        pytest.param("POST", "/default/none", binary(), b"{}", 404, b"no Broker at /default/none", id="unknown Broker"),
        pytest.param("POST", "/", binary(), b"{}", 404, b"no Broker at /", id="no path"),
        pytest.param("GET", "/default/default", [], b"", 405, b"POST", id="method"),
        pytest.param("PUT", "/default/default", binary(), b"{}", 405, b"POST", id="PUT"),
        pytest.param("POST", "/metrics", [], b"", 405, b"GET", id="POST to a page"),
        pytest.param("POST", "/default/default", binary(), bytes(MAX_EVENT_BYTES + 1), 413, b"1048576", id="too large"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_reason(
    method: str, target: str, headers: Headers, body: bytes, status: int, says: bytes
):
    async def main() -> None:
        ingress, log, metrics = make()
        exchange = ask(ingress.handle, target, headers, body, method=method)
        assert exchange.status == status
        if target != "/metrics":
            assert f'penstock_broker_requests_refused_total{{status="{status}"}} 1' in metrics.expose()
        assert says in exchange.body
        assert exchange.header(b"content-type") == b"text/plain; charset=utf-8"
        if status == 405:
            assert exchange.header(b"allow") is not None
        assert await stored(log) == []

    run_virtual(main())


@pytest.mark.parametrize(("sent", "kept"), [("200", 199), ("255", 254), ("9999", 254), ("many", 255)])
def test_a_hop_limit_goes_down_and_is_kept_beside_the_event(sent: str, kept: int):
    async def main() -> None:
        ingress, log, _ = make()
        await answered(ask(ingress.handle, headers=binary("x", knativebrokerttl=sent)))
        (record,) = await stored(log)
        assert record.entry.ttl == kept
        assert "knativebrokerttl" not in record.entry.attributes
        assert b"knativebrokerttl" not in record.entry.head

    run_virtual(main())


def event(event_id: str) -> bytes:
    return EVENT.replace(b'"s1"', f'"{event_id}"'.encode())


def test_a_batch_is_answered_202_only_once_all_its_events_are_stored():
    async def main() -> None:
        ingress, log, metrics = make()
        body = b"[" + b",".join(event(f"s{n}") for n in range(1000)) + b"]"
        exchange = ask(ingress.handle, headers=BATCH, body=body)
        assert exchange.status == 0, "answered before it was durable"
        await answered(exchange)
        assert (exchange.status, exchange.body) == (202, b"")
        records = await stored(log)
        assert [record.entry.attributes["id"] for record in records] == [f"s{n}" for n in range(100)]
        assert {record.entry.data for record in records} == {b'{"n": 1}'}
        assert 'penstock_broker_events_accepted_total{broker="default/default"} 1000' in metrics.expose()

    run_virtual(main())


def test_a_batch_may_be_larger_than_an_event_and_may_be_empty():
    async def main() -> None:
        ingress, log, _ = make()
        large = EVENT.replace(b"1}}", b"1" * (MAX_EVENT_BYTES - 1000) + b"}}")
        assert (await answered(ask(ingress.handle, headers=BATCH, body=b"[%b,%b]" % (large, large)))).status == 202
        assert (await answered(ask(ingress.handle, headers=BATCH, body=b"[]"))).status == 202
        assert len(await stored(log)) == 2

    run_virtual(main())


@pytest.mark.parametrize(
    ("errors", "status", "says"),
    [
        pytest.param(
            {1: Overloaded("Too much waits.", 2.5)}, 503, b"Too much waits. Of the batch's 3 events 2 are", id="one"
        ),
        pytest.param(
            {0: Unavailable("Away."), 2: LogFull("No room.")}, 507, b"No room. Of the batch's 3 events 1", id="two"
        ),
        pytest.param(dict.fromkeys(range(3), Unavailable("Away.")), 503, b"3 events 0 are stored", id="all"),
    ],
)
def test_a_batch_of_which_a_part_could_not_be_stored_is_to_be_sent_again(
    errors: dict[int, PenstockError], status: int, says: bytes
):
    class Refusing(MemoryLog):
        offered = 0

        def append(self, entry, then):
            number, self.offered = self.offered, self.offered + 1
            if number in errors:
                then(errors[number])
            else:
                super().append(entry, then)

    async def main() -> None:
        ingress, log, _ = make(Refusing())
        body = b"[" + b",".join(event(f"s{n}") for n in range(3)) + b"]"
        exchange = await answered(ask(ingress.handle, headers=BATCH, body=body))
        assert exchange.status == status
        assert says in exchange.body
        assert exchange.body.endswith(b"send the whole batch again.\n")
        assert exchange.header(b"retry-after") is not None
        assert len(await stored(log)) == 3 - len(errors)

    run_virtual(main())


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param([], id="alone"),
        pytest.param([(b"webhook-request-origin", b"sender.example")], id="origin"),
        pytest.param(
            [
                (b"webhook-request-origin", b"sender.example"),
                (b"webhook-request-rate", b"120"),
                (b"webhook-request-callback", b"http://127.0.0.1:1/confirm"),
            ],
            id="origin, rate and callback",
        ),
    ],
)
@pytest.mark.parametrize("target", ["/default/default", "/default/default/?x=1"])
def test_options_says_what_is_allowed_and_grants_every_sender_every_rate(asked: Headers, target: str):
    async def main() -> None:
        ingress, log, _ = make()
        exchange = ask(ingress.handle, target, headers=asked, body=b"", method="OPTIONS")
        assert (exchange.status, exchange.body) == (200, b"")
        assert exchange.header(b"allow") == b"POST, OPTIONS"
        assert exchange.header(b"webhook-allowed-origin") == b"*"
        assert exchange.header(b"webhook-allowed-rate") == b"*"
        assert b"application/cloudevents-batch+json" in (exchange.header(b"accept-post") or b"")
        assert ask(ingress.handle, "/default/none", headers=asked, body=b"", method="OPTIONS").status == 404
        assert await stored(log) == []

    run_virtual(main())


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("8192 events wait.", retry_after_s=2.5), 503, b"3"),
        (Unavailable("the disk is away"), 503, b"1"),
        (LogFull("no room"), 507, b"1"),
    ],
    ids=["overloaded", "unavailable", "full"],
)
def test_a_log_that_refuses_is_told_with_a_time_to_come_back(error: PenstockError, status: int, retry_after: bytes):
    class Refusing(MemoryLog):
        def append(self, entry, then):
            then(error)

    async def main() -> None:
        ingress, _, metrics = make(Refusing())
        exchange = await answered(ask(ingress.handle))
        assert (exchange.status, exchange.header(b"retry-after")) == (status, retry_after)
        assert str(error).encode() in exchange.body
        assert f'penstock_broker_requests_refused_total{{status="{status}"}} 1' in metrics.expose()

    run_virtual(main())


def test_before_the_brokers_are_known_senders_are_asked_to_come_back():
    async def main() -> None:
        ingress, _, _ = make(synced=False)
        exchange = await answered(ask(ingress.handle))
        assert (exchange.status, exchange.header(b"retry-after")) == (503, b"1")
        ingress.swap(TableBuilder().build([broker()], []))
        assert (await answered(ask(ingress.handle))).status == 202

    run_virtual(main())
