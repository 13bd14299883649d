"""Opening the SQLite event log's file, and what it holds at that moment."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from broker.log import schema
from broker.log.port import Position
from core.errors import Unavailable

__all__ = ["Files", "Found", "Kept"]


class Kept(msgspec.Struct, frozen=True):
    """A subscription's row; `position` None where it was dropped and only its name is left for the ledger."""

    number: int
    uid: str
    broker: str
    name: str
    position: Position | None


class Found(msgspec.Struct, frozen=True):
    """What the file holds: Brokers by number, subscriptions, the newest position, and how far ids are indexed."""

    brokers: dict[int, str]
    subscriptions: tuple[Kept, ...]
    last: int
    indexed: int


class Files:
    """The log's two connections and the lock that makes this process the only writer."""

    def __init__(self, path: Path, full_bytes: int) -> None:
        """Raises Unavailable, sqlite3.Error or OSError where the file cannot be used."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise Unavailable(f"The event log {path} is in use by another process.") from error
        # Events are their senders' business: made before SQLite would, which gives its other files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.writer = _connect(path)
        self.reader = _connect(path)
        try:
            self._prepare(path, full_bytes)
            self.found = self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
        os.close(self._lock)

    def _prepare(self, path: Path, full_bytes: int) -> None:
        writer = self.writer
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = FULL")
        page_size = self._one("PRAGMA page_size")
        writer.execute(f"PRAGMA max_page_count = {max(1, full_bytes // page_size)}")
        held = self._one("PRAGMA user_version")
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
        self.reader.execute("PRAGMA query_only = 1")

    def _change(self, statements: Iterable[str], to: int) -> None:
        """Bring the file to a format: wholly, or not at all."""
        self.writer.execute("BEGIN IMMEDIATE")
        for sql in statements:
            self.writer.execute(sql)
        self.writer.execute(f"PRAGMA user_version = {to}")
        self.writer.execute("COMMIT")

    def _load(self) -> Found:
        rows: list[tuple[Any, ...]]
        rows = self.writer.execute("SELECT id, uid, broker, name, kept, through, open FROM subscriptions").fetchall()
        brokers = dict(self.writer.execute("SELECT id, name FROM brokers"))
        meta = dict(self.writer.execute("SELECT name, value FROM meta"))
        kept = tuple(
            Kept(number, uid, brokers[broker], name, Position(through, schema.unpack_open(opened)) if keep else None)
            for number, uid, broker, name, keep, through, opened in rows
        )
        # Retention may have removed the newest events; a position is never given twice.
        newest = (self._one("SELECT coalesce(max(seq), 0) FROM events"), meta["last"], *(row[5] for row in rows))
        return Found(brokers, kept, max(newest), meta["indexed"])

    def _one(self, sql: str) -> int:
        return int(self.writer.execute(sql).fetchone()[0])


def _connect(path: Path) -> sqlite3.Connection:
    # The loop's thread and the writer thread take turns with the writing connection; never at the same time.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
