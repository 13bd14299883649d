"""Which event logs the platform has: the one in the data directory, and those on servers that outlive it and that
others may share. A Broker's class picks among them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker.log.port import OwnLog
from broker.log.query import LogQuery, LogReader
from broker.resources import DEFAULT_CLASS, KAFKA_CLASS, REDIS_CLASS
from core.errors import Unavailable
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
    served = {DEFAULT_CLASS: log.kind}
    if log.redis_url:
        served[REDIS_CLASS] = "redis"
    if log.kafka_servers:
        served[KAFKA_CLASS] = "kafka"
    return served


def make_readers(settings: Settings) -> dict[str, LogQuery]:
    """What reads the logs for people, by class."""
    served = classes(settings.broker_log)
    made = {kind: _make_reader(kind, settings) for kind in dict.fromkeys(served.values())}
    return {name: made[kind] for name, kind in served.items()}


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
    # Imported where it is wanted: a server's client costs memory and start-up time.
    name = log_name(Path(settings.data), kind) if kind != "sqlite" else ""
    if kind == "redis":
        with _client_needed(kind):
            from broker.log.redis.log import RedisLog  # noqa: PLC0415 - see above

        return RedisLog(settings.broker_log.redis_url, owner=_owner(settings), name=name)
    if kind == "kafka":
        with _client_needed(kind):
            from broker.log.kafka.log import KafkaLog  # noqa: PLC0415 - see above

        return KafkaLog(settings.broker_log.kafka_servers, owner=_owner(settings), name=name)
    from broker.log.sqlite import SqliteLog  # noqa: PLC0415 - see above

    return SqliteLog(_file(settings))


def _make_reader(kind: str, settings: Settings) -> LogQuery:
    name = log_name(Path(settings.data), kind) if kind != "sqlite" else ""
    if kind == "redis":
        with _client_needed(kind):
            from broker.log.redis.query import RedisReader  # noqa: PLC0415 - see `make_log`

        return RedisReader(settings.broker_log.redis_url, name=name)
    if kind == "kafka":
        with _client_needed(kind):
            from broker.log.kafka.query import KafkaReader  # noqa: PLC0415 - see `make_log`

        copy = Path(settings.data) / "broker" / "kafka"
        return KafkaReader(settings.broker_log.kafka_servers, name=name, directory=copy)
    return LogReader(_file(settings))


def _owner(settings: Settings) -> str:
    """Who the broker process is for a shared log: one at a time runs on a data directory (its lock is the
    supervisor's), so that one that is started again goes on at once with what it was doing."""
    return f"{socket.gethostname()}:{settings.data}"


def _file(settings: Settings) -> Path:
    return Path(settings.data) / "broker" / "log.db"


@contextlib.contextmanager
def _client_needed(kind: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"The event log on {kind.capitalize()} needs the Python package {error.name}. "
            f"Install it: pip install 'penstock[{kind}]'."
        ) from error
