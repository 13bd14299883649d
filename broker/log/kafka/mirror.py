"""A copy of the log's topics in a SQLite file, made so that people's questions can be answered: Kafka finds a record by
its position and by nothing else.

The file has the tables of the SQLite event log (`broker.log.schema`), so that its reader answers. It is a cache: it may
be removed at any time, and is made anew where Kafka has another log than it knows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from broker.log import schema
from broker.log.encoding import decode_attempt, decode_record
from broker.log.kafka.connection import EARLIEST, LATEST, Connection, patiently
from broker.log.kafka.layout import Kept, Stored, Topics, decode_kept, stored_in
from broker.log.kafka.reading import FETCH_BYTES
from broker.log.kafka.state import State
from core.errors import Corrupt

__all__ = ["Mirror"]

#: Rows by whose end the index of ids follows.
INDEX_EVERY: Final = 1024

_ADD_EVENT: Final = schema.ADD_EVENT.replace("INSERT", "INSERT OR REPLACE", 1)
_NAME_SUBSCRIPTION: Final = """INSERT INTO subscriptions VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET broker = excluded.broker, name = excluded.name, kept = excluded.kept,
    through = excluded.through, open = excluded.open"""
_FORGET: Final = (
    "DELETE FROM events WHERE seq <= ?",
    "DELETE FROM ids WHERE seq <= ?",
    "DELETE FROM attempts WHERE seq <= ?",
)


class Mirror:
    """Used on one thread, in one event loop. All raise CONNECTION_ERRORS, and sqlite3.Error for the file."""

    def __init__(self, path: Path, connection: Connection, topics: Topics) -> None:
        self._path = path
        self._kafka = connection
        self._topics = topics
        self._state = State()
        self._file: sqlite3.Connection | None = None
        self._brokers: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._written: dict[str, bytes] = {}
        #: Of the events, how far the copy is and where it goes to: what is said while it is made.
        self.next = 0
        self.end = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def catch_up(self) -> None:
        """Copy all that the topics hold at this moment. Nothing where there is no log yet."""
        topics = self._topics
        if topics.state not in await self._kafka.topics():
            return
        await self._kafka.know((topics.events, topics.ledger, topics.state))
        ends = {topic: await self._offset(topic, LATEST) for topic in (topics.state, topics.events, topics.ledger)}
        file = self._opened(ends)
        await self._copy_state(file, ends[topics.state])
        start = await self._offset(topics.events, EARLIEST)
        await self._copy(file, topics.events, start, ends[topics.events])
        await self._copy(file, topics.ledger, await self._offset(topics.ledger, EARLIEST), ends[topics.ledger])
        self._forget(file, start)

    # ---- inside

    async def _offset(self, topic: str, time_ms: int) -> int:
        return await patiently(lambda: self._kafka.offset(topic, time_ms))

    def _opened(self, ends: dict[str, int]) -> sqlite3.Connection:
        """The file, a new one where Kafka has less than was copied: then it is another log."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._connect()
        copied = dict(self._file.execute("SELECT name, value FROM meta"))
        if (
            any(copied.get(topic, 0) > end for topic, end in ends.items())
            or self._state.next > ends[self._topics.state]
        ):
            self.close()
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._state, self._written = State(), {}
            self._file = self._connect()
        return self._file

    def _connect(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._path, isolation_level=None)
        # Events are their senders' business.
        self._path.chmod(0o600)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = OFF")  # what is lost is copied again
        (held,) = file.execute("PRAGMA user_version").fetchone()
        if held not in (0, schema.FORMAT):
            file.close()
            self._path.unlink()
            return self._connect()
        if held == 0:
            file.execute("BEGIN")
            for sql in schema.TABLES:
                file.execute(sql)
            file.execute(f"PRAGMA user_version = {schema.FORMAT}")
            file.execute("COMMIT")
        self._brokers = {name: number for number, name in file.execute("SELECT id, name FROM brokers")}
        self._numbers = {uid: number for number, uid in file.execute("SELECT id, uid FROM subscriptions")}
        return file

    async def _copy_state(self, file: sqlite3.Connection, end: int) -> None:
        topic = self._topics.state
        self._state.next = max(self._state.next, await self._offset(topic, EARLIEST))
        while self._state.next < end:
            fetched = (await self._fetch(topic, self._state.next))[topic]
            for stored in stored_in(fetched.data, self._state.next):
                self._state.apply(stored)
        file.execute("BEGIN")
        for uid, kept in self._state.stored().items():
            if self._written.get(uid) != kept:
                self._write_subscription(file, uid, decode_kept(kept))
                self._written[uid] = kept
        file.execute("COMMIT")

    async def _copy(self, file: sqlite3.Connection, topic: str, start: int, end: int) -> None:
        row = file.execute("SELECT value FROM meta WHERE name = ?", (topic,)).fetchone()
        offset = max(start, row[0] if row is not None else 0)
        is_events = topic == self._topics.events
        while offset < end:
            found = list(stored_in((await self._fetch(topic, offset))[topic].data, offset))
            if not found:
                return
            offset = found[-1].offset + 1
            file.execute("BEGIN")
            if is_events:
                self.next, self.end = offset, end
                file.executemany(_ADD_EVENT, [self._event_row(file, stored) for stored in found])
            else:
                file.executemany(schema.ADD_ATTEMPT, self._attempt_rows(file, found))
            file.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (topic, offset))
            if is_events:
                for sql in schema.INDEX_IDS:
                    file.execute(sql)
            file.execute("COMMIT")

    async def _fetch(self, topic: str, offset: int) -> dict[str, Any]:
        return await patiently(lambda: self._kafka.fetch({topic: offset}, max_bytes=FETCH_BYTES))

    def _event_row(self, file: sqlite3.Connection, stored: Stored) -> tuple[Any, ...]:
        seq, broker = stored.offset + 1, stored.key.decode(errors="replace")
        number = self._broker_number(file, broker)
        try:
            record = decode_record(seq, broker, stored.value or b"")
        except Corrupt:  # a row whose checksum is wrong as well
            return seq, number, stored.time_ms * 1000, 0, -1, 0, None, None, b"", stored.value or b""
        via = record.entry.via
        return schema.encode_event(record, number, self._number(file, via) if via else None)

    def _attempt_rows(self, file: sqlite3.Connection, found: Iterable[Stored]) -> list[tuple[Any, ...]]:
        rows = []
        for stored in found:
            try:
                made = decode_attempt(stored.value or b"")
            except Corrupt:
                continue  # it cannot be said of which event it is
            rows.append(schema.encode_attempt(made, self._number(file, made.uid)))
        return rows

    def _broker_number(self, file: sqlite3.Connection, name: str) -> int:
        number = self._brokers.get(name)
        if number is None:
            number = self._brokers[name] = max(self._brokers.values(), default=0) + 1
            file.execute(schema.ADD_BROKER, (number, name))
        return number

    def _number(self, file: sqlite3.Connection, uid: str) -> int:
        number = self._numbers.get(uid)
        if number is None:  # the state tells its name, if it is still kept
            number = self._numbers[uid] = max(self._numbers.values(), default=0) + 1
            file.execute(_NAME_SUBSCRIPTION, (number, uid, 0, "", 0, 0, b""))
        return number

    def _write_subscription(self, file: sqlite3.Connection, uid: str, kept: Kept) -> None:
        position = kept.position
        broker = self._broker_number(file, kept.broker)
        opened = schema.pack_open(uid, kept.broker, position)
        row = (self._number(file, uid), uid, broker, kept.name, int(not kept.dropped), position.through, opened)
        file.execute(_NAME_SUBSCRIPTION, row)

    def _forget(self, file: sqlite3.Connection, start: int) -> None:
        """What Kafka does not keep any more."""
        file.execute("BEGIN")
        for sql in _FORGET:
            file.execute(sql, (start,))
        file.execute("COMMIT")
