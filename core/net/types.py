"""The vocabulary of the hot-path HTTP code: what the server hands to a handler and what the client hands back.

Everything is callbacks on the event loop's thread; nothing here makes a task. Header names are lower-case bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from core.errors import PenstockError

__all__ = [
    "Address",
    "BodySink",
    "ConnectFailed",
    "ConnectionLost",
    "Exchange",
    "Handler",
    "Headers",
    "NetError",
    "Places",
    "PlacesOf",
    "ProceedListener",
    "RequestHead",
    "Response",
    "ResponseInvalid",
    "ResponseListener",
    "ResponseTimeout",
    "ResponseTooLarge",
    "UpstreamRequest",
    "WholeResponseListener",
]

Headers = list[tuple[bytes, bytes]]
#: Host and TCP port.
Address = tuple[str, int]
#: The addresses of several equal listeners as they are now; the same tuple for as long as nothing changes.
Places = Callable[[], tuple[Address, ...]]
#: The listeners that an address stands for; None where it is the one listener itself. Asked once a pool.
PlacesOf = Callable[[Address], Places | None]


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request's head, framing already judged: a request that could be read in two ways never gets this far.

    `target` is in origin form as sent (``/path?query``); `host` is the Host header, lower-cased, with its port.
    `headers` are the end-to-end ones, Host included: those that belong to the connection (RFC 9110, 7.6.1), those that
    Connection names, Content-Length and Expect are taken out. Passed on as the same list they cost no encoding; to
    change them, make a list of them. `content_length` is None where the body is chunked, 0 where there is none.
    """

    method: bytes
    target: bytes
    host: bytes
    headers: Headers
    content_length: int | None
    peer: str
    http_1_0: bool = False


class Exchange(Protocol):
    """The server's side of one request: how a handler answers it."""

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer whole, in one write. Content-Length is added here, framing headers in `headers` are left out. May come
        before the request's body has arrived: what is left of it is read and dropped within limits, or the connection
        closed. A header that cannot be put on a line becomes an answer 500."""
        ...

    def start(self, status: int, headers: Headers, content_length: int | None) -> None:
        """Begin a streamed answer; None means chunked (close-delimited for HTTP/1.0). To HEAD, `content_length` is told
        and what is written is dropped."""
        ...

    def write(self, chunk: bytes) -> None:
        """More of the streamed answer."""
        ...

    def end(self) -> None:
        """The streamed answer is complete."""
        ...

    def abort(self) -> None:
        """Give up mid-answer: the connection is closed so that the client can tell."""
        ...

    def pause(self) -> None:
        """Stop reading the request (back-pressure from where it goes): neither `body` nor `end` is called until
        `resume`. May be called by the handler before it returns its sink; the client is not asked to continue then."""
        ...

    def resume(self) -> None:
        """Go on; what was kept back comes in a later turn of the loop, never from within this call."""
        ...

    def proceed(self) -> None:
        """Tell a client that waits for 100 Continue to go on, now; nothing where none waits. Without this it is told
        when its body is wanted, and a request without a body not at all."""
        ...


class BodySink(Protocol):
    """What a handler returns: the receiver of the rest of the request, and of what happens to the client. After the
    answer is complete it hears nothing more."""

    def body(self, chunk: bytes) -> None: ...

    def end(self) -> None:
        """The request is complete."""
        ...

    def lost(self) -> None:
        """The client is gone before the answer was complete; nothing that is written matters any more.
        Called at most once, and never after the answer was completed."""
        ...

    def writable(self, ready: bool) -> None:
        """The client reads too slowly (False), or caught up again (True)."""
        ...


#: Called with each request's head as soon as it is complete; must not raise and must not block.
Handler = Callable[[RequestHead, Exchange], BodySink]


class Response(msgspec.Struct, frozen=True, gc=False):
    """A whole answer to a request of ours."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        for held, value in self.headers:
            if held == name:
                return value
        return None


class NetError(PenstockError):
    """A request of ours got no usable answer. Whether it can be sent again depends on the kind below."""


class ConnectFailed(NetError):
    """No connection, so nothing was sent: always safe to try again."""


class ConnectionLost(NetError):
    """The connection broke. `sent` tells whether any byte of the request left. `fresh` is False only for a reused
    keep-alive connection that broke before the answer's first byte: most likely the peer had closed it."""

    def __init__(self, message: str, *, sent: bool, fresh: bool) -> None:
        self.sent = sent
        self.fresh = fresh
        super().__init__(message)


class ResponseTimeout(NetError):
    """The answer did not come in time."""


class ResponseTooLarge(NetError):
    """The answer is larger than the caller allows."""


class ResponseInvalid(NetError):
    """The answer is not HTTP/1.1, or is framed in a way that can be read in two ways."""


class ResponseListener(Protocol):
    """The receiver of a streamed answer. Exactly one of `end` and `failed` is called, last.

    One that also has the method of `WholeResponseListener` hears answers that came in one piece through that alone; one
    that has the method of `ProceedListener` hears of 100 Continue.
    """

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        """The answer's head; 1xx answers are not told. None means that the length is not known beforehand."""
        ...

    def body(self, chunk: bytes) -> None: ...

    def end(self) -> None: ...

    def failed(self, error: NetError) -> None: ...

    def writable(self, ready: bool) -> None:
        """The peer reads our request too slowly (False), or caught up again (True)."""
        ...


class WholeResponseListener(ResponseListener, Protocol):
    """A listener that takes short answers in one call, which saves it two and the connection a write."""

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer, in place of `head`, `body` and `end`. Never called for an answer to HEAD."""
        ...


class ProceedListener(ResponseListener, Protocol):
    """A listener of a request that asked, by Expect, to be told before its body is sent."""

    def proceed(self) -> None:
        """100 Continue came: the request is being worked on."""
        ...


class UpstreamRequest(Protocol):
    """The client's side of one request under way (what `Client.send` returns)."""

    def write(self, chunk: bytes) -> None:
        """More of the request's body."""
        ...

    def end(self) -> None:
        """The request is complete."""
        ...

    def cancel(self) -> None:
        """Give up: the listener hears nothing more, and the connection is closed unless it can be used again."""
        ...

    def pause(self) -> None:
        """Stop reading the answer (back-pressure from where it goes)."""
        ...

    def resume(self) -> None: ...
