"""Whether SQLite read all of its write-ahead log. That ends without a word at the first frame whose checksum differs:
what was not finished at a crash is so left out, and what was committed and is damaged as well.

Source: https://sqlite.org/fileformat2.html#walformat and https://sqlite.org/walformat.html. Each commit is synced
before the next begins: behind what a power cut tore there may be the end of one commit, behind a damaged frame more.
"""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path
from typing import Final

__all__ = ["lost_commits"]

_HEADER: Final = struct.Struct(">4xII4xII8x")  # version, page size, salts; of 32 bytes
_FRAME: Final = struct.Struct(">4xIII8x")  # the database's size where the frame ends a commit, and salts; of 24 bytes


def lost_commits(path: Path, connection: sqlite3.Connection) -> int:
    """How many commits of the write-ahead log of the database at `path`, which `connection` is to and has not written
    to, are behind the last frame that SQLite goes by. It brings in what that has; 0 where a full disk has no room for
    it. Raises OSError and sqlite3.Error.

    SQLite says itself how far it goes. Its index (`-shm`) says so too, and must not be opened here: closing any file of
    it lets go of the process's locks on it (POSIX), and the next process that reads the log would then take it for
    nobody's, cut it to nothing and so end this one by SIGBUS.
    """
    try:
        _, last, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError:  # no room for what it brings in: what is there can still be delivered
        return 0
    log = path.with_name(path.name + "-wal")
    if last < 0 or not log.exists():
        return 0
    lost = 0
    with log.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return 0
        _, page_size, *salts = _HEADER.unpack(head)
        step = _FRAME.size + page_size
        at = _HEADER.size + last * step
        while True:
            file.seek(at)
            frame = file.read(_FRAME.size)
            if len(frame) < _FRAME.size:
                return lost
            size, *held = _FRAME.unpack(frame)
            lost += held == salts and size > 0  # with other salts it is left from before the log began anew
            at += step
