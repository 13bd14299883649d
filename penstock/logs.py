"""Event logs on servers that several processes share, for both compositions: whose they are, and making them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from broker.log.port import OwnLog, Retention
from broker.log.query import LogQuery
from broker.resources import DEFAULT_CLASS, KAFKA_CLASS, REDIS_CLASS
from core.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from broker.node import BrokerNode

__all__ = ["by_class", "further_logs", "make_shared_log", "make_shared_reader", "served"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Before the server of a log that is not the default one is tried again.
OPEN_AGAIN_S: Final = 2.0

_EXAMPLES: Final = {"redis": "redis://host:6379/0", "kafka": "host:9092"}


def served(default: str, *, redis_url: str, kafka_servers: str) -> dict[str, str]:
    """What keeps the events of the Brokers of each class: `default` for those that ask for none, and each server whose
    address is given for those that ask for it."""
    found = {DEFAULT_CLASS: default}
    if redis_url:
        found[REDIS_CLASS] = "redis"
    if kafka_servers:
        found[KAFKA_CLASS] = "kafka"
    return found


def by_class(kinds: Mapping[str, str], make: Callable[[str], T]) -> dict[str, T]:
    """One of each kind, by the classes of Brokers (`served`) that it is for."""
    made = {kind: make(kind) for kind in dict.fromkeys(kinds.values())}
    return {name: made[kind] for name, kind in kinds.items()}


def make_shared_log(kind: str, address: str, *, owner: str, name: str, retention: Retention | None = None) -> OwnLog:
    """The log on a Redis or a Kafka, to be opened. `owner` is who this process is, `name` what its keys or topics begin
    with; events are kept as `retention` says (None: as it does by default). Raises Unavailable where its client is not
    installed, InvalidInput where the address cannot be read."""
    # Imported where it is wanted: a server's client costs memory and start-up time.
    with _told(kind):
        if kind == "kafka":
            from broker.log.kafka.log import KafkaLog  # noqa: PLC0415 - see above

            return KafkaLog(address, owner=owner, name=name, retention=retention)
        from broker.log.redis.log import RedisLog  # noqa: PLC0415 - see above

        return RedisLog(address, owner=owner, name=name, retention=retention)


def make_shared_reader(kind: str, address: str, *, name: str, copies: Path) -> LogQuery:
    """What reads that log for people; of a Kafka's there is a copy in the folder `copies`. Raises as `make_shared_log`
    does."""
    with _told(kind):
        if kind == "kafka":
            from broker.log.kafka.query import KafkaReader  # noqa: PLC0415 - see `make_shared_log`

            return KafkaReader(address, name=name, directory=copies)
        from broker.log.redis.query import RedisReader  # noqa: PLC0415 - see `make_shared_log`

        return RedisReader(address, name=name)


def further_logs(
    node: BrokerNode, kinds: Mapping[str, str], make: Callable[[str], OwnLog]
) -> dict[str, Coroutine[Any, Any, None]]:
    """By kind, what has `node` serve each log of `kinds` (`served`) beside the default one, to be run until the end."""
    names: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        if kind != kinds[DEFAULT_CLASS]:
            names.setdefault(kind, []).append(name)
    return {kind: _further_log(node, held, partial(make, kind)) for kind, held in names.items()}


async def _further_log(node: BrokerNode, names: Collection[str], make: Callable[[], OwnLog]) -> None:
    """Have the node serve one more log once it can be had, until cancelled: Brokers of the others must not wait for a
    server that is none of theirs."""
    failures = 0
    while True:
        log = make()
        try:
            await log.open()
            break
        except Unavailable as error:
            failures += 1
            if failures == 1:
                facts = {"classes": list(names), "error": str(error)}
                logger.error("Brokers of these classes take no events now; trying again", extra={"facts": facts})
            await asyncio.sleep(OPEN_AGAIN_S)
    try:
        node.add(dict.fromkeys(names, log))
        await log.failed()
    finally:
        await log.close()


@contextlib.contextmanager
def _told(kind: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"The event log on {kind.capitalize()} needs the Python package {error.name}. "
            f"Install it: pip install 'penstock[{kind}]'."
        ) from error
    except ValueError as error:
        raise InvalidInput(
            f"The event log's address cannot be read: {error}. Write it as {_EXAMPLES[kind]}."
        ) from error
