"""The Redis event log's keys, and how subscriptions' positions are encoded.

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
``{name}:memos``       hash       what each subscription's dispatcher left word of, by uid
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

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from broker.log.port import Position
from core.errors import Corrupt

__all__ = [
    "FIELD",
    "FORMAT",
    "Keys",
    "Kept",
    "decode_kept",
    "encode_kept",
    "seq_of",
    "stream_id",
]

FORMAT: Final = b"1"
#: The one field of an event's stream entry.
FIELD: Final = b"e"


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
        "memos",
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
    memos: str
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
    """A subscription's position as it is stored. `crc` is over all the rest; older versions wrote none."""

    broker: str
    name: str
    through: int
    open: tuple[int, ...] = ()
    crc: int | None = None

    @property
    def position(self) -> Position:
        return Position(self.through, self.open)


_ENCODER: Final = msgspec.json.Encoder()
_KEPT: Final = msgspec.json.Decoder(Kept)


def stream_id(seq: int) -> str:
    return f"0-{seq}"


def seq_of(entry_id: bytes) -> int:
    return int(entry_id[2:])


def encode_kept(broker: str, name: str, through: int, opened: Sequence[int]) -> bytes:
    held = tuple(opened)
    return _ENCODER.encode(Kept(broker, name, through, held, _checksum(broker, name, through, held)))


def decode_kept(stored: bytes) -> Kept:
    """Raises Corrupt."""
    try:
        kept = _KEPT.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"A subscription's kept position cannot be read: {error}.") from error
    if kept.crc is not None and kept.crc != _checksum(kept.broker, kept.name, kept.through, kept.open):
        raise Corrupt(f"The kept position of {kept.name} is not what was written: its checksum differs.")
    return kept


def _checksum(broker: str, name: str, through: int, opened: tuple[int, ...]) -> int:
    return zlib.crc32(f"{broker} {name} {through} {opened}".encode("utf-8", "surrogatepass"))
