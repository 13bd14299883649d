"""What every log's reader tells people, whatever keeps the log. A test class gives the `log` and `reader` fixtures."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from broker.ledger import Attempt, OutcomeName
from broker.log.direction import Direction
from broker.log.port import EventLog, Position
from broker.log.query import Found, LogQuery, Slice
from tests.conformance.event_log import BROKER, OTHER, append, entry

T = TypeVar("T")


async def ask(question: Callable[[], T]) -> T:
    """Readers block: asked on a thread, as the API does."""
    return await asyncio.to_thread(question)


def names(found: Slice) -> list[str]:
    return [event.record.entry.attributes["id"] if event.record else "corrupt" for event in found.events]


def _is_not(event_id: str) -> Callable[[Found], bool]:
    return lambda found: found.record is not None and found.record.entry.attributes["id"] != event_id


class LogQuerySuite:
    """The promises of `broker.log.query.LogQuery`."""

    async def test_the_newest_events_come_in_order_with_the_position_to_ask_on_from(
        self, log: EventLog, reader: LogQuery
    ):
        records = await append(
            log,
            *(
                entry(name, broker)
                for name, broker in zip("abcde", [BROKER, OTHER, BROKER, OTHER, BROKER], strict=True)
            ),
        )
        found = await ask(lambda: reader.newest(3))
        assert names(found) == ["c", "d", "e"]
        assert found.next == records[-1].seq
        assert (await ask(lambda: reader.after(found.next, 10))).events == ()

    async def test_what_comes_after_a_position_is_given_in_parts_and_nothing_twice(
        self, log: EventLog, reader: LogQuery
    ):
        brokers = [BROKER, BROKER, BROKER, OTHER, BROKER, OTHER, OTHER]
        await append(log, *(entry(str(n), broker) for n, broker in enumerate(brokers)))
        told, position = [], 0
        while names(found := await ask(lambda position=position: reader.after(position, 2))):
            told += names(found)
            position = found.next
        assert told == [str(n) for n in range(len(brokers))]

    async def test_only_what_is_asked_for_is_told(self, log: EventLog, reader: LogQuery):
        await append(log, entry("a"), entry("b", OTHER), entry("c", "elsewhere/default"), entry("d"))
        assert names(await ask(lambda: reader.newest(10, broker="default"))) == ["a", "c", "d"]
        assert names(await ask(lambda: reader.newest(10, namespace="default"))) == ["a", "b", "d"]
        assert names(await ask(lambda: reader.after(0, 10, namespace="default", broker="other"))) == ["b"]
        assert names(await ask(lambda: reader.newest(10, wanted=_is_not("b")))) == ["a", "c", "d"]
        assert names(await ask(lambda: reader.newest(2, wanted=_is_not("d")))) == ["b", "c"]
        assert names(await ask(lambda: reader.after(0, 2, wanted=_is_not("a")))) == ["b", "c"]
        nothing = await ask(lambda: reader.after(0, 10, wanted=lambda found: False))
        assert (nothing.events, nothing.next) == ((), (await ask(lambda: reader.newest(1))).next)

    async def test_events_are_found_by_id_and_replies_by_what_they_reply_to(self, log: EventLog, reader: LogQuery):
        first, second = await append(log, entry("same"), entry("same", OTHER))
        log.subscribe("uid-1", BROKER, "default/one", 0)
        reply = msgspec.structs.replace(entry("reply"), cause=first.seq, via="uid-1")
        await append(log, reply, entry("more"))
        assert [found.seq for found in await ask(lambda: reader.by_id("same"))] == [first.seq, second.seq]
        assert await ask(lambda: reader.by_id("none")) == ()
        (found,) = await ask(lambda: reader.replies(first.seq))
        assert found.record is not None
        assert found.record.entry == reply
        assert await ask(lambda: reader.replies(second.seq)) == ()

    async def test_attempts_are_told_by_event_and_trigger_also_of_triggers_that_are_gone(
        self, log: EventLog, reader: LogQuery
    ):
        (record,) = await append(log, entry("a"))
        log.subscribe("uid-1", BROKER, "default/one", 0)
        log.subscribe("uid-2", BROKER, "default/two", 0)
        attempts = [
            Attempt(record.seq, "uid-1", 1001.0, 2, 202, 0.25, "delivered", None, "scan-00002", 0.125),
            Attempt(record.seq, "uid-1", 1002.0, 3, 202, 0.25, "delivered", None, "scan-00002"),
            Attempt(record.seq, "uid-1", 1000.0, 1, 503, 0.5, "retrying", "busy"),
            Attempt(record.seq, "uid-2", 1000.5, 1, 500, 0.125, "dropped", "no sink"),
        ]
        for attempt in attempts:
            log.note(attempt)  # type: ignore[attr-defined]  # durable logs are ledgers as well
        await log.flush()
        log.unsubscribe("uid-2")
        await log.flush()
        told = (await ask(lambda: reader.deliveries([record.seq, 4242])))[record.seq]
        assert [(delivery.uid, delivery.name) for delivery in told] == [
            ("uid-1", "default/one"),
            ("uid-2", "default/two"),
        ]
        assert told[0].attempts == (attempts[2], attempts[0], attempts[1])
        assert told[1].attempts == (attempts[3],)

    async def test_events_are_told_by_position_whatever_their_broker(self, log: EventLog, reader: LogQuery):
        records = await append(log, entry("a"), entry("b", OTHER), entry("c"))
        told = await ask(lambda: reader.at([records[2].seq, records[1].seq, 4242, records[1].seq]))
        assert [found.record for found in told] == records[1:]
        assert await ask(lambda: reader.at([])) == ()

    async def test_whom_an_event_is_for_is_told(self, log: EventLog, reader: LogQuery):
        only = Direction("uid-1", "http://one-1.default.revision.localhost/")
        (record,) = await append(log, msgspec.structs.replace(entry("a"), only=only, cause=4))
        (found,) = await ask(lambda: reader.at([record.seq]))
        assert found.record == record
        assert [event.record for event in (await ask(lambda: reader.newest(1))).events] == [record]

    async def test_undelivered_events_are_told_in_order_and_in_parts(self, log: EventLog, reader: LogQuery):
        records = await append(log, *(entry(name) for name in "abcdef"))
        log.subscribe("uid-1", BROKER, "default/one", 0)
        outcomes: tuple[OutcomeName, ...] = ("delivered", "dropped", "dead-lettered", "dead", "retrying", "corrupt")
        for record, outcome in zip(records, outcomes, strict=True):
            log.note(Attempt(record.seq, "uid-1", 1000.0, 1, 500, 0.5, "retrying", "again"))  # type: ignore[attr-defined]
            log.note(Attempt(record.seq, "uid-1", 1001.0, 2, 500, 0.5, outcome, "gave up"))  # type: ignore[attr-defined]
            log.note(Attempt(record.seq, "uid-2", 1001.0, 2, 500, 0.5, outcome, "gave up"))  # type: ignore[attr-defined]
        await log.flush()
        seqs = [records[n].seq for n in (1, 3, 5)]
        assert await ask(lambda: reader.undelivered(0, 10)) == tuple(seqs)
        assert await ask(lambda: reader.undelivered(0, 1)) == tuple(seqs[:1])
        assert await ask(lambda: reader.undelivered(seqs[0], 1)) == tuple(seqs[1:2])
        assert await ask(lambda: reader.undelivered(seqs[2], 10)) == ()
        assert await ask(lambda: reader.undelivered(0, 10, dead_lettered=True)) == (records[2].seq,)
        log.note(Attempt(seqs[0], "uid-1", 1002.0, 0, 0, 0.0, "discarded", "by hand"))  # type: ignore[attr-defined]
        await log.flush()
        assert await ask(lambda: reader.undelivered(0, 10)) == tuple(seqs[1:])

    async def test_positions_are_told_as_they_were_kept(self, log: EventLog, reader: LogQuery):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        subscription.take(3)
        subscription.take(5)
        subscription.ack(5)
        log.subscribe("uid-2", BROKER, "default/two", 7)
        log.unsubscribe("uid-2")
        await log.flush()
        assert await ask(reader.positions) == {"uid-1": Position(5, (3,))}

    async def test_a_log_without_events_is_empty(self, log: EventLog, reader: LogQuery):
        assert await ask(lambda: reader.newest(10)) == Slice((), 0)
        assert await ask(lambda: reader.after(3, 10)) == Slice((), 3)
