"""What a reverse proxy must get right about one request, as pure functions: headers on the way in and out, and whether
a failed attempt may be repeated.

Rules: RFC 9110 section 7.6.1 (hop-by-hop fields), section 9.2.2 (idempotent methods), RFC 7239 (Forwarded). core.net
takes off the fields that belong to a connection or to the framing, and those that Connection names, on both sides; what
is left to do here is what only a proxy knows.
"""

from __future__ import annotations

import enum
from typing import Final

from core.net.served import ASKS, asks
from core.net.types import ConnectFailed, ConnectionLost, Headers, NetError, RequestHead

__all__ = ["MAX_ATTEMPTS", "Forwarded", "Retry", "after_failure", "answer_headers", "continued"]

#: Attempts for one request. With the throttler's back-off, eight failures of one instance span several seconds.
MAX_ATTEMPTS: Final = 8

#: Remembered (peer, host) pairs; the whole memory is dropped when full, which costs a microsecond per pair.
MAX_REMEMBERED: Final = 4096

#: Between a client and its proxy only (RFC 9110 11.7).
_PROXY: Final = frozenset({b"proxy-authenticate", b"proxy-authorization"})
_TOLD: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"})
_CONTINUED: Final = frozenset({b"x-forwarded-for", b"forwarded"})
_SPECIAL: Final = _PROXY | _TOLD | {ASKS[0]}

_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class Forwarded:
    """What an instance gets as headers: the client's own, and where the request came from.

    A client's ``X-Forwarded-For`` and ``Forwarded`` are continued and its ``-Proto`` and ``-Host`` kept, because what
    ends TLS for a gateway stands in front of it.
    """

    __slots__ = ("_remembered",)

    def __init__(self) -> None:
        self._remembered: dict[tuple[str, bytes], bytes] = {}

    def headers(self, head: RequestHead) -> tuple[Headers, bytes, bool]:
        """The headers to send for `head`, further ones as ready lines, each ended by CRLF, and whether the client asks
        who served it (`core.net.served`)."""
        asked = False
        for field in head.headers:
            if field[0] in _SPECIAL:
                if field != ASKS:
                    return continued(head), b"", asked or asks(head.headers)
                asked = True
        pair = (head.peer, head.host)
        return head.headers, self._remembered.get(pair) or self._remember(pair), asked

    def _remember(self, pair: tuple[str, bytes]) -> bytes:
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        lines = self._remembered[pair] = b"".join(b"%b: %b\r\n" % field for field in _origin(*pair))
        return lines


def answer_headers(headers: Headers) -> Headers:
    """An instance's answer headers as the client gets them; the same list where nothing is taken off, because core.net
    passes on the lines that it read without encoding them anew."""
    for field in headers:
        if field[0] in _PROXY:
            return [field for field in headers if field[0] not in _PROXY]
    return headers


class Retry(enum.Enum):
    """What to do after a failed attempt."""

    #: Once more on the same instance: an idle connection had just been closed, which says nothing of the instance.
    SAME = "same"
    #: Leave this instance alone for a while and take another.
    OTHER = "other"
    GIVE_UP = "give up"


def after_failure(
    error: NetError, *, method: bytes, bodiless: bool, replayable: bool, attempts: int, through_gateway: bool = False
) -> Retry:
    """Whether a request whose answer has not begun may be sent again after attempt number `attempts` (from 1).

    Safe is what cannot make the function see the request twice, or does no harm if it does. `replayable` says that all
    of the body that came so far is still here, `through_gateway` that the connection was to another gateway: its end
    tells nothing of the instance, which would serve the request another time.
    """
    if attempts >= MAX_ATTEMPTS or not replayable:
        return Retry.GIVE_UP
    if isinstance(error, ConnectFailed):
        return Retry.OTHER
    if isinstance(error, ConnectionLost):
        if not error.sent:
            return Retry.OTHER if error.fresh else Retry.SAME
        if bodiless and method in _IDEMPOTENT:
            if through_gateway:
                return Retry.OTHER
            if not error.fresh:
                return Retry.SAME
    return Retry.GIVE_UP


def _origin(peer: str, host: bytes) -> Headers:
    """Where a request came from, in the words of X-Forwarded-* and of RFC 7239."""
    address = peer.encode("latin-1")
    node = b'"[' + address + b']"' if b":" in address else address
    return [
        (b"x-forwarded-for", address),
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", b"http"),
        # core.net lets only names, addresses and ports be a Host, so the quotes need no escapes.
        (b"forwarded", b'for=%b;host="%b";proto=http' % (node, host)),
    ]


def continued(head: RequestHead) -> Headers:
    """The headers of a request that came through a proxy already, or carries fields meant for one."""
    told: dict[bytes, bytes] = {}
    kept: Headers = []
    for name, value in head.headers:
        if name in _TOLD:
            told[name] = told[name] + b", " + value if name in told else value
        elif name not in _PROXY:
            kept.append((name, value))
    for name, own in _origin(head.peer, head.host):
        before = told.get(name)
        if before is None:
            kept.append((name, own))
        else:
            kept.append((name, before + b", " + own if name in _CONTINUED else before))
    return kept
