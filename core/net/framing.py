"""Where a message's body ends: the chunked coding, read strictly.

llhttp tokenises heads; the cuts between messages are made here, so that pipelined bytes wait unparsed and every line
has a bound.
"""

from __future__ import annotations

import re
from typing import Final

from core.errors import PenstockError

__all__ = ["HEAD_END", "ChunkedBody", "Refused"]

HEAD_END: Final = b"\r\n\r\n"

#: One chunk-size line with its extensions. Extensions are dropped; nobody sends long ones in good faith.
MAX_CHUNK_LINE_BYTES: Final = 256

#: Chunk extensions of one message together: else a sender of one-byte chunks makes us read 100 bytes for each.
MAX_EXTENSION_BYTES: Final = 4 * 1024

#: Trailers of one message, which are read and dropped.
MAX_TRAILER_BYTES: Final = 8 * 1024

# "Recipients must anticipate potentially large numerals" (RFC 9112, 7.1); 15 digits stay below 2**63.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;[\t\x20-\x7e\x80-\xff]*)?)")
_TRAILER_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Refused(PenstockError):
    """A message that is not accepted: `status` is what a server answers, the text says why."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class ChunkedBody:
    """The chunked coding of one body, step by step, so that a reader can stop between chunks."""

    __slots__ = ("_chunk_ends", "_extensions", "_in_trailers", "_left", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        self._chunk_ends = False
        self._in_trailers = False
        self._extensions = 0
        self._trailers = 0

    def step(self, data: bytes, at: int) -> tuple[bytes, int]:
        """The next piece of the body in `data` from `at`, and where to go on.

        The same position back with an empty piece means that more bytes are needed from there on. Raises Refused (400).
        """
        if self._left:
            return self._take(data, at)
        if self._chunk_ends:
            if len(data) - at < 2:
                return b"", at
            if data[at : at + 2] != b"\r\n":
                raise Refused(400, "A chunk is longer than its stated size.")
            self._chunk_ends = False
            at += 2
        if self._in_trailers:
            return b"", self._trailer(data, at)
        end = data.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(data) - at >= MAX_CHUNK_LINE_BYTES:
                raise Refused(400, f"A chunk-size line is longer than {MAX_CHUNK_LINE_BYTES} bytes.")
            return b"", at
        self._size(data[at:end])
        return self._take(data, end + 2) if self._left else (b"", end + 2)

    def _size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise Refused(400, "A chunk-size line is not a hexadecimal number with an optional extension.")
        self._left = int(match[1], 16)
        self._extensions += len(match[2])
        if self._extensions > MAX_EXTENSION_BYTES:
            raise Refused(400, f"The chunk extensions are larger than {MAX_EXTENSION_BYTES} bytes.")
        self._in_trailers = self._left == 0

    def _take(self, data: bytes, at: int) -> tuple[bytes, int]:
        piece = data[at : at + self._left]
        self._left -= len(piece)
        self._chunk_ends = self._left == 0
        return piece, at + len(piece)

    def _trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + MAX_TRAILER_BYTES)
        if end < 0:
            if len(data) - at >= MAX_TRAILER_BYTES:
                raise Refused(400, f"The trailers are larger than {MAX_TRAILER_BYTES} bytes.")
            return at
        self._trailers += end + 2 - at
        if self._trailers > MAX_TRAILER_BYTES:
            raise Refused(400, f"The trailers are larger than {MAX_TRAILER_BYTES} bytes.")
        if end == at:
            self.done = True
        elif _TRAILER_LINE.fullmatch(data, at, end) is None:
            raise Refused(400, "A trailer is not a header line.")
        return end + 2
