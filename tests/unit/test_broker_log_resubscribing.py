"""Subscriptions of the SQLite event log that are dropped before they are on the disk."""

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


async def test_a_subscription_that_never_was_on_the_disk_leaves_its_number_to_nobody_who_has_one(
    tmp_path: Path,
) -> None:
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    log.subscribe("first", "default/main", "first", 1)
    log.subscribe("short", "default/main", "short", 2)
    log.unsubscribe("short")
    log.subscribe("second", "default/main", "second", 3)
    await log.close()

    for uid, start in (("third", 4), ("fourth", 5)):
        log = SqliteLog(tmp_path / "log.db")
        await log.open()
        log.subscribe(uid, "default/main", uid, start)
        await log.close()

    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    try:
        kept = {uid: log.subscribe(uid, "default/main", uid, 99).through for uid in log.subscriptions()}
        assert kept == {"first": 1, "second": 3, "third": 4, "fourth": 5}
    finally:
        await log.close()
