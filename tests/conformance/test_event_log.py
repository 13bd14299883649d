"""The EventLog suite on every adapter and on the fake, and what only the SQLite log can show."""

import asyncio
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from broker.ledger import Attempt
from broker.log.memory import MemoryLog
from broker.log.port import EventLog, LogFull, Retention
from broker.log.query import LogReader
from broker.log.sqlite import SqliteLog
from core.errors import Unavailable
from tests.conformance.event_log import BROKER, DurableLogSuite, EventLogSuite, append, entry, ids, read
from tests.conformance.log_query import LogQuerySuite


class TestMemoryLog(EventLogSuite):
    @pytest.fixture
    def log(self) -> MemoryLog:
        return MemoryLog()


#: Asks for the lock on the index of the write-ahead log that each connection shares (SQLite's "dead man's switch",
#: https://sqlite.org/walformat.html#locks). Who gets it alone takes the index for nobody's, and makes it anew.
_TAKE = """
import fcntl, sys

with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
        print("nobody's")
    except BlockingIOError:
        print("in use")
"""


class _Opened:
    """The log under test, whichever opening of it is the current one."""

    def __init__(self, path: Path, retention: Retention | None = None) -> None:
        self.path = path
        self.retention = retention
        self.log = SqliteLog(path, retention=retention)

    async def again(self) -> SqliteLog:
        await self.log.close()
        return await self.again_from_closed()

    async def again_from_closed(self) -> SqliteLog:
        self.log = SqliteLog(self.path, retention=self.retention)
        await self.log.open()
        return self.log


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[_Opened]:
    held = _Opened(tmp_path / "broker" / "log.db")
    await held.log.open()
    yield held
    await held.log.close()


class TestSqliteLog(EventLogSuite, DurableLogSuite):
    @pytest.fixture
    def log(self, opened: _Opened) -> SqliteLog:
        return opened.log

    @pytest.fixture
    def reopen(self, opened: _Opened) -> Callable[[], Awaitable[EventLog]]:
        return opened.again

    async def test_events_of_one_turn_share_a_commit(self, opened: _Opened):
        before = _commits(opened.path)
        await append(opened.log, *(entry(str(n)) for n in range(50)))
        assert _commits(opened.path) - before <= 2

    @pytest.mark.parametrize("again", [False, True], ids=["new", "opened again"])
    async def test_other_processes_find_the_index_in_use_and_do_not_cut_it_under_its_writer(
        self, opened: _Opened, again: bool
    ):
        await append(opened.log, entry("a"))
        if again:
            await opened.again()
            await append(opened.log, entry("b"))
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _TAKE, f"{opened.path}-shm"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "in use\n"

    async def test_a_second_writer_is_refused(self, opened: _Opened):
        second = SqliteLog(opened.path)
        with pytest.raises(Unavailable, match="in use by another process"):
            await second.open()

    async def test_a_file_of_another_format_is_refused(self, tmp_path: Path):
        with sqlite3.connect(tmp_path / "log.db") as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(Unavailable, match="format 99"):
            await SqliteLog(tmp_path / "log.db").open()

    async def test_a_file_of_the_first_format_is_read_and_then_brought_to_this_one(self, tmp_path: Path):
        path = tmp_path / "log.db"
        before = Attempt(1, "uid-1", 1000.0, 1, 500, 0.5, "retrying", "busy")
        first = _Opened(path)
        await first.log.open()
        first.log.subscribe("uid-1", BROKER, "default/one", 0)
        (record,) = await append(first.log, entry("a"))
        first.log.note(before)
        await first.log.close()
        with sqlite3.connect(path) as connection:  # as the first version made it
            connection.execute("ALTER TABLE attempts DROP COLUMN revision")
            connection.execute("ALTER TABLE attempts DROP COLUMN cold_start")
            connection.execute("PRAGMA user_version = 1")
        connection.close()
        reader = LogReader(path)
        assert reader.deliveries([1])[1][0].attempts == (before,)
        log = await first.again_from_closed()
        after = Attempt(1, "uid-1", 1001.0, 2, 202, 0.5, "delivered", None, "scan-00002", 0.25)
        log.note(after)
        await log.flush()
        assert ids(await read(log)) == ["a"]
        assert reader.deliveries([record.seq])[record.seq][0].attempts == (before, after)
        await log.close()

    @pytest.mark.parametrize("column", ["head", "data", "at", "ttl", "crc"])
    async def test_a_changed_record_is_told_as_corrupt_and_never_read(self, opened: _Opened, column: str):
        records = await append(opened.log, entry("a"), entry("b", data=b"payload"), entry("c"))
        with sqlite3.connect(opened.path) as connection:
            if column in ("head", "data"):
                changed = f"CAST(replace(CAST({column} AS TEXT), 'a', 'A') AS BLOB)"
            else:
                changed = f"{column} + 1"
            connection.execute(f"UPDATE events SET {column} = {changed} WHERE seq = ?", (records[1].seq,))  # noqa: S608 - the table above
        connection.close()
        page = await read(opened.log)
        assert ids(page) == ["a", "c"]
        assert page.corrupt == (records[1].seq,)

    async def test_a_full_log_refuses_events_keeps_what_it_has_and_takes_more_once_there_is_room(self, tmp_path: Path):
        held = _Opened(tmp_path / "log.db", Retention(full_bytes=400_000))
        log = held.log
        await log.open()
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        kept: list[str] = []
        for n in range(1000):
            try:
                (record,) = await append(log, entry(str(n), data=bytes(20_000)))
            except LogFull:
                break
            kept.append(str(n))
            subscription.take(record.seq)
        assert 0 < len(kept) < 20
        assert ids(await read(log)) == kept
        for seq in tuple(subscription.open):
            subscription.ack(seq)
        await log.retain(1000.0 + 8 * 86_400.0)
        await append(log, entry("again", data=bytes(20_000)))
        assert ids(await read(log)) == ["again"]
        again = await held.again()
        assert again.subscribe("uid-1", BROKER, "default/one", 0).position().open == ()
        await again.close()

    async def test_a_disk_that_refuses_writes_refuses_events_and_the_log_works_again_after(self, opened: _Opened):
        log = opened.log
        await append(log, entry("before"))
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        wal = opened.path.with_name(opened.path.name + "-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 8192, limit[1]))
        try:
            with pytest.raises(Unavailable):
                await append(log, entry("refused", data=bytes(100_000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        await append(log, entry("after"))
        assert ids(await read(log)) == ["before", "after"]

    async def test_ids_are_indexed_behind_the_events(self, opened: _Opened):
        for start in range(0, 4000, 500):
            await append(opened.log, *(entry(str(n)) for n in range(start, start + 500)))
        with sqlite3.connect(opened.path) as connection:
            (indexed,) = connection.execute("SELECT value FROM meta WHERE name = 'indexed'").fetchone()
            (held,) = connection.execute("SELECT count(*) FROM ids").fetchone()
        connection.close()
        assert 1024 <= indexed <= 4000
        assert held == indexed

    async def test_ledger_rows_and_positions_are_kept_without_any_append(self, opened: _Opened):
        subscription = opened.log.subscribe("uid-1", BROKER, "default/one", 0)
        opened.log.note(Attempt(1, "uid-1", 1000.0, 1, 202, 0.01, "delivered"))
        subscription.take(5)
        subscription.ack(5)
        async with asyncio.timeout(10):
            await _until(lambda: _rows(opened.path) == (1, 5))


async def test_a_log_whose_thread_ended_by_a_fault_says_so_and_takes_nothing_more(tmp_path: Path):
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    log._jobs.put(lambda: [].clear(1))  # type: ignore[call-arg]
    async with asyncio.timeout(10):
        await log.failed()
    with pytest.raises(Unavailable):
        await append(log, entry("a"))


class TestSqliteReader(LogQuerySuite):
    @pytest.fixture
    def log(self, opened: _Opened) -> SqliteLog:
        return opened.log

    @pytest.fixture
    def reader(self, opened: _Opened) -> LogReader:
        return LogReader(opened.path)


async def _until(holds: Callable[[], bool]) -> None:
    """The flush interval passes on the real clock, because the writer is a thread: look again after a turn of it."""
    while not holds():  # noqa: ASYNC110 - the file has no event to wait for
        await asyncio.sleep(0.005)


def _commits(path: Path) -> int:
    """Commits in the write-ahead log: each ends with one frame that states the file's size (bytes 4 to 8)."""
    raw = path.with_name(path.name + "-wal").read_bytes()
    frame = 24 + int.from_bytes(raw[8:12], "big")
    return sum(1 for at in range(32, len(raw), frame) if raw[at + 4 : at + 8] != b"\0\0\0\0")


def _rows(path: Path) -> tuple[int, int]:
    connection = sqlite3.connect(path)
    try:
        (notes,) = connection.execute("SELECT count(*) FROM attempts").fetchone()
        (through,) = connection.execute("SELECT coalesce(max(through), 0) FROM subscriptions").fetchone()
    finally:
        connection.close()
    return notes, through
