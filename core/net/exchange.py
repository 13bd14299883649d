"""The server's side of one request: the answer that a handler gives, as bytes on the connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from core.net.types import Headers, RequestHead
from core.net.wire import BODILESS, CLOSE, LAST_CHUNK, chunk, header_lines, status_line

__all__ = ["ServerExchange"]

#: Larger bodies are not copied behind their head: the transport writes both at once anyway.
MAX_JOINED_BYTES = 64 * 1024

_log = logging.getLogger(__name__)


class Carrier(Protocol):
    """The connection that an exchange is on, as the exchange needs it."""

    transport: asyncio.Transport
    #: Another request may follow on it.
    keep_alive: bool

    @property
    def complete(self) -> bool:
        """The whole request has come."""
        ...

    def judge_early(self, *, ends: bool) -> None:
        """An answer begins, or is complete at once, before its request is."""
        ...

    def answered(self, exchange: ServerExchange) -> None:
        """The answer is complete."""
        ...

    def forsake(self, exchange: ServerExchange) -> None:
        """The answer will never be complete: close, so that the client can tell."""
        ...

    def hold(self) -> None:
        """Read no more of the body for now."""
        ...

    def release(self, exchange: ServerExchange) -> None:
        """Read on."""
        ...

    def confirm(self) -> None:
        """Tell the client to continue, if it waits for that."""
        ...


class ServerExchange:
    """Implements `core.net.types.Exchange`. After the answer is complete, or the client is gone, calls do nothing."""

    __slots__ = ("_chunked", "_left", "_silent", "connection", "ended", "head", "started")

    #: These three are set when the answer starts.
    _chunked: bool
    _left: int | None
    _silent: bool

    def __init__(self, connection: Carrier, head: RequestHead) -> None:
        #: None once nothing that is written matters any more.
        self.connection: Carrier | None = connection
        self.head = head
        self.started = False
        #: The sink was told that the request is complete.
        self.ended = False

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        connection = self.connection
        if connection is None:
            return
        if not connection.complete:
            connection.judge_early(ends=True)
        head = self._begin(connection, status, headers, len(body))
        transport = connection.transport
        if self._silent or not body:
            transport.write(head)
        elif len(body) > MAX_JOINED_BYTES:
            transport.write(head)
            transport.write(body)
        else:
            transport.write(head + body)
        connection.answered(self)

    def start(self, status: int, headers: Headers, content_length: int | None) -> None:
        connection = self.connection
        if connection is None:
            return
        if not connection.complete:
            connection.judge_early(ends=False)
        head = self._begin(connection, status, headers, content_length)
        self._left = content_length
        connection.transport.write(head)

    def write(self, data: bytes) -> None:
        connection = self.connection
        if connection is None or self._silent or not data:
            return
        if self._chunked:
            data = chunk(data)
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self._broken(connection, "an answer is longer than its stated length")
                return
        if not connection.transport.is_closing():  # it may be, for the rest of this turn of the loop
            connection.transport.write(data)

    def end(self) -> None:
        connection = self.connection
        if connection is None:
            return
        if not self._silent:
            if self._chunked:
                connection.transport.write(LAST_CHUNK)
            elif self._left:
                self._broken(connection, "an answer is shorter than its stated length")
                return
        connection.answered(self)

    def abort(self) -> None:
        if self.connection is not None:
            self.connection.forsake(self)

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.hold()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.release(self)

    def proceed(self) -> None:
        if self.connection is not None and not self.started:
            self.connection.confirm()

    def _begin(self, connection: Carrier, status: int, headers: Headers, content_length: int | None) -> bytes:
        """The answer's head; what comes after it is settled with it."""
        if self.started:
            raise RuntimeError("an exchange is answered once")
        self.started = True
        self._silent = self._chunked = False
        try:
            start, lines = status_line(status), header_lines(headers)
        except ValueError:
            _log.exception("an answer cannot be put on the wire", extra=self._facts())
            start, lines, content_length, self._silent = status_line(500), b"", 0, True
        close = b"" if connection.keep_alive else CLOSE
        if status in BODILESS:
            self._silent = True
            return b"%b%b%b\r\n" % (start, lines, close)
        if self.head.method == b"HEAD":
            self._silent = True
        if content_length is not None:
            return b"%b%bcontent-length: %d\r\n%b\r\n" % (start, lines, content_length, close)
        if self._silent or self.head.http_1_0:
            return b"%b%b%b\r\n" % (start, lines, close)
        self._chunked = True
        return b"%b%btransfer-encoding: chunked\r\n%b\r\n" % (start, lines, close)

    def _broken(self, connection: Carrier, what: str) -> None:
        _log.error(what, extra=self._facts())
        connection.forsake(self)

    def _facts(self) -> dict[str, dict[str, str]]:
        return {"facts": {"target": repr(self.head.target)}}
