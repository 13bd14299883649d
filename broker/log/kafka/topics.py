"""The log's topics: made as they have to be, where they are not there yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Final

from aiokafka.errors import ClusterAuthorizationFailedError, TopicAlreadyExistsError, TopicAuthorizationFailedError

from broker.log.kafka.connection import RETRY_S, Connection
from broker.log.kafka.layout import Topics
from broker.log.port import Retention
from core.errors import Unavailable

__all__ = ["ensure"]

logger = logging.getLogger(__name__)

#: Enough to lose one and go on writing.
REPLICAS: Final = 3
#: A new topic is told of by every server within a moment, on a busy machine within seconds.
SHOWN_WITHIN_S: Final = 15.0
#: What a topic of ours takes in one batch: the log's batches end at a quarter of it, with an event more.
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
#: The same of the state topic: positions of a few thousand Triggers with all that they may have outstanding.
MAX_STATE_BATCH_BYTES: Final = 16 * 1024 * 1024
#: Where no other broker has an event it is on disk before it is answered; elsewhere the replicas are what keeps it.
ALONE: Final = {"flush.messages": "1"}
#: Kafka frees room a segment at a time.
SEGMENTS: Final = 16
#: Kafka's smallest permitted segment is far below.
MIN_SEGMENT_BYTES: Final = 1024 * 1024
#: What was superseded is removed no sooner: several times a lease, see `state.py`.
COMPACT_AFTER_S: Final = 60
#: A process that starts reads what was not compacted yet.
STATE_SEGMENT_S: Final = 120
STATE_SEGMENT_BYTES: Final = 16 * 1024 * 1024


async def ensure(connection: Connection, topics: Topics, retention: Retention) -> None:
    """Make those that are missing, and learn who leads them. Raises Unavailable, and CONNECTION_ERRORS."""
    wanted = {
        topics.events: _events(retention),
        topics.ledger: _ledger(retention),
        topics.state: _state(),
    }
    there = await connection.topics()
    for topic, settings in wanted.items():
        if topic not in there:
            await _make(connection, topic, settings, topics.events)
    for topic, partitions in (await _shown(connection, wanted)).items():
        if partitions != 1:
            raise Unavailable(
                f"Kafka's topic {topic} has {partitions} partitions; the event log needs one. Remove it, and the log "
                "makes it anew."
            )
    await connection.know(wanted)


async def _shown(connection: Connection, wanted: Collection[str]) -> dict[str, int]:
    """Their numbers of partitions, once the server tells of all: of a new topic it does so only after a moment, so that
    one that was not there may be another's, with other partitions."""
    until_s = asyncio.get_running_loop().time() + SHOWN_WITHIN_S
    while True:
        there = await connection.topics()
        unknown = [topic for topic in wanted if not there.get(topic)]
        if not unknown:
            return {topic: there[topic] for topic in wanted}
        if asyncio.get_running_loop().time() > until_s:
            raise Unavailable(f"Kafka made the topic {unknown[0]} and does not tell who leads it.")
        await asyncio.sleep(RETRY_S)


async def _make(connection: Connection, topic: str, settings: dict[str, str], events: str) -> None:
    replicas = min(REPLICAS, max(await connection.brokers(), 1))
    logger.info("a topic is made in Kafka", extra={"facts": {"topic": topic, "replicas": replicas}})
    settings = settings | {"min.insync.replicas": str(max(replicas - 1, 1))}
    if replicas == 1 and topic == events:
        settings |= ALONE
    try:
        with contextlib.suppress(TopicAlreadyExistsError):  # another process was faster
            await connection.create(topic, replicas, settings)
    except (TopicAuthorizationFailedError, ClusterAuthorizationFailedError) as error:
        shown = " ".join(f"--config {name}={value}" for name, value in settings.items())
        raise Unavailable(
            f"Kafka does not let the event log make its topic {topic}. Make it with one partition and {shown}."
        ) from error


def _events(retention: Retention) -> dict[str, str]:
    """Kafka removes nothing by itself: only the log knows what is still to be delivered. Times are the events' own."""
    segment = min(max(retention.max_bytes // SEGMENTS, MIN_SEGMENT_BYTES), 2**30)
    return {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "segment.bytes": str(segment),
        "max.message.bytes": str(MAX_BATCH_BYTES),
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }


def _ledger(retention: Retention) -> dict[str, str]:
    kept_s = max(retention.max_age_s, retention.undelivered_age_s)
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(int(kept_s * 1000)),
        "retention.bytes": str(retention.max_bytes),
        "segment.bytes": str(min(max(retention.max_bytes // SEGMENTS, MIN_SEGMENT_BYTES), 2**30)),
        "max.message.bytes": str(MAX_BATCH_BYTES),
        "message.timestamp.type": "LogAppendTime",
    }


def _state() -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": str(COMPACT_AFTER_S * 1000),
        "min.cleanable.dirty.ratio": "0.1",
        "segment.ms": str(STATE_SEGMENT_S * 1000),
        "segment.bytes": str(STATE_SEGMENT_BYTES),
        "max.message.bytes": str(MAX_STATE_BATCH_BYTES),
        "message.timestamp.type": "LogAppendTime",
    }
