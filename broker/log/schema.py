"""The SQLite event log's tables, statements, and the encoding of its rows with their checksums.

One writer (`broker.log.sqlite`), any number of readers (`broker.log.query`). Times are integers of microseconds.
"""

from __future__ import annotations

import functools
import struct
import zlib
from array import array
from typing import Any, Final

from broker.ledger import OUTCOMES, SETTLED, UNDELIVERED, Attempt
from broker.log.direction import directed_head, split_head
from broker.log.port import Entry, Position, Record
from core.errors import Corrupt, InvalidInput
from core.events import head_attributes

__all__ = [
    "ADD_ATTEMPT",
    "ADD_BROKER",
    "ADD_EVENT",
    "AttemptRow",
    "DEAD_LETTERED_SEQS",
    "FORMAT",
    "DROP_MEMO",
    "DROP_POSITION",
    "INDEX_IDS",
    "KEEP_MEMO",
    "KEEP_POSITION",
    "MEMOS",
    "MIGRATIONS",
    "POSITION_BYTES",
    "SELECT_EVENT",
    "SELECT_MEMO",
    "TABLES",
    "UNDELIVERED_SEQS",
    "attempt_of",
    "encode_attempt",
    "encode_event",
    "id_hash",
    "micros",
    "pack_open",
    "record_of",
    "unpack_open",
]

#: Of the file, in SQLite's ``user_version``; one with an older format is brought to this one, one with another is not
#: opened.
FORMAT: Final = 2

#: What brings a file of a format to the next one.
MIGRATIONS: Final = {
    1: ("ALTER TABLE attempts ADD COLUMN revision TEXT", "ALTER TABLE attempts ADD COLUMN cold_start INTEGER"),
}

_UNDELIVERED: Final = ", ".join(str(OUTCOMES.index(name)) for name in sorted(UNDELIVERED))
_SETTLED: Final = ", ".join(str(OUTCOMES.index(name)) for name in sorted(SETTLED))

#: `ids` finds events by id. It is filled behind the events, many at a time in the order of its keys, because adding
#: each event's own random key as it comes would write a whole page for it; `meta.indexed` tells how far it is.
TABLES: Final = (
    """CREATE TABLE events (
        seq INTEGER PRIMARY KEY, broker INTEGER NOT NULL, at INTEGER NOT NULL, ttl INTEGER NOT NULL,
        crc INTEGER NOT NULL, id_hash INTEGER NOT NULL, cause INTEGER, via INTEGER,
        head BLOB NOT NULL, data BLOB NOT NULL)""",
    "CREATE INDEX events_broker ON events (broker)",
    "CREATE INDEX events_cause ON events (cause) WHERE cause IS NOT NULL",
    "CREATE TABLE ids (hash INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (hash, seq)) WITHOUT ROWID",
    "CREATE TABLE brokers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """CREATE TABLE subscriptions (
        id INTEGER PRIMARY KEY, uid TEXT NOT NULL, broker INTEGER NOT NULL, name TEXT NOT NULL,
        kept INTEGER NOT NULL, through INTEGER NOT NULL, open BLOB NOT NULL)""",
    """CREATE TABLE attempts (
        seq INTEGER NOT NULL, subscription INTEGER NOT NULL, at INTEGER NOT NULL, number INTEGER NOT NULL,
        status INTEGER NOT NULL, latency INTEGER NOT NULL, outcome INTEGER NOT NULL, reason TEXT,
        revision TEXT, cold_start INTEGER, PRIMARY KEY (seq, subscription, at, number)) WITHOUT ROWID""",
    f"CREATE INDEX attempts_undelivered ON attempts (seq) WHERE outcome IN ({_UNDELIVERED})",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('indexed', 0), ('last', 0)",
)

#: What dispatchers leave word of. A file that was made before there were any gets it when it is opened; whoever does
#: not know of it loses nothing.
MEMOS: Final = "CREATE TABLE IF NOT EXISTS memos (subscription INTEGER PRIMARY KEY, memo BLOB NOT NULL)"

ADD_EVENT: Final = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_BROKER: Final = "INSERT OR IGNORE INTO brokers VALUES (?, ?)"
KEEP_POSITION: Final = """INSERT INTO subscriptions VALUES (?, ?, ?, ?, 1, ?, ?)
    ON CONFLICT (id) DO UPDATE SET kept = 1, name = excluded.name, through = excluded.through, open = excluded.open"""
DROP_POSITION: Final = "UPDATE subscriptions SET kept = 0, open = x'' WHERE id = ?"
KEEP_MEMO: Final = "INSERT OR REPLACE INTO memos VALUES (?, ?)"
SELECT_MEMO: Final = "SELECT memo FROM memos WHERE subscription = ?"
DROP_MEMO: Final = "DELETE FROM memos WHERE subscription = ?"
ADD_ATTEMPT: Final = "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
SELECT_EVENT: Final = "SELECT seq, at, ttl, crc, cause, via, head, data FROM events"
#: But for those that are undelivered for nobody any more, because people settled it.
UNDELIVERED_SEQS: Final = f"""SELECT seq FROM attempts a WHERE outcome IN ({_UNDELIVERED}) AND NOT EXISTS
    (SELECT 1 FROM attempts s WHERE s.seq = a.seq AND s.outcome IN ({_SETTLED}) AND s.number = 0)"""  # noqa: S608 - constants
DEAD_LETTERED_SEQS: Final = f"SELECT seq FROM attempts WHERE outcome = {OUTCOMES.index('dead-lettered')}"  # noqa: S608 - constants
INDEX_IDS: Final = (
    """INSERT OR IGNORE INTO ids SELECT id_hash, seq FROM events
       WHERE seq > (SELECT value FROM meta WHERE name = 'indexed') ORDER BY id_hash""",
    "UPDATE meta SET value = (SELECT coalesce(max(seq), 0) FROM events) WHERE name = 'indexed'",
)

_FIXED: Final = struct.Struct("<qqqqq")
#: Of a subscription's row, about what is beside its open positions.
POSITION_BYTES: Final = 128
_SEQ_BYTES: Final = 8
_CRC_BYTES: Final = 4

AttemptRow = tuple[int | str | None, ...]
EventRow = tuple[int, int, int, int, int, int, int | None, int | None, bytes, bytes]


def micros(seconds: float) -> int:
    return int(seconds * 1_000_000)


def id_hash(event_id: str) -> int:
    """What `ids` is keyed by: small, and the same in every process."""
    return zlib.crc32(event_id.encode("utf-8", "surrogatepass"))


def encode_event(record: Record, broker: int, via: int | None) -> EventRow:
    """The row of an event; `broker` and `via` are the numbers of its Broker and of the replying subscription."""
    entry = record.entry
    at = int(entry.at * 1_000_000)
    head, data = entry.head if entry.only is None else directed_head(entry.head, entry.only), entry.data
    crc = _checksum(_seed(entry.broker), record.seq, at, entry.ttl, entry.cause, via, head, data)
    hashed = zlib.crc32(entry.attributes["id"].encode("utf-8", "surrogatepass"))
    return record.seq, broker, at, entry.ttl, crc, hashed, entry.cause, via, head, data


def record_of(row: tuple[Any, ...], broker: str, via: str | None) -> Record:
    """The event of a `SELECT_EVENT` row. Raises Corrupt where its bytes are not what was written."""
    seq, at, ttl, crc, cause, via_number, head, data = row
    try:
        if _checksum(_seed(broker), seq, at, ttl, cause, via_number, head, data) != crc and (
            # Older versions left the Broker out of it.
            _checksum(0, seq, at, ttl, cause, via_number, head, data) != crc
        ):
            raise Corrupt(f"The event at position {seq} is not what was written: its checksum differs.")
        head, only = split_head(head)
        attributes = head_attributes(head)
    except (TypeError, ValueError, struct.error, InvalidInput) as error:
        raise Corrupt(f"The event at position {seq} is not what was written: {error}.") from error
    return Record(seq, Entry(broker, attributes, head, data, at / 1_000_000, ttl, cause or None, via, only))


def encode_attempt(attempt: Attempt, subscription: int) -> AttemptRow:
    """The ledger's row of an attempt; `subscription` is the number of its subscription."""
    cold_start_s = attempt.cold_start_s
    return (
        attempt.seq,
        subscription,
        int(attempt.at * 1_000_000),
        attempt.number,
        attempt.status,
        int(attempt.latency_s * 1_000_000),
        OUTCOMES.index(attempt.outcome),
        attempt.reason,
        attempt.revision,
        None if cold_start_s is None else int(cold_start_s * 1_000_000),
    )


def attempt_of(row: tuple[Any, ...], uid: str) -> Attempt:
    """The attempt of a row of `attempts`; in a file of the first format the row ends with the reason."""
    seq, _, at, number, status, latency, outcome, reason, *since = row
    revision, cold_start = since or (None, None)
    cold_start_s = None if cold_start is None else cold_start / 1e6
    return Attempt(seq, uid, at / 1e6, number, status, latency / 1e6, OUTCOMES[outcome], reason, revision, cold_start_s)


def pack_open(uid: str, broker: str, position: Position) -> bytes:
    """The open positions of a subscription, and a checksum over all that its row says."""
    opened = array("q", position.open).tobytes()
    return opened + _position_checksum(uid, broker, position.through, opened)


def unpack_open(uid: str, broker: str, through: int, packed: bytes) -> tuple[int, ...]:
    """The open positions. Raises Corrupt where the row is not what was written."""
    opened, crc = packed, b""
    if len(packed) % _SEQ_BYTES:  # older versions wrote no checksum
        opened, crc = packed[:-_CRC_BYTES], packed[-_CRC_BYTES:]
    if len(opened) % _SEQ_BYTES or (crc and crc != _position_checksum(uid, broker, through, opened)):
        raise Corrupt(f"The position of subscription {uid} is not what was written: its checksum differs.")
    return tuple(array("q", opened))


def _position_checksum(uid: str, broker: str, through: int, opened: bytes) -> bytes:
    words = f"{uid} {broker} {through} ".encode("utf-8", "surrogatepass")
    return zlib.crc32(opened, zlib.crc32(words)).to_bytes(_CRC_BYTES, "little")


@functools.lru_cache(maxsize=1024)
def _seed(broker: str) -> int:
    """Begins the checksums of a Broker's events, so that none is ever taken for another Broker's."""
    return zlib.crc32(broker.encode("utf-8", "surrogatepass"))


def _checksum(
    seed: int, seq: int, at: int, ttl: int, cause: int | None, via: int | None, head: bytes, data: bytes
) -> int:
    return zlib.crc32(data, zlib.crc32(head, zlib.crc32(_FIXED.pack(seq, at, ttl, cause or 0, via or 0), seed)))
