"""What instances write: one file each, bounded in size, kept for a while after the instance is gone.

A process writes to its file directly (opened for appending), so its output needs nobody to read it: it goes on while
the control process is away. A file that grows over its limit is copied to ``<name>.log.1`` and emptied; what is written
between the two steps is lost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from serving.instances.port import LogLine

__all__ = ["LogFiles"]

#: A file's size before it is rotated; with the rotated one, an instance keeps at most twice that, about a day of chat.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024

#: Files of instances that are gone, per Revision: enough to see why the last ones failed.
KEPT_FILES: Final = 10

#: Revisions whose logs are kept after the last instance is gone; the ones written to longest ago go first.
KEPT_REVISIONS: Final = 200

#: How often a follower looks for more. Person-speed, and it costs one `stat` a file.
FOLLOW_EVERY_S: Final = 0.2

#: A line that is longer is told in pieces.
MAX_LINE_BYTES: Final = 64 * 1024

#: How much of a file's end is read for the reason of a failure, or for a tail.
TAIL_BYTES: Final = 256 * 1024

_SUFFIX: Final = ".log"


class LogFiles:
    """The log files under one directory, as ``<namespace>/<revision>/<instance>.log``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, namespace: str, revision: str, instance: str) -> Path:
        return self._directory / namespace / revision / f"{instance}{_SUFFIX}"

    def open(self, namespace: str, revision: str, instance: str) -> int:
        """A file descriptor to append to."""
        path = self.path(namespace, revision, instance)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def last_lines(self, namespace: str, revision: str, instance: str, count: int) -> list[str]:
        """The last lines that are not blank."""
        lines = [line for line in _tail(self.path(namespace, revision, instance)) if line.strip()]
        return lines[-count:]

    def rotate(self, namespace: str, revision: str, instance: str) -> None:
        """Move a file's content aside if it is over its limit. Blocks while it copies."""
        path = self.path(namespace, revision, instance)
        try:
            if path.stat().st_size <= MAX_FILE_BYTES:
                return
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)
        except FileNotFoundError:
            return

    def prune(self, namespace: str, revision: str, running: set[str]) -> None:
        """Delete the oldest files of instances that are not `running`, keeping `KEPT_FILES`."""
        gone = [path for path in self._files(namespace, revision) if path.stem not in running]
        for path in gone[:-KEPT_FILES]:
            path.unlink(missing_ok=True)
            path.with_suffix(".log.1").unlink(missing_ok=True)

    def prune_revisions(self, running: set[tuple[str, str]]) -> None:
        """Delete the logs of the Revisions not `running` (namespace, name) that wrote longest ago."""
        folders = [folder for folder in self._directory.glob("*/*") if (folder.parent.name, folder.name) not in running]
        for folder in sorted(folders, key=_changed)[:-KEPT_REVISIONS]:
            shutil.rmtree(folder, ignore_errors=True)

    def _files(self, namespace: str, revision: str) -> list[Path]:
        """A Revision's files, the one that was written to last at the end."""
        folder = self._directory / namespace / revision
        return sorted(folder.glob(f"*{_SUFFIX}"), key=_changed) if folder.is_dir() else []

    async def read(self, namespace: str, revision: str, *, tail: int | None, follow: bool) -> AsyncGenerator[LogLine]:
        """See `Instances.log`."""
        positions: dict[Path, int] = {}
        for path in self._files(namespace, revision):
            # Only whole lines: the position stays before a line that is still being written.
            lines, positions[path] = _whole_lines(path, _start(path, tail))
            for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
                yield LogLine(path.stem, line)
        while follow:
            await asyncio.sleep(FOLLOW_EVERY_S)
            for path in self._files(namespace, revision):
                lines, positions[path] = _whole_lines(path, positions.get(path, 0))
                for line in lines:
                    yield LogLine(path.stem, line)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _start(path: Path, tail: int | None) -> int:
    """Where to begin reading for the last `tail` lines."""
    return 0 if tail is None else max(0, _size(path) - TAIL_BYTES)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _whole_lines(path: Path, position: int) -> tuple[list[str], int]:
    """The complete lines from `position` on, and the position after them. A file that shrank was rotated."""
    size = _size(path)
    if size < position:
        position = 0
    if size == position:
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        content = file.read(MAX_FILE_BYTES)
    end = content.rfind(b"\n") + 1
    if end == 0 and len(content) >= MAX_LINE_BYTES:
        end = MAX_LINE_BYTES
    lines = content[:end].decode("utf-8", "replace").splitlines()
    return lines, position + end


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
