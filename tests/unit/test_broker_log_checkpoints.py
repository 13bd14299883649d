"""When SQLite's write-ahead log is brought into the database file, on real files."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.log.checkpoints import PAGES, PAGES_PER_COMMIT, Checkpoints

COMMITS = PAGES // PAGES_PER_COMMIT + 1


class Database:
    """A database, and what the checkpoints ask to have run between commits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer, self.own = (sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in "12")
        for sql in ("journal_mode = WAL", "synchronous = OFF", "wal_autocheckpoint = 0"):
            self.writer.execute(f"PRAGMA {sql}")
        self.writer.execute("CREATE TABLE t (data BLOB)")
        self.between: asyncio.Queue[Callable[[], None]] = asyncio.Queue()

    def checkpoints(self, held_bytes: int = 0) -> Checkpoints:
        loop = asyncio.get_running_loop()
        return Checkpoints(
            self.own,
            self.writer,
            held_bytes=held_bytes,
            soon=loop.call_soon_threadsafe,
            between_commits=self.between.put_nowait,
        )

    def write(self) -> None:
        self.writer.execute("INSERT INTO t VALUES (?)", (bytes(10_000),))

    def rows_without_log(self) -> int:
        """What the file itself holds: a copy without its log is looked at."""
        copy = self.path.with_name("copy.db")
        copy.write_bytes(self.path.read_bytes())
        connection = sqlite3.connect(copy)
        try:
            return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
        finally:
            connection.close()

    @property
    def log_bytes(self) -> int:
        return self.path.with_name(self.path.name + "-wal").stat().st_size

    def close(self) -> None:
        self.own.close()
        self.writer.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "log.db")
    yield made
    made.close()


async def test_a_short_log_is_left_alone(database: Database):
    made = database.checkpoints()
    for _ in range(COMMITS - 2):
        made.committed(0)
    made.close()
    await asyncio.sleep(0)
    assert database.between.empty()


@pytest.mark.parametrize("how", ["many commits", "much data", "many removed", "what a killed process left"])
async def test_a_long_log_is_brought_in_beside_the_commits_and_the_rest_between_two(database: Database, how: str):
    made = database.checkpoints(PAGES * 4096 if how == "what a killed process left" else 0)
    database.write()
    for _ in range(COMMITS if how == "many commits" else 1):
        made.committed(PAGES * 4096 if how == "much data" else 0)
    if how == "many removed":
        made.swept(PAGES)
    rest = await database.between.get()
    assert database.rows_without_log() == 1
    database.write()
    rest()
    assert database.rows_without_log() == 2
    made.close()


async def test_the_log_does_not_grow_while_commits_go_on(database: Database):
    made = database.checkpoints()
    longest = 0
    for _ in range(5):
        for _ in range(PAGES // 3):
            database.write()
            made.committed(10_000)
        (await database.between.get())()
        longest = max(longest, database.log_bytes)
    assert longest < 3 * PAGES * 4096
    made.close()


async def test_one_that_fails_is_told_and_the_next_tries_again(database: Database, caplog: pytest.LogCaptureFixture):
    made = database.checkpoints()
    database.own.close()
    made.committed(PAGES * 4096)
    while not caplog.records:  # noqa: ASYNC110 - its end is heard in a turn of the loop that no event marks
        await asyncio.sleep(0)
    assert "could not be brought in" in caplog.text
    assert database.between.empty()
    database.own = sqlite3.connect(database.path, check_same_thread=False)
    again = database.checkpoints()
    again.committed(PAGES * 4096)
    await database.between.get()
    for each in (made, again):
        each.close()
