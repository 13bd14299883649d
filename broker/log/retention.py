"""What the SQLite event log forgets, and how it finds a time: a bounded piece of work at a time.

Runs on the writer thread in single statements that stay inside SQLite: a row brought up to Python would need the
interpreter's lock, which the event loop holds when it is busy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

from broker.log.port import Retention
from broker.log.schema import UNDELIVERED_SEQS, micros

__all__ = ["seek", "sweep"]

#: Events removed in one transaction: a few milliseconds during which no event is committed.
CHUNK: Final = 500


def sweep(connection: sqlite3.Connection, marks: Mapping[int, int], retention: Retention, now: float, last: int) -> int:
    """Remove up to `CHUNK` events that need not be kept; how many went.

    `marks` are the positions, by a Broker's number, up to which its subscriptions are done; `last` the newest position.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        count = _sweep(connection, marks, retention, now, last)
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return count


def _sweep(
    connection: sqlite3.Connection, marks: Mapping[int, int], retention: Retention, now: float, last: int
) -> int:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (seq INTEGER PRIMARY KEY, hash INTEGER)")
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS marks (broker INTEGER PRIMARY KEY, seq INTEGER)")
    connection.execute("DELETE FROM temp.doomed")
    connection.execute("DELETE FROM temp.marks")
    connection.executemany("INSERT INTO temp.marks VALUES (?, ?)", marks.items())
    bounds = [
        (f"at < ? AND seq NOT IN ({UNDELIVERED_SEQS})", micros(now - retention.max_age_s)),
        ("at < ?", micros(now - retention.undelivered_age_s)),
    ]
    if _size(connection) > retention.max_bytes:
        bounds.append((f"at <= ? AND seq NOT IN ({UNDELIVERED_SEQS})", micros(now)))
    for condition, cutoff in bounds:
        connection.execute(
            f"""INSERT OR IGNORE INTO temp.doomed SELECT e.seq, e.id_hash FROM events e JOIN temp.marks m USING (broker)
                WHERE {condition.replace("seq NOT", "e.seq NOT")} AND e.seq <= m.seq ORDER BY e.seq LIMIT {CHUNK}""",  # noqa: S608 - constants
            (cutoff,),
        )
    connection.execute("DELETE FROM ids WHERE (hash, seq) IN (SELECT hash, seq FROM temp.doomed)")
    connection.execute("DELETE FROM attempts WHERE seq IN (SELECT seq FROM temp.doomed)")
    count = connection.execute("DELETE FROM events WHERE seq IN (SELECT seq FROM temp.doomed)").rowcount
    if count:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'last'", (last,))
    return count


def seek(connection: sqlite3.Connection, broker: int, at: int) -> int:
    """The newest position of the Broker that arrived before `at` (microseconds), by halving: arrival times grow with
    positions, but for what a stepped clock shuffles."""
    low, high = 0, connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
    while low < high:
        middle = (low + high + 1) // 2
        row = connection.execute(
            "SELECT seq, at FROM events WHERE broker = ? AND seq <= ? ORDER BY seq DESC LIMIT 1", (broker, middle)
        ).fetchone()
        if row is None or row[1] < at:
            low = middle
        else:
            high = row[0] - 1
    row = connection.execute("SELECT max(seq) FROM events WHERE broker = ? AND seq <= ?", (broker, low)).fetchone()
    return int(row[0] or 0)


def _size(connection: sqlite3.Connection) -> int:
    pages, free, page_size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_size)
