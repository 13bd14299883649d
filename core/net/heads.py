"""Heads of requests and answers: tokenised by llhttp, then judged for everything that could be read in two ways.

One reader serves all connections of a server or client: it is fed one whole head at a time.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final, NamedTuple

import httptools

from core.limits import MAX_HEAD_BYTES, MAX_HEADERS
from core.net.framing import Refused
from core.net.types import Headers, RequestHead
from core.net.wire import FRAMING_NAMES, ReadHeaders

__all__ = ["MAX_KNOWN_HEAD_BYTES", "MAX_START_LINE_BYTES", "ReadHead", "RequestHeads", "ResponseHeads", "check_partial"]

#: The first line of a head: browsers and proxies stop near 8 KiB.
MAX_START_LINE_BYTES: Final = 16 * 1024

#: Spellings of names, hosts and status lines that are remembered; beyond it (somebody invents them) each is looked at
#: every time.
_MAX_REMEMBERED: Final = 1024

#: Heads of answers that a client remembers, and how long one may be: what the servers of a machine say in a second.
MAX_KNOWN_HEADS: Final = 64
MAX_KNOWN_HEAD_BYTES: Final = 2048

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_VERSION: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
# Statuses without a body, whatever the head says: llhttp is told this one, so that it never waits for a body.
_NO_BODY_LINE: Final = b"HTTP/1.1 204 \r\n"

#: Headers that are judged here. Host alone is also handed over.
_JUDGED: Final = FRAMING_NAMES | {b"host", b"expect"}
#: Of these, several lines mean the same as one with commas, or nothing to us.
_LISTS: Final = frozenset(FRAMING_NAMES - {b"content-length", b"transfer-encoding"})

_FIRST_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\r")

Framing = dict[bytes, bytes]

# Spelling -> lower case, in two tables so that an ordinary name costs one look-up. Host as usually spelled is ordinary.
_ordinary: Final[dict[bytes, bytes]] = {b"Host": b"host", b"host": b"host"}
_ordinary_names: Final = _ordinary.keys()
_judged: Final[dict[bytes, bytes]] = {}
_hosts: Final[dict[bytes, bytes]] = {}
_status_lines: Final[dict[bytes, int]] = {}


def _seed(*names: str) -> None:
    for name in names:
        lower = name.lower().encode()
        table = _judged if lower in _JUDGED else _ordinary
        for spelling in (lower, name.encode(), name.title().encode()):
            table[spelling] = lower


# The names that are always remembered, whatever somebody invents before they are first seen.
_seed(
    *(name.decode() for name in _JUDGED),
    *("Accept", "Accept-Encoding", "Accept-Language", "Accept-Ranges", "Access-Control-Allow-Origin", "Age", "Allow"),
    *("Authorization", "Cache-Control", "Content-Encoding", "Content-Language", "Content-Type", "Cookie", "Date"),
    *("ETag", "Expires", "If-Match", "If-Modified-Since", "If-None-Match", "Last-Modified", "Link", "Location"),
    *("Origin", "Pragma", "Prefer", "Range", "Referer", "Retry-After", "Server", "Set-Cookie", "User-Agent", "Vary"),
    *("ce-dataschema", "ce-id", "ce-source", "ce-specversion", "ce-subject", "ce-time", "ce-type", "traceparent"),
    *("tracestate", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Request-Id"),
)


def check_partial(data: bytes, at: int) -> None:
    """Whether a head that is still incomplete may grow on. Raises Refused: 400, 414 or 431."""
    if data[at] not in _FIRST_BYTES:  # such as a TLS handshake: no use waiting for a line end
        raise Refused(400, "This is not an HTTP request.")
    size = len(data) - at
    if size > MAX_START_LINE_BYTES and data.find(b"\r\n", at, at + MAX_START_LINE_BYTES) < 0:
        raise _long_start_line()
    if size > MAX_HEAD_BYTES:
        raise _large_head()


def _long_start_line() -> Refused:
    return Refused(414, f"The request line is longer than {MAX_START_LINE_BYTES} bytes.")


def _large_head() -> Refused:
    return Refused(431, f"The head is larger than {MAX_HEAD_BYTES} bytes.")


class _Pairs:
    """llhttp's callbacks for heads with repeated names."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name, value))


class _Heads:
    """What both kinds of head share: header lines, and the headers that decide the framing."""

    __slots__ = ("_found", "_parser", "on_header")

    _kind: type[httptools.HttpRequestParser] | type[httptools.HttpResponseParser]

    def __init__(self) -> None:
        self._found: dict[bytes, bytes] = {}
        # llhttp calls this one for each header: a dict's own method costs no Python call. It keeps the first of several
        # lines with one name; the count of lines then shows that there were more.
        self.on_header = self._found.setdefault
        self._parser = self._kind(self)

    def _tokens(self, head: bytes, end: int, old: bool) -> tuple[ReadHeaders, Framing]:
        """The headers of a whole head, whose first line ends at `end`; those that were judged apart. Raises Refused."""
        if len(head) > MAX_HEAD_BYTES:
            raise _large_head()
        found = self._found
        found.clear()
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # renewed below, because Connection is no ordinary name
        except httptools.HttpParserError as error:
            self._renew()
            raise _not_http(error) from error
        lines = head.count(b"\n") - 2
        if head.count(b"\r") != lines + 2:
            self._renew()
            raise Refused(400, "The head holds a CR or an LF that is not part of a line end.")
        headers = ReadHeaders(head, end)
        if found.keys() <= _ordinary_names and len(found) == lines <= MAX_HEADERS and not old:
            # llhttp keeps white space at the end of a value, where it lets no control character but tab be.
            headers.extend([(_ordinary[name], value.rstrip()) for name, value in found.items()])
            host = found.get(b"Host") or found.get(b"host", b"")
            if b"host" in found and b"Host" in found:
                raise Refused(400, "Host is given more than once.")
            return headers, {b"host": host.rstrip()} if host else {}
        # llhttp may wait for a body now, or for the close it was asked for, so the next head gets a new one.
        self._renew()
        if lines > MAX_HEADERS:
            raise Refused(431, f"The head has more than {MAX_HEADERS} header lines.")
        framing: Framing = {}
        for name, value in found.items() if len(found) == lines else self._repeated(head, lines):
            _judge(headers, framing, name, value.rstrip())
        return headers, framing

    def _repeated(self, head: bytes, lines: int) -> list[tuple[bytes, bytes]]:
        """Once more for a head with repeated names, keeping all; or a head whose lines do not add up."""
        pairs = _Pairs()
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self._kind(pairs).feed_data(head)
        if len(pairs.found) != lines:
            raise Refused(400, "The head holds a line end that is not CR and LF.")
        return pairs.found

    def _renew(self) -> None:
        self._parser = self._kind(self)


class RequestHeads(_Heads):
    """Reads heads of requests. After `read`, `keep_alive` and `expects_continue` tell of the same request."""

    __slots__ = ("expects_continue", "keep_alive")

    _kind = httptools.HttpRequestParser

    def read(self, head: bytes, peer: str) -> RequestHead:
        """The request of one whole head (with its empty line). Raises Refused (400, 414, 417, 431, 501, 505)."""
        if head[0] == 13:  # "ignore at least one empty line received prior to the request-line" (RFC 9112, 2.2)
            head = head[2:]
        end = head.find(b"\r\n")
        try:
            method, target, version = head[:end].split(b" ")
        except ValueError:
            raise _bad_start_line(end) from None
        old = version != b"HTTP/1.1"
        if old or method == b"CONNECT" or end > MAX_START_LINE_BYTES or b"#" in target:
            _check_start_line(method, target, version, end)
        headers, framing = self._tokens(head, end, old)
        host = _known_host(framing, old)
        if target[0] != 47:
            target = _other_form(method, target, host)
        self.keep_alive = not old
        self.expects_continue = False
        length: int | None = 0
        if len(framing) > 1:
            length = _length(framing)
            if length is None and old:
                raise Refused(400, "HTTP/1.0 knows no Transfer-Encoding.")
            if length == -1:
                length = 0
            if _asks_to_close(framing, headers):
                self.keep_alive = False
            self.expects_continue = not old and _expects_continue(framing)
        return RequestHead(method, target, host, headers, length, peer, old)


class ReadHead(NamedTuple):
    """The head of an answer: its bytes and what they say. `length` is the stated length, None for chunked, and -1 where
    the body ends with the connection."""

    raw: bytes
    status: int
    headers: Headers
    length: int | None
    keep_alive: bool


class ResponseHeads(_Heads):
    """Reads heads of answers. After `read`: `headers`, `keep_alive`, and `length` as in `ReadHead`."""

    __slots__ = ("headers", "keep_alive", "known", "length")

    _kind = httptools.HttpResponseParser

    def __init__(self) -> None:
        super().__init__()
        #: Heads that were read lately, by their bytes.
        self.known: dict[bytes, ReadHead] = {}

    def of(self, raw: bytes) -> ReadHead:
        """What one whole head says, from memory where the same bytes came before: servers of one kind answer one kind
        of request with the same head for a second, until its Date changes. Raises Refused."""
        found = self.known.get(raw)
        if found is None:
            status = self.read(raw)
            found = ReadHead(raw, status, self.headers, self.length, self.keep_alive)
            if status >= 200 and len(raw) <= MAX_KNOWN_HEAD_BYTES:
                if len(self.known) >= MAX_KNOWN_HEADS:
                    self.known.clear()
                self.known[raw] = found
        return found

    def read(self, head: bytes) -> int:
        """Read one whole head (with its empty line) and return the status.

        Raises Refused.
        """
        end = head.find(b"\r\n")
        line = head[:end]
        status = _status_lines.get(line) or _status(line)
        headers, framing = self._tokens(_NO_BODY_LINE + head[end + 2 :], len(_NO_BODY_LINE) - 2, False)
        old = line[7] == 48
        self.headers = headers
        self.keep_alive = not old
        self.length: int | None = -1
        if framing:
            self.length = _length(framing)
            if old and self.length is None:
                raise Refused(502, "it is HTTP/1.0 and has a Transfer-Encoding.")
            if _asks_to_close(framing, headers):
                self.keep_alive = False
        return status


def _status(line: bytes) -> int:
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Refused(502, "it does not begin with an HTTP/1.1 status line.")
    status = int(match[1])
    if len(_status_lines) < _MAX_REMEMBERED:
        _status_lines[line] = status
    return status


def _not_http(error: httptools.HttpParserError) -> Refused:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refused(501, "The request's method is not known here.")
    return Refused(400, f"The head is not valid HTTP: {error}.")


def _judge(headers: ReadHeaders, framing: Framing, name: bytes, value: bytes) -> None:
    """Put a header where it belongs: among the headers handed over, or with what decides the framing."""
    lower = _judged.get(name) or _ordinary.get(name)
    if lower is None:
        lower = name.lower()
        if lower not in _JUDGED and len(_ordinary) < _MAX_REMEMBERED:
            _ordinary[name] = lower
    if lower not in _JUDGED:
        headers.append((lower, value))
        return
    if lower not in framing:
        framing[lower] = value
    elif lower in _LISTS:
        framing[lower] += b"," + value
    else:
        raise Refused(400, f"{lower.decode().title()} is given more than once.")
    if lower == b"host":
        headers.append((lower, value))
    else:
        headers.leave_out(name)


def _bad_start_line(end: int) -> Refused:
    if end > MAX_START_LINE_BYTES:
        return _long_start_line()
    return Refused(400, "The request line is not a method, a target and a version with one space between.")


def _check_start_line(method: bytes, target: bytes, version: bytes, end: int) -> None:
    """A request line out of the ordinary: returns where it is acceptable HTTP/1.0."""
    if end > MAX_START_LINE_BYTES:
        raise _long_start_line()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise Refused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        raise Refused(400, "The request line does not end in an HTTP version.")
    if method == b"CONNECT":
        raise Refused(501, "CONNECT is not offered here.")
    if b"#" in target:
        raise Refused(400, "A target has no fragment.")


def _known_host(framing: Framing, old: bool) -> bytes:
    value = framing.get(b"host")
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


def _other_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """A target that is not in origin form: ``*`` for OPTIONS, or absolute for the host that Host names."""
    if target == b"*" and method == b"OPTIONS":
        return target
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise Refused(400, "The target is not a path.")
    cut = min((rest + b"/").find(b"/"), (rest + b"?").find(b"?"))
    if rest[:cut].lower() != host:
        raise Refused(400, "The target and Host name different hosts.")
    path = rest[cut:]
    return path if path[:1] == b"/" else b"/" + path


def _length(framing: Framing) -> int | None:
    """The stated length; None where the message is chunked; -1 where nothing is stated. Raises Refused (400)."""
    coding = framing.get(b"transfer-encoding")
    value = framing.get(b"content-length")
    if coding is not None:
        if value is not None:
            raise Refused(400, "Content-Length and Transfer-Encoding are given together.")
        if coding.lower() != b"chunked":
            raise Refused(400, "Only the transfer coding chunked is accepted.")
        return None
    if value is None:
        return -1
    # isdigit() of bytes is ASCII only; 18 digits stay below 2**63.
    if not value.isdigit() or len(value) > 18:
        raise Refused(400, "Content-Length is not a plain number.")
    return int(value)


def _asks_to_close(framing: Framing, headers: ReadHeaders) -> bool:
    """Judge the Connection header: leave out the headers it names; whether it asks to close."""
    value = framing.get(b"connection")
    if value is None or value == b"keep-alive":
        return False
    options = {option.strip(b" \t") for option in value.lower().split(b",")}
    named = options - _JUDGED - {b"close", b"keep-alive", b""}
    if named:
        headers.leave_out_named(named)
    return b"close" in options


def _expects_continue(framing: Framing) -> bool:
    value = framing.get(b"expect")
    if value is None:
        return False
    if value.lower() != b"100-continue":
        raise Refused(417, "The only expectation known here is 100-continue.")
    return True
