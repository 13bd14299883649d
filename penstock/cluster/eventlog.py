"""Which event logs the release has: on servers that all of its pods share. A Broker's class picks among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from broker.log.query import LogQuery
from broker.resources import DEFAULT_CLASS, REDIS_CLASS
from core.errors import InvalidInput
from penstock.cluster.process import Frame
from penstock.cluster.settings import EventLogSettings

if TYPE_CHECKING:
    from broker.log.port import LedgerLog
    from broker.log.redis.log import RedisLog

__all__ = ["REMEDIES", "classes", "make_readers", "open_logs"]

#: For each class that may be missing: how to have it.
REMEDIES: Final = {
    REDIS_CLASS: "Set the chart's value eventLog.redis, which names the Redis for it.",
}


def classes(log: EventLogSettings) -> dict[str, str]:
    """What keeps the events of the Brokers of each class that this release serves."""
    served: dict[str, str] = {DEFAULT_CLASS: log.kind}
    if log.redis_url:
        served[REDIS_CLASS] = "redis"
    return served


async def open_logs(frame: Frame) -> Mapping[str, LedgerLog]:
    """The logs by class of Broker, open until the frame's end; they are waited for."""
    served = classes(frame.settings.event_log)
    made = {}
    for kind in dict.fromkeys(served.values()):
        log = _make_log(frame.settings.event_log, frame.settings.pod)
        await frame.once(f"the event log on {kind}", log.open)
        frame.stack.push_async_callback(log.close)
        made[kind] = log
    return {name: made[kind] for name, kind in served.items()}


def make_readers(settings: EventLogSettings) -> dict[str, LogQuery]:
    """What reads the logs for people, by class. Raises InvalidInput where an address cannot be read."""
    from broker.log.redis.query import RedisReader  # noqa: PLC0415 - one of several; the others' clients stay out

    try:
        reader = RedisReader(settings.redis_url, name=settings.name)
    except ValueError as error:
        raise _unreadable(error) from error
    return dict.fromkeys(classes(settings), reader)


def _make_log(settings: EventLogSettings, pod: str) -> RedisLog:
    from broker.log.redis.log import RedisLog  # noqa: PLC0415 - as above

    try:
        # The pod's name outlives its container, so that a restarted one goes on with its own work at once.
        return RedisLog(settings.redis_url, owner=pod, name=settings.name)
    except ValueError as error:
        raise _unreadable(error) from error


def _unreadable(error: ValueError) -> InvalidInput:
    return InvalidInput(f"The event log's address cannot be read: {error}. Write it as redis://host:6379/0.")
