"""What lies on the disk of an event log."""

import asyncio
import sqlite3
from contextlib import closing

from broker.log.port import Entry
from broker.log.sqlite import SqliteLog
from core.events import binary_head, new_event


async def test_nobody_else_can_read_stored_events(tmp_path):
    log = SqliteLog(tmp_path / "broker" / "log.db")
    await log.open()
    try:
        event = new_event(type="secret", source="/s", now=0, data=b"payload")
        stored = asyncio.get_running_loop().create_future()
        log.append(Entry("ns/b", event.attributes, binary_head(event), b"payload", 0.0, 255), stored.set_result)
        await stored
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "broker").iterdir()}
    finally:
        await log.close()
    assert {"log.db", "log.db-wal", "log.db-shm"} <= set(modes)
    assert set(modes.values()) == {0o600}


async def test_a_file_from_before_dispatchers_left_word_gets_a_place_for_it(tmp_path):
    path = tmp_path / "log.db"
    log = SqliteLog(path)
    await log.open()
    log.subscribe("uid-1", "ns/b", "ns/t", 0)
    await log.close()
    with closing(sqlite3.connect(path)) as older:
        older.execute("DROP TABLE memos")
        older.commit()
    log = SqliteLog(path)
    await log.open()
    try:
        log.remember("uid-1", b"a word")
        await log.flush()
        recalled = asyncio.get_running_loop().create_future()
        log.recall("uid-1", recalled.set_result)
        assert await recalled == b"a word"
    finally:
        await log.close()
