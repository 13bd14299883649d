"""Which event logs the release has: on servers that all of its pods share. A Broker's class picks among them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from broker.log.port import OwnLog
from broker.log.query import LogQuery
from broker.resources import KAFKA_CLASS, REDIS_CLASS
from penstock.cluster.settings import EventLogSettings, Settings
from penstock.logs import by_class, make_shared_log, make_shared_reader, served

__all__ = ["REMEDIES", "classes", "make_log", "make_readers"]

#: For each class that may be missing: how to have it.
REMEDIES: Final = {
    REDIS_CLASS: "Set the chart's value eventLog.redis, which names the Redis for it.",
    KAFKA_CLASS: "Set the chart's value eventLog.kafka, which names the Kafka for it.",
}


def classes(log: EventLogSettings) -> dict[str, str]:
    """What keeps the events of the Brokers of each class that this release serves."""
    return served(log.kind, redis_url=log.redis_url, kafka_servers=log.kafka_servers)


def make_log(kind: str, settings: Settings) -> OwnLog:
    """A log of this kind, to be opened. Raises InvalidInput where its address cannot be read."""
    log = settings.event_log
    # The pod's name outlives its container, so that a restarted one goes on with its own work at once.
    return make_shared_log(kind, _address(kind, log), owner=settings.pod, name=log.name, retention=log.retention)


def make_readers(log: EventLogSettings) -> dict[str, LogQuery]:
    """What reads the logs for people, by class. Raises InvalidInput where the address of one cannot be read."""

    def make(kind: str) -> LogQuery:
        # A copy is a cache, which another pod makes anew. Only for one does a pod have a folder that can be written.
        copies = Path(tempfile.gettempdir()) if kind == "kafka" else Path()
        return make_shared_reader(kind, _address(kind, log), name=log.name, copies=copies)

    return by_class(classes(log), make)


def _address(kind: str, log: EventLogSettings) -> str:
    return log.kafka_servers if kind == "kafka" else log.redis_url
