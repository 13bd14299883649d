"""The client's connections, as the event log uses them: plain answers, no retries of its own, errors by what to do."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError

from broker.log.port import LogFull
from core.errors import Unavailable

__all__ = [
    "COMMAND_TIMEOUT_S",
    "CONNECTION_ERRORS",
    "Connection",
    "Word",
    "ended",
    "say_what_may_be_lost",
    "shown",
    "unavailable",
    "version_of",
]

logger = logging.getLogger(__name__)

#: An answer takes a disk's sync and less than a second on a busy machine; a server that is silent for longer is away.
COMMAND_TIMEOUT_S: Final = 5.0
#: Commands under way at a time: the writer's, the leases', and reads.
MAX_CONNECTIONS: Final = 8

#: Before a task that was cancelled and goes on is cancelled again.
CANCEL_AGAIN_S: Final = 0.1

#: What a command raises where the server is away, or refuses.
CONNECTION_ERRORS: Final = (RedisError, OSError)

#: How Redis begins where it takes nothing because it cannot write to its disk. One that syncs each write ends instead.
_CANNOT_PERSIST: Final = "MISCONF"

Word = str | bytes | int | float


class Connection:
    """A pool of connections to one server. Answers are as the server gives them (RESP 2), with bytes for text.

    Nothing is sent twice: an append whose answer was lost may have been done, and only the log can tell.
    """

    def __init__(self, url: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Raises ValueError where the URL cannot be read."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis.from_pool(pool)
        self._redis.response_callbacks.clear()

    async def run(self, *words: Word) -> Any:
        """One command's answer. Raises CONNECTION_ERRORS."""
        try:
            return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]  # so in the client
        except RuntimeError as error:  # what uvloop says of a transport that was closed meanwhile
            raise ConnectionError(str(error)) from error

    async def run_all(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """The commands' answers, sent together; one that was refused has its RedisError as its answer."""
        pipeline = self._redis.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)
        try:
            return await pipeline.execute(raise_on_error=False)
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error

    async def script(self, text: str, keys: Sequence[str], *arguments: Word) -> Any:
        """A script's answer. Raises CONNECTION_ERRORS."""
        return await self.run("EVAL", text, len(keys), *keys, *arguments)

    async def close(self) -> None:
        await self._redis.aclose()


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait for their end. The client forgets a cancellation that reaches it while it connects, so
    that one is not always enough."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)


async def say_what_may_be_lost(redis: Connection) -> None:
    """Warn in the log where this server does less than an event log needs. Raises CONNECTION_ERRORS."""
    commands = [("CONFIG", "GET", name) for name in ("appendonly", "appendfsync", "maxmemory-policy")]
    answers = [answer[1] for answer in await redis.run_all(commands) if isinstance(answer, list) and answer]
    if len(answers) < len(commands):
        return  # a hosted Redis that does not tell
    appendonly, sync, policy = answers
    if appendonly != b"yes" or sync != b"always":
        facts = {"appendonly": appendonly.decode(), "appendfsync": sync.decode()}
        logger.warning(
            "this Redis answers before an event is on disk; a crash of its machine loses the newest events. "
            "Set appendonly yes and appendfsync always",
            extra={"facts": facts},
        )
    if policy != b"noeviction":
        facts = {"maxmemory-policy": policy.decode()}
        logger.warning(
            "this Redis may remove events when its memory is full. Set maxmemory-policy noeviction",
            extra={"facts": facts},
        )


def unavailable(error: BaseException) -> Unavailable:
    """What the platform says of an error of CONNECTION_ERRORS."""
    if isinstance(error, Unavailable):
        return error
    if isinstance(error, OutOfMemoryError):
        return LogFull("The event log is full: Redis has all the memory that it may use (maxmemory).")
    if str(error).startswith(_CANNOT_PERSIST):
        return LogFull(f"The event log is full, or its disk is broken: Redis says {str(error).rstrip('.')}.")
    return Unavailable(f"The event log cannot be used now: {str(error).rstrip('.')}.")


def version_of(info: bytes) -> int:
    """The server's major version, from its answer to INFO; 0 where it does not say."""
    found = re.search(rb"^redis_version:(\d+)", info, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def shown(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
