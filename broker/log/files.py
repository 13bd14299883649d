"""Opening the SQLite event log's file, and what it holds at that moment."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from broker.log import schema
from broker.log.port import Position
from broker.log.refusals import damaged
from broker.log.wal import lost_commits
from core.errors import Corrupt, Unavailable

__all__ = ["Files", "Found", "Kept"]

logger = logging.getLogger(__name__)

#: The file's folder, the data directory and the folder that this one is in: the first two may be new as well.
_NEW_FOLDERS: Final = 3
#: Of a Broker, the newest events that are looked at when the file is opened.
_SAMPLES: Final = 3
#: No log gets there: a position beyond it is damaged.
_FARTHEST: Final = 2**56


class Kept(msgspec.Struct, frozen=True):
    """A subscription's row; `position` None where it was dropped and only its name is left for the ledger."""

    number: int
    uid: str
    broker: str
    name: str
    position: Position | None


class Found(msgspec.Struct, frozen=True):
    """What the file holds: Brokers by number, subscriptions, the newest position, how far ids are indexed, and how long
    its write-ahead log is."""

    brokers: dict[int, str]
    subscriptions: tuple[Kept, ...]
    last: int
    indexed: int
    log_bytes: int


class Files:
    """The log's connections and the lock that makes this process the only writer."""

    def __init__(self, path: Path, full_bytes: int) -> None:
        """Raises Unavailable, sqlite3.Error or OSError where the file cannot be used."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise Unavailable(f"The event log {path} is in use by another process.") from error
        try:
            if not path.exists():
                # Events are their senders' business: made before SQLite would, which gives its other files this mode.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                _sync_folders(path)
            self.writer = _connect(path)
            self.reader = _connect(path)
            self.checkpointer = _connect(path)
        except BaseException:
            os.close(self._lock)  # or the next try in this process would take it for another's
            raise
        try:
            self._prepare(path, full_bytes)
            log = path.with_name(path.name + "-wal")
            self.found = self._load(log.stat().st_size if log.exists() else 0)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            self.close()
            raise damaged(path, f"what it says of its Brokers and subscriptions cannot be ({error!r})") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.reader.close()
        self.checkpointer.close()
        self.writer.close()
        os.close(self._lock)

    def _prepare(self, path: Path, full_bytes: int) -> None:
        writer = self.writer
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = FULL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")  # see `broker.log.checkpoints`
        self.checkpointer.execute("PRAGMA synchronous = FULL")
        held = self._one("PRAGMA user_version")
        if lost := lost_commits(path, writer):
            facts = {"file": f"{path}-wal", "commits": lost}
            logger.error(
                "the write-ahead log is damaged, or a power cut tore its end: "
                "events that were answered 202 just before the end may be missing",
                extra={"facts": facts},
            )
        if held == 0:
            self._change(schema.TABLES, schema.FORMAT)
        while held in schema.MIGRATIONS:
            self._change(schema.MIGRATIONS[held], held + 1)
            held += 1
        if held not in (0, schema.FORMAT):
            raise Unavailable(
                f"The event log {path} has format {held}; this version reads format {schema.FORMAT}. Move it away."
            )
        writer.execute(schema.MEMOS)
        # Not before: an older version's log that is full must open as well, or nothing could make room in it.
        writer.execute(f"PRAGMA max_page_count = {max(1, full_bytes // self._one('PRAGMA page_size'))}")
        self.reader.execute("PRAGMA query_only = 1")

    def _change(self, statements: Iterable[str], to: int) -> None:
        """Bring the file to a format: wholly, or not at all."""
        self.writer.execute("BEGIN IMMEDIATE")
        for sql in statements:
            self.writer.execute(sql)
        self.writer.execute(f"PRAGMA user_version = {to}")
        self.writer.execute("COMMIT")

    def _load(self, log_bytes: int) -> Found:
        rows: list[tuple[Any, ...]]
        columns = "id, uid, broker, name, kept, through, open"
        rows = self.writer.execute(f"SELECT {columns} FROM subscriptions ORDER BY id").fetchall()  # noqa: S608 - constant
        brokers = dict(self.writer.execute("SELECT id, name FROM brokers"))
        meta = dict(self.writer.execute("SELECT name, value FROM meta"))
        for number, name in brokers.items():
            self._check_name(number, name)
        kept = tuple(_kept(row, brokers) for row in rows)
        # Retention may have removed the newest events; a position is never given twice. One of a damaged row counts
        # here as well, where it can be one: at worst positions have a gap.
        through = (row[5] for row in rows if 0 <= row[5] < _FARTHEST)
        newest = (self._one("SELECT coalesce(max(seq), 0) FROM events"), meta["last"], *through)
        return Found(brokers, kept, max(newest), meta["indexed"], log_bytes)

    def _check_name(self, number: int, name: str) -> None:
        """Say it where a Broker's events are not those of the Broker of this name."""
        sql = f"{schema.SELECT_EVENT} WHERE broker = ? ORDER BY seq DESC LIMIT {_SAMPLES}"
        fits = False
        try:
            rows = self.writer.execute(sql, (number,)).fetchall()
        except sqlite3.Error:  # told where they are read
            return
        for row in rows:
            try:
                schema.record_of(row, name, None)
                fits = True
            except Corrupt:
                continue
        if rows and not fits:
            facts = {"broker": name, "number": number}
            logger.error("the newest events of a Broker are corrupt, or it had another name", extra={"facts": facts})

    def _one(self, sql: str) -> int:
        return int(self.writer.execute(sql).fetchone()[0])


def _sync_folders(path: Path) -> None:
    """Have a new file's way from the data directory on the disk: SQLite syncs what is in the file."""
    for folder in path.absolute().parents[:_NEW_FOLDERS]:
        with suppress(OSError):  # one that is not ours to open, or of a file system that has nothing to sync
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _kept(row: tuple[Any, ...], brokers: dict[int, str]) -> Kept:
    number, uid, broker, name, keep, through, opened = row
    position = None
    if keep or opened:
        try:
            position = Position(through, schema.unpack_open(uid, brokers[broker], through, opened))
        except (Corrupt, LookupError, TypeError) as error:
            facts = {"subscription": name, "uid": uid, "error": str(error)}
            logger.error("a Trigger's events since its creation are delivered again", extra={"facts": facts})
    return Kept(number, str(uid), brokers.get(broker, ""), str(name), position)


def _connect(path: Path) -> sqlite3.Connection:
    # The loop's thread and the writer thread take turns with the writing connection; never at the same time.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
