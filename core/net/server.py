"""The HTTP/1.1 server of the hot path: it accepts, limits, sweeps time-outs and drains."""

from __future__ import annotations

import asyncio
import socket
from math import inf

from core.net.bounds import ServerLimits
from core.net.connection import Admission, ServerConnection
from core.net.heads import RequestHeads
from core.net.types import Address, Handler

__all__ = ["HttpServer", "ServerLimits"]


#: How often time-outs are looked at: one pass over all connections instead of a timer for each.
SWEEP_INTERVAL_S = 1.0

#: Connections that the kernel completes before we accept them: Linux' default ceiling (net.core.somaxconn).
BACKLOG = 4096


#: Connections over the limit that are told so, and not only closed, at the same time.
MAX_REFUSED_CONNECTIONS = 256


class HttpServer:
    """Serves one listening socket. `handler` is called on the loop's thread with each request's head.

    A handler that raises is logged and answered 500; it must not block.
    """

    def __init__(self, handler: Handler, *, limits: ServerLimits | None = None) -> None:
        self.handler = handler
        self.limits = limits or ServerLimits()
        self.heads = RequestHeads()
        self.connections: set[ServerConnection] = set()
        self.draining = False
        #: Each connection's next answer is its last.
        self.leaving = False
        #: The loop's time as of the last sweep: what deadlines are reckoned from.
        self.now = 0.0
        self._listener: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        self._address: Address = ("", 0)

    async def start(self, sock: socket.socket) -> None:
        """Accept connections from `sock`, which is bound; the server owns and closes it."""
        self._loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._address = sock.getsockname()[:2]
        self._listener = await self._loop.create_server(lambda: ServerConnection(self), sock=sock, backlog=BACKLOG)

    @property
    def address(self) -> Address:
        """Where it listens, the port as the system chose it."""
        return self._address

    def leave(self) -> None:
        """Go on, and let each connection's next answer be its last: clients that keep connections come back through
        whatever leads to this server, and find another one there once that knows. `drain` then meets few of them."""
        self.leaving = True

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, close idle connections, let requests under way finish; abort the rest after `timeout_s`."""
        self.draining = True
        if self._listener is None or self._empty is None:
            return
        self._listener.close()
        for connection in list(self.connections):
            connection.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_empty()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
            await self._until_empty()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _until_empty(self) -> None:
        assert self._empty is not None  # noqa: S101 - set by start(), without which nothing calls this
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    # The rest is called by connections.

    def admit(self, connection: ServerConnection) -> Admission:
        """Count a new connection, and say what becomes of it."""
        count = len(self.connections)
        limit = self.limits.max_connections
        if count >= limit + MAX_REFUSED_CONNECTIONS:
            return Admission.IGNORED
        self.connections.add(connection)
        if self._timer is None and self._loop is not None:
            self.now = self._loop.time()
            self._timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep_again)
        return Admission.SERVED if count < limit else Admission.REFUSED

    def forget(self, connection: ServerConnection) -> None:
        self.connections.discard(connection)
        if not self.connections and self._empty is not None:
            self._empty.set()

    def _sweep_again(self) -> None:
        assert self._loop is not None  # noqa: S101 - only the loop calls this
        self._timer = None
        self.sweep(self._loop.time())
        if self.connections:
            self._timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep_again)

    def sweep(self, now: float) -> None:
        """End what is overdue at `now` (the loop's time)."""
        self.now = now
        overdue = [connection for connection in self.connections if connection.deadline <= now]
        for connection in overdue:
            connection.deadline = inf
            connection.expire()
