"""The EventLog suite on Redis Streams, several processes that share a log, and what only this log can show."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from broker.ledger import Attempt
from broker.log.port import EventLog, LogFull, Position, Record, Retention
from broker.log.redis.batch import Batch
from broker.log.redis.connection import Connection, ended
from broker.log.redis.layout import Keys
from broker.log.redis.leases import LEASE_S, RENEW_S, Leases
from broker.log.redis.log import RedisLog
from broker.log.redis.query import RedisReader
from core.errors import Unavailable
from tests.conformance.event_log import (
    BROKER,
    DEADLINE_S,
    DurableLogSuite,
    EventLogSuite,
    append,
    entry,
    ids,
    read,
)
from tests.conformance.log_query import LogQuerySuite
from tests.conformance.shared_log import SharedLogSuite, claim, until
from tests.support.disks import SmallDisk
from tests.support.services import RedisServer

pytestmark = pytest.mark.service("redis")

T = TypeVar("T")

_NUMBERS = itertools.count(1)


class Logs:
    """Logs of one name in one Redis, as several processes have them. Closes what it opened and removes the keys."""

    takeover_s = LEASE_S + 2 * RENEW_S

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"penstock-test-{os.getpid()}-{next(_NUMBERS)}"
        self.keys = Keys(self.name)
        self.redis = Connection(url)
        self._open: list[RedisLog] = []

    async def open(self, owner: str = "first", retention: Retention | None = None) -> RedisLog:
        log = RedisLog(self.url, owner=owner, name=self.name, retention=retention)
        await log.open()
        self._open.append(log)
        return log

    async def close(self, log: RedisLog) -> None:
        self._open.remove(log)
        await log.close()

    async def start(self, name: str) -> RedisLog:
        return await self.open(name)

    async def stop(self, log: EventLog) -> None:
        assert isinstance(log, RedisLog)
        await self.close(log)

    async def kill(self, log: EventLog) -> None:
        assert isinstance(log, RedisLog)
        self._open.remove(log)
        await ended([*log._tasks, *log._reads])  # what a process that is gone does: nothing more
        await log._disconnect()

    async def end(self) -> None:
        for log in tuple(self._open):
            await self.close(log)
        for key in await self.redis.run("KEYS", f"{{{self.name}}}:*"):
            await self.redis.run("DEL", key)
        await self.redis.close()


@pytest.fixture
async def logs(redis_url: str) -> AsyncIterator[Logs]:
    held = Logs(redis_url)
    yield held
    await held.end()


class TestRedisLog(EventLogSuite, DurableLogSuite):
    @pytest.fixture
    async def log(self, logs: Logs) -> RedisLog:
        return await logs.open()

    @pytest.fixture
    def reopen(self, logs: Logs, log: RedisLog) -> Callable[[], Awaitable[EventLog]]:
        async def again() -> EventLog:
            await logs.close(log)
            return await logs.open()

        return again

    async def test_events_of_one_turn_share_a_round_trip(self, logs: Logs, log: RedisLog):
        before = await _appends(logs)
        await append(log, *(entry(str(n)) for n in range(50)))
        assert await _appends(logs) - before == 1

    async def test_a_changed_record_is_told_as_corrupt_and_never_read(self, logs: Logs, log: RedisLog):
        (first,) = await append(log, entry("a"))
        stream = logs.keys.events(BROKER)
        ((_, (_, stored)),) = await logs.redis.run("XRANGE", stream, "-", "+")
        await logs.redis.run("XADD", stream, f"0-{first.seq + 1}", "e", stored.replace(b"test", b"tesT"))
        await logs.redis.run("XADD", stream, f"0-{first.seq + 2}", "e", stored)
        page = await read(log)
        assert [record.seq for record in page.records] == [first.seq, first.seq + 2]
        assert page.corrupt == (first.seq + 1,)

    async def test_a_full_log_refuses_events_keeps_positions_and_takes_more_once_there_is_room(self, logs: Logs):
        log = await logs.open(retention=Retention(full_bytes=100_000))
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        kept: list[str] = []
        for n in range(100):
            try:
                (record,) = await append(log, entry(str(n), data=bytes(20_000)))
            except LogFull:
                break
            kept.append(str(n))
            subscription.take(record.seq)
        assert 0 < len(kept) < 10
        assert ids(await read(log)) == kept
        for seq in tuple(subscription.open):
            subscription.ack(seq)
        await log.retain(1000.0 + 8 * 86_400.0)
        await append(log, entry("again", data=bytes(20_000)))
        assert ids(await read(log)) == ["again"]

    async def test_more_than_the_largest_size_goes_from_the_oldest_on(self, logs: Logs):
        log = await logs.open(retention=Retention(max_bytes=50_000))
        await append(log, *(entry(str(n), data=bytes(20_000)) for n in range(5)))
        await log.retain(1000.0)
        assert ids(await read(log)) == ["3", "4"]

    async def test_what_belongs_to_an_event_goes_with_it(self, logs: Logs, log: RedisLog):
        (record,) = await append(log, entry("a"))
        log.note(Attempt(record.seq, "uid-1", 1000.0, 1, 500, 0.1, "dropped", "gone"))
        await log.flush()
        await log.retain(1000.0 + 40 * 86_400.0)
        keys = logs.keys
        for key in (keys.ids, keys.causes, keys.attempts, keys.undelivered):
            assert await logs.redis.run("ZCARD", key) == 0
        assert await logs.redis.run("GET", keys.bytes) == b"0"

    async def test_a_log_of_which_a_part_ended_by_a_fault_says_so_and_takes_nothing_more(
        self, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ):
        async def fail(leases: Leases) -> None:
            raise ValueError("a fault of ours")

        monkeypatch.setattr(Leases, "run", fail)
        log = await logs.open("other")
        async with asyncio.timeout(DEADLINE_S):
            await log.failed()
        with pytest.raises(Unavailable):
            await append(log, entry("a"))

    async def test_others_hear_a_brokers_events_also_after_redis_lost_its_newest_writes(
        self, logs: Logs, log: RedisLog
    ):
        other, heard = await logs.open("other"), list[str]()
        other.tail(lambda record: heard.append(record.entry.attributes["id"]))
        await append(log, entry("a"))
        await until(lambda: heard == ["a"])
        keys = logs.keys
        lost = (keys.seq, keys.wake, keys.bytes, keys.ids, keys.brokers, keys.events(BROKER))
        assert await logs.redis.run("DEL", *lost) == len(lost)
        await append(log, entry("b"), entry("c", "default/another"))
        await until(lambda: heard == ["a", "b", "c"])

    async def test_a_log_whose_writer_ended_by_a_fault_keeps_nobody_waiting(
        self, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ):
        async def fail(batch: Batch) -> None:
            raise ValueError("a fault of ours")

        log = await logs.open("other")
        monkeypatch.setattr(log, "_store", fail)
        log.subscribe("uid-1", BROKER, "default/one", 0)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Unavailable, match="ended by a fault"):
                await log.flush()
            await log.failed()
            with pytest.raises(Unavailable, match="ended by a fault"):
                await log.flush()
            await logs.close(log)

    async def test_a_log_of_another_format_is_refused(self, logs: Logs):
        await logs.redis.run("SET", logs.keys.format, "99")
        with pytest.raises(Unavailable, match="format b'99'"):
            await logs.open()


class TestRedisReader(LogQuerySuite):
    @pytest.fixture
    async def log(self, logs: Logs) -> RedisLog:
        return await logs.open()

    @pytest.fixture
    def reader(self, logs: Logs) -> Iterator[RedisReader]:
        reader = RedisReader(logs.url, name=logs.name)
        yield reader
        reader.close()


class TestSharing(SharedLogSuite):
    """Several processes on one log."""

    @pytest.fixture
    def processes(self, logs: Logs) -> Logs:
        return logs

    async def test_a_process_that_wants_nothing_is_no_member_and_may_want_something_again(self, logs: Logs):
        log = await logs.open()
        heard: list[str] = []
        claim(log, "uid-1", "granted", heard)
        await until(lambda: len(heard) == 1)
        assert await logs.redis.run("HLEN", logs.keys.members) == 1
        log.release("uid-1")
        async with asyncio.timeout(DEADLINE_S):
            while await logs.redis.run("HLEN", logs.keys.members):
                pass
        claim(log, "uid-1", "granted", heard)
        await until(lambda: len(heard) == 2)

    async def test_a_process_that_lost_its_claim_is_told_and_keeps_nothing_more(self, logs: Logs):
        first, second = await logs.open("first"), await logs.open("second")
        heard: list[str] = []
        claim(first, "uid-1", "first", heard)
        await until(lambda: heard == ["first"])
        stale = first.subscribe("uid-1", BROKER, "default/one", 1)
        await first.flush()
        await ended([task for task in first._tasks if task.get_name() == "event log leases"])  # as if it slept,
        await logs.redis.run("DEL", logs.keys.lease("uid-1"), logs.keys.members)  # and longer than its time
        claim(second, "uid-1", "second", heard)
        await until(lambda: "second" in heard)
        stale.skip(100)
        await first.flush()
        await until(lambda: "first lost" in heard)
        assert heard == ["first", "second", "first lost"]
        stale.skip(200)
        await first.flush()
        assert second.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(1)


@pytest.mark.service("redis", own=True)
class TestLosingRedis:
    """A Redis of the test's own, which goes away and comes back."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[RedisServer]:
        server = RedisServer(tmp_path / "redis")
        server.start()
        yield server
        server.kill()

    @pytest.fixture
    async def log(self, server: RedisServer) -> AsyncIterator[RedisLog]:
        log = RedisLog(server.url, owner="first")
        await log.open()
        yield log
        await log.close()

    async def test_nothing_acknowledged_is_lost_when_redis_is_killed_and_the_log_goes_on_after(
        self, server: RedisServer, log: RedisLog
    ):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        (record,) = await append(log, entry("before"))
        subscription.take(record.seq)
        server.kill()
        with pytest.raises(Unavailable):
            await append(log, entry("refused"))
        with pytest.raises(Unavailable):
            await read(log)
        subscription.ack(record.seq)
        with pytest.raises(Unavailable):
            await log.flush()
        server.start()
        (later,) = await _patiently(lambda: append(log, entry("after")))
        assert later.seq > record.seq
        assert ids(await read(log)) == ["before", "after"]
        await _patiently(log.flush)
        again = RedisLog(server.url, owner="first")
        await again.open()
        assert again.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(record.seq)
        await again.close()

    async def test_a_claim_is_lost_while_redis_is_silent_and_granted_again(self, server: RedisServer, log: RedisLog):
        heard: list[str] = []
        claim(log, "uid-1", "granted", heard)
        await until(lambda: heard == ["granted"])
        server.pause()
        await until(lambda: "granted lost" in heard)
        server.resume()
        await until(lambda: len(heard) == 3)
        assert heard == ["granted", "granted lost", "granted"]

    async def test_without_redis_the_log_says_what_to_do(self, server: RedisServer):
        server.kill()
        with pytest.raises(Unavailable, match=r"apt-get install redis-server.*--redis-url"):
            await RedisLog(server.url, owner="first").open()

    async def test_a_redis_that_is_out_of_memory_refuses_events_and_still_keeps_positions(
        self, server: RedisServer, log: RedisLog
    ):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        (record,) = await append(log, entry("before"))
        subscription.take(record.seq)
        await log.flush()
        control = Connection(server.url)
        await control.run("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(LogFull, match="maxmemory"):
            await append(log, entry("refused"))
        heard: list[str] = []
        claim(log, "uid-2", "granted", heard)  # without deliveries no room would ever be made
        await until(lambda: heard == ["granted"])
        subscription.ack(record.seq)
        await _patiently(log.flush)
        assert b'"open":[]' in await control.run("HGET", Keys("penstock").positions, "uid-1")
        await control.run("CONFIG", "SET", "maxmemory", "0")
        (later,) = await append(log, entry("after"))
        assert isinstance(later, Record)
        await control.close()

    async def test_a_redis_that_is_out_of_memory_makes_room_though_the_ledger_has_none(
        self, server: RedisServer, log: RedisLog
    ):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        (record,) = await append(log, entry("before"))
        subscription.take(record.seq)
        await log.flush()
        control = Connection(server.url)
        await control.run("CONFIG", "SET", "maxmemory", "1")
        subscription.ack(record.seq)
        log.note(Attempt(record.seq, "uid-1", 1000.0, 1, 202, 0.1, "delivered"))
        log.remember("uid-1", b"a word")
        with pytest.raises(LogFull, match="maxmemory"):
            await log.flush()
        assert await log.retain(1000.0 + 8 * 86_400.0) == 1
        await control.run("CONFIG", "SET", "maxmemory", "0")
        await _patiently(log.flush)
        await control.close()

    async def test_a_changed_record_is_told_as_corrupt_and_never_read(self, server: RedisServer, log: RedisLog):
        records = await append(log, *(entry(name) for name in "abc"))
        control = Connection(server.url)
        stream = Keys("penstock").events(BROKER)
        held = await control.run("XRANGE", stream, "-", "+")
        await control.run("DEL", stream)
        for number, (entry_id, (name, stored)) in enumerate(held):
            changed = stored.replace(b"/test", b"/tesT") if number == 1 else stored
            await control.run("XADD", stream, entry_id, name, changed)
        await control.close()
        page = await read(log)
        assert ids(page) == ["a", "c"]
        assert page.corrupt == (records[1].seq,)


class TestARedisOnAFullDisk:
    """The disk is a small one of its own (`tests.support.disks`)."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[SmallDisk]:
        with SmallDisk(tmp_path / "disk", 8 * 1024 * 1024) as disk:
            yield disk

    @pytest.mark.parametrize("sync", ["everysec", "always"])
    async def test_it_refuses_events_keeps_what_it_has_and_goes_on_once_there_is_room(self, disk: SmallDisk, sync: str):
        server = RedisServer(disk.at, disk.inside)
        server.start("--appendfsync", sync)
        log = RedisLog(server.url, owner="first")
        try:
            await log.open()
            await self._fill_and_free(log, server, disk, sync)
            await log.close()
        finally:
            server.kill()

    async def _fill_and_free(self, log: RedisLog, server: RedisServer, disk: SmallDisk, sync: str) -> None:
        (before,) = await append(log, entry("before"))
        disk.fill()
        refused: list[Unavailable] = []
        while len(refused) < 3:
            try:
                await append(log, entry("large", data=bytes(100_000)))
            except Unavailable as error:
                refused.append(error)
        if sync == "everysec":
            assert isinstance(refused[-1], LogFull)
            assert "No space left on device" in str(refused[-1])
            assert ids(await read(log))[:1] == ["before"]
        else:  # one that syncs each write ends where it cannot
            server.kill()
        disk.make_room()
        if sync == "always":
            server.start()
        (after,) = await _patiently(lambda: append(log, entry("after")))
        page = await read(log)
        assert ids(page)[0] == "before"
        assert ids(page)[-1] == "after"
        assert after.seq > before.seq
        await _patiently(log.flush)


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Its result once it is not refused any more."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await work()
            except Unavailable:
                await asyncio.sleep(0.01)


async def _appends(logs: Logs) -> int:
    """Append scripts so far."""
    if not await logs.redis.run("EXISTS", logs.keys.wake):
        return 0
    info = await logs.redis.run("XINFO", "STREAM", logs.keys.wake)
    return int(dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"])
