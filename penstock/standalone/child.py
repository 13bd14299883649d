"""One supervised process: started, ready, ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from penstock.standalone.settings import READY, VARIABLE, Settings

__all__ = ["Child", "StartFailed", "ended"]

#: A process that does not serve within this time is given up; importing takes well under a second.
START_TIMEOUT_S: Final = 30.0
#: What a process gets beyond its own drain time before it is killed.
KILL_MARGIN_S: Final = 5.0
#: What a process gets to end once it was told not to drain: enough to kill functions and to close files.
FORCE_S: Final = 3.0
#: A process's log file is set aside (one generation) when it is larger than this at its start.
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
#: Log lines shown when a process does not start or crashes, and how far back they are looked for.
_SHOWN_LINES: Final = 5
_SHOWN_BYTES: Final = 8 * 1024
#: A reason for not starting is a sentence or two; a pipe holds this much without a reader.
_MAX_TOLD_BYTES: Final = 4_096


class _LogLine(msgspec.Struct):
    """What is looked at of a line that `core.telemetry` wrote."""

    level: str
    message: str
    exception: str = ""


class StartFailed(Exception):
    """The platform cannot start. The message says why and what to do."""


class Child:
    """A running process of the platform, and the supervisor's end of its life pipe."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        *,
        log_path: Path,
        log_start: int,
        life_write: int,
        ready_read: int,
    ) -> None:
        self.name = name
        self.process = process
        self._log_path = log_path
        self._log_start = log_start
        self._life_write = life_write
        self._ready_read = ready_read

    @classmethod
    async def spawn(
        cls, settings: Settings, command: Sequence[str], *, inherit: Sequence[int], log_path: Path
    ) -> Child:
        """Start `command` with the sockets `inherit` and its own two pipes. Raises OSError where its log cannot be
        written or nothing can be started."""
        _set_aside(log_path)
        with log_path.open("ab") as log_file:
            log_start = log_file.tell()
            ready_read, ready_write = os.pipe()
            life_read, life_write = os.pipe()
            told = msgspec.structs.replace(settings, ready_fd=ready_write, life_fd=life_read)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**os.environ, VARIABLE: msgspec.json.encode(told).decode()},
                    pass_fds=[*inherit, ready_write, life_read],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone
                )
            except BaseException:
                os.close(ready_read)
                os.close(life_write)
                raise
            finally:
                os.close(ready_write)
                os.close(life_read)
        return cls(
            settings.name,
            process,
            log_path=log_path,
            log_start=log_start,
            life_write=life_write,
            ready_read=ready_read,
        )

    async def ready(self) -> None:
        """Wait until it serves. Raises StartFailed with its reason, or the end of its log, where it ends or hangs."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(self._ready_read, lambda: _settle(told, os.read(self._ready_read, _MAX_TOLD_BYTES)))
        try:
            answer = await asyncio.wait_for(told, START_TIMEOUT_S)
        except TimeoutError as error:
            self.process.kill()
            raise StartFailed(
                f"The {self.name} process did not serve within {START_TIMEOUT_S:g} s. See {self._log_path}."
            ) from error
        finally:
            loop.remove_reader(self._ready_read)
            os.close(self._ready_read)
        if answer == READY:
            return
        code = await self.process.wait()
        if answer:
            raise StartFailed(f"The {self.name} process cannot start. {answer.decode(errors='replace')}")
        raise StartFailed(f"The {self.name} process {ended(code)} while starting; see {self._log_path}.{self.said()}")

    async def wait(self) -> int:
        """The exit code, once it has ended; its life pipe is closed then."""
        code = await self.process.wait()
        if self._life_write >= 0:
            os.close(self._life_write)
            self._life_write = -1
        return code

    def said(self) -> str:
        """The end of what this process wrote to its log but for its daily business, each line on a line of its own; ""
        where there is nothing of that kind."""
        return "".join(f"\n  {line}" for line in _last_lines(self._log_path, self._log_start))

    async def end(self, drain_s: float, force: asyncio.Event) -> None:
        """Ask it to drain and end; kill it if it takes much longer than `drain_s`. Once `force` is set, it gets
        a moment to end without a drain instead."""
        ending = asyncio.create_task(self.wait())
        forced = asyncio.create_task(force.wait())
        try:
            if not force.is_set():
                self._send(signal.SIGTERM)
            await asyncio.wait((ending, forced), timeout=drain_s + KILL_MARGIN_S, return_when=asyncio.FIRST_COMPLETED)
            if force.is_set():
                self._send(signal.SIGINT)
                await asyncio.wait((ending,), timeout=FORCE_S)
            self._send(signal.SIGKILL)
            await ending
        finally:
            forced.cancel()
            await asyncio.gather(forced, return_exceptions=True)

    def _send(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)


def ended(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _last_lines(log_path: Path, start: int) -> list[str]:
    """The last few lines of a log that tell of trouble, none of those before `start`."""
    try:
        with log_path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _SHOWN_BYTES))
            lines = file.read(_SHOWN_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
    return [told for line in lines for told in _told(line)][-_SHOWN_LINES:]


def _told(line: str) -> list[str]:
    """A log line for a person: nothing where it tells no trouble, message and exception where it does. What is no log
    line, such as a traceback of the interpreter, is told as it is."""
    try:
        entry = msgspec.json.decode(line, type=_LogLine)
    except msgspec.DecodeError:
        return [line]
    if entry.level in ("debug", "info"):
        return []
    return [f"{entry.level}: {entry.message}", *entry.exception.splitlines()]


def _set_aside(log_path: Path) -> None:
    try:
        if log_path.stat().st_size > MAX_LOG_BYTES:
            log_path.replace(log_path.with_suffix(".old.log"))
    except FileNotFoundError:
        return


def _settle(future: asyncio.Future[bytes], value: bytes) -> None:
    if not future.done():
        future.set_result(value)
