"""What the Redis event log forgets: a bounded piece of work at a time, inside Redis."""

from __future__ import annotations

import logging
from typing import Final

from broker.log.port import Retention
from broker.log.redis.connection import Connection
from broker.log.redis.layout import Keys, decode_kept
from broker.log.redis.scripts import SWEEP
from core.errors import Corrupt

__all__ = ["sweep"]

logger = logging.getLogger(__name__)

#: Events looked at in one script, during which Redis serves nobody else.
CHUNK: Final = 500
#: Ledger rows kept, over all events: about 300 bytes each, and together no more than the events that are kept may have,
#: so that who says how much that is has said it of both.
MAX_ATTEMPTS: Final = 2_000_000
ATTEMPT_BYTES: Final = 300


async def sweep(redis: Connection, keys: Keys, retention: Retention, now: float) -> int:
    """Remove what need not be kept; how many events went. Several processes may do so at a time."""
    newest = int(await redis.run("GET", keys.seq) or 0)
    try:
        kept = [decode_kept(stored) for stored in await redis.run("HVALS", keys.positions)]
    except Corrupt as error:  # whose events it holds back is not known
        logger.error("old events are kept", extra={"facts": {"error": str(error)}})
        return 0
    removed = 0
    for name in sorted(await redis.run("SMEMBERS", keys.brokers)):
        broker = name.decode()
        marks = [held.position.low_water for held in kept if held.broker == broker]
        removed += await _sweep_broker(redis, keys, retention, broker, min(marks, default=newest), now)
    rows = min(MAX_ATTEMPTS, retention.max_bytes // ATTEMPT_BYTES)
    await redis.run("ZREMRANGEBYRANK", keys.attempts, 0, -rows - 1)
    return removed


async def _sweep_broker(redis: Connection, keys: Keys, retention: Retention, broker: str, mark: int, now: float) -> int:
    removed, begin = 0, "0"
    names = [keys.events(broker), keys.bytes, keys.ids, keys.causes, keys.attempts, keys.undelivered]
    cutoffs = [int((now - age_s) * 1_000_000) for age_s in (retention.max_age_s, retention.undelivered_age_s)]
    while begin:
        count, go_on = await redis.script(SWEEP, names, begin, mark, *cutoffs, retention.max_bytes, CHUNK)
        removed += count
        begin = go_on.decode()
    return removed
