"""The load generator's own HTTP/1.1: keep-alive connections that send ready bytes and tell the answer's status.

It must cost little beside what it measures, so it reads only what it needs: the status and where the answer ends. One
request is under way on a connection at a time.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["LOST", "UNREADABLE", "Connection", "Done", "Pool", "Sender", "frame"]

#: "Statuses" of requests that got no answer, or one whose end cannot be found.
LOST: Final = 0
UNREADABLE: Final = -1

#: Requests that wait for a free connection; an open-loop run that falls this far behind is over its limit anyway.
MAX_WAITING: Final = 10_000
#: Answers here are tens of bytes; one larger than this was not meant for us.
MAX_ANSWER_BYTES: Final = 1024 * 1024
#: Connections that break are made anew, but not for ever: a server that refuses them all is not worth measuring.
MAX_RECONNECTS: Final = 1_000

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_EMPTY_STATUSES: Final = (204, 304)

Done = Callable[[int], None]


class Sender(Protocol):
    """What the loops send through."""

    def send(self, request: bytes, done: Done) -> None:
        """Send when possible; `done` is called once, with the answer's status when its last byte is here."""
        ...


def frame(data: bytes) -> tuple[int, int] | None:
    """Status and length in bytes of the answer at the start of `data`; None while it is not complete.

    An answer whose end cannot be told (no length, not chunked, not HTTP/1.1) has the status UNREADABLE.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return (UNREADABLE, len(data)) if len(data) > MAX_ANSWER_BYTES else None
    head = data[: end + 2]
    if not head.startswith(b"HTTP/1.1 ") or not head[9:12].isdigit():
        return UNREADABLE, len(data)
    status = int(head[9:12])
    length = _LENGTH.search(head)
    if length is not None:
        total = end + 4 + int(length[1])
        return (status, total) if len(data) >= total else None
    if status in _EMPTY_STATUSES:
        return status, end + 4
    if _CHUNKED.search(head):
        # Answers come one at a time, so that the last chunk ends what has arrived.
        return (status, len(data)) if data.endswith(b"0\r\n\r\n") else None
    return UNREADABLE, len(data)


class Connection(asyncio.Protocol):
    """One keep-alive connection; `on_free` and `on_lost` tell its pool."""

    __slots__ = ("_buffer", "_done", "_on_free", "_on_lost", "_transport")

    def __init__(self, on_free: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_free = on_free
        self._on_lost = on_lost
        self._buffer = b""
        self._done: Done | None = None
        self._transport: asyncio.Transport | None = None

    def send(self, request: bytes, done: Done) -> None:
        assert self._transport is not None
        self._done = done
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio's classes

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        framed = frame(data)
        if framed is None:
            self._buffer = data
            return
        status, length = framed
        done, self._done, self._buffer = self._done, None, b""
        if done is None or length != len(data) or status == UNREADABLE:
            status = UNREADABLE
            self.close()
        if done is not None:
            if status != UNREADABLE:
                self._on_free(self)
            done(status)

    def connection_lost(self, exc: Exception | None) -> None:
        done, self._done = self._done, None
        self._on_lost(self)
        if done is not None:
            done(LOST)


class Pool:
    """A fixed number of connections to one server; requests beyond it wait in order."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._free: list[Connection] = []
        self._open: set[Connection] = set()
        self._waiting: deque[tuple[bytes, Done]] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self.reconnects = 0

    async def connect(self, connections: int) -> None:
        """Open the connections. Raises OSError where the server does not accept them."""
        await asyncio.gather(*(self._connect() for _ in range(connections)))

    def send(self, request: bytes, done: Done) -> None:
        if self._free:
            self._free.pop().send(request, done)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append((request, done))
        else:
            done(LOST)

    async def close(self) -> None:
        self._closed = True
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in tuple(self._open):
            connection.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self._freed, self._lost), *self._address)
        self._open.add(connection)
        self._freed(connection)

    def _freed(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._closed or self.reconnects >= MAX_RECONNECTS:
            return
        self.reconnects += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if not task.cancelled() and isinstance(task.exception(), OSError):
            self._closed = True
            while self._waiting:
                self._waiting.popleft()[1](LOST)
