"""Heads of requests and answers: tokenised by llhttp, then judged for everything that could be read in two ways.

One reader serves all connections of a server or client: it is fed one whole head at a time. llhttp keeps state between
messages only where a body or a close follows, and is made anew then, which costs a quarter of a microsecond.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from core.limits import MAX_HEAD_BYTES, MAX_HEADERS
from core.net.framing import Refused
from core.net.types import Headers, RequestHead
from core.net.wire import FRAMING_NAMES

__all__ = ["MAX_START_LINE_BYTES", "RequestHeads", "ResponseHeads", "check_partial"]

#: The first line of a head: browsers and proxies stop near 8 KiB.
MAX_START_LINE_BYTES: Final = 16 * 1024

#: Names and hosts that are remembered in lower case; beyond it (somebody invents names) each is lowered every time.
_MAX_REMEMBERED: Final = 1024

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_VERSION: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
_METHOD: Final = re.compile(rb"[A-Z][A-Z-]{0,31}")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\0]*)?")

_SPECIAL: Final = FRAMING_NAMES | {b"host", b"expect"}
_names: Final[dict[bytes, bytes]] = {}
_hosts: Final[dict[bytes, bytes]] = {}


def check_partial(data: bytes, at: int) -> None:
    """Whether a head that is still incomplete may grow on. Raises Refused: 414 or 431."""
    size = len(data) - at
    if size > MAX_START_LINE_BYTES and data.find(b"\r\n", at, at + MAX_START_LINE_BYTES) < 0:
        raise Refused(414, f"The request line is longer than {MAX_START_LINE_BYTES} bytes.")
    if size > MAX_HEAD_BYTES:
        raise Refused(431, f"The head is larger than {MAX_HEAD_BYTES} bytes.")


class _Heads:
    """What both kinds of head share: header lines, and the headers that decide the framing."""

    __slots__ = ("_coding", "_connection", "_expect", "_headers", "_host", "_length", "_parser")

    _parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def __init__(self) -> None:
        self._renew()
        self._forget()

    def _renew(self) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        self._headers: Headers = []
        self._host: bytes | None = None
        self._length: bytes | None = None
        self._coding: bytes | None = None
        self._connection: bytes | None = None
        self._expect: bytes | None = None

    # httptools calls this one by its name.
    def on_header(self, name: bytes, value: bytes) -> None:
        lower = _names.get(name)
        if lower is not None and value and value[-1] > 32:
            self._headers.append((lower, value))
            return
        lower = name.lower()
        value = value.rstrip(b" \t")
        if lower in _SPECIAL:
            self._special(lower, value)
            return
        self._headers.append((lower, value))
        if len(_names) < _MAX_REMEMBERED:
            _names[name] = lower

    def _special(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self._host is not None:
                raise Refused(400, "Host is given more than once.")
            self._host = value
            self._headers.append((name, value))
        elif name == b"content-length":
            if self._length is not None:
                raise Refused(400, "Content-Length is given more than once.")
            self._length = value
        elif name == b"transfer-encoding":
            if self._coding is not None:
                raise Refused(400, "Transfer-Encoding is given more than once.")
            self._coding = value
        elif name == b"connection":
            self._connection = value if self._connection is None else self._connection + b"," + value
        elif name == b"expect":
            self._expect = value

    def _check_lines(self, head: bytes) -> None:
        lines = head.count(b"\r\n")
        if head.count(b"\r") != lines or head.count(b"\n") != lines:
            raise Refused(400, "The head holds a CR or an LF that is not part of a line end.")
        if lines - 2 > MAX_HEADERS:
            raise Refused(431, f"The head has more than {MAX_HEADERS} header lines.")

    def _feed(self, head: bytes) -> None:
        """Let llhttp tokenise one whole head. Raises Refused (400, 501)."""
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._renew()
        except httptools.HttpParserInvalidMethodError as error:
            self._renew()
            raise Refused(501, "The request's method is not known here.") from error
        except httptools.HttpParserError as error:
            self._renew()
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise Refused(400, f"The head is not valid HTTP: {error}.") from error
        if self._length is not None or self._coding is not None or self._connection is not None:
            self._renew()

    def _content_length(self) -> int | None:
        """The stated length; None where the message is chunked; -1 where nothing is stated. Raises Refused (400)."""
        if self._coding is not None:
            if self._length is not None:
                raise Refused(400, "Content-Length and Transfer-Encoding are given together.")
            if self._coding.lower() != b"chunked":
                raise Refused(400, "Only the transfer coding chunked is accepted.")
            return None
        if self._length is None:
            return -1
        # isdigit() of bytes is ASCII only; 18 digits stay below 2**63.
        if not self._length.isdigit() or len(self._length) > 18:
            raise Refused(400, "Content-Length is not a plain number.")
        return int(self._length)

    def _close_asked(self) -> bool:
        """Judge the Connection header: drop the headers it names; whether it asks to close."""
        if self._connection is None:
            return False
        options = {option.strip(b" \t") for option in self._connection.lower().split(b",")}
        dropped = options - {b"close", b"host", b""}
        if dropped:
            self._headers = [header for header in self._headers if header[0] not in dropped]
        return b"close" in options


class RequestHeads(_Heads):
    """Reads heads of requests. After `read`, `keep_alive` and `expects_continue` tell of the same request."""

    __slots__ = ("expects_continue", "keep_alive")

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)

    def read(self, head: bytes, peer: str) -> RequestHead:
        """The request of one whole head (with its empty line). Raises Refused (400, 414, 417, 431, 501, 505)."""
        if head[:2] == b"\r\n":  # "ignore at least one empty line received prior to the request-line" (RFC 9112, 2.2)
            head = head[2:]
        self._check_lines(head)
        method, target, old = self._start_line(head)
        self._forget()
        self._feed(head)
        host = self._judge_host(old)
        if target[:1] != b"/":
            target = self._other_form(method, target, host)
        length = self._content_length()
        if length is None and old:
            raise Refused(400, "HTTP/1.0 knows no Transfer-Encoding.")
        self.keep_alive = not (self._close_asked() or old)
        self.expects_continue = False
        if self._expect is not None and not old:
            if self._expect.lower() != b"100-continue":
                raise Refused(417, "The only expectation known here is 100-continue.")
            self.expects_continue = True
        return RequestHead(method, target, host, self._headers, 0 if length == -1 else length, peer, old)

    def _start_line(self, head: bytes) -> tuple[bytes, bytes, bool]:
        end = head.index(b"\r\n")
        if end > MAX_START_LINE_BYTES:
            raise Refused(414, f"The request line is longer than {MAX_START_LINE_BYTES} bytes.")
        parts = head[:end].split(b" ")
        if len(parts) != 3:
            raise Refused(400, "The request line is not a method, a target and a version with one space between.")
        method, target, version = parts
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            if _VERSION.fullmatch(version):
                raise Refused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
            raise Refused(400, "The request line does not end in an HTTP version.")
        if method == b"CONNECT":
            raise Refused(501, "CONNECT is not offered here.")
        if _METHOD.fullmatch(method) is None:
            raise Refused(400, "The method is not a word of capital letters.")
        if b"#" in target:
            raise Refused(400, "A target has no fragment.")
        return method, target, version == b"HTTP/1.0"

    def _judge_host(self, old: bool) -> bytes:
        value = self._host
        if value is None:
            if old:
                return b""
            raise Refused(400, "Host is missing.")
        host = _hosts.get(value)
        if host is None:
            if _HOST.fullmatch(value) is None:
                raise Refused(400, "Host is not a host name or address with an optional port.")
            host = value.lower()
            if len(_hosts) < _MAX_REMEMBERED:
                _hosts[value] = host
        return host

    def _other_form(self, method: bytes, target: bytes, host: bytes) -> bytes:
        """A target that is not in origin form: ``*`` for OPTIONS, or absolute for the host that Host names."""
        if target == b"*" and method == b"OPTIONS":
            return target
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise Refused(400, "The target is not a path.")
        cut = min(found for mark in (b"/", b"?") if (found := (rest + mark).find(mark)) >= 0)
        if rest[:cut].lower() != host:
            raise Refused(400, "The target and Host name different hosts.")
        path = rest[cut:]
        return path if path[:1] == b"/" else b"/" + path


class ResponseHeads(_Heads):
    """Reads heads of answers. After `read`: `status`, `headers`, `keep_alive`, and `length` as `read` tells."""

    __slots__ = ("headers", "keep_alive", "length", "status")

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    def read(self, head: bytes) -> int:
        """Read one whole head (with its empty line) and return the status.

        `length` is then the stated length, None for chunked, and -1 where the body ends with the connection.
        Raises Refused.
        """
        self._check_lines(head)
        match = _STATUS_LINE.fullmatch(head, 0, head.index(b"\r\n"))
        if match is None:
            raise Refused(502, "The answer does not begin with an HTTP/1.1 status line.")
        self._forget()
        self._feed(head)
        self._renew()
        old = match[1] == b"0"
        self.length = self._content_length()
        if self.length is None and old:
            raise Refused(502, "The answer is HTTP/1.0 and has a Transfer-Encoding.")
        self.keep_alive = not (self._close_asked() or old)
        self.headers = self._headers
        self.status = int(match[2])
        return self.status
