"""What is written on the wire: start lines, header lines and chunks as bytes, ready for one write.

Nothing a caller hands over can end a line early: a value with CR, LF or NUL is refused here, on the only way out.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from core.net.types import Headers

__all__ = [
    "CLOSE",
    "FRAMING_NAMES",
    "LAST_CHUNK",
    "PLAIN_TEXT",
    "ReadHeaders",
    "chunk",
    "closing_text",
    "encoded",
    "header_lines",
    "check_target",
    "status_line",
]

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

#: Statuses of answers that never have a body (RFC 9112, 6.3).
BODILESS: Final = frozenset((204, 304))

PLAIN_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
CLOSE: Final = b"connection: close\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_WORD: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")

#: Targets that were checked; beyond it (query strings) each is checked every time.
_MAX_TARGETS: Final = 1024
_targets: Final[set[bytes]] = set()

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


def closing_text(status: int, text: str, headers: Headers | None = None) -> bytes:
    """A whole answer of one line of text, after which the connection closes."""
    body = text.encode() + b"\n"
    lines = header_lines([PLAIN_TEXT, *(headers or ())])
    return b"%b%bcontent-length: %d\r\n%b\r\n%b" % (status_line(status), lines, len(body), CLOSE, body)


def check_target(method: bytes, target: bytes) -> None:
    """Raises ValueError where method or target would break the request line."""
    if method not in _METHODS or target not in _targets:
        if _WORD.fullmatch(method) is None or _WORD.fullmatch(target) is None:
            raise ValueError(f"{method!r} {target!r} cannot be put on a request line")
        if len(_targets) < _MAX_TARGETS:
            _targets.add(target)


class ReadHeaders(list[tuple[bytes, bytes]]):
    """Headers as they were read, which remember their lines, so that passing them on costs no encoding.

    Not to be changed in place: to pass on other headers, make a list of them.
    """

    __slots__ = ("_end", "_head", "_left_out", "_lines")

    def __init__(self, head: bytes, end: int) -> None:
        """`head` is a whole head whose lines were checked, its first line ending at `end`."""
        self._head: bytes | None = head
        self._end = end
        self._left_out: tuple[bytes, ...] = ()
        self._lines: bytes | None = None

    def leave_out(self, name: bytes) -> None:
        """The lines have one of that name (as spelled there) that is not to be passed on."""
        self._left_out += (name,)

    def leave_out_named(self, names: set[bytes]) -> None:
        """Drop the headers of these lower-case names."""
        self[:] = [header for header in self if header[0] not in names]
        self._head = None

    def lines_are(self, lines: bytes) -> None:
        """They are known already."""
        self._lines = lines

    def lines(self) -> bytes:
        """The header lines, each ended by CRLF, spelled as they came."""
        lines = self._lines
        if lines is None:
            lines = self._lines = self._cut()
        return lines

    def _cut(self) -> bytes:
        head = self._head
        if head is None:
            return b"".join([b"%b: %b\r\n" % header for header in self])
        end = self._end
        for name in self._left_out:
            start = head.find(b"\r\n%b:" % name, end)
            head = head[:start] + head[head.find(b"\r\n", start + 2) :]
        return head[end + 2 : -2]


class ReadyHeaders:
    """Headers that are encoded once to go before others many times. Raises ValueError as `header_lines`."""

    __slots__ = ("headers", "lines")

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.lines = header_lines(headers)

    def before(self, headers: Headers) -> Headers:
        """These and then `headers`, which are not encoded anew where they were read."""
        if type(headers) is not ReadHeaders:
            return self.headers + headers
        made = ReadHeaders(b"", 0)
        made += self.headers
        made += headers
        made.lines_are(self.lines + headers.lines())
        return made


def encoded(headers: Headers) -> Headers:
    """The same headers, which are not encoded anew each time that they are sent. Raises as `header_lines`."""
    made = ReadHeaders(b"", 0)
    made.extend(headers)
    made.lines_are(header_lines(headers))
    return made


def header_lines(headers: Headers) -> bytes:
    """The header lines, each ended by CRLF; framing headers are left out.

    Raises ValueError where a name or a value holds CR, LF or NUL.
    """
    if type(headers) is ReadHeaders:
        return headers.lines()
    parts = [b"%b: %b\r\n" % header for header in headers if header[0] not in FRAMING_NAMES]
    lines = b"".join(parts)
    expected = len(parts)
    if lines.count(b"\n") != expected or lines.count(b"\r") != expected or b"\0" in lines:
        raise ValueError("a header name or value holds a CR, LF or NUL character")
    return lines


def chunk(data: bytes) -> bytes:
    """`data`, which must not be empty, as one chunk of the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
