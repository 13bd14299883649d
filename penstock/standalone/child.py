"""One supervised process: started, ready, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from penstock.standalone.settings import VARIABLE, Settings

__all__ = ["Child", "StartFailed"]

#: A process that does not serve within this time is given up; importing takes well under a second.
START_TIMEOUT_S: Final = 30.0
#: What a process gets beyond its own drain time before it is killed.
KILL_MARGIN_S: Final = 5.0
#: A process's log file is set aside (one generation) when it is larger than this at its start.
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
#: Log lines shown when a process does not start.
_SHOWN_LINES: Final = 5


class StartFailed(Exception):
    """The platform cannot start. The message says why and what to do."""


class Child:
    """A running process of the platform, and the supervisor's end of its life pipe."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, life_write: int, ready_read: int) -> None:
        self.name = name
        self.process = process
        self._life_write = life_write
        self._ready_read = ready_read

    @classmethod
    async def spawn(cls, settings: Settings, *, inherit: Sequence[int], log_path: Path) -> Child:
        """Start ``python -m penstock.standalone.<name>`` with the sockets `inherit` and its own two pipes."""
        ready_read, ready_write = os.pipe()
        life_read, life_write = os.pipe()
        told = msgspec.structs.replace(settings, ready_fd=ready_write, life_fd=life_read)
        _set_aside(log_path)
        try:
            with log_path.open("ab") as log_file:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    f"penstock.standalone.{settings.name}",
                    env={**os.environ, VARIABLE: msgspec.json.encode(told).decode()},
                    pass_fds=[*inherit, ready_write, life_read],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone
                )
        finally:
            os.close(ready_write)
            os.close(life_read)
        return cls(settings.name, process, life_write, ready_read)

    async def ready(self, log_path: Path) -> None:
        """Wait until it serves. Raises StartFailed with the end of its log where it ends or hangs instead."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(self._ready_read, lambda: _settle(told, os.read(self._ready_read, 16)))
        try:
            answer = await asyncio.wait_for(told, START_TIMEOUT_S)
        except TimeoutError as error:
            self.process.kill()
            raise StartFailed(f"The {self.name} process did not serve within {START_TIMEOUT_S:g} s.") from error
        finally:
            loop.remove_reader(self._ready_read)
            os.close(self._ready_read)
        if not answer:
            code = await self.process.wait()
            raise StartFailed(
                f"The {self.name} process ended with code {code} while starting:\n{_last_lines(log_path)}"
            )

    async def wait(self) -> int:
        """The exit code, once it has ended; its life pipe is closed then."""
        code = await self.process.wait()
        if self._life_write >= 0:
            os.close(self._life_write)
            self._life_write = -1
        return code

    async def end(self, drain_s: float) -> None:
        """Ask it to drain and end; kill it if it takes much longer than `drain_s`."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), drain_s + KILL_MARGIN_S)
        except TimeoutError:
            self.process.kill()
            await self.wait()


def _set_aside(log_path: Path) -> None:
    try:
        if log_path.stat().st_size > MAX_LOG_BYTES:
            log_path.replace(log_path.with_suffix(".old.log"))
    except FileNotFoundError:
        return


def _settle(future: asyncio.Future[bytes], value: bytes) -> None:
    if not future.done():
        future.set_result(value)


def _last_lines(log_path: Path) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
