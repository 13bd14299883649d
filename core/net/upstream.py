"""One connection of the client, and the request that it carries at a time.

A connection takes a request when it is idle; the answer is read as HEAD (of 1xx answers only 100 is told), BODY, and
then the connection goes back to its pool, if request and answer are both complete and neither side asked to close; else
it is closed. Nothing that a peer sends on an idle connection is believed: it is closed.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from core.limits import MAX_HEAD_BYTES
from core.net.framing import HEAD_END, ChunkedBody, Refused
from core.net.heads import MAX_KNOWN_HEAD_BYTES, ReadHead, ResponseHeads
from core.net.liveness import SMALL_REQUEST_BYTES, expect_acknowledgements, probe
from core.net.types import Address, ConnectionLost, Headers, NetError, ResponseInvalid, ResponseListener
from core.net.wire import BODILESS, LAST_CHUNK, chunk

__all__ = ["MAX_UNSENT_BYTES", "Upstream", "UpstreamConnection"]

_log = logging.getLogger(__name__)

#: A request's unsent bytes at which its writer is told to stop, and at which to go on.
MAX_UNSENT_BYTES = 256 * 1024
_LOW_WATER = 64 * 1024

#: 1xx answers to one request; we ask for one at most, and servers send one or two.
MAX_INTERIM_ANSWERS = 8


class _Phase(enum.IntEnum):
    IDLE = 0
    HEAD = 1
    LENGTH = 2
    CHUNKED = 3
    UNTIL_CLOSE = 4


_IDLE, _HEAD, _LENGTH, _CHUNKED, _UNTIL_CLOSE = _Phase


class Upstream:
    """Implements `core.net.types.UpstreamRequest`: waits for a connection, then writes through it."""

    __slots__ = (
        "_chunked",
        "_first",
        "_left",
        "_unsent",
        "_unsent_bytes",
        "complete",
        "connection",
        "done",
        "head_only",
        "listener",
        "paused",
        "queue",
        "small",
        "told_full",
        "whole",
    )

    def __init__(
        self, listener: ResponseListener, first: bytes, *, head_only: bool, content_length: int | None
    ) -> None:
        """`first` is the head, with the body where that is at hand (`content_length` is 0 then)."""
        self.listener = listener
        self.connection: UpstreamConnection | None = None
        #: Where it waits for a connection.
        self.queue: deque[Upstream] | None = None
        self.head_only = head_only
        #: The whole request was written.
        self.complete = content_length == 0
        #: The listener heard its last, or gave up.
        self.done = False
        self.paused = False
        #: All of it fits into the peer's window, whatever the peer does with it.
        self.small = content_length is not None and len(first) + content_length <= SMALL_REQUEST_BYTES
        #: The listener was told that it writes faster than the peer reads.
        self.told_full = False
        #: The listener takes answers that came in one piece by this.
        self.whole: Callable[[int, Headers, bytes], None] | None = (
            None if head_only else getattr(listener, "whole", None)
        )
        self._chunked = content_length is None
        self._left = content_length or 0
        self._first = first
        self._unsent: list[bytes] | None = None  # what was written before there was a connection
        self._unsent_bytes = 0

    # ---- the user

    def write(self, data: bytes) -> None:
        if self.done or not data:
            return
        if self._chunked:
            data = chunk(data)
        else:
            self._left -= len(data)
            if self._left < 0:
                self.cancel()
                raise RuntimeError("a request's body is longer than its stated length")
        self._put(data)

    def end(self) -> None:
        if self.done or self.complete:
            return
        if self._left:
            self.cancel()
            raise RuntimeError("a request's body is shorter than its stated length")
        self.complete = True
        if self._chunked:
            self._put(LAST_CHUNK)

    def cancel(self) -> None:
        if self.done:
            return
        self.done = True
        if self.connection is not None:
            self.connection.drop()
            self.connection = None
        elif self.queue is not None:
            self.queue.remove(self)

    def pause(self) -> None:
        self.paused = True
        if self.connection is not None:
            self.connection.stop_reading()

    def resume(self) -> None:
        self.paused = False
        if self.connection is not None:
            self.connection.resume_soon()

    # ---- the pool and the connection

    def attach(self, connection: UpstreamConnection) -> None:
        """A connection is there: send what waited for it."""
        self.queue = None
        self.connection = connection
        connection.take(self)
        connection.transport.write(self._first)
        self._first = b""
        if self._unsent is not None:
            connection.transport.writelines(self._unsent)
            self._unsent = None
        if self.told_full and connection.writable:
            self.tell_writable(True)

    def fail(self, error: NetError) -> None:
        if self.done:
            return
        self.done = True
        self.connection = self.queue = None
        try:
            self.listener.failed(error)
        except Exception:  # noqa: BLE001 - the request's boundary
            _log.exception("a listener failed on hearing of an error")

    def tell_writable(self, ready: bool) -> None:
        self.told_full = not ready
        try:
            self.listener.writable(ready)
        except Exception:  # noqa: BLE001 - the request's boundary
            _log.exception("a listener failed")
            self.cancel()

    def _put(self, data: bytes) -> None:
        if self.connection is not None:
            transport = self.connection.transport
            if not transport.is_closing():  # it may be, for the rest of this turn of the loop
                transport.write(data)
            return
        if self._unsent is None:
            self._unsent = []
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > MAX_UNSENT_BYTES and not self.told_full:
            self.tell_writable(False)


class Keeper(Protocol):
    """The pool that a connection belongs to, as the connection needs it."""

    heads: ResponseHeads
    #: The peer's address, for messages.
    name: str

    def opened(self, connection: UpstreamConnection) -> None: ...

    def release(self, connection: UpstreamConnection) -> None:
        """The connection is free for another request."""
        ...

    def closed(self, connection: UpstreamConnection) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """Called by the transport, its pool, and the request it carries."""

    __slots__ = (
        "_at",
        "_bounded",
        "_chunks",
        "_fresh",
        "_heads",
        "_held",
        "_interim",
        "_keep_alive",
        "_known",
        "_left",
        "_loop",
        "_phase",
        "_pool",
        "_reading",
        "_request",
        "among",
        "idle_since",
        "transport",
        "writable",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Keeper, loop: asyncio.AbstractEventLoop, among: tuple[Address, ...] = ()) -> None:
        #: The equal listeners that there were when this was opened to one of them; empty where there is one only.
        self.among = among
        self._pool = pool
        self._loop = loop
        self._heads = pool.heads
        self._phase = _IDLE
        self._request: Upstream | None = None
        self._fresh = True
        self._held = b""  # read and not parsed yet, from _at on
        self._at = 0
        self._left = 0
        self._interim = 0  # 1xx answers to this request so far
        self._chunks = ChunkedBody()
        self._keep_alive = True
        # The last head and what it was read as: a peer's next answer often begins with the same bytes.
        self._known: ReadHead | None = None
        self._reading = True
        #: The kernel expects acknowledgements; see core.net.liveness.
        self._bounded = False
        self.writable = True
        self.idle_since = 0.0

    # ---- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(MAX_UNSENT_BYTES, _LOW_WATER)
        probe(self.transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        request = self._request
        if self._held:
            data = self._held[self._at :] + data
            self._held = b""
        elif self._phase is _HEAD and request is not None and request.whole is not None and not request.paused:
            known = self._heads.known.get(data)
            if known is not None and (known.length == 0 or known.status in BODILESS):
                self._empty(request, known)
                return
        self._run(data, 0)

    def eof_received(self) -> bool:
        request = self._request
        if self._phase is _UNTIL_CLOSE and request is not None:
            try:
                self._finish(request, reusable=False)
            except Exception:  # noqa: BLE001 - the request's boundary: a listener raised
                _log.exception("a listener failed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        untouched = self._phase is _HEAD and not self._held and not self._interim
        text = f"The connection to {self._pool.name} closed before the answer was complete."
        self._fail(ConnectionLost(text, sent=True, fresh=self._fresh or not untouched))
        self._pool.closed(self)

    def pause_writing(self) -> None:
        self.writable = False
        if self._request is not None and not self._request.complete:
            self._request.tell_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        if self._request is not None and self._request.told_full:
            self._request.tell_writable(True)

    # ---- the request

    def take(self, request: Upstream) -> None:
        """Carry `request`; it writes by itself."""
        self._request = request
        self._phase = _HEAD
        self._interim = 0
        if request.small is not self._bounded:
            self._bounded = request.small
            expect_acknowledgements(self.transport, request.small)

    def drop(self) -> None:
        """The request was given up: its answer would be taken for the next one's, so the connection goes."""
        self._request = None
        self.transport.abort()

    def stop_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_soon(self) -> None:
        """Read on; not from within the listener's own call, so that it need not expect more there."""
        self._loop.call_soon(self._resumed)

    def _resumed(self) -> None:
        request = self._request
        if request is None or request.paused:
            return
        data, self._held = self._held, b""
        if data:
            self._run(data, self._at)
        request = self._request
        if request is None or not request.paused:
            self._read_on()

    def _read_on(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # ---- parsing

    def _empty(self, request: Upstream, head: ReadHead) -> None:
        """The answer is a head that was read before, and nothing else: what most subscribers answer to an event."""
        self._keep_alive = head.keep_alive
        self._free(request, reusable=True)
        assert request.whole is not None  # noqa: S101 - who calls this saw it; tells the type checker
        try:
            request.whole(head.status, head.headers, b"")
        except Exception:  # noqa: BLE001 - the request's boundary: a listener raised
            _log.exception("a listener failed")

    def _run(self, data: bytes, at: int) -> None:
        try:
            at = self._parse(data, at)
        except Refused as refused:
            self._fail(ResponseInvalid(f"The answer of {self._pool.name} is not usable: {refused}"))
            self.transport.abort()
            return
        if at < len(data):
            self._held = data
            self._at = at

    def _parse(self, data: bytes, at: int) -> int:
        """Use up `data` from `at` as far as it goes; where it stopped."""
        size = len(data)
        while at < size:
            request = self._request
            if request is None:  # nobody asked for this
                self.transport.abort()
                return size
            if request.paused:
                self.stop_reading()
                return at
            before = at
            try:
                at = self._head(request, data, at) if self._phase is _HEAD else self._body(request, data, at)
            except Refused:
                raise
            except Exception:  # noqa: BLE001 - the request's boundary: a listener raised
                _log.exception("a listener failed")
                request.cancel()
                return size
            if at == before:
                return at
        return at

    def _head(self, request: Upstream, data: bytes, at: int) -> int:
        known = self._known
        if known is not None and data.startswith(known[0], at):
            self._begin(request, known, data, at + len(known[0]))
            return self._at
        end = data.find(HEAD_END, at) + 4
        if end < 4:
            if len(data) - at > MAX_HEAD_BYTES:
                raise Refused(502, f"its head is larger than {MAX_HEAD_BYTES} bytes.")
            return at
        raw = data if at == 0 and end == len(data) else data[at:end]
        known = self._heads.of(raw)
        status = known.status
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM_ANSWERS:
                raise Refused(502, f"it has status {status}, which was not asked for.")
            if status == 100 and (proceed := getattr(request.listener, "proceed", None)) is not None:
                proceed()
            return end
        if len(raw) <= MAX_KNOWN_HEAD_BYTES:
            self._known = known
        self._begin(request, known, data, end)
        return self._at

    def _begin(self, request: Upstream, head: ReadHead, data: bytes, at: int) -> None:
        """The answer's head is read up to `at`: hand it over, with the body where all of it is there. Sets `_at`."""
        _, status, headers, stated, self._keep_alive = head
        length = 0 if request.head_only or status in BODILESS else stated
        self._at = at
        if length is None:
            self._phase = _CHUNKED
            self._chunks = ChunkedBody()
        elif length < 0:
            self._phase = _UNTIL_CLOSE
            self._keep_alive = False
        elif request.whole is not None and len(data) - at >= length:
            end = self._at = at + length
            self._free(request, reusable=end == len(data))
            request.whole(status, headers, data[at:end])
            return
        else:
            self._phase = _LENGTH
            self._left = length
        told = stated if request.head_only else length
        request.listener.head(status, headers, None if told is None or told < 0 else told)
        if length == 0 and self._request is request:
            self._finish(request, reusable=at == len(data))

    def _body(self, request: Upstream, data: bytes, at: int) -> int:
        """One piece of the body."""
        if self._phase is _LENGTH:
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            complete = not self._left
        elif self._phase is _CHUNKED:
            piece, at = self._chunks.step(data, at)
            complete = self._chunks.done
        else:
            piece, at = data[at:], len(data)
            complete = False
        if piece:
            request.listener.body(piece)
        if complete and self._request is request:
            self._finish(request, reusable=at == len(data))
        return at

    def _finish(self, request: Upstream, *, reusable: bool) -> None:
        self._free(request, reusable=reusable)
        request.listener.end()

    def _free(self, request: Upstream, *, reusable: bool) -> None:
        """The answer is complete. The connection goes back before the listener hears of it, which may want it."""
        self._request = None
        self._phase = _IDLE
        request.connection = None
        request.done = True
        if reusable and self._keep_alive and request.complete and self.writable:
            self._fresh = False
            self._pool.release(self)
        elif request.complete:
            self.transport.close()
        else:
            self.transport.abort()  # nobody waits for the rest of the request

    def _fail(self, error: NetError) -> None:
        request = self._request
        if request is not None:
            self._request = None
            request.fail(error)
