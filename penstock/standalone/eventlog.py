"""Which event logs the platform has: the one in the data directory, and those on servers that outlive it and that
others may share. A Broker's class picks among them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from pathlib import Path
from typing import Final

from broker.log.port import OwnLog
from broker.log.query import LogQuery, LogReader
from broker.resources import KAFKA_CLASS, REDIS_CLASS
from penstock.logs import by_class, make_shared_log, make_shared_reader, served
from penstock.standalone.settings import BrokerLog, Settings

__all__ = ["REMEDIES", "classes", "make_log", "make_readers"]

#: For each class that may be missing: how to have it.
REMEDIES: Final = {
    REDIS_CLASS: "Start the platform with --redis-url or PENSTOCK_REDIS_URL, which name the Redis for it.",
    KAFKA_CLASS: "Start the platform with --kafka-servers or PENSTOCK_KAFKA_BOOTSTRAP_SERVERS, which name the Kafka.",
}


def classes(log: BrokerLog) -> dict[str, str]:
    """What keeps the events of the Brokers of each class that this platform serves: `BrokerLog.kind`, or one of the
    servers that the settings name."""
    return served(log.kind, redis_url=log.redis_url, kafka_servers=log.kafka_servers)


def make_readers(settings: Settings) -> dict[str, LogQuery]:
    """What reads the logs for people, by class."""
    return by_class(classes(settings.broker_log), lambda kind: _make_reader(kind, settings))


def log_name(data: Path, kind: str) -> str:
    """What the log's keys in Redis or its topics in Kafka begin with: one name a data directory, because Triggers are
    known by uids that only this directory's resources have."""
    path = data / "broker" / f"{kind}-log-name"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}")
        made.write_text(f"penstock-{uuid.uuid4().hex[:12]}\n")
        with contextlib.suppress(FileExistsError):  # another process was faster: its name counts
            os.link(made, path)
        made.unlink()
    return path.read_text().strip()


def make_log(kind: str, settings: Settings) -> OwnLog:
    """A log of this kind, to be opened. Raises Unavailable where what it needs is not installed."""
    if kind == "sqlite":
        from broker.log.sqlite import SqliteLog  # noqa: PLC0415 - another log's process does without

        return SqliteLog(_file(settings), retention=settings.broker_log.retention)
    name = log_name(Path(settings.data), kind)
    retention = settings.broker_log.retention
    return make_shared_log(kind, _address(kind, settings), owner=_owner(settings), name=name, retention=retention)


def _make_reader(kind: str, settings: Settings) -> LogQuery:
    if kind == "sqlite":
        return LogReader(_file(settings))
    data = Path(settings.data)
    copies = data / "broker" / kind
    return make_shared_reader(kind, _address(kind, settings), name=log_name(data, kind), copies=copies)


def _address(kind: str, settings: Settings) -> str:
    return settings.broker_log.kafka_servers if kind == "kafka" else settings.broker_log.redis_url


def _owner(settings: Settings) -> str:
    """Who the broker process is for a shared log: one at a time runs on a data directory (its lock is the
    supervisor's), so that one that is started again goes on at once with what it was doing."""
    return f"{socket.gethostname()}:{settings.data}"


def _file(settings: Settings) -> Path:
    return Path(settings.data) / "broker" / "log.db"
