"""Linux' inotify on the event loop: watches of single folders, and batches of what happened in them.

Our own binding of three calls, because what a folder source stands on is to hear of a queue overflow and of lost
watches, which the file-watching libraries keep to themselves, and because a file descriptor on the event loop needs no
threads. See inotify(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

__all__ = ["Happening", "Inotify"]

IN_ATTRIB: Final = 0x0000_0004
IN_CLOSE_WRITE: Final = 0x0000_0008
IN_MOVED_FROM: Final = 0x0000_0040
IN_MOVED_TO: Final = 0x0000_0080
IN_CREATE: Final = 0x0000_0100
IN_DELETE: Final = 0x0000_0200
IN_DELETE_SELF: Final = 0x0000_0400
IN_MOVE_SELF: Final = 0x0000_0800
IN_UNMOUNT: Final = 0x0000_2000
IN_Q_OVERFLOW: Final = 0x0000_4000
IN_IGNORED: Final = 0x0000_8000
IN_ONLYDIR: Final = 0x0100_0000
IN_DONT_FOLLOW: Final = 0x0200_0000
IN_EXCL_UNLINK: Final = 0x0400_0000
IN_ISDIR: Final = 0x4000_0000

_WATCHED: Final = (
    IN_ATTRIB
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
    | IN_ONLYDIR
    | IN_DONT_FOLLOW
    | IN_EXCL_UNLINK
)
_HEAD: Final = struct.Struct("iIII")
#: One read: a few hundred events with usual names; the rest stays in the kernel's queue until the loop comes round.
_READ_BYTES: Final = 64 * 1024


class Happening(msgspec.Struct, frozen=True):
    """One event: `watch` is what `Inotify.watch` returned (-1 for an overflow), `name` the entry within that folder."""

    watch: int
    mask: int
    name: str

    @property
    def is_folder(self) -> bool:
        return bool(self.mask & IN_ISDIR)

    @property
    def overflow(self) -> bool:
        """Events were lost: whatever was learnt from events is incomplete."""
        return bool(self.mask & IN_Q_OVERFLOW)

    @property
    def ended(self) -> bool:
        """The kernel has dropped this watch (its folder is gone, or its file system was unmounted)."""
        return bool(self.mask & IN_IGNORED)

    @property
    def lost(self) -> bool:
        """The watched folder itself is no longer where it was."""
        return bool(self.mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT))

    @property
    def left(self) -> bool:
        """The entry is gone from the folder."""
        return bool(self.mask & (IN_DELETE | IN_MOVED_FROM))

    @property
    def arrived(self) -> bool:
        """The entry is new in the folder, complete or not."""
        return bool(self.mask & (IN_CREATE | IN_MOVED_TO))

    @property
    def written(self) -> bool:
        """Somebody who could write the entry has closed it, or it was moved here as it is."""
        return bool(self.mask & (IN_CLOSE_WRITE | IN_MOVED_TO))


class Inotify:
    """One inotify instance on the running loop. `heard` is called on the loop's thread; close it when done."""

    def __init__(self, heard: Callable[[Happening], None]) -> None:
        """Raises OSError (EMFILE) where the user's limit of instances is reached."""
        self._heard = heard
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def watch(self, path: str) -> int:
        """Watch one folder (not those within it). The same folder has the same number while it is watched.

        Raises OSError: ENOENT, ENOTDIR, EACCES, or ENOSPC where the user's limit of watches is reached.
        """
        return self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(path), _WATCHED))

    def unwatch(self, watch: int) -> None:
        """End a watch; one that ended by itself is fine."""
        self._libc.inotify_rm_watch(self._fd, watch)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def hear(self) -> None:
        """Tell of everything that has happened up to now, without waiting for the event loop to come to it."""
        while self._read():
            pass

    def _read(self) -> bool:
        try:
            held = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        for happening in _parse(held):
            self._heard(happening)
        return True

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def _parse(held: bytes) -> Iterator[Happening]:
    position = 0
    while position < len(held):
        watch, mask, _cookie, length = _HEAD.unpack_from(held, position)
        position += _HEAD.size
        name = held[position : position + length].rstrip(b"\0")
        position += length
        yield Happening(watch, mask, os.fsdecode(name))
