"""Which event logs the release has: on servers that all of its pods share. A Broker's class picks among them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from broker.log.port import LedgerLog, OwnLog
from broker.log.query import LogQuery
from broker.resources import DEFAULT_CLASS, KAFKA_CLASS, REDIS_CLASS
from core.errors import InvalidInput
from penstock.cluster.process import Frame
from penstock.cluster.settings import EventLogSettings
from penstock.process import running

__all__ = ["REMEDIES", "classes", "make_readers", "open_logs"]

#: For each class that may be missing: how to have it.
REMEDIES: Final = {
    REDIS_CLASS: "Set the chart's value eventLog.redis, which names the Redis for it.",
    KAFKA_CLASS: "Set the chart's value eventLog.kafka, which names the Kafka for it.",
}
_EXAMPLES: Final = {"redis": "redis://host:6379/0", "kafka": "host:9092"}


def classes(log: EventLogSettings) -> dict[str, str]:
    """What keeps the events of the Brokers of each class that this release serves."""
    served: dict[str, str] = {DEFAULT_CLASS: log.kind}
    if log.redis_url:
        served[REDIS_CLASS] = "redis"
    if log.kafka_servers:
        served[KAFKA_CLASS] = "kafka"
    return served


async def open_logs(frame: Frame) -> Mapping[str, LedgerLog]:
    """The logs by class of Broker, open until the frame's end; they are waited for."""
    served = classes(frame.settings.event_log)
    made = {}
    for kind in dict.fromkeys(served.values()):
        log = _make_log(kind, frame.settings.event_log, frame.settings.pod)
        await frame.once(f"the event log on {kind}", log.open)
        frame.stack.push_async_callback(log.close)
        await frame.stack.enter_async_context(running(**{f"event log on {kind}": log.failed()}))
        made[kind] = log
    return {name: made[kind] for name, kind in served.items()}


def make_readers(settings: EventLogSettings) -> dict[str, LogQuery]:
    """What reads the logs for people, by class. Raises InvalidInput where an address cannot be read."""
    served = classes(settings)
    made = {kind: _make_reader(kind, settings) for kind in dict.fromkeys(served.values())}
    return {name: made[kind] for name, kind in served.items()}


def _make_log(kind: str, settings: EventLogSettings, pod: str) -> OwnLog:
    # Imported here: the clients of the other servers stay out. The pod's name outlives its container, so that a
    # restarted one goes on with its own work at once.
    with _readable(kind):
        if kind == "kafka":
            from broker.log.kafka.log import KafkaLog  # noqa: PLC0415 - see above

            return KafkaLog(settings.kafka_servers, owner=pod, name=settings.name)
        from broker.log.redis.log import RedisLog  # noqa: PLC0415 - see above

        return RedisLog(settings.redis_url, owner=pod, name=settings.name)


def _make_reader(kind: str, settings: EventLogSettings) -> LogQuery:
    with _readable(kind):
        if kind == "kafka":
            from broker.log.kafka.query import KafkaReader  # noqa: PLC0415 - see `_make_log`

            # A cache: another replica, or a new pod, makes it anew.
            return KafkaReader(settings.kafka_servers, name=settings.name, directory=Path(tempfile.gettempdir()))
        from broker.log.redis.query import RedisReader  # noqa: PLC0415 - see `_make_log`

        return RedisReader(settings.redis_url, name=settings.name)


@contextlib.contextmanager
def _readable(kind: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidInput(
            f"The event log's address cannot be read: {error}. Write it as {_EXAMPLES[kind]}."
        ) from error
