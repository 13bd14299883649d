"""A small disk for tests: a tmpfs of a stated size in a mount namespace of its own, which ends with it.

Needs root, or user namespaces that users may make, as `tests.support.netns` does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["SmallDisk"]

#: Mounts, says so, and lives until its standard input ends.
_HOLD: Final = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec cat'


class SmallDisk:
    """A disk of `size` bytes at the folder `at`, for the commands that `inside` gives.

    `outside` is where its files are for everybody else, while it is entered.
    """

    def __init__(self, at: Path, size: int) -> None:
        self.at = at
        self._size = size

    def __enter__(self) -> SmallDisk:
        self.at.mkdir(parents=True, exist_ok=True)
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = ["unshare", *user, "--mount", "sh", "-c", _HOLD, "disk", str(self._size), str(self.at)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()

    @property
    def outside(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.at}")

    def inside(self, *command: str) -> list[str]:
        """The command, run where the disk is."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        wd = f"--wd={os.getcwd()}"
        return ["nsenter", f"--target={self._holder.pid}", "--mount", *user, wd, "--", *command]

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        told = os.statvfs(self.outside)
        return told.f_bavail * told.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but so many bytes."""
        with (self.outside / "ballast").open("ab") as file:
            size = max(self.free - leave, 0)
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size) if size else None

    def make_room(self) -> None:
        (self.outside / "ballast").unlink()
