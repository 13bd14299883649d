"""The ledger against what the subscribers saw: each keeps its own account of every request, and row by row the ledger
has to say the same. Once on virtual time over generated scripts, once over sockets and a file.

What a row has to be is told here from the account and from the words of the specification alone
(knative/specs, eventing/data-plane.md), not by the code that makes it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.fanout import Fanout
from broker.ledger import FINAL, Attempt, Ledger
from broker.log.memory import MemoryLog
from broker.log.port import Entry, EventLog, Record
from broker.log.query import LogReader
from broker.log.sqlite import SqliteLog
from broker.resources import DEFAULT_CLASS
from broker.services import Sender, Services
from broker.table import TableBuilder
from core.clock import Clock, SystemClock
from core.errors import PenstockError
from core.events import binary_head, from_http
from core.net.body import collect
from core.net.client import Client
from core.net.names import Names
from core.net.types import BodySink, ConnectFailed, ConnectionLost, Exchange, RequestHead
from core.resources import Resource
from tests.support.broker import Answer, Request, Subscribers, binary, broker, trigger
from tests.support.http import DEADLINE_S, serving
from tests.support.virtual_time import VirtualClock, run_virtual

RETRIES = 2
#: Who gets the events, and who gets what they do not take.
SINKS = {"plain": None, "mourned": "sink", "twice": "gone"}
#: Statuses after which another attempt helps: no answer, 404, 408, 409, 429, and the server's own faults.
AGAIN = frozenset((0, 404, 408, 409, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class Seen:
    """One request as its subscriber saw it, and what it did with it: `status` is 0 where it gave no answer."""

    host: str
    event: str
    at: float
    took: float
    status: int
    revision: str | None = None
    waited: float | None = None
    wait_s: int = 0
    reply: str | None = None


def expected(seen: Sequence[Seen], sink: str | None) -> list[tuple[int, str]]:
    """For the requests of one event and one Trigger in order: the status and the outcome that the ledger has to say."""
    rows: list[tuple[int, str]] = []
    tries = 0
    for number, each in enumerate(seen):
        at_sink = each.host == sink
        tries = 1 if number and at_sink and seen[number - 1].host != sink else tries + 1
        if 200 <= each.status < 300:
            rows.append((each.status, "dead-lettered" if at_sink else "delivered"))
        elif each.status in AGAIN and tries <= RETRIES:
            rows.append((each.status, "retrying"))
        elif at_sink:
            rows.append((each.status, "dead"))
        else:
            rows.append((each.status, "retrying" if sink else "dropped"))
    return rows


def compare(account: Sequence[Seen], rows: Sequence[Attempt], ids: Mapping[int, str], *, exact: bool) -> None:
    """Every row has its request, and every request its row, in their order; with `exact`, to the same moment."""
    seen: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    owners = {sink: name for name, sink in SINKS.items() if sink}
    for each in account:
        seen[(owners.get(each.host, each.host), each.event)].append(each)
    told: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for row in rows:
        told[(row.uid.removeprefix("uid-"), ids[row.seq])].append(row)
    assert told.keys() == seen.keys()
    for key, requests in seen.items():
        held = sorted(told[key], key=lambda row: (row.at, row.number))
        assert [(row.status, row.outcome) for row in held] == expected(requests, SINKS[key[0]]), key
        assert [row.number for row in held] == list(range(1, len(held) + 1)), key
        assert [row.outcome in FINAL for row in held] == [False] * (len(held) - 1) + [True], key
        for request, row in zip(requests, held, strict=True):
            assert (row.revision, row.cold_start_s) == (request.revision, request.waited), key
            assert (row.reason is None) == (200 <= request.status < 300), key
            slack = 1e-3 if exact else 0.5
            assert row.at - 1e-3 <= request.at <= row.at + slack, key
            assert request.took - 1e-3 <= row.latency_s <= request.took + slack, key
        for before, after in itertools.pairwise(requests):
            wait_s = before.wait_s if after.host == before.host else 0  # the dead-letter sink has not asked for any
            assert after.at - (before.at + before.took) >= wait_s - 1e-3, key


def replies(account: Sequence[Seen]) -> list[str]:
    return sorted(each.reply for each in account if each.reply is not None)


# ---- what the subscribers do


def scripted(chance: random.Random, host: str, event: str) -> tuple[Answer, Seen]:
    """An outcome, and how it goes into the account (the times are the caller's)."""
    took = chance.choice((0.0, 0.01, 0.3))
    revision = chance.choice((None, "scan-00001", "scan-00002"))
    waited = chance.choice((None, 0.25, 1.5)) if revision else None
    headers = [] if revision is None else [(b"penstock-revision", revision.encode())]
    headers += [] if waited is None else [(b"penstock-cold-start", b"%.3f" % waited)]
    kind = chance.choice(("ok", "ok", "fails", "busy", "refuses", "away", "replies"))
    if kind == "away":
        return Answer(after_s=took, error=ConnectFailed("refused")), Seen(host, event, 0, took, 0)
    status = {
        "ok": chance.choice((200, 202, 204)),
        "fails": chance.choice((404, 408, 409, 500, 502, 504)),
        "busy": chance.choice((429, 503)),
        "refuses": chance.choice((301, 400, 403, 410, 418)),
        "replies": 200,
    }[kind]
    seen = Seen(host, event, 0, took, status, revision, waited)
    if kind == "busy":
        wait_s = chance.choice((0, 2))
        headers.append((b"retry-after", b"%d" % wait_s))
        return Answer(status, headers, after_s=took), _with(seen, wait_s=wait_s)
    if kind == "replies" and host not in SINKS.values():
        reply = f"{event}-{host}-{chance.random():.9f}"
        return Answer(status, [*headers, *binary(reply, "test.reply")], b"{}", took), _with(seen, reply=reply)
    return Answer(status, headers, after_s=took), seen


def _with(seen: Seen, **changes: object) -> Seen:
    return Seen(**{**seen.__dict__, **changes})  # type: ignore[arg-type]


def uri(host: str) -> str:
    return f"http://{host}.default.svc.cluster.local/"


def triggers() -> list[Resource]:
    delivery = {"retry": RETRIES, "backoffPolicy": "linear", "backoffDelay": "PT0.02S"}
    wants = [{"exact": {"type": "test.made"}}]
    return [
        trigger(
            name,
            uri(name),
            dead_letter_uri=uri(sink) if sink else None,
            filters=wants,
            delivery={**delivery, **({"deadLetterSink": {"uri": uri(sink)}} if sink else {})},
        )
        for name, sink in SINKS.items()
    ]


def plane(log: EventLog, ledger: Ledger, client: Sender, clock: Clock, names: Names) -> Fanout:
    services = Services(
        log=log,
        ledger=ledger,
        client=client,
        names=names,
        clock=clock,
        rng=random.Random(1),
        count=lambda trigger, outcome, latency_s: None,
    )
    made = Fanout(services, {DEFAULT_CLASS})
    made.swap(TableBuilder().build([broker()], triggers()))
    return made


def publish(log: EventLog, names: Sequence[str], now: float) -> None:
    def then(result: Record | PenstockError) -> None:
        assert isinstance(result, Record)

    for name in names:
        event = from_http(binary(name), b"{}")
        log.append(Entry("default/default", event.attributes, binary_head(event), b"{}", now, 255), then)


# ---- on virtual time


@given(seed=st.integers(0, 2**32), events=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_ledger_says_what_the_subscribers_saw_whatever_they_do(seed: int, events: int) -> None:
    run_virtual(_on_virtual_time(random.Random(seed), events))


async def _on_virtual_time(chance: random.Random, events: int) -> None:
    account: list[Seen] = []
    clock, log, subscribers = VirtualClock(), MemoryLog(), Subscribers()

    def script(host: str) -> Callable[[Request, int], Answer]:
        closed: set[str] = set()

        def act(request: Request, _: int) -> Answer:
            event = request.event.id
            # An idle connection that closed under a request is no attempt: it was not the subscriber's doing.
            if event not in closed and chance.random() < 0.1:
                closed.add(event)
                return Answer(after_s=0.0, error=ConnectionLost("closed", sent=True, fresh=False))
            answer, seen = scripted(chance, host, event)
            account.append(_with(seen, at=clock.now()))
            return answer

        return act

    for host in (*SINKS, *(sink for sink in SINKS.values() if sink)):
        subscribers.scripts[f"{host}.default.svc.cluster.local"] = script(host)
    fanout = plane(log, log, subscribers, clock, Names())
    await asyncio.sleep(1)
    kept: list[Record] = []
    log.tail(kept.append)
    publish(log, [f"e{n}" for n in range(events)], clock.now())
    await asyncio.sleep(120)
    ids = {record.seq: record.entry.attributes["id"] for record in kept}
    compare(account, log.attempts, ids, exact=True)
    stored = [record for record in kept if record.entry.via is not None]
    assert sorted(ids[record.seq] for record in stored) == replies(account)
    for record in stored:
        assert record.entry.cause is not None
        assert ids[record.seq].startswith(f"{ids[record.entry.cause]}-{(record.entry.via or '').removeprefix('uid-')}-")
    await fanout.drain(1.0)


# ---- over sockets and a file


class Heard:
    """A ledger that tells when every event of some has come to an end for every Trigger."""

    def __init__(self, ledger: Ledger, ends: int) -> None:
        self._ledger = ledger
        self._left = ends
        self.everything = asyncio.Event()

    def note(self, attempt: Attempt) -> None:
        self._ledger.note(attempt)
        self._left -= attempt.outcome in FINAL
        if self._left == 0:
            self.everything.set()


class Listener:
    """All subscribers behind one gateway: told apart by Host, each answers by the script and keeps account."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._clock = SystemClock()
        self.account: list[Seen] = []

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        host = head.host.partition(b".")[0].decode()
        at = self._clock.now()

        def then(body: bytes) -> None:
            event = from_http(head.headers, body).id
            answer, seen = scripted(self._chance, host, event)
            # No connection can be refused here, and nobody has seconds to wait.
            status, took = seen.status or 500, min(answer.after_s, 0.02)
            self.account.append(_with(seen, at=at, took=took, status=status, wait_s=0))
            headers = [header for header in answer.headers if header[0] != b"retry-after"]
            asyncio.get_running_loop().call_later(took, exchange.respond, status, headers, answer.body)

        return collect(exchange, max_bytes=1 << 20, then=then)


async def test_over_sockets_and_a_file_the_ledger_says_the_same(tmp_path: Path) -> None:
    seed, events = 20261125, 150
    listener, log, client = Listener(seed), SqliteLog(tmp_path / "log.db"), Client()
    await log.open()
    ids: dict[int, str] = {}
    heard = Heard(log, events * len(SINKS))
    log.tail(lambda record: ids.__setitem__(record.seq, record.entry.attributes["id"]))
    async with serving(listener.handle) as server:
        names = Names(gateway=server.address)
        fanout = plane(log, heard, client, SystemClock(), names)
        publish(log, [f"e{n}" for n in range(events)], SystemClock().now())
        async with asyncio.timeout(DEADLINE_S):
            await heard.everything.wait()
        await log.flush()
        await fanout.drain(1.0)
        await client.close()
    found = await asyncio.to_thread(LogReader(tmp_path / "log.db").deliveries, sorted(ids))
    rows = [attempt for deliveries in found.values() for delivery in deliveries for attempt in delivery.attempts]
    compare(listener.account, rows, ids, exact=False)
    assert sorted(name for name in ids.values() if "-" in name) == replies(listener.account), seed
    await log.close()
