"""What a dispatcher wants to find again after a restart: how far the retries of a Trigger's open events are.

Kept by the log as bytes beside the subscription's position (`EventLog.remember`), a second behind at most, so that a
subscriber that is down does not cost a write for each attempt.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from broker.filters import Filter

__all__ = ["KEEP_AFTER_S", "NOTHING", "Memo", "Planned", "decode_memo", "encode_memo", "fingerprint"]

logger = logging.getLogger(__name__)

#: How long what changed waits for more: what a crash may forget of the attempts that were made.
KEEP_AFTER_S: Final = 1.0


class Planned(msgspec.Struct, frozen=True, array_like=True):
    """The event at position `seq` was tried `number` times in all, `attempt` times for its subscriber, and is due again
    at `due` (seconds since the epoch)."""

    seq: int
    number: int
    attempt: int
    due: float


class Memo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the Trigger looks for repeats, `since` is the position after which every event was looked at with the
    filter that `filtered` is a fingerprint of; None where that is not known."""

    planned: tuple[Planned, ...] = ()
    since: int | None = None
    filtered: int = 0

    def by_seq(self) -> dict[int, Planned]:
        return {planned.seq: planned for planned in self.planned}


NOTHING: Final = Memo()


def fingerprint(wanted: Filter) -> int:
    """The same for equal filters, in every process."""
    return zlib.crc32(repr(wanted).encode("utf-8", "surrogatepass"))


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Memo)


def encode_memo(planned: Iterable[Planned], since: int | None = None, filtered: int = 0) -> bytes:
    return _ENCODER.encode(Memo(tuple(planned), since, filtered))


def decode_memo(stored: bytes) -> Memo:
    """The memo; an empty one where there is none, or where it cannot be read: then attempts are counted from 1 again,
    which loses nothing."""
    if not stored:
        return NOTHING
    try:
        return _DECODER.decode(stored)
    except msgspec.MsgspecError as error:
        logger.error("what is known of retries cannot be read", extra={"facts": {"error": str(error)}})
        return NOTHING
