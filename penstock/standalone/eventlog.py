"""Which event log the platform has: in the data directory, or in a Redis that outlives it and that others may share."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.log.query import LogQuery, LogReader
from broker.resources import DEFAULT_CLASS, REDIS_CLASS
from core.errors import Unavailable
from penstock.standalone.settings import Settings

if TYPE_CHECKING:
    from broker.log.redis.log import RedisLog
    from broker.log.sqlite import SqliteLog

__all__ = ["classes", "make_log", "make_reader"]

#: By the log's name, the classes of the Brokers that it serves: the default, and those that ask for it by name.
_CLASSES: Final = {
    "sqlite": frozenset({DEFAULT_CLASS}),
    "redis": frozenset({DEFAULT_CLASS, REDIS_CLASS}),
}


def classes(settings: Settings) -> frozenset[str]:
    """The classes of the Brokers that this platform serves."""
    return _CLASSES[settings.broker_log.kind]


def make_log(settings: Settings) -> SqliteLog | RedisLog:
    """The log, to be opened. Raises Unavailable where what it needs is not installed."""
    if settings.broker_log.kind == "redis":
        with _client_needed():
            from broker.log.redis.log import RedisLog  # noqa: PLC0415 - its client costs memory and start-up time

        # One broker process at a time runs on a data directory (its lock is the supervisor's): that makes it an owner.
        owner = f"{socket.gethostname()}:{settings.data}"
        return RedisLog(settings.broker_log.redis_url, owner=owner, name=log_name(Path(settings.data)))
    from broker.log.sqlite import SqliteLog  # noqa: PLC0415 - as above

    return SqliteLog(_file(settings))


def make_reader(settings: Settings) -> LogQuery:
    """What reads the log for people."""
    if settings.broker_log.kind == "redis":
        with _client_needed():
            from broker.log.redis.query import RedisReader  # noqa: PLC0415 - see `make_log`

        return RedisReader(settings.broker_log.redis_url, name=log_name(Path(settings.data)))
    return LogReader(_file(settings))


def log_name(data: Path) -> str:
    """What the log's keys in Redis begin with: one name a data directory, because Triggers are known by uids that only
    this directory's resources have."""
    path = data / "broker" / "redis-log-name"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}")
        made.write_text(f"penstock-{uuid.uuid4().hex[:12]}\n")
        with contextlib.suppress(FileExistsError):  # another process was faster: its name counts
            os.link(made, path)
        made.unlink()
    return path.read_text().strip()


def _file(settings: Settings) -> Path:
    return Path(settings.data) / "broker" / "log.db"


@contextlib.contextmanager
def _client_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"The event log on Redis needs the Python package {error.name}. Install it: pip install 'penstock[redis]'."
        ) from error
