"""A process under the supervisor: it says when it serves, or why it cannot, and ends when its supervisor is gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from penstock.process import End, Ending, run
from penstock.standalone.settings import READY, Settings, read_settings

__all__ = ["Composition", "Ending", "run_process"]

#: The drain where the supervisor is gone: all processes end together then, so that what waits for another one of them
#: waits in vain. What is not delivered is delivered after the next start.
ORPHAN_DRAIN_S: Final = 2.0

#: Entering starts everything and returns when it serves; leaving drains and closes.
Composition = Callable[[Settings, Ending], AbstractAsyncContextManager[None]]


def run_process(compose: Composition) -> None:
    """Run one composition until the process is asked to end, or its life pipe reads end-of-file. "ready", or the reason
    why it cannot start, goes through the other pipe."""
    settings = read_settings()

    def tell_ready() -> None:
        os.write(settings.ready_fd, READY)
        os.close(settings.ready_fd)

    run(
        lambda ending: compose(settings, ending),
        name=settings.name,
        drain_s=settings.drain_s,
        log_level=settings.log_level,
        on_start=lambda end: _end_with_supervisor(end, settings.life_fd),
        on_serving=tell_ready,
        on_refusal=lambda reason: _tell(settings.ready_fd, reason),
    )


def _end_with_supervisor(end: End, life_fd: int) -> None:
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        # A closed pipe stays readable: the loop would spin while it drains.
        loop.remove_reader(life_fd)
        end.hurry(ORPHAN_DRAIN_S)

    loop.add_reader(life_fd, orphaned)


def _tell(ready_fd: int, reason: str) -> None:
    os.write(ready_fd, reason.encode())
