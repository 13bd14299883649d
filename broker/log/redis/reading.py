"""Reads of the Redis event log: pages of one Broker, single events, what several processes appended, and times."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from broker.log.encoding import decode_record
from broker.log.port import Page, Record
from broker.log.redis.connection import Connection
from broker.log.redis.layout import Keys, seq_of, stream_id
from broker.log.redis.scripts import READ, SEEK
from core.errors import Corrupt

__all__ = ["all_between", "page", "pick", "recall", "seek"]

logger = logging.getLogger(__name__)

#: A page of events read at once ends after this many bytes.
PAGE_BYTES: Final = 512 * 1024
#: Events of one Broker read at once while catching up with other processes.
TOGETHER: Final = 512


async def page(redis: Connection, keys: Keys, broker: str, after: int, limit: int, newest: int) -> Page:
    """The Broker's next events; `newest` is a position up to which all events were durable before this was called."""
    found = await redis.script(READ, [keys.events(broker)], after, limit, PAGE_BYTES)
    records, corrupt, size = _decoded(broker, found)
    through = max((seq_of(entry_id) for entry_id in found[::2]), default=after)
    more = size >= PAGE_BYTES or len(found) // 2 >= limit
    return Page(records, through if more else max(through, newest), corrupt, more)


async def pick(redis: Connection, keys: Keys, broker: str, seqs: Sequence[int]) -> Page:
    """The Broker's events at these positions, which are in order."""
    stream = keys.events(broker)
    answers = await redis.run_all([("XRANGE", stream, stream_id(seq), stream_id(seq)) for seq in seqs])
    found: list[bytes] = []
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
        for entry_id, fields in answer:
            found += (entry_id, fields[1])
    records, corrupt, _ = _decoded(broker, found)
    return Page(records, max(seqs, default=0), corrupt)


async def seek(redis: Connection, keys: Keys, broker: str, at: float) -> int:
    return int(await redis.script(SEEK, [keys.events(broker)], int(at * 1_000_000)))


async def recall(redis: Connection, keys: Keys, uid: str) -> bytes:
    return await redis.run("HGET", keys.memos, uid) or b""


async def all_between(redis: Connection, keys: Keys, after: int, through: int) -> tuple[list[Record], int]:
    """All Brokers' events after one position and up to another, in order, and how far that goes: it may end early."""
    brokers = [name.decode() for name in await redis.run("SMEMBERS", keys.brokers)]
    commands = [("EVAL", READ, 1, keys.events(broker), after, TOGETHER, PAGE_BYTES) for broker in brokers]
    records: list[Record] = []
    for broker, found in zip(brokers, await redis.run_all(commands), strict=True):
        if isinstance(found, RedisError):
            raise found
        some, _, size = _decoded(broker, found)
        records += some
        if found and (size >= PAGE_BYTES or len(found) // 2 >= TOGETHER):
            through = min(through, seq_of(found[-2]))
    return sorted((r for r in records if r.seq <= through), key=lambda record: record.seq), through


def _decoded(broker: str, found: Sequence[Any]) -> tuple[list[Record], tuple[int, ...], int]:
    """The events of ids and entries by turns, the positions of those that are corrupt, and the size of all."""
    records: list[Record] = []
    corrupt: list[int] = []
    size = 0
    for entry_id, stored in zip(found[::2], found[1::2], strict=True):
        seq = seq_of(entry_id)
        size += len(stored)
        try:
            records.append(decode_record(seq, broker, stored))
        except Corrupt as error:
            facts = {"seq": seq, "error": str(error)}
            logger.error("a stored event is corrupt and is not delivered", extra={"facts": facts})
            corrupt.append(seq)
    return records, tuple(corrupt), size
