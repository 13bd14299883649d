"""What the event log on Kafka forgets. A topic is removed from its beginning, so up to the first event that stays."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from broker.log.kafka.connection import EARLIEST, Connection, patiently
from broker.log.kafka.state import State
from broker.log.port import Retention

__all__ = ["Sizes", "removable", "sweep"]

#: Marks over the largest size: how exactly the size is known at which events go.
MARKS: Final = 1000


class Sizes:
    """How large the log is from a position on, as one process sees it grow. Kafka itself frees room in segments, and
    minutes later. Between two marks the size is taken to grow evenly, as it is over what was there before."""

    def __init__(self, *, start: int, end: int, size: int, largest: int) -> None:
        self._every = max(largest // MARKS, 1)
        self._seqs = [start, max(end, start)]
        self._sizes = [0, size]
        self._total = size

    def add(self, seq: int, size: int) -> None:
        self._total += size
        if self._total - self._sizes[-1] >= self._every:
            self._seqs.append(seq)
            self._sizes.append(self._total)

    def after(self, seq: int) -> int:
        """The size of all events after a position."""
        return self._total - self._at(seq)

    def position(self, size: int) -> int:
        """The position after which about so much is left; the first known one where there is less."""
        gone = self._total - size
        number = bisect_left(self._sizes, gone)
        if number == 0 or gone <= 0:
            return self._seqs[0]
        if number == len(self._sizes):
            return self._seqs[-1]
        part = (gone - self._sizes[number - 1]) / (self._sizes[number] - self._sizes[number - 1])
        return self._seqs[number - 1] + round(part * (self._seqs[number] - self._seqs[number - 1]))

    def forget(self, seq: int) -> None:
        """What is up to here is gone."""
        number = bisect_right(self._seqs, seq) - 1
        if number > 0:
            del self._seqs[:number], self._sizes[:number]

    def _at(self, seq: int) -> int:
        number = bisect_left(self._seqs, seq)
        if number == 0:
            return self._sizes[0]
        if number == len(self._seqs):
            return self._total if seq > self._seqs[-1] else self._sizes[-1]
        if self._seqs[number] == seq:
            return self._sizes[number]
        part = (seq - self._seqs[number - 1]) / (self._seqs[number] - self._seqs[number - 1])
        return self._sizes[number - 1] + round(part * (self._sizes[number] - self._sizes[number - 1]))


def removable(*, low_water: int, aged: int, very_aged: int, undelivered: int | None, crowded: int) -> int:
    """The position up to which events go.

    Everybody is done up to `low_water`; up to `aged` events are older than the age, up to `very_aged` older than the
    one of events that nobody took, of which `undelivered` is the first; up to `crowded` they are beyond the largest
    size. What comes after an event that stays, stays; so the size counts more than that nobody took one.
    """
    if undelivered is not None:
        aged = min(aged, max(undelivered - 1, very_aged))
    return min(low_water, max(aged, crowded))


async def sweep(
    connection: Connection, topic: str, state: State, sizes: Sizes, retention: Retention, now: float, last: int
) -> tuple[int, int]:
    """Remove what need not be kept; how many events went, and the position up to which. Raises CONNECTION_ERRORS."""
    start = await patiently(lambda: connection.offset(topic, EARLIEST))
    upto = removable(
        low_water=min((kept.position.low_water for kept in state.all_kept().values()), default=last),
        aged=await _older_than(connection, topic, now - retention.max_age_s, last),
        very_aged=await _older_than(connection, topic, now - retention.undelivered_age_s, last),
        undelivered=min((seq for seq in state.undelivered if seq > start), default=None),
        crowded=sizes.position(retention.max_bytes) if sizes.after(start) > retention.max_bytes else 0,
    )
    upto = min(upto, last)
    if upto > start:
        await connection.delete_before(topic, upto)
    gone = max(upto, start)
    sizes.forget(gone)
    return gone - start, gone


async def _older_than(connection: Connection, topic: str, at: float, last: int) -> int:
    """The position up to which all events arrived before then."""
    offset = await patiently(lambda: connection.offset(topic, max(int(at * 1000), 0)))
    return last if offset < 0 else offset
