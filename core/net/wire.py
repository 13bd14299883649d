"""What is written on the wire: start lines, header lines and chunks as bytes, ready for one write.

Nothing a caller hands over can end a line early: a value with CR, LF or NUL is refused here, on the only way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

__all__ = ["CLOSE", "FRAMING_NAMES", "LAST_CHUNK", "bodiless", "chunk", "header_lines", "request_line", "status_line"]

#: Headers that belong to one connection (RFC 9110, 7.6.1) or to the message's framing: this package writes them itself,
#: drops them from what it hands over, and leaves them out of what it is given.
FRAMING_NAMES: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

CLOSE: Final = b"connection: close\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
    if status >= 200
}


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK`` with its line end. Raises ValueError for what is not the status of an answer."""
    line = _STATUS_LINES.get(status)
    if line is not None:
        return line
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of an answer")
    return b"HTTP/1.1 %d \r\n" % status


def request_line(method: bytes, target: bytes) -> bytes:
    """``GET / HTTP/1.1`` with its line end. Raises ValueError where method or target would break the line."""
    line = b"%b %b HTTP/1.1\r\n" % (method, target)
    if line.count(b" ") != 2 or line.count(b"\n") != 1 or line.count(b"\r") != 1 or b"\0" in line:
        raise ValueError(f"{method!r} {target!r} cannot be put on a request line")
    return line


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The header lines, each ended by CRLF; framing headers are left out.

    Raises ValueError where a name or a value holds CR, LF or NUL.
    """
    parts = [b"%b: %b\r\n" % header for header in headers if header[0] not in FRAMING_NAMES]
    lines = b"".join(parts)
    expected = len(parts)
    if lines.count(b"\n") != expected or lines.count(b"\r") != expected or b"\0" in lines:
        raise ValueError("a header name or value holds a CR, LF or NUL character")
    return lines


def bodiless(status: int) -> bool:
    """Whether an answer of that status never has a body (RFC 9112, 6.3)."""
    return status in (204, 304) or status < 200


def chunk(data: bytes) -> bytes:
    """`data`, which must not be empty, as one chunk of the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
