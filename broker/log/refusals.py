"""What the SQLite event log says of an error of its file, by what can be done about it."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from broker.log.port import LogFull
from core.errors import Unavailable

__all__ = ["FileDamaged", "damaged", "unavailable"]

#: Of an extended result code, the primary one (https://sqlite.org/rescode.html).
_PRIMARY: Final = 0xFF
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
#: SQLite says an input/output error where the file that it shares its index of the write-ahead log in cannot grow; with
#: less room than that file takes and some pages, it is the disk that is full.
_LEAST_ROOM: Final = 64 * 1024


class FileDamaged(Unavailable):
    """The log's file is not what was written, further than its events' checksums tell. Waiting does not help."""


def unavailable(error: Exception, path: Path) -> Unavailable:
    """The refusal that an error of the log's file at `path` becomes."""
    if isinstance(error, Unavailable):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & _PRIMARY
    if code is None and isinstance(error, sqlite3.OperationalError):
        return damaged(path, str(error))  # what Python finds in an answer: text that is none
    if primary == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return _full(path)
    if primary == sqlite3.SQLITE_IOERR and _room(path) < _LEAST_ROOM:
        return _full(path)
    if primary in _DAMAGED:
        return damaged(path, str(error))
    return Unavailable(f"The event log {path} cannot be used now: {str(error).rstrip('.')}.")


def damaged(path: Path, said: str) -> FileDamaged:
    return FileDamaged(
        f"The event log {path} is damaged: {said.rstrip('.')}. Events that cannot be read are not delivered. Stop the "
        "platform, and restore the file from a backup, or move it away to start without events."
    )


def _full(path: Path) -> LogFull:
    return LogFull(
        "The event log is full: the disk has no room, or the log has its largest permitted size. "
        f"Make room for {path}; events are taken again as soon as there is some."
    )


def _room(path: Path) -> int:
    try:
        told = os.statvfs(path.parent)
    except OSError:
        return _LEAST_ROOM
    return told.f_bavail * told.f_frsize
