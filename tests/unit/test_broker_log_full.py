"""A SQLite event log that has its largest permitted size."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from broker.log import schema
from broker.log.port import Entry, LogFull, Retention
from broker.log.sqlite import SqliteLog
from core.errors import PenstockError
from core.events import binary_head, new_event

FULL = Retention(full_bytes=400_000)


async def fill(log: SqliteLog) -> int:
    """Append events until one is refused; the newest position."""
    event = new_event(type="t", source="/s", now=0)
    for size in (10_000, 1):
        for _ in range(10_000):
            stored = asyncio.get_running_loop().create_future()
            log.append(Entry("ns/b", event.attributes, binary_head(event), bytes(size), 0.0, 255), stored.set_result)
            if isinstance(error := await stored, PenstockError):
                assert isinstance(error, LogFull)
                break
        else:
            raise AssertionError("nothing was refused")
    return log.last()


async def test_a_full_log_of_an_older_version_opens(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        for sql in schema.TABLES:
            older.execute(sql)
        older.execute("ALTER TABLE attempts DROP COLUMN revision")
        older.execute("ALTER TABLE attempts DROP COLUMN cold_start")
        older.execute("PRAGMA user_version = 1")
        size, pages = (older.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
    log = SqliteLog(path, retention=Retention(full_bytes=pages * size))
    await log.open()
    try:
        await fill(log)
    finally:
        await log.close()


async def test_positions_are_kept_in_a_full_log_though_there_is_no_room_for_what_is_remembered(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", retention=FULL)
    await log.open()
    held = log.subscribe("uid", "ns/b", "ns/t", 0)
    await log.flush()
    newest = await fill(log)
    try:
        held.skip(newest)
        log.remember("uid", bytes(30_000))
        for _ in range(2):
            try:
                await log.flush()
            except LogFull:
                continue
        with closing(sqlite3.connect(tmp_path / "log.db")) as reader:
            assert reader.execute("SELECT through FROM subscriptions").fetchall() == [(newest,)]
    finally:
        await log.close()


async def test_the_write_ahead_log_stays_short_while_many_large_positions_are_kept(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    try:
        all_held = [log.subscribe(f"uid-{n}", "ns/b", f"ns/t{n}", 0) for n in range(200)]
        for held in all_held:
            for seq in range(1, 513):
                held.take(seq)
        for turn in range(80):
            for held in all_held:
                held.take(1000 + turn)
                held.ack(turn)
            await log.flush()
        assert (tmp_path / "log.db-wal").stat().st_size < 32 * 1024 * 1024
    finally:
        await log.close()
