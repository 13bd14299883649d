"""The Redis event log's keys, and the encoding of its entries with their checksums.

All keys of a log begin with its name in braces, so that a Redis Cluster keeps them together: one script may touch any
of them. Every value but the events' bytes reads in ``redis-cli``.

=====================  =========  ==================================================================================
key                    type       holds
=====================  =========  ==================================================================================
``{name}:format``      string     the format of all this
``{name}:seq``         string     the newest position given, over all Brokers
``{name}:wake``        stream     an entry per append, with the newest position as its id: what other processes wait on
``{name}:brokers``     set        the Brokers that have a stream
``{name}:events:<b>``  stream     the Broker's events; the position N has the id ``0-N``
``{name}:bytes``       string     the size of all events
``{name}:ids``         sorted     positions by a hash of the event's id
``{name}:causes``      sorted     positions of replies by the position that they reply to
``{name}:attempts``    sorted     the ledger's rows by position
``{name}:undelivered`` sorted     positions that nobody took, which are kept longer
``{name}:positions``   hash       each subscription's position, by uid
``{name}:names``       hash       each subscription's name for people, by uid, kept after it is dropped
``{name}:fences``      hash       the fencing token of each subscription's newest lease, by uid
``{name}:fence``       string     the newest fencing token given
``{name}:lease:<uid>`` string     who dispatches for the subscription: its token and its owner; expires
``{name}:members``     hash       the processes that dispatch: when each last renewed its leases (milliseconds), and how
                                  many subscriptions it wants
``{name}:moved``       stream     an entry whenever a lease was given back, or the processes changed: what they wait on
=====================  =========  ==================================================================================
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from broker.ledger import Attempt, OutcomeName
from broker.log.port import Entry, Position, Record, attributes_of
from core.errors import Corrupt, InvalidInput

__all__ = [
    "FIELD",
    "FORMAT",
    "Keys",
    "Kept",
    "arrival_of",
    "decode_attempt",
    "decode_kept",
    "decode_record",
    "encode_attempt",
    "encode_entry",
    "encode_kept",
    "id_hash",
    "seq_of",
    "stream_id",
]

FORMAT: Final = b"1"
#: The one field of an event's stream entry.
FIELD: Final = b"e"

#: checksum, hash of the id, arrival (microseconds), cause, ttl, length of `via`, length of the head. The scripts read
#: the first four (`scripts.py`).
_FIXED: Final = struct.Struct("<IIqqIHI")
_SUMMED_AFTER: Final = 4


class Keys:
    """The names of a log's keys."""

    __slots__ = (
        "attempts",
        "brokers",
        "bytes",
        "causes",
        "fence",
        "fences",
        "format",
        "ids",
        "members",
        "moved",
        "names",
        "positions",
        "prefix",
        "seq",
        "undelivered",
        "wake",
    )

    def __init__(self, name: str) -> None:
        self.prefix = "{" + name + "}:"
        for slot in self.__slots__:
            if slot != "prefix":
                setattr(self, slot, self.prefix + slot)

    format: str
    seq: str
    wake: str
    brokers: str
    bytes: str
    ids: str
    causes: str
    attempts: str
    undelivered: str
    positions: str
    names: str
    fences: str
    fence: str
    members: str
    moved: str

    def events(self, broker: str) -> str:
        return f"{self.prefix}events:{broker}"

    def lease(self, uid: str) -> str:
        return f"{self.prefix}lease:{uid}"


class Kept(msgspec.Struct, frozen=True):
    """A subscription's position as it is stored."""

    broker: str
    name: str
    through: int
    open: tuple[int, ...] = ()

    @property
    def position(self) -> Position:
        return Position(self.through, self.open)


class _StoredAttempt(msgspec.Struct, frozen=True, array_like=True):
    """A ledger row. `seq` is in it although it is the score: members of a sorted set are unique over all scores."""

    seq: int
    uid: str
    at: float
    number: int
    status: int
    latency_s: float
    outcome: OutcomeName
    reason: str | None


_ENCODER: Final = msgspec.json.Encoder()
_KEPT: Final = msgspec.json.Decoder(Kept)
_ATTEMPT: Final = msgspec.json.Decoder(_StoredAttempt)


def stream_id(seq: int) -> str:
    return f"0-{seq}"


def seq_of(entry_id: bytes) -> int:
    return int(entry_id[2:])


def id_hash(event_id: str) -> int:
    return zlib.crc32(event_id.encode("utf-8", "surrogatepass"))


def encode_entry(entry: Entry) -> bytes:
    """The stream entry's bytes. Its position is not in them: Redis gives it when it stores them."""
    via = (entry.via or "").encode()
    head = entry.head
    hashed = zlib.crc32(entry.attributes["id"].encode("utf-8", "surrogatepass"))
    at = int(entry.at * 1_000_000)
    fixed = _FIXED.pack(0, hashed, at, entry.cause or 0, entry.ttl, len(via), len(head))[_SUMMED_AFTER:]
    rest = b"".join((fixed, via, head, entry.data))
    return zlib.crc32(rest, zlib.crc32(entry.broker.encode())).to_bytes(4, "little") + rest


def decode_record(seq: int, broker: str, stored: bytes) -> Record:
    """Raises Corrupt where the bytes are not what was written."""
    try:
        crc, _, at, cause, ttl, via_length, head_length = _FIXED.unpack_from(stored)
        if zlib.crc32(memoryview(stored)[_SUMMED_AFTER:], zlib.crc32(broker.encode())) != crc:
            raise Corrupt(f"The event at position {seq} is not what was written: its checksum differs.")
        head_at = _FIXED.size + via_length
        data_at = head_at + head_length
        via = stored[_FIXED.size : head_at].decode() or None
        head = stored[head_at:data_at]
        attributes = attributes_of(head)
    except (ValueError, IndexError, struct.error, InvalidInput) as error:
        raise Corrupt(f"The event at position {seq} is not what was written: {error}.") from error
    return Record(seq, Entry(broker, attributes, head, stored[data_at:], at / 1_000_000, ttl, cause or None, via))


def arrival_of(stored: bytes) -> float:
    """When the event arrived, as far as bytes that are not what was written tell; 0 where they do not."""
    return int(_FIXED.unpack_from(stored)[2]) / 1_000_000 if len(stored) >= _FIXED.size else 0.0


def encode_attempt(attempt: Attempt) -> bytes:
    stored = _StoredAttempt(
        attempt.seq,
        attempt.uid,
        attempt.at,
        attempt.number,
        attempt.status,
        attempt.latency_s,
        attempt.outcome,
        attempt.reason,
    )
    return _ENCODER.encode(stored)


def decode_attempt(stored: bytes) -> Attempt:
    """Raises Corrupt."""
    try:
        row = _ATTEMPT.decode(stored)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"A row of the ledger cannot be read: {error}.") from error
    return Attempt(row.seq, row.uid, row.at, row.number, row.status, row.latency_s, row.outcome, row.reason)


def encode_kept(broker: str, name: str, through: int, opened: Sequence[int]) -> bytes:
    return _ENCODER.encode(Kept(broker, name, through, tuple(opened)))


def decode_kept(stored: bytes) -> Kept:
    """Raises Corrupt."""
    try:
        return _KEPT.decode(stored)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"A subscription's kept position cannot be read: {error}.") from error
