"""The Kafka event log's topics, and how their records are encoded.

All topics of a log begin with its name and have one partition each: an event's position is its offset + 1, so that
positions grow over all Brokers, and the order of the state topic settles who dispatches what (`state.py`).

==================  =========  ======================================================================================
topic               kept       holds
==================  =========  ======================================================================================
``<name>-events``   by us      every event: the key is its Broker, the time when it arrived
``<name>-ledger``   by time    what became of each event, a row a record; the time is Kafka's
``<name>-state``    compacted  where subscriptions are and who dispatches for them; the time is Kafka's
==================  =========  ======================================================================================

Keys of the state topic: ``p:<uid>`` a subscription's position, ``r:<uid>`` what its dispatcher left word of,
``m:<owner>`` what a process says of itself, ``u:<position>`` an event that nobody took, ``format`` the format of all
this. Everything but events' bytes reads in ``kcat``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from broker.log.port import Position
from core.errors import Corrupt

__all__ = [
    "FORMAT",
    "FORMAT_KEY",
    "Kept",
    "Pair",
    "Said",
    "Stored",
    "Topics",
    "decode_kept",
    "decode_said",
    "encode_batch",
    "encode_dropped",
    "encode_kept",
    "encode_said",
    "member_key",
    "memo_key",
    "position_key",
    "stored_in",
    "undelivered_key",
]

FORMAT: Final = b"1"
FORMAT_KEY: Final = b"format"

#: Kafka's newest record format, which it has had since 0.11.
_MAGIC: Final = 2
#: The largest batch that the builder makes; the log's own limits are far below.
_UNLIMITED: Final = 2**31 - 1

Pair = tuple[bytes | None, bytes | None, int]


class Topics(msgspec.Struct, frozen=True):
    """The names of a log's topics."""

    events: str
    ledger: str
    state: str

    @classmethod
    def of(cls, name: str) -> Topics:
        return cls(f"{name}-events", f"{name}-ledger", f"{name}-state")


class Stored(msgspec.Struct, frozen=True):
    """A record as Kafka has it."""

    offset: int
    time_ms: int
    key: bytes
    value: bytes | None


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subscription's position as it is stored, under the fencing token of who wrote it. `gaps` are the open
    positions, each as its distance from the one before, beginning at `through` and going down. `name` outlives a
    `dropped` one."""

    token: int
    broker: str
    name: str
    through: int = 0
    gaps: tuple[int, ...] = ()
    dropped: bool = False

    @property
    def position(self) -> Position:
        opened, seq = [], self.through
        for gap in self.gaps:
            seq -= gap
            opened.append(seq)
        return Position(self.through, tuple(reversed(opened)))


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a process says of itself, all of it each time: which life of its owner it is, how many subscriptions it
    wants, those that it dispatches for with their fencing tokens, and those that it asks for."""

    life: str
    wants: int = 0
    holds: dict[str, int] = {}
    asks: tuple[str, ...] = ()


_ENCODER: Final = msgspec.json.Encoder()
_KEPT: Final = msgspec.json.Decoder(Kept)
_SAID: Final = msgspec.json.Decoder(Said)


def position_key(uid: str) -> bytes:
    return b"p:" + uid.encode()


def memo_key(uid: str) -> bytes:
    return b"r:" + uid.encode()


def member_key(owner: str) -> bytes:
    return b"m:" + owner.encode()


def undelivered_key(seq: int) -> bytes:
    return b"u:%d" % seq


def encode_kept(token: int, broker: str, name: str, position: Position) -> bytes:
    gaps, before = [], position.through
    for seq in reversed(position.open):
        gaps.append(before - seq)
        before = seq
    return _ENCODER.encode(Kept(token, broker, name, position.through, tuple(gaps)))


def encode_dropped(broker: str, name: str) -> bytes:
    return _ENCODER.encode(Kept(0, broker, name, dropped=True))


def decode_kept(stored: bytes) -> Kept:
    """Raises Corrupt."""
    try:
        return _KEPT.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"A subscription's kept position cannot be read: {error}.") from error


def encode_said(said: Said) -> bytes:
    return _ENCODER.encode(said)


def decode_said(stored: bytes) -> Said:
    """Raises Corrupt."""
    try:
        return _SAID.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"What a process says of itself cannot be read: {error}.") from error


def encode_batch(pairs: Iterable[Pair]) -> bytes:
    """One batch of records, each a key, a value and its time in milliseconds, as Kafka takes it."""
    builder = DefaultRecordBatchBuilder(
        magic=_MAGIC,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=_UNLIMITED,
    )
    for number, (key, value, time_ms) in enumerate(pairs):
        builder.append(number, time_ms, key, value, [])
    return bytes(builder.build())


def stored_in(data: bytes, offset: int) -> Iterator[Stored]:
    """The records of whole batches, from an offset on. Those of a batch that is not what Kafka wrote have neither key
    nor value."""
    batches = MemoryRecords(data)
    while batches.has_next():
        batch = batches.next_batch()
        if not isinstance(batch, DefaultRecordBatch) or batch.next_offset <= offset:
            continue
        if not batch.validate_crc():
            for lost in range(max(batch.base_offset, offset), batch.next_offset):
                yield Stored(lost, 0, b"", None)
            continue
        for record in batch:
            if record.offset >= offset:
                yield Stored(record.offset, record.timestamp, record.key or b"", record.value)
