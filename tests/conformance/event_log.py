"""What every EventLog does, whatever keeps the bytes. An adapter's test class gives the `log` fixture."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import pytest

from broker.ledger import Attempt
from broker.log.direction import Direction
from broker.log.port import Entry, EventLog, Page, Position, Record
from core.errors import Overloaded, PenstockError
from core.events import CloudEvent, binary_head

#: Longer than any log takes on a busy machine; a log that never answers fails the test by it.
DEADLINE_S = 10.0

BROKER = "default/default"
OTHER = "default/other"

T = TypeVar("T")


def entry(
    name: str, broker: str = BROKER, *, data: bytes = b'{"n": 1}', at: float = 1000.0, **extensions: str
) -> Entry:
    attributes = {"specversion": "1.0", "id": name, "source": "/test", "type": "test.made", **extensions}
    event = CloudEvent.of(attributes, data)
    return Entry(broker, event.attributes, binary_head(event), data, at, 255)


async def append(log: EventLog, *entries: Entry) -> list[Record]:
    """Append all in one turn of the loop; raises the first refusal."""
    futures: list[asyncio.Future[Record]] = []
    for item in entries:
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        futures.append(future)

        def then(result: Record | PenstockError, future: asyncio.Future[Record] = future) -> None:
            if isinstance(result, PenstockError):
                future.set_exception(result)
            else:
                future.set_result(result)

        log.append(item, then)
    async with asyncio.timeout(DEADLINE_S):
        return list(await asyncio.gather(*futures))


async def answer(call: Callable[[Callable[[T | PenstockError], None]], None]) -> T:
    """What a method with a callback answers; raises what it refuses with."""
    future: asyncio.Future[T | PenstockError] = asyncio.get_running_loop().create_future()
    call(future.set_result)
    async with asyncio.timeout(DEADLINE_S):
        result = await future
    if isinstance(result, PenstockError):
        raise result
    return result


async def read(log: EventLog, after: int = 0, limit: int = 1000, broker: str = BROKER) -> Page:
    return await answer(lambda then: log.read(broker, after, limit, then))


async def pick(log: EventLog, seqs: Sequence[int], broker: str = BROKER) -> Page:
    return await answer(lambda then: log.pick(broker, seqs, then))


async def seek(log: EventLog, at: float) -> int:
    return await answer(lambda then: log.seek(BROKER, at, then))


async def recall(log: EventLog, uid: str) -> bytes:
    return await answer(lambda then: log.recall(uid, then))


def _ignored() -> None:
    """A claim's end, where nobody else is there to have it."""


def ids(page: Page) -> list[str]:
    return [record.entry.attributes["id"] for record in page.records]


class EventLogSuite:
    """The promises of `broker.log.port.EventLog`."""

    # --- append and read ---

    async def test_what_was_appended_is_read_as_it_was_given_and_in_order(self, log: EventLog):
        given = [entry("a", subject="x y"), entry("b", data=b"\x00\xff", knownas="né"), entry("c", data=b"")]
        records = await append(log, *given)
        page = await read(log)
        assert [record.entry for record in page.records] == given
        assert [record.seq for record in page.records] == [record.seq for record in records]
        assert sorted(record.seq for record in records) == [record.seq for record in records]
        assert page.through == log.last() == records[-1].seq
        assert not page.more

    async def test_whom_an_event_is_for_is_kept_with_it(self, log: EventLog):
        plain = entry("a", subject="x")
        given = [
            msgspec.structs.replace(plain, only=Direction("uid-1"), cause=7),
            msgspec.structs.replace(plain, only=Direction("uid-2", "http://b-1.default.svc.cluster.local/"), data=b""),
            plain,
        ]
        told: list[Entry] = []
        log.tail(lambda record: told.append(record.entry))
        records = await append(log, *given)
        assert [record.entry for record in (await read(log)).records] == given
        assert [record.entry for record in (await pick(log, [record.seq for record in records])).records] == given
        assert told == given

    async def test_a_new_log_is_empty(self, log: EventLog):
        assert log.last() == 0
        assert await read(log) == Page([], 0)

    async def test_a_read_goes_on_after_a_position_and_says_whether_there_is_more(self, log: EventLog):
        await append(log, *(entry(name) for name in "abcde"))
        first = await read(log, limit=2)
        assert ids(first) == ["a", "b"]
        assert first.more
        rest = await read(log, after=first.through, limit=10)
        assert ids(rest) == ["c", "d", "e"]
        assert not rest.more

    async def test_a_page_of_large_events_ends_early_and_nothing_is_skipped(self, log: EventLog):
        await append(log, *(entry(str(n), data=bytes(400_000)) for n in range(6)))
        found, after = [], 0
        while True:
            page = await read(log, after=after)
            found += ids(page)
            after = page.through
            if not page.more:
                break
            assert len(page.records) < 6
        assert found == [str(n) for n in range(6)]

    async def test_brokers_do_not_see_each_others_events(self, log: EventLog):
        await append(log, entry("mine"), entry("theirs", OTHER), entry("mine too"))
        assert ids(await read(log)) == ["mine", "mine too"]
        assert ids(await read(log, broker=OTHER)) == ["theirs"]
        assert ids(await read(log, broker="default/none")) == []

    async def test_events_are_picked_by_position_and_those_not_kept_are_left_out(self, log: EventLog):
        records = await append(log, *(entry(name) for name in "abcd"))
        page = await pick(log, [records[3].seq, records[1].seq, 4242])
        assert ids(page) == ["b", "d"]

    async def test_picking_more_than_a_page_holds_goes_on_after_it_and_nothing_is_skipped(self, log: EventLog):
        records = await append(log, *(entry(str(n), data=bytes(400_000)) for n in range(6)))
        wanted, found = [record.seq for record in records if record.entry.attributes["id"] != "2"], []
        while True:
            page = await pick(log, wanted)
            found += ids(page)
            if not page.more:
                break
            assert page.records
            wanted = [seq for seq in wanted if seq > page.through]
        assert found == ["0", "1", "3", "4", "5"]

    async def test_a_listener_that_fails_keeps_the_event_from_nobody_else(
        self, log: EventLog, caplog: pytest.LogCaptureFixture
    ):
        heard: list[str] = []

        def fail(record: Record) -> None:
            raise ValueError(record.seq)

        log.tail(fail)
        log.tail(lambda record: heard.append(record.entry.attributes["id"]))
        assert len(await append(log, entry("a"), entry("b"))) == 2
        assert heard == ["a", "b"]
        assert "a listener of the event log failed" in caplog.text

    async def test_the_tail_hears_each_event_in_order_before_its_appender(self, log: EventLog):
        heard: list[str] = []
        log.tail(lambda record: heard.append("tail " + record.entry.attributes["id"]))
        done = asyncio.Event()

        def then(result: Record | PenstockError) -> None:
            assert isinstance(result, Record)
            heard.append("then " + result.entry.attributes["id"])
            if result.entry.attributes["id"] == "b":
                done.set()

        log.append(entry("a"), then)
        log.append(entry("b"), then)
        assert heard == []
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()
        assert heard == ["tail a", "then a", "tail b", "then b"]

    async def test_an_event_that_was_told_is_already_readable(self, log: EventLog):
        (record,) = await append(log, entry("a"))
        assert (await read(log)).through >= record.seq

    async def test_more_than_may_wait_is_refused_and_the_rest_is_kept(self, log: EventLog):
        big = bytes(1024 * 1024)
        refusals: list[Overloaded] = []
        kept: list[Record] = []
        done = asyncio.Event()
        count = 100

        def then(result: Record | PenstockError) -> None:
            if isinstance(result, Overloaded):
                refusals.append(result)
            else:
                assert isinstance(result, Record)
                kept.append(result)
            if len(kept) + len(refusals) == count:
                done.set()

        for n in range(count):
            log.append(entry(str(n), data=big), then)
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()
        assert refusals
        assert kept
        assert refusals[0].retry_after_s > 0
        await append(log, entry("later"))

    # --- subscriptions ---

    async def test_a_new_subscription_starts_where_it_is_told(self, log: EventLog):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 7)
        assert subscription.position() == Position(7)
        assert tuple(log.subscriptions()) == ("uid-1",)

    async def test_acknowledgements_come_in_any_order_and_the_low_water_mark_follows(self, log: EventLog):
        records = await append(log, *(entry(name) for name in "abc"))
        a, b, c = (record.seq for record in records)
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        for seq in (a, b, c):
            subscription.take(seq)
        subscription.ack(c)
        assert subscription.position() == Position(c, (a, b))
        assert subscription.position().low_water == a - 1
        subscription.ack(a)
        assert subscription.position().low_water == b - 1
        subscription.ack(b)
        assert subscription.position() == Position(c)
        assert subscription.position().low_water == c

    async def test_a_position_is_found_again(self, log: EventLog):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        subscription.take(3)
        subscription.take(5)
        subscription.ack(5)
        await log.flush()
        assert log.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(5, (3,))

    async def test_a_dropped_subscription_starts_anew(self, log: EventLog):
        log.subscribe("uid-1", BROKER, "default/one", 3)
        log.unsubscribe("uid-1")
        assert tuple(log.subscriptions()) == ()
        await log.flush()
        assert log.subscribe("uid-1", BROKER, "default/one", 9).position() == Position(9)

    # --- one process at a time ---

    async def test_what_is_remembered_of_a_subscription_is_recalled_and_goes_with_it(self, log: EventLog):
        log.subscribe("uid-1", BROKER, "default/one", 0)
        log.subscribe("uid-2", BROKER, "default/two", 0)
        assert await recall(log, "uid-1") == b""
        log.remember("uid-1", b"first")
        log.remember("uid-2", b"other")
        await log.flush()
        log.remember("uid-1", b'{"planned":[[1,2,3,4.5]]}')
        await log.flush()
        assert await recall(log, "uid-1") == b'{"planned":[[1,2,3,4.5]]}'
        log.unsubscribe("uid-1")
        log.remember("uid-1", b"too late")
        await log.flush()
        log.subscribe("uid-1", BROKER, "default/one", 0)
        await log.flush()
        assert await recall(log, "uid-1") == b""
        assert await recall(log, "uid-2") == b"other"

    async def test_a_claim_that_nobody_else_has_is_granted_and_so_is_claiming_it_again(self, log: EventLog):
        heard: asyncio.Queue[str] = asyncio.Queue()
        for number in ("1", "2"):
            log.claim(
                "uid-1",
                lambda number=number: heard.put_nowait(f"granted {number}"),
                lambda: heard.put_nowait("lost"),
                lambda: heard.put_nowait("asked"),
            )
            async with asyncio.timeout(DEADLINE_S):
                assert await heard.get() == f"granted {number}"
        assert heard.empty()

    async def test_what_is_acknowledged_under_a_claim_is_kept_though_it_is_released_at_once(self, log: EventLog):
        granted = asyncio.Event()
        log.claim("uid-1", granted.set, _ignored, _ignored)
        async with asyncio.timeout(DEADLINE_S):
            await granted.wait()
        await append(log, *(entry(name) for name in "abcd"))
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        subscription.take(3)
        subscription.take(4)
        subscription.ack(3)
        log.release("uid-1")
        await log.flush()
        granted.clear()
        log.claim("uid-1", granted.set, _ignored, _ignored)
        async with asyncio.timeout(DEADLINE_S):
            await granted.wait()
        assert log.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(4, (4,))

    # --- seek and retention ---

    async def test_seeking_a_time_finds_the_position_before_its_first_event(self, log: EventLog):
        records = []
        for n in range(20):
            records += await append(log, entry(str(n), at=1000.0 + n), entry(f"o{n}", OTHER, at=1000.0 + n))
        for at, expected in ((0.0, "0"), (1000.0, "0"), (1000.5, "1"), (1007.0, "7"), (1019.0, "19")):
            after = await seek(log, at)
            page = await read(log, after=after, limit=1)
            assert ids(page) == [expected], at
        assert ids(await read(log, after=await seek(log, 2000.0))) == []

    async def test_events_older_than_the_retention_go_and_the_others_stay(self, log: EventLog):
        await append(log, entry("old", at=1000.0), entry("new", at=1000.0 + DAYS_8))
        assert await log.retain(1000.0 + DAYS_8) == 1
        assert ids(await read(log)) == ["new"]
        assert await log.retain(1000.0 + DAYS_8) == 0

    async def test_an_event_that_a_subscription_still_needs_is_not_removed_however_old(self, log: EventLog):
        records = await append(log, *(entry(name) for name in "abc"))
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        for record in records:
            subscription.take(record.seq)
        subscription.ack(records[0].seq)
        subscription.ack(records[2].seq)
        await log.retain(1000.0 + DAYS_8)
        assert ids(await read(log)) == ["b", "c"]
        log.unsubscribe("uid-1")
        await log.retain(1000.0 + DAYS_8)
        assert ids(await read(log)) == []

    async def test_undelivered_events_are_kept_longer(self, log: EventLog):
        records = await append(log, entry("dead"), entry("fine"))
        log.subscribe("uid-1", BROKER, "default/one", records[1].seq)
        log.note(Attempt(records[0].seq, "uid-1", 1000.0, 1, 500, 0.1, "dropped", "no dead-letter sink"))  # type: ignore[attr-defined]
        await log.flush()
        await log.retain(1000.0 + DAYS_8)
        assert "dead" in ids(await read(log))
        await log.retain(1000.0 + 5 * DAYS_8)
        assert ids(await read(log)) == []

    async def test_an_undelivered_event_that_people_settled_for_everybody_is_kept_no_longer_than_others(
        self, log: EventLog
    ):
        half, whole, last = await append(log, entry("half"), entry("whole"), entry("last"))
        log.subscribe("uid-1", BROKER, "default/one", last.seq)
        for record, left in ((whole, 0), (half, 1)):
            log.note(Attempt(record.seq, "uid-1", 1000.0, 1, 500, 0.1, "dropped", "no dead-letter sink"))  # type: ignore[attr-defined]
            await log.flush()
            log.note(Attempt(record.seq, "uid-1", 1001.0, left, 0, 0.0, "discarded", "by hand"))  # type: ignore[attr-defined]
        await log.flush()
        await log.retain(1000.0 + DAYS_8)
        # A log that is removed from its beginning keeps what comes after one that stays.
        assert set(ids(await read(log))) <= {"half", "whole", "last"}
        assert "half" in ids(await read(log))
        log.note(Attempt(half.seq, "uid-2", 1002.0, 0, 0, 0.0, "redriven", "as 9"))  # type: ignore[attr-defined]
        await log.flush()
        await log.retain(1000.0 + DAYS_8)
        assert ids(await read(log)) == []

    async def test_positions_are_never_given_twice_even_when_all_events_are_gone(self, log: EventLog):
        (record,) = await append(log, entry("a"))
        await log.retain(1000.0 + DAYS_8)
        (later,) = await append(log, entry("b"))
        assert later.seq > record.seq


DAYS_8 = 8 * 86_400.0


class DurableLogSuite:
    """What a log that outlives its process promises beyond `EventLogSuite`. `reopen` closes it and opens it again."""

    async def test_everything_is_there_after_a_restart(self, log: EventLog, reopen: Callable[[], Awaitable[EventLog]]):
        records = await append(log, entry("a"), entry("b"), entry("c", OTHER))
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        subscription.take(records[0].seq)
        subscription.take(records[1].seq)
        subscription.ack(records[1].seq)
        log.remember("uid-1", b"a word")
        log.subscribe("uid-2", BROKER, "default/two", 0)
        log.unsubscribe("uid-2")
        again = await reopen()
        assert again.last() == records[-1].seq
        assert ids(await read(again)) == ["a", "b"]
        assert ids(await read(again, broker=OTHER)) == ["c"]
        assert tuple(again.subscriptions()) == ("uid-1",)
        position = again.subscribe("uid-1", BROKER, "default/one", 99).position()
        assert position == Position(records[1].seq, (records[0].seq,))
        assert await recall(again, "uid-1") == b"a word"

    async def test_positions_go_on_after_a_restart_of_an_emptied_log(
        self, log: EventLog, reopen: Callable[[], Awaitable[EventLog]]
    ):
        (record,) = await append(log, entry("a"))
        await log.retain(1000.0 + DAYS_8)
        again = await reopen()
        (later,) = await append(again, entry("b"))
        assert later.seq > record.seq
