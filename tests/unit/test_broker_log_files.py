"""What lies on the disk of an event log."""

import asyncio

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
