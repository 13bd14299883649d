"""Reads of the events' topic: a page of one Broker, picked positions, a time, and all that is new."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from aiokafka.errors import LeaderNotAvailableError, OffsetOutOfRangeError

from broker.log.encoding import decode_record
from broker.log.kafka.connection import EARLIEST, Connection, patiently
from broker.log.kafka.layout import Stored, stored_in
from broker.log.port import Page, Record
from core.errors import Corrupt

__all__ = ["FETCH_BYTES", "heard_in", "page", "pick", "records_between", "seek"]

logger = logging.getLogger(__name__)

#: A page of events read at once ends after this many bytes.
PAGE_BYTES: Final = 512 * 1024
#: Asked for at once; a batch that is larger comes whole.
FETCH_BYTES: Final = 1024 * 1024
#: Where the Broker's events are rare among others': a page ends after so many fetches.
PAGE_FETCHES: Final = 16
#: The batch that has one position, and little after it.
PICK_BYTES: Final = 64 * 1024


async def page(connection: Connection, topic: str, broker: str, after: int, limit: int, last: int) -> Page:
    """As `EventLog.read`. Raises CONNECTION_ERRORS."""
    records: list[Record] = []
    corrupt: list[int] = []
    size, through, fetches = 0, after, 0
    while through < last and fetches < PAGE_FETCHES:
        fetches += 1
        found, reached = await _fetch(connection, topic, through, FETCH_BYTES)
        for stored in found:
            seq = stored.offset + 1
            if seq > last:
                break
            through = seq
            record = _record(stored, broker, corrupt)
            if record is None:
                continue
            records.append(record)
            size += len(record.entry.head) + len(record.entry.data)
            if size >= PAGE_BYTES or len(records) + len(corrupt) >= limit:
                return Page(records, through, tuple(corrupt), more=True)
        through = max(through, min(reached, last))
    return Page(records, through, tuple(corrupt), more=through < last)


async def pick(connection: Connection, topic: str, broker: str, seqs: Sequence[int], last: int) -> Page:
    """As `EventLog.pick`; `seqs` in order. Raises CONNECTION_ERRORS."""
    records: list[Record] = []
    corrupt: list[int] = []
    wanted = set(seqs)
    through = 0
    for seq in seqs:
        if seq <= through or seq > last:
            continue
        found, through = await _fetch(connection, topic, seq - 1, PICK_BYTES)
        for stored in found:
            if stored.offset + 1 in wanted and (record := _record(stored, broker, corrupt)) is not None:
                records.append(record)
    return Page(records, max(seqs, default=0), tuple(corrupt))


async def seek(connection: Connection, topic: str, at: float, last: int) -> int:
    """As `EventLog.seek`, to the millisecond, which is what Kafka keeps times to. Raises CONNECTION_ERRORS."""
    offset = await patiently(lambda: connection.offset(topic, max(int(at * 1000), 0)))
    return last if offset < 0 else min(offset, last)


async def records_between(connection: Connection, topic: str, after: int, newest: int) -> tuple[list[Record], int]:
    """Events after a position and up to a later one that Kafka has, in order, and how far that goes: it may end early.
    Raises CONNECTION_ERRORS."""
    found, reached = await _fetch(connection, topic, after, FETCH_BYTES)
    return [record for record in heard_in(found) if record.seq <= newest], min(reached, newest)


def heard_in(found: Sequence[Stored]) -> list[Record]:
    """The events of records as Kafka has them, but for those that are not what was written."""
    records = []
    for stored in found:
        try:
            records.append(_decoded(stored))
        except Corrupt as error:
            facts = {"seq": stored.offset + 1, "error": str(error)}
            logger.error("a stored event is corrupt and is not delivered", extra={"facts": facts})
    return records


async def _fetch(connection: Connection, topic: str, offset: int, max_bytes: int) -> tuple[list[Stored], int]:
    """The records from an offset on that was given once, or from the oldest one on, and the offset after them. Raises
    CONNECTION_ERRORS, also where Kafka has nothing there now: what is not told is not gone."""
    return await patiently(lambda: _fetch_once(connection, topic, offset, max_bytes))


async def _fetch_once(connection: Connection, topic: str, offset: int, max_bytes: int) -> tuple[list[Stored], int]:
    try:
        fetched = await connection.fetch({topic: offset}, max_bytes=max_bytes)
    except OffsetOutOfRangeError:
        start = await connection.offset(topic, EARLIEST)
        if start > offset:
            return [], start
        raise _not_told(topic, offset) from None
    found = list(stored_in(fetched[topic].data, offset))
    if not found:
        raise _not_told(topic, offset)
    return found, found[-1].offset + 1


def _not_told(topic: str, offset: int) -> LeaderNotAvailableError:
    """A new leader does not know at once how much of what it has is on the other replicas, and tells no more."""
    return LeaderNotAvailableError(f"topic {topic} does not tell what is at offset {offset}")


def _record(stored: Stored, broker: str, corrupt: list[int]) -> Record | None:
    """The event where it is the Broker's; one that is not what was written is added to `corrupt`."""
    if stored.value is not None and stored.key != broker.encode():
        return None
    try:
        return _decoded(stored)
    except Corrupt as error:
        facts = {"seq": stored.offset + 1, "error": str(error)}
        logger.error("a stored event is corrupt and is not delivered", extra={"facts": facts})
        corrupt.append(stored.offset + 1)
        return None


def _decoded(stored: Stored) -> Record:
    """Raises Corrupt."""
    if stored.value is None:
        raise Corrupt(f"The event at position {stored.offset + 1} is not what was written: Kafka's checksum differs.")
    return decode_record(stored.offset + 1, stored.key.decode(errors="replace"), stored.value)
