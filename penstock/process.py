"""The frame around every process of the platform, in both compositions: uvloop, logs, an orderly end.

A process ends on SIGTERM (whoever started it asks), and on SIGINT without a drain (a person does not want to wait). One
that cannot start says why. A part of it that ends by itself ends the whole: it is started again by whoever keeps it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import uvloop

from core.errors import PenstockError
from core.telemetry import configure_logging

__all__ = ["ANSWER_S", "CANNOT_START", "CUT_SHORT", "PART_ENDED", "Composed", "End", "Ending", "run", "running"]

log: Final = logging.getLogger(__name__)

#: Exit codes (sysexits.h): it cannot work with what it found, a part of it ended, and it was told to end without a
#: drain.
CANNOT_START: Final = 69
PART_ENDED: Final = 70
CUT_SHORT: Final = 75

#: So many containers are made, and not given up, before the young ones are looked through for cycles. Python's 700 are
#: fewer than a burst of events holds at a time, and all of those are looked at in vain; these hold some 2 MB.
YOUNG_OBJECTS: Final = 10_000
#: Looks at the younger generation before one at the next older.
LOOKS: Final = 20

#: For the answers that a drain gives at its end to reach their clients.
ANSWER_S: Final = 0.5


class Ending:
    """How long what is under way may take once the process is to end; compositions ask when they get there."""

    def __init__(self, drain_s: float) -> None:
        self.drain_s = drain_s

    def shorten(self, drain_s: float) -> None:
        self.drain_s = min(self.drain_s, drain_s)


#: Entering starts everything and returns when it serves; leaving drains and closes.
Composed = Callable[[Ending], AbstractAsyncContextManager[None]]


class End:
    """Who asked for the end, and how. Lives in the main task."""

    def __init__(self, ending: Ending) -> None:
        self.asked = asyncio.Event()
        self.starting = True
        self.draining = False
        self._ending = ending
        self._task = asyncio.current_task()

    def ask(self) -> None:
        """End; one that does not serve yet stops starting."""
        self.asked.set()
        if self.starting and self._task is not None:
            self._task.cancel()

    def hurry(self, drain_s: float) -> None:
        """End, with no more than `drain_s` for what is under way."""
        self._ending.shorten(drain_s)
        self.ask()

    def force(self) -> None:
        """End without waiting for what is under way; a drain that has begun is broken off."""
        self.hurry(0)
        if self.draining and self._task is not None:
            self._task.cancel()


def run(
    compose: Composed,
    *,
    name: str,
    drain_s: float,
    log_level: str = "INFO",
    on_start: Callable[[End], None] = lambda end: None,
    on_serving: Callable[[], None] = lambda: None,
    on_refusal: Callable[[str], None] = lambda reason: None,
) -> None:
    """Run one composition until the process is asked to end; `name` is who its log lines say they are from.

    `on_start` may ask for the end for reasons of its own, `on_serving` is called once everything serves, `on_refusal`
    with the reason where the composition cannot start. Raises SystemExit where the end is not an orderly one.
    """
    configure_logging(name, level=log_level)
    _raise_file_limit()
    try:
        uvloop.run(_serve(compose, Ending(drain_s), on_start, on_serving))
    except asyncio.CancelledError:
        log.warning("ended without finishing what was under way")
        raise SystemExit(CUT_SHORT) from None
    except _CannotStart as failure:
        log.critical("cannot start", exc_info=failure.__cause__)
        on_refusal(str(failure))
        raise SystemExit(CANNOT_START) from None


@asynccontextmanager
async def running(**work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """These coroutines, each in a task, until leaving. One that ends by itself ends the process: it is restarted."""
    tasks = [asyncio.create_task(each, name=name) for name, each in work.items()]
    for task in tasks:
        task.add_done_callback(_must_go_on)
    try:
        yield
    finally:
        for task in tasks:
            task.remove_done_callback(_must_go_on)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _CannotStart(Exception):
    """The composition raised while starting. The text says why."""


async def _serve(
    compose: Composed, ending: Ending, on_start: Callable[[End], None], on_serving: Callable[[], None]
) -> None:
    end = End(ending)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end.ask)
    loop.add_signal_handler(signal.SIGINT, end.force)
    on_start(end)
    try:
        async with compose(ending):
            end.starting = False
            on_serving()
            _settle_memory()
            log.info("serving")
            await end.asked.wait()
            log.info("draining", extra={"facts": {"within_s": ending.drain_s}})
            end.draining = True
    except (PenstockError, OSError) as error:
        if not end.starting:
            raise
        raise _CannotStart(str(error)) from error
    except asyncio.CancelledError:
        if not (end.starting and end.asked.is_set()):
            raise
    log.info("stopped")


def _must_go_on(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    log.critical("part of the process ended", exc_info=error, extra={"facts": {"part": task.get_name()}})
    # Not an orderly end: what runs on would pretend to be whole. A new process is started at once.
    os._exit(PART_ENDED)


def _settle_memory() -> None:
    """What a process has once it serves stays for its life: look for cycles there no more, and less often elsewhere.
    The hot path leaves none, and looking in vain was a tenth of a delivery's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, LOOKS, LOOKS)


def _raise_file_limit() -> None:
    """Every connection is a file: take all that the system allows (the usual soft limit is 1,024)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
