"""How logs that keep values without columns (Redis, Kafka) encode events and the ledger's rows, with checksums."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import msgspec

from broker.ledger import Attempt, OutcomeName
from broker.log.direction import directed_head, split_head
from broker.log.port import Entry, Record
from core.errors import Corrupt, InvalidInput
from core.events import head_attributes

__all__ = ["arrival_of", "decode_attempt", "decode_record", "encode_attempt", "encode_entry", "id_hash"]

#: checksum, hash of the id, arrival (microseconds), cause, ttl, length of `via`, length of the head. Redis's
#: scripts read the first four.
_FIXED: Final = struct.Struct("<IIqqIHI")
_SUMMED_AFTER: Final = 4


class _StoredAttempt(msgspec.Struct, frozen=True, array_like=True):
    """A ledger row. `seq` is in it although it is the score in Redis: members of a sorted set are unique over all
    scores."""

    seq: int
    uid: str
    at: float
    number: int
    status: int
    latency_s: float
    outcome: OutcomeName
    reason: str | None
    # Rows of versions before have none of these.
    revision: str | None = None
    cold_start_s: float | None = None


_ENCODER: Final = msgspec.json.Encoder()
_ATTEMPT: Final = msgspec.json.Decoder(_StoredAttempt)


def id_hash(event_id: str) -> int:
    return zlib.crc32(event_id.encode("utf-8", "surrogatepass"))


def encode_entry(entry: Entry) -> bytes:
    """The event's bytes. Its position is not in them: the server gives it when it stores them."""
    via = (entry.via or "").encode()
    head = entry.head if entry.only is None else directed_head(entry.head, entry.only)
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
        head, only = split_head(stored[head_at:data_at])
        attributes = head_attributes(head)
    except (ValueError, IndexError, struct.error, InvalidInput) as error:
        raise Corrupt(f"The event at position {seq} is not what was written: {error}.") from error
    data = stored[data_at:]
    return Record(seq, Entry(broker, attributes, head, data, at / 1_000_000, ttl, cause or None, via, only))


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
        attempt.revision,
        attempt.cold_start_s,
    )
    return _ENCODER.encode(stored)


def decode_attempt(stored: bytes) -> Attempt:
    """Raises Corrupt."""
    try:
        row = _ATTEMPT.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"A row of the ledger cannot be read: {error}.") from error
    return Attempt(
        row.seq,
        row.uid,
        row.at,
        row.number,
        row.status,
        row.latency_s,
        row.outcome,
        row.reason,
        row.revision,
        row.cold_start_s,
    )
