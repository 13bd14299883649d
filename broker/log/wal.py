"""Whether SQLite read all of its write-ahead log. That ends without a word at the first frame whose checksum differs:
what was not finished at a crash is so left out, and what was committed and is damaged as well.

Source: https://sqlite.org/fileformat2.html#walformat and https://sqlite.org/walformat.html. Each commit is synced
before the next begins: behind what a power cut tore there may be the end of one commit, behind a damaged frame more.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

__all__ = ["lost_commits"]

_HEADER: Final = struct.Struct(">4xII4xII8x")  # version, page size, salts; of 32 bytes
_FRAME: Final = struct.Struct(">4xIII8x")  # the database's size where the frame ends a commit, and salts; of 24 bytes
#: Where the index that SQLite has made says how many frames it goes by, in the machine's byte order.
_LAST_FRAME: Final = struct.Struct("=I")
_LAST_FRAME_AT: Final = 16


def lost_commits(path: Path) -> int:
    """How many commits of the write-ahead log of the database at `path`, which a connection has read from and not
    written to, are behind the last frame that SQLite goes by. Raises OSError."""
    index = path.with_name(path.name + "-shm")
    log = path.with_name(path.name + "-wal")
    if not index.exists() or not log.exists():
        return 0
    with index.open("rb") as file:
        told = file.read(_LAST_FRAME_AT + _LAST_FRAME.size)
    if len(told) < _LAST_FRAME_AT + _LAST_FRAME.size:
        return 0
    (last,) = _LAST_FRAME.unpack_from(told, _LAST_FRAME_AT)
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
