"""One operating-system process of an instance: start it, recognise it again, learn that it ended, end it.

A process is told from a later one with the same number by its start time (``/proc/<pid>/stat``, field 22) and the boot.
Its end is seen through a pidfd, which works for children and for adopted processes alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

__all__ = ["Identity", "Process", "boot_id", "identity_of", "marked_processes"]


class Identity(msgspec.Struct, frozen=True):
    """Which process: its number, when it started (clock ticks since boot), and of which boot."""

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    """The kernel's identifier of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity_of(pid: int, boot: str) -> Identity | None:
    """The process with that number now; None where there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may hold anything.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else Identity(pid, int(fields[19]), boot)


def marked_processes(marker: str) -> list[int]:
    """Numbers of this user's processes whose environment holds the line `marker`."""
    wanted = marker.encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # Other users' processes cannot be read, and any may end at any time.
        with contextlib.suppress(OSError):
            if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


class Process:
    """A running process that leads its own session, ours or adopted."""

    def __init__(self, identity: Identity, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._child = child
        self._pidfd = os.pidfd_open(identity.pid)
        self._loop = asyncio.get_running_loop()
        #: Done once the process has ended; the exit code (128 + signal for a signal), or None where it is not known.
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_end)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        folder: str,
        environment: Mapping[str, str],
        log: int,
        inherit: Sequence[int],
        boot: str,
    ) -> Process:
        """Start `argv`; output goes to the file descriptor `log`; the descriptors of `inherit` stay open in it.

        Raises OSError where it cannot be started.
        """
        child = subprocess.Popen(  # noqa: S603 - running the user's function is what this is for
            argv,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=tuple(inherit),
            start_new_session=True,
        )
        identity = identity_of(child.pid, boot)
        # A child that ended already is still there to be waited for; its start time does not matter any more.
        return cls(identity or Identity(child.pid, 0, boot), child)

    def ask_to_stop(self) -> None:
        """SIGTERM to the process and what it started in its group, so that a wrapper's program hears it too."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def limit_memory(self, size: int) -> None:
        """Bound the process's private writable memory (bytes); allocations beyond it fail."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(self.identity.pid, resource.RLIMIT_DATA, (size, size))

    def release(self) -> None:
        """Stop watching, leaving the process as it is."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._child is not None and self._child.returncode is None:
            # Tells Popen that nobody waits for this child any more.
            self._child.returncode = 0

    def _signal(self, number: signal.Signals) -> None:
        if self.ended.done() or self._pidfd < 0:
            return
        try:
            os.killpg(self.identity.pid, number)
        except ProcessLookupError:
            # Not a group leader (yet): the process itself is safe to name through its pidfd.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_end(self) -> None:
        # While the ended child is not waited for, its number cannot be given to another, so the group is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.identity.pid, signal.SIGKILL)
        code = None
        if self._child is not None:
            status = self._child.wait()
            code = status if status >= 0 else 128 - status
        self.release()
        if not self.ended.done():
            self.ended.set_result(code)
