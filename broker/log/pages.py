"""Reads of the SQLite event log: pages of a Broker's events, single events, and what is whole around what is damaged.

A damaged page of the file makes every statement fail that comes across it, and damage in the index hides events without
a word. The events that are whole must reach their Triggers without waiting for a person to mend the file: where
statements fail, or the index has other events than the table, positions are read one by one.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from broker.log import retention, schema
from broker.log.port import Page, Record
from broker.log.refusals import FileDamaged, unavailable
from core.errors import Corrupt, PenstockError

__all__ = ["Pages"]

logger = logging.getLogger(__name__)

#: A page of events read at once ends after this many bytes.
PAGE_BYTES: Final = 512 * 1024
#: A page's index is held against the table where the page spans no more positions than this: some 0.1 ms.
CHECKED_POSITIONS: Final = 1024

_PAGE: Final = f"{schema.SELECT_EVENT} WHERE broker = ? AND seq > ? ORDER BY seq LIMIT ?"
_ONE: Final = f"{schema.SELECT_EVENT} WHERE seq = ? AND broker = ?"
_COUNT: Final = "SELECT count(*) FROM events NOT INDEXED WHERE seq > ? AND seq <= ? AND broker = ?"
_INDEXED: Final = "SELECT seq FROM events INDEXED BY events_broker WHERE broker = ? AND seq > ? AND seq <= ?"


class Pages:
    """Reads with `connection`, from the file at `path`. `uids` are subscriptions by their numbers."""

    def __init__(self, connection: sqlite3.Connection, path: Path, uids: Mapping[int, str]) -> None:
        self._connection = connection
        self._path = path
        self._uids = uids

    def page(self, broker: str, number: int, after: int, limit: int, last: int) -> Page | PenstockError:
        """The next events of the Broker of this number, up to the position `last` of the newest event."""
        page = self._page(_PAGE, (number, after, limit), broker, after, limit, last)
        if isinstance(page, Page):
            if self._is_all(page, number, after):
                return page
            facts = {"broker": broker, "after": after, "through": page.through}
            logger.error("the event log is damaged; events are read without its index", extra={"facts": facts})
        elif not isinstance(page, FileDamaged):
            return page
        through = min(after + limit, last)
        known = self._indexed(number, after, through)
        records, corrupt = self._each(broker, number, range(after + 1, through + 1), known)
        return Page(records, max(after, through), tuple(corrupt), through < last)

    def pick(self, broker: str, number: int, seqs: Sequence[int]) -> Page | PenstockError:
        """The events at these positions; those that are not kept, or not the Broker's, are left out."""
        marks = ", ".join("?" * len(seqs))
        sql = f"{schema.SELECT_EVENT} WHERE seq IN ({marks}) AND broker = ? ORDER BY seq"
        page = self._page(sql, (*seqs, number), broker, 0, len(seqs) + 1, 0)
        if not isinstance(page, FileDamaged):
            return page
        records, corrupt = self._each(broker, number, sorted(seqs), frozenset())
        return Page(records, max(seqs, default=0), tuple(corrupt))

    def seek(self, number: int, at: float) -> int | PenstockError:
        """The newest position of the Broker that arrived before `at`."""
        try:
            return retention.seek(self._connection, number, schema.micros(at))
        except sqlite3.Error as error:
            return unavailable(error, self._path)

    def memo(self, number: int) -> bytes | PenstockError:
        """What the subscription of this number has kept beside its position; empty where it has nothing."""
        try:
            row = self._connection.execute(schema.SELECT_MEMO, (number,)).fetchone()
        except sqlite3.Error as error:
            return unavailable(error, self._path)
        return row[0] if row is not None else b""

    # ---- inside

    def _page(
        self, sql: str, values: tuple[int, ...], broker: str, after: int, limit: int, last: int
    ) -> Page | PenstockError:
        records: list[Record] = []
        corrupt: list[int] = []
        size, through = 0, after
        try:
            cursor = self._connection.execute(sql, values)
            for row in cursor:
                through = row[0]
                try:
                    record = self._record(broker, row)
                except Corrupt as error:
                    _say(through, error)
                    corrupt.append(through)
                    continue
                records.append(record)
                size += len(record.entry.head) + len(record.entry.data)
                if size >= PAGE_BYTES:
                    break
            cursor.close()
        except sqlite3.Error as error:
            return unavailable(error, self._path)
        more = size >= PAGE_BYTES or len(records) + len(corrupt) >= limit
        return Page(records, through if more else max(through, last), tuple(corrupt), more)

    def _is_all(self, page: Page, number: int, after: int) -> bool:
        """Whether the index led to all of the Broker's events that the table has there, and to each of them once."""
        seqs = {record.seq for record in page.records}.union(page.corrupt)
        if len(seqs) < len(page.records) + len(page.corrupt) or min(seqs, default=after + 1) <= after:
            return False
        if not 0 < page.through - after <= CHECKED_POSITIONS:
            return True
        try:
            ((count,),) = self._connection.execute(_COUNT, (after, page.through, number))
        except sqlite3.Error:  # what is on a damaged page of the table is not known
            return False
        return bool(count == len(seqs))

    def _indexed(self, number: int, after: int, through: int) -> frozenset[int]:
        """The positions of the Broker's events as the index has them; none where it cannot be read either."""
        try:
            return frozenset(row[0] for row in self._connection.execute(_INDEXED, (number, after, through)))
        except sqlite3.Error:
            return frozenset()

    def _each(
        self, broker: str, number: int, seqs: Iterable[int], known: frozenset[int]
    ) -> tuple[list[Record], list[int]]:
        """What can be read of these positions, and those that are corrupt. Whose an event was that cannot be read at
        all is not certain, so it is told to each. `known` are events of the Broker."""
        records: list[Record] = []
        corrupt: list[int] = []
        for seq in seqs:
            try:
                row = self._connection.execute(_ONE, (seq, number)).fetchone()
                if row is not None:
                    records.append(self._record(broker, row))
                elif seq in known:
                    raise Corrupt("The index has it, and the table has not.")
            except (sqlite3.Error, Corrupt) as error:
                _say(seq, error)
                corrupt.append(seq)
        return records, corrupt

    def _record(self, broker: str, row: tuple[Any, ...]) -> Record:
        return schema.record_of(row, broker, self._uids.get(row[5] or 0))


def _say(seq: int, error: Exception) -> None:
    facts = {"seq": seq, "error": str(error)}
    logger.error("a stored event is corrupt and is not delivered", extra={"facts": facts})
