"""The connections to one address: reused last in, first out, bounded, and opened by one task each.

An address may stand for several equal listeners, which come and go (`Client(places=...)`). Its connections are then
opened to them in turn; where one refuses, nothing was sent yet, and another is tried. When the listeners change, each
connection is closed: an idle one at the next request, the others after the one that they carry. A new listener gets its
share, and an old one, whose machine may be gone without a word, nothing more.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from typing import Final, Protocol

from core.net.bounds import ClientLimits
from core.net.heads import ResponseHeads
from core.net.types import Address, ConnectFailed, PlacesOf
from core.net.upstream import Upstream, UpstreamConnection

__all__ = ["Pool"]

#: Of several equal listeners, so many are tried for one connection: each may take the time-out of connecting.
MAX_PLACES_TRIED: Final = 3

#: So many connections are opened at a time where there are no more yet: one whose first packet is lost must not keep
#: all requests waiting.
MIN_CONNECTING: Final = 4

#: So long a listener that could not be connected to is tried after the others.
AVOIDED_S: Final = 2.0


class Owner(Protocol):
    """The client that a pool belongs to, as the pool needs it."""

    limits: ClientLimits
    heads: ResponseHeads
    closed: bool
    places: PlacesOf
    #: The loop's time as of the last idle sweep.
    now: float

    def tls_context(self) -> ssl.SSLContext: ...

    def tidy(self, pool: Pool) -> None:
        """Something of the pool is gone: forget it if nothing is left."""
        ...


class Pool:
    """Hands requests to connections. Requests that find none wait in order of arrival, bounded."""

    __slots__ = (
        "_address",
        "_avoided",
        "_client",
        "_connecting",
        "_connections",
        "_idle",
        "_limits",
        "_places",
        "_tls",
        "_turn",
        "_waiting",
        "heads",
        "key",
        "name",
    )

    def __init__(self, client: Owner, address: Address, tls: bool) -> None:
        self.key = (address, tls)
        self.heads = client.heads
        self.name = f"{address[0]}:{address[1]}"
        self._client = client
        self._limits = client.limits
        self._address = address
        self._tls = tls
        self._places = client.places(address)
        #: Where the turn begins, so that many clients do not all begin with the same listener.
        self._turn = random.randrange(1 << 16)  # noqa: S311 - spreading load, not a secret
        #: Listeners that could not be connected to, and until when they come last, by the loop's clock.
        self._avoided: dict[Address, float] = {}
        self._connections: set[UpstreamConnection] = set()
        self._idle: list[UpstreamConnection] = []
        self._waiting: deque[Upstream] = deque()
        self._connecting: set[asyncio.Task[str | None]] = set()

    @property
    def empty(self) -> bool:
        return not (self._connections or self._connecting or self._waiting)

    def submit(self, request: Upstream) -> None:
        """Send `request` on an idle connection, else on a new one, else as soon as one is free."""
        idle = self._idle
        among = self._places() if idle and self._places is not None else None
        while idle:
            connection = idle.pop()
            if among is not None and connection.among is not among:
                connection.transport.close()
                continue
            # One that the peer closed while it was idle has seen nothing of the request: the next will do.
            if not connection.transport.is_closing():
                request.attach(connection)
                return
        if len(self._waiting) >= self._limits.max_waiting_per_address:
            text = f"Too many requests wait for a connection to {self.name} ({len(self._waiting)})."
            asyncio.get_running_loop().call_soon(request.fail, ConnectFailed(text))
            return
        self._waiting.append(request)
        request.queue = self._waiting
        self._grow()

    # ---- opening

    def _grow(self) -> None:
        """Open as many connections as requests wait, but no more at a time than there are already: those of a burst are
        mostly answered before, on the ones that there are. A connection costs several times what a request does, and is
        soon closed again when it was needed for one only."""
        connecting = self._connecting
        most = min(
            len(self._waiting),
            max(MIN_CONNECTING, len(self._connections)),
            self._limits.max_connections_per_address - len(self._connections),
        )
        while len(connecting) < most:
            self._open()

    def _open(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._opened_or_not)

    async def _connect(self) -> str | None:
        """Open one connection, which presents itself to `opened`; else why it did not come."""
        if self._places is None:
            return await self._connect_to(self._address, ())
        among = self._places()
        why: str | None = "no listener is known there now"
        for address in self._in_turn(among):
            why = await self._connect_to(address, among)
            if why is None:
                break
            why = f"{why} ({address[0]}:{address[1]})"
            self._avoided[address] = asyncio.get_running_loop().time() + AVOIDED_S
        return why

    def _in_turn(self, among: tuple[Address, ...]) -> list[Address]:
        """The listeners to try, best first."""
        now = asyncio.get_running_loop().time()
        self._avoided = {address: until for address, until in self._avoided.items() if until > now}
        first = self._turn % max(len(among), 1)
        self._turn += 1
        # Sorting keeps the order of equals.
        return sorted(among[first:] + among[:first], key=self._avoided.__contains__)[:MAX_PLACES_TRIED]

    async def _connect_to(self, address: Address, among: tuple[Address, ...]) -> str | None:
        loop = asyncio.get_running_loop()
        host, port = address
        tls = self._client.tls_context() if self._tls else None
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await loop.create_connection(lambda: UpstreamConnection(self, loop, among), host, port, ssl=tls)
        except TimeoutError:
            return f"no answer in {self._limits.connect_timeout_s:g} s"
        except (OSError, UnicodeError) as error:  # the latter from a host that cannot be a DNS name
            return str(error)
        return None

    def _opened_or_not(self, task: asyncio.Task[str | None]) -> None:
        self._connecting.discard(task)
        if task.cancelled():
            return
        why = task.result()
        if why is not None:
            self._failed(why)
        self._grow()

    def _failed(self, why: str) -> None:
        """One connection did not come. With others there, only the longest waiting request fails; else all do."""
        error = ConnectFailed(f"Cannot connect to {self.name}: {why}.")
        count = min(len(self._waiting), 1) if self._connections else len(self._waiting)
        for request in self._take(count):
            request.fail(error)
        self._client.tidy(self)

    # ---- connections

    def opened(self, connection: UpstreamConnection) -> None:
        self._connections.add(connection)
        self.release(connection)

    def release(self, connection: UpstreamConnection) -> None:
        """`connection` is free: the next waiting request takes it, else it is kept for a while."""
        if self._places is not None and connection.among is not self._places():
            connection.transport.close()
            return
        if self._waiting:
            self._waiting.popleft().attach(connection)
            return
        if len(self._idle) >= self._limits.max_idle_per_address or self._client.closed:
            connection.transport.close()
            return
        connection.idle_since = self._client.now
        self._idle.append(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._client.closed:
            self._grow()
        self._client.tidy(self)

    def sweep(self, before: float) -> None:
        """Close what has been idle since before then. The longest idle are first."""
        idle = self._idle
        count = 0
        while count < len(idle) and idle[count].idle_since <= before:
            idle[count].transport.close()
            count += 1
        del idle[:count]

    def shut(self) -> list[asyncio.Task[str | None]]:
        """Fail what waits, abort every connection; the tasks to wait for."""
        tasks = list(self._connecting)
        for task in tasks:
            task.cancel()
        for request in self._take(len(self._waiting)):
            request.fail(ConnectFailed("The client is closed."))
        for connection in list(self._connections):
            connection.transport.abort()
        return tasks

    def _take(self, count: int) -> list[Upstream]:
        """The `count` requests that wait longest, which wait no more."""
        taken = [self._waiting.popleft() for _ in range(count)]
        for request in taken:
            request.queue = None
        return taken
