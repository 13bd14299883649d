"""The frame around each process of the platform: uvloop, logs, "ready", and an orderly end.

A process ends on SIGTERM (the supervisor asks), on SIGINT without a drain (a person does not want to wait), or when its
life pipe reads end-of-file (the supervisor is gone). A process that cannot start says why through the pipe that else
says "ready".
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import uvloop

from core.errors import PenstockError
from core.telemetry import configure_logging
from penstock.standalone.settings import READY, Settings, read_settings

__all__ = ["Composition", "Ending", "run_process"]

log: Final = logging.getLogger(__name__)

#: The drain where the supervisor is gone: all processes end together then, so that what waits for another one of them
#: waits in vain. What is not delivered is delivered after the next start.
ORPHAN_DRAIN_S: Final = 2.0
#: Exit codes (sysexits.h): it cannot work with what it found, and it was told to end without a drain.
CANNOT_START: Final = 69
CUT_SHORT: Final = 75


class Ending:
    """How long what is under way may take once the process is to end; compositions ask when they get there."""

    def __init__(self, drain_s: float) -> None:
        self.drain_s = drain_s

    def shorten(self, drain_s: float) -> None:
        self.drain_s = min(self.drain_s, drain_s)


#: Entering starts everything and returns when it serves; leaving drains and closes.
Composition = Callable[[Settings, Ending], AbstractAsyncContextManager[None]]


def run_process(compose: Composition) -> None:
    """Run one composition until the process is asked to end."""
    settings = read_settings()
    configure_logging(settings.name, level=settings.log_level)
    _raise_file_limit()
    try:
        uvloop.run(_serve(compose, settings))
    except asyncio.CancelledError:
        log.warning("ended without finishing what was under way")
        raise SystemExit(CUT_SHORT) from None
    except _CannotStart as failure:
        log.critical("cannot start", exc_info=failure.__cause__)
        os.write(settings.ready_fd, str(failure).encode())
        raise SystemExit(CANNOT_START) from None


class _CannotStart(Exception):
    """The composition raised while starting. The text says why."""


async def _serve(compose: Composition, settings: Settings) -> None:
    ending = Ending(settings.drain_s)
    end = _End(ending)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end.ask)
    loop.add_signal_handler(signal.SIGINT, end.force)
    loop.add_reader(settings.life_fd, end.orphaned, settings.life_fd)
    serving = False
    try:
        async with compose(settings, ending):
            serving = True
            _tell_ready(settings)
            await end.asked.wait()
            log.info("draining", extra={"facts": {"within_s": ending.drain_s}})
            end.draining = True
    except (PenstockError, OSError) as error:
        if serving:
            raise
        raise _CannotStart(str(error)) from error
    log.info("stopped")


class _End:
    """Who asked for the end, and how. Lives in the main task."""

    def __init__(self, ending: Ending) -> None:
        self.asked = asyncio.Event()
        self.draining = False
        self._ending = ending
        self._task = asyncio.current_task()

    def ask(self) -> None:
        self.asked.set()

    def force(self) -> None:
        """End without waiting for what is under way; a drain that has begun is broken off."""
        self._ending.shorten(0)
        self.asked.set()
        if self.draining and self._task is not None:
            self._task.cancel()

    def orphaned(self, life_fd: int) -> None:
        # A closed pipe stays readable: the loop would spin while it drains.
        asyncio.get_running_loop().remove_reader(life_fd)
        self._ending.shorten(ORPHAN_DRAIN_S)
        self.asked.set()


def _tell_ready(settings: Settings) -> None:
    os.write(settings.ready_fd, READY)
    os.close(settings.ready_fd)
    log.info("serving")


def _raise_file_limit() -> None:
    """Every connection is a file: take all that the system allows (the usual soft limit is 1,024)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
