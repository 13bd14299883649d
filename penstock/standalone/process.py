"""The frame around each process of the platform: uvloop, logs, "ready", and an orderly end.

A process ends on SIGTERM (the supervisor asks) or when its life pipe reads end-of-file (the supervisor is gone).
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

from core.telemetry import configure_logging
from penstock.standalone.settings import Settings, read_settings

__all__ = ["Composition", "run_process"]

log: Final = logging.getLogger(__name__)

#: Entering starts everything and returns when it serves; leaving drains and closes.
Composition = Callable[[Settings], AbstractAsyncContextManager[None]]


def run_process(compose: Composition) -> None:
    """Run one composition until the process is asked to end."""
    settings = read_settings()
    configure_logging(settings.name, level=settings.log_level)
    _raise_file_limit()
    uvloop.run(_serve(compose, settings))


async def _serve(compose: Composition, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_reader(settings.life_fd, stop.set)
    try:
        async with compose(settings):
            _tell_ready(settings)
            await stop.wait()
            # A closed life pipe stays readable: without this the loop would spin while it drains.
            loop.remove_reader(settings.life_fd)
            log.info("draining")
    finally:
        loop.remove_reader(settings.life_fd)
    log.info("stopped")


def _tell_ready(settings: Settings) -> None:
    os.write(settings.ready_fd, b"ready\n")
    os.close(settings.ready_fd)
    log.info("serving")


def _raise_file_limit() -> None:
    """Every connection is a file: take all that the system allows (the usual soft limit is 1,024)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
