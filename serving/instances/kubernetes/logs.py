"""What the pods of a Revision wrote, put together from the logs of single containers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Final, Protocol

from core.errors import NotFound, PenstockError
from core.resources import Resource
from serving.instances.kubernetes.status import serving_container_name
from serving.instances.port import LogLine

__all__ = ["PodLogs", "followed", "told"]

_log = logging.getLogger(__name__)

#: Lines that wait for a slow reader; the followers pause when it is full.
MAX_WAITING_LINES: Final = 1000

#: Between looks for pods that came, and before a log that ended or is not there yet is opened again: a container that
#: was restarted, or one that starts.
LOOK_INTERVAL_S: Final = 0.5


class PodLogs(Protocol):
    """Where containers' logs are read."""

    def read(
        self, namespace: str, pod: str, container: str, *, tail: int | None, since: str | None, follow: bool
    ) -> AsyncGenerator[tuple[str, str]]:
        """(time, line) of the container as it runs now, or ran last: the last `tail` (None for all), none from before
        `since`, a time as it was told here; with `follow`, those to come until it ends. Times are RFC 3339 in UTC with
        nine digits, so that they sort as text.

        Raises NotFound where there is no such pod or its container has not started; Unavailable.
        """
        ...


async def told(logs: PodLogs, pods: Mapping[str, Resource], tail: int | None) -> AsyncGenerator[LogLine]:
    """What is there, pod by pod."""
    for name, pod in sorted(pods.items()):
        container = serving_container_name(pod)
        try:
            reading = logs.read(pod.meta.namespace, name, container, tail=tail, since=None, follow=False)
            async with aclosing(reading) as lines:
                async for _, text in lines:
                    yield LogLine(name, text)
        except NotFound:
            continue
        except PenstockError as error:
            # The others' lines are worth having.
            yield LogLine(name, f"(its log cannot be read: {error})")


async def followed(
    logs: PodLogs, present: Callable[[], Mapping[str, Resource]], tail: int | None
) -> AsyncGenerator[LogLine]:
    """The lines of all pods as they come, also of pods that come later, without end."""
    waiting: asyncio.Queue[LogLine] = asyncio.Queue(MAX_WAITING_LINES)
    readers: dict[str, asyncio.Task[None]] = {}

    async def look() -> None:
        last = tail
        while True:
            pods = present()
            for name in [name for name, reader in readers.items() if reader.done() and name not in pods]:
                del readers[name]
            for name, pod in pods.items():
                if name not in readers:
                    readers[name] = asyncio.create_task(_read(logs, pod, present, waiting, last))
            last = None  # what comes later is told from its first line
            await asyncio.sleep(LOOK_INTERVAL_S)

    looking = asyncio.create_task(look())
    try:
        while True:
            yield await waiting.get()
    finally:
        tasks = (looking, *readers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(
    logs: PodLogs,
    pod: Resource,
    present: Callable[[], Mapping[str, Resource]],
    waiting: asyncio.Queue[LogLine],
    tail: int | None,
) -> None:
    """One pod's lines until it is gone, over restarts of its container and of the API server, each line once."""
    name, container, last, troubles = pod.meta.name, serving_container_name(pod), "", 0
    while name in present():
        try:
            reading = logs.read(pod.meta.namespace, name, container, tail=tail, since=last or None, follow=True)
            async with aclosing(reading) as lines:
                async for time, text in lines:
                    tail, troubles = None, 0
                    if time > last:
                        await waiting.put(LogLine(name, text))
                        last = time
        except NotFound:
            pass  # it starts, or ends
        except PenstockError as error:
            troubles += 1
            if troubles == 1:
                facts = {"instance": name, "error": str(error)}
                _log.warning("a pod's log cannot be read and will be tried again", extra={"facts": facts})
        await asyncio.sleep(LOOK_INTERVAL_S)
