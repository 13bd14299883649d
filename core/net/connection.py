"""One connection of the server, and the exchange that a handler answers.

A connection reads one request at a time::

    HEAD --head complete--> BODY --last byte--> ANSWER --answer complete--> HEAD
                              |                                              ^
                              +--answered early: what is left is dropped-----+
    any --close with unread input--> LINGER --the client closes, or time is up--> closed

What arrives before its turn (pipelined requests, a body whose handler paused) is kept unparsed with the transport
paused, so at most one read (256 KiB) of it is held.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
import struct
from math import inf
from typing import Protocol, cast

from core.net.body import IGNORE
from core.net.bounds import ServerLimits
from core.net.exchange import ServerExchange
from core.net.framing import HEAD_END, ChunkedBody, Refused
from core.net.heads import RequestHeads, check_partial
from core.net.types import BodySink, Handler, RequestHead
from core.net.wire import PLAIN_TEXT, closing_text

__all__ = ["Admission", "ServerConnection"]

_log = logging.getLogger(__name__)

#: A longer head is not remembered: with every connection open that is 32 MiB.
MAX_KNOWN_HEAD_BYTES = 2048

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)


class Admission(enum.Enum):
    """What a server does with a new connection."""

    SERVED = "served"
    #: Told 503.
    REFUSED = "refused"
    #: Closed at once.
    IGNORED = "ignored"


class Server(Protocol):
    """The server that a connection belongs to, as the connection needs it."""

    limits: ServerLimits
    heads: RequestHeads
    handler: Handler
    #: Each connection's next answer is its last.
    leaving: bool
    #: The loop's time as of the last sweep: what deadlines are reckoned from.
    now: float

    def admit(self, connection: ServerConnection) -> Admission: ...

    def forget(self, connection: ServerConnection) -> None: ...


class _Phase(enum.IntEnum):
    HEAD = 0
    BODY = 1
    ANSWER = 2
    LINGER = 3
    CLOSED = 4


_HEAD, _BODY, _ANSWER, _LINGER, _CLOSED = _Phase


class ServerConnection(asyncio.Protocol):
    """Called by the transport, by its server's sweep, and by its exchange."""

    __slots__ = (
        "_at",
        "_busy",
        "_chunks",
        "_exchange",
        "_held",
        "_known",
        "_left",
        "_paused",
        "_peer",
        "_phase",
        "_reading",
        "_server",
        "_sink",
        "_unconfirmed",
        "_unsent",
        "_writable",
        "deadline",
        "keep_alive",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self.deadline = inf
        self.keep_alive = True
        self._peer = ""
        self._phase = _HEAD
        self._exchange: ServerExchange | None = None
        self._sink: BodySink = IGNORE
        self._held = b""  # read and not parsed yet, from _at on
        self._at = 0
        self._unsent = 0  # of what was written, when the sweep last looked
        self._left = 0  # of a body with Content-Length; in LINGER, of what will be dropped
        self._chunks: ChunkedBody | None = None
        self._unconfirmed = False  # the client waits for 100 Continue
        self._paused = False  # by the handler
        self._reading = True  # the transport is
        self._writable = True
        # The last head and what it was read as: a keep-alive client's next request often begins with the same bytes.
        self._known: tuple[bytes, RequestHead, bool] | None = None
        self._busy = False  # parsing: what ends an exchange now need not start the next

    # ---- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server = self._server
        admission = server.admit(self)
        if admission is Admission.REFUSED:
            self.transport.write(closing_text(503, "Too many connections are open.", [(b"retry-after", b"1")]))
            self._linger()
        elif admission is Admission.IGNORED:
            self.abort()
        else:
            peer = transport.get_extra_info("peername")
            self._peer = str(peer[0]) if peer else ""
            self.transport.set_write_buffer_limits(server.limits.write_high_water, server.limits.write_low_water)
            self.deadline = server.now + server.limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        at = 0
        if self._held:
            data = self._held[self._at :] + data
            self._held = b""
        self._run(data, at)

    def eof_received(self) -> bool:
        # A half-closed client cannot be told from one that left, so it counts as gone, as with nginx and Go's server.
        self._lose()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose()
        self._phase = _CLOSED
        self.deadline = inf
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._writable = False
        self.deadline = self._server.now + self._server.limits.stall_timeout_s
        self._tell_writable(False)

    def resume_writing(self) -> None:
        self._writable = True
        self._set_deadline()
        self._tell_writable(True)
        if self._held and self._phase is _HEAD:
            self._run_held()

    # ---- parsing

    def _run(self, data: bytes, at: int) -> None:
        self._busy = True
        try:
            at = self._parse(data, at)
        except Refused as refused:
            self._refuse(refused)
        else:
            if at < len(data):
                self._held = data
                self._at = at
        finally:
            self._busy = False

    def _run_held(self) -> None:
        """Go on with what is held, once what it waited for has come."""
        if self._busy or self._phase is _CLOSED:
            return
        data, self._held = self._held, b""
        self._read_on()
        self._run(data, self._at)

    def _parse(self, data: bytes, at: int) -> int:
        """Use up `data` from `at` as far as it goes; where it stopped."""
        size = len(data)
        while at < size:
            phase = self._phase
            if phase is _HEAD:
                if not self._writable:  # the client does not read its answers: make no more of them
                    self._stop_reading()
                    return at
                known = self._known
                if known is not None and data.startswith(known[0], at):
                    at += len(known[0])
                    self._begin(known[1], known[2])
                    continue
                end = data.find(HEAD_END, at + 2) + 4
                if end < 4:
                    self._partial_head(data, at)
                    return at
                self._new_head(data if at == 0 and end == size else data[at:end])
                at = end
            elif phase is _BODY:
                if self._paused:
                    self._stop_reading()
                    return at
                before = at
                at = self._body(data, at)
                if at == before and self._phase is _BODY:
                    return at
            elif phase is _ANSWER:
                self._stop_reading()
                return at
            else:
                return self._drop(data, at)
        return at

    def _partial_head(self, data: bytes, at: int) -> None:
        check_partial(data, at)
        self.deadline = min(self.deadline, self._server.now + self._server.limits.head_timeout_s)

    def _new_head(self, raw: bytes) -> None:
        heads = self._server.heads
        head = heads.read(raw, self._peer)
        self._unconfirmed = heads.expects_continue
        if len(raw) <= MAX_KNOWN_HEAD_BYTES and not self._unconfirmed:
            self._known = (raw, head, heads.keep_alive)
        self._begin(head, heads.keep_alive)

    def _begin(self, head: RequestHead, keep_alive: bool) -> None:
        self.keep_alive = keep_alive and not self._server.leaving
        self.deadline = inf  # nobody owes anything but the handler
        length = head.content_length
        if length == 0:
            self._phase = _ANSWER
        else:
            self._phase = _BODY
            self._left = length or 0
            self._chunks = ChunkedBody() if length is None else None
        exchange = self._exchange = ServerExchange(self, head)
        try:
            sink = self._server.handler(head, exchange)
        except Exception:  # noqa: BLE001 - the request's boundary: one bad request must not end the server
            self._failed(exchange)
            return
        if self._exchange is not exchange:
            return  # answered by now
        self._sink = sink
        if self._paused:
            return
        if length == 0:
            self._tell_end(exchange)
        else:
            self._ask_for_body(exchange)

    def _ask_for_body(self, exchange: ServerExchange) -> None:
        self._set_deadline()
        if self._unconfirmed and not exchange.started:
            self.confirm()

    def confirm(self) -> None:
        """The handler wants the request's body, or said that it works on the request."""
        if self._unconfirmed:
            self._unconfirmed = False
            self.transport.write(_CONTINUE)

    def _body(self, data: bytes, at: int) -> int:
        """One piece of the body."""
        chunks = self._chunks
        if chunks is None:
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            complete = self._left == 0
        else:
            piece, at = chunks.step(data, at)
            complete = chunks.done
        self._unconfirmed = False
        exchange = self._exchange
        if complete:
            self._phase = _ANSWER
        self._set_deadline()
        if exchange is None:  # answered early: what is left is dropped
            if complete:
                self._next()
            return at
        if piece:
            try:
                self._sink.body(piece)
            except Exception:  # noqa: BLE001 - the request's boundary
                self._failed(exchange)
        if complete and self._exchange is exchange and not self._paused:
            self._tell_end(exchange)
        return at

    def _drop(self, data: bytes, at: int) -> int:
        """Lingering: read what the client still sends, so that it reads our answer instead of a reset."""
        self._left -= len(data) - at
        if self._left < 0:
            self.transport.close()
        return len(data)

    # ---- what the sink hears; a handler that raises ends its own request only

    def _tell_end(self, exchange: ServerExchange) -> None:
        exchange.ended = True
        try:
            self._sink.end()
        except Exception:  # noqa: BLE001 - the request's boundary
            self._failed(exchange)

    def _tell_writable(self, ready: bool) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        try:
            self._sink.writable(ready)
        except Exception:  # noqa: BLE001 - the request's boundary
            self._failed(exchange)

    def _lose(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        sink = self._sink
        self._release(exchange)
        self.keep_alive = False
        try:
            sink.lost()
        except Exception:  # noqa: BLE001 - the request's boundary
            _log.exception("a handler failed on hearing that its client is gone")

    def _failed(self, exchange: ServerExchange) -> None:
        """A handler raised (called while the exception is handled)."""
        _log.exception("a request handler failed", extra={"facts": {"target": repr(exchange.head.target)}})
        if self._exchange is not exchange:
            return
        self.keep_alive = False
        if exchange.started:
            exchange.abort()
        else:
            exchange.respond(500, [PLAIN_TEXT], b"The request could not be handled.\n")

    # ---- the exchange

    @property
    def complete(self) -> bool:
        """All of the request has arrived."""
        return self._phase is _ANSWER

    def judge_early(self, *, ends: bool) -> None:
        """The answer begins (or even `ends`) before the request does. Must the connection close after it?

        A client that was not told to continue may leave its body out now, so nobody knows what comes next. Of a request
        whose answer ended, little enough is read and dropped.
        """
        if self._unconfirmed or (
            ends and (self._chunks is not None or self._left > self._server.limits.max_dropped_bytes)
        ):
            self.keep_alive = False

    def answered(self, exchange: ServerExchange) -> None:
        """The answer is complete."""
        self._release(exchange)
        if self._phase is _ANSWER:
            self._next()
            return
        self.judge_early(ends=True)
        if not self.keep_alive:
            self._linger()
            return
        self._set_deadline()
        self._read_on()
        if self._held and not self._busy:
            asyncio.get_running_loop().call_soon(self._run_held)

    def hold(self) -> None:
        """The handler paused the request."""
        self._paused = True
        if self._phase is _BODY:
            self._set_deadline()
            # A client that waits to be told to continue sends nothing, and going on reading tells when it leaves.
            if not self._unconfirmed:
                self._stop_reading()

    def release(self, exchange: ServerExchange) -> None:
        """The handler wants the request again; not from within its own call, so that it need not expect more there."""
        self._paused = False
        asyncio.get_running_loop().call_soon(self._resumed, exchange)

    def _resumed(self, exchange: ServerExchange) -> None:
        if self._exchange is not exchange or self._paused:
            return
        if self._phase is _BODY:
            self._ask_for_body(exchange)
            if self._held:
                self._run_held()
            else:
                self._read_on()
        elif not exchange.ended:
            self._tell_end(exchange)

    def _release(self, exchange: ServerExchange) -> None:
        exchange.connection = None
        self._exchange = None
        self._sink = IGNORE
        self._paused = False

    def _next(self) -> None:
        """Request and answer are complete."""
        self._chunks = None
        self._unconfirmed = False
        if not self.keep_alive:
            self._close()
            return
        self._phase = _HEAD
        self._set_deadline()
        if self._held and not self._busy:
            asyncio.get_running_loop().call_soon(self._run_held)
        elif not self._reading:
            self._read_on()

    # ---- closing

    def _refuse(self, refused: Refused) -> None:
        """The bytes cannot be trusted to be what we think they are: answer if possible, and close."""
        exchange = self._exchange
        if exchange is not None:
            unanswered = not exchange.started
            self._lose()
        else:
            unanswered = self._phase is _HEAD
        if not unanswered:
            self.abort()
            return
        self.transport.write(closing_text(refused.status, str(refused)))
        self._linger()

    def _close(self) -> None:
        if self._held:
            self._linger()
            return
        self._phase = _CLOSED
        self.deadline = self._server.now + self._server.limits.stall_timeout_s
        self.transport.close()

    def _linger(self) -> None:
        """Half-close, and drop what still comes: closing with unread input would reset the answer away."""
        limits = self._server.limits
        self._phase = _LINGER
        self._held = b""
        self._left = limits.max_dropped_bytes
        self.deadline = self._server.now + limits.linger_timeout_s
        if self.transport.is_closing():
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client reset the connection, which asyncio's transport has not noticed yet
            self.transport.abort()
            return
        self._read_on()

    def drain(self) -> None:
        """The server drains: the request under way, if there is one, is the last here."""
        self.keep_alive = False
        if self._phase is _HEAD:
            self._close()

    def expire(self) -> None:
        """The sweep found `deadline` passed."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:  # the client reads, if slowly
            self._unsent = unsent
            self.deadline = self._server.now + self._server.limits.stall_timeout_s
            return
        if self._phase is _HEAD and self._held and self._writable:
            self._refuse(Refused(408, "The request's head did not arrive in time."))
        elif self._phase is _BODY and self._writable and self._exchange is not None:
            self._refuse(Refused(408, "The request's body did not arrive in time."))
        elif self._phase is _HEAD and self._writable:
            self._close()
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once; a request under way is lost."""
        self._lose()
        self._phase = _CLOSED
        self.transport.abort()

    def forsake(self, exchange: ServerExchange) -> None:
        """The handler gave the answer up: reset, so that an answer without a stated length is seen to be broken too."""
        self._release(exchange)
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.abort()

    # ---- small steps

    def _set_deadline(self) -> None:
        """What the client owes us now decides how long it has."""
        if not self._writable:
            return
        limits = self._server.limits
        if self._phase is _HEAD:
            self.deadline = self._server.now + limits.idle_timeout_s
        elif self._phase is _BODY and not self._paused:
            self.deadline = self._server.now + limits.stall_timeout_s
        else:
            self.deadline = inf

    def _stop_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()
