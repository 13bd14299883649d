"""The files of a folder as objects of a bucket: which count, which are complete, and what tells two versions apart.

Everything that touches the disk here blocks, and is called in a thread.

**Version.** An object's etag is its size, modification time (ns) and inode number. S3's is the MD5 of the content;
reading every upload once more to compute that would cost a large file's reading time before its event goes out.
Two writes of the same size to the same inode within the clock's tick of the file system (at most 4 ms) look the same.

**Completeness.** A file that somebody has open for writing is not complete. A read lease tells: the kernel refuses it
(EAGAIN) while any writer has the file open. The lease is given back at once. Leases are refused on other people's files
and on most network file systems; then `Look.UNSURE` says so and the caller falls back on watching it not change.

**Conventions.** Names that start with a dot, and names that end in one of `TEMPORARY`, are uploads under way until they
are renamed. Symbolic links, devices and names that are not UTF-8 are no objects.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import signal
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

__all__ = [
    "TEMPORARY",
    "FileVersion",
    "FolderGone",
    "Lister",
    "Look",
    "Selection",
    "Sight",
    "Step",
    "identity",
    "look",
    "missing",
]

TEMPORARY: Final = (".part", ".partial", ".filepart", ".crdownload", ".tmp", ".temp")

#: Folders within folders that a listing goes down; each holds one file descriptor open.
MAX_DEPTH: Final = 64


class FolderGone(OSError):
    """The bucket's own folder cannot be read."""


class FileVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What tells one content of a file from another. Times in nanoseconds since the epoch."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @property
    def etag(self) -> str:
        return f"{self.size:x}-{self.modified_ns:x}-{self.inode:x}"

    def same_file_as(self, etag: str) -> bool:
        """Whether `etag` is of this inode at this size: only the modification time may differ."""
        size, _, rest = etag.partition("-")
        return size == f"{self.size:x}" and rest.rpartition("-")[2] == f"{self.inode:x}"


class Look(enum.Enum):
    """What one look at a file found."""

    COMPLETE = enum.auto()
    #: Somebody has it open for writing.
    WRITING = enum.auto()
    #: It is there, but whether somebody writes cannot be told.
    UNSURE = enum.auto()
    GONE = enum.auto()
    UNREADABLE = enum.auto()
    #: It is there and is no regular file.
    OTHER = enum.auto()


class Sight(msgspec.Struct, frozen=True):
    look: Look
    version: FileVersion | None = None
    reason: str = ""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which keys count."""

    prefix: str = ""
    suffix: str = ""

    def has(self, key: str) -> bool:
        """Whether a file of this key is an object of ours."""
        if not key.startswith(self.prefix) or not key.endswith(self.suffix):
            return False
        return not key.endswith(TEMPORARY) and not _hidden(key) and _is_text(key)

    def may_hold(self, folder: str) -> bool:
        """Whether objects of ours can be below `folder` (a key that ends in a slash)."""
        reachable = folder.startswith(self.prefix) or self.prefix.startswith(folder)
        return reachable and not _hidden(folder) and _is_text(folder)


def look(path: str) -> Sight:
    """Whether the file is complete, and its version. Never raises."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return Sight(Look.OTHER)
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return Sight(Look.GONE)
        return Sight(Look.UNREADABLE, reason=os.strerror(error.errno or 0))
    try:
        return _look_opened(opened)
    except OSError as error:
        return Sight(Look.UNREADABLE, reason=os.strerror(error.errno or 0))
    finally:
        os.close(opened)


def _look_opened(opened: int) -> Sight:
    try:
        # Somebody who opens the file while the lease is held makes the kernel signal us. The default, SIGIO, would end
        # the process; SIGURG is ignored unless somebody asks for it.
        fcntl.fcntl(opened, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return Sight(Look.WRITING)
        return Sight(Look.UNSURE, _version(opened))
    try:
        return Sight(Look.COMPLETE, _version(opened))
    finally:
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _version(opened: int) -> FileVersion:
    found = os.fstat(opened)
    return FileVersion(
        size=found.st_size, modified_ns=found.st_mtime_ns, changed_ns=found.st_ctime_ns, inode=found.st_ino
    )


def identity(folder: str) -> tuple[int, int]:
    """What tells this folder from another one at the same path. Raises FolderGone."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise FolderGone(error.errno, os.strerror(error.errno or 0), folder) from error
    if not stat.S_ISDIR(found.st_mode):
        raise FolderGone(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    return found.st_dev, found.st_ino


def missing(folder: str, expected: tuple[int, int], keys: Iterable[str]) -> list[str]:
    """Those of `keys` that no file has any more. Raises FolderGone where the folder itself is not the one expected:
    an unmounted disk is no reason to forget what was on it."""
    absent = [key for key in keys if not os.path.lexists(f"{folder}/{key}")]
    if absent and identity(folder) != expected:
        raise FolderGone(errno.ENOENT, "was replaced by another folder", folder)
    return absent


class Step(msgspec.Struct, frozen=True):
    """A part of a listing: some objects' keys, the folder that the next step will enter, and whether this was all.

    `problems` are keys that cannot be told of or entered, with the reason.
    """

    keys: list[str]
    folder: str | None
    done: bool
    problems: tuple[tuple[str, str], ...] = ()


class Lister:
    """Lists a folder and all below it depth first, a step at a time, in memory bounded by `MAX_DEPTH` and one step.

    A step stops where it meets a folder, so that the caller can watch it before its content is read.
    """

    def __init__(self, root: str, selection: Selection, start: str = "") -> None:
        """`start` is "" for everything, or a folder's key with its slash."""
        self._root = root
        self._selection = selection
        self._next: str | None = start
        self._open: list[tuple[str, os._ScandirIterator[str]]] = []
        self._lock = threading.Lock()
        self._closed = False

    def step(self, limit: int) -> Step:
        """Up to `limit` keys. Raises FolderGone where the root cannot be read; folders that vanish are passed over."""
        try:
            with self._lock:
                return self._step(limit)
        finally:
            if self._closed:
                self._close_idle()

    def close(self) -> None:
        """End the listing. A step that is under way in another thread finishes first, and closes after itself."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                while self._open:
                    self._open.pop()[1].close()
            finally:
                self._lock.release()

    def _step(self, limit: int) -> Step:
        keys: list[str] = []
        problems = list(self._enter())
        while self._open and len(keys) < limit:
            folder, entries = self._open[-1]
            try:
                entry = next(entries, None)
            except OSError as error:
                problems.append(self._failed(folder, error))
                entry = None
            if entry is None:
                self._open.pop()[1].close()
                continue
            key = folder + entry.name
            if not _is_text(key):
                problems.append((key, "its name is not UTF-8"))
            elif entry.is_file(follow_symlinks=False):
                if self._selection.has(key):
                    keys.append(key)
            elif entry.is_dir(follow_symlinks=False) and self._selection.may_hold(key + "/"):
                if len(self._open) < MAX_DEPTH:
                    self._next = key + "/"
                    break
                problems.append((key, f"it is more than {MAX_DEPTH} folders deep"))
        return Step(keys, self._next, not self._open and self._next is None, tuple(problems))

    def _enter(self) -> Iterator[tuple[str, str]]:
        folder, self._next = self._next, None
        if folder is None:
            return
        try:
            self._open.append((folder, os.scandir(f"{self._root}/{folder}")))
        except (FileNotFoundError, NotADirectoryError) as error:
            if not folder:
                yield self._failed(folder, error)
        except OSError as error:
            yield self._failed(folder, error)

    def _failed(self, folder: str, error: OSError) -> tuple[str, str]:
        reason = os.strerror(error.errno or 0)
        if not folder:
            raise FolderGone(error.errno, reason, self._root) from error
        return folder, reason


def _hidden(key: str) -> bool:
    return key.startswith(".") or "/." in key


def _is_text(key: str) -> bool:
    """Whether the name was UTF-8: Python shows other bytes as lone surrogates, which no event can carry."""
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)
