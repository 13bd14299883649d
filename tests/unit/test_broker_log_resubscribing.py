"""A subscription of the SQLite event log that is dropped and made again before either is on the disk."""

from __future__ import annotations

from pathlib import Path

from broker.log.sqlite import SqliteLog


async def test_a_subscription_made_again_in_the_commit_that_drops_it_is_kept(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    log.subscribe("uid", "default/main", "first", 0)
    await log.flush()
    log.unsubscribe("uid")
    log.subscribe("uid", "default/main", "again", 7)
    log.remember("uid", b"memo")
    await log.close()

    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    try:
        assert list(log.subscriptions()) == ["uid"]
        assert log.subscribe("uid", "default/main", "again", 99).position().through == 7
    finally:
        await log.close()
