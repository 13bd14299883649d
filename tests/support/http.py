"""Both ends of HTTP connections for tests: a running server, a client of raw bytes, a server of raw bytes, a transport
without a socket, and sinks and listeners that remember what they heard."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from core.net.client import Client, ClientLimits
from core.net.server import HttpServer, ServerLimits
from core.net.types import Address, BodySink, Exchange, Handler, Headers, NetError, Places, RequestHead
from tests.support.virtual_time import VirtualTimeLoop

T = TypeVar("T")

#: How long a test waits for what should happen at once, before it fails.
DEADLINE_S = 5.0

HOST: Headers = [(b"host", b"test")]


@contextlib.asynccontextmanager
async def serving(handler: Handler, limits: ServerLimits | None = None) -> AsyncIterator[HttpServer]:
    """A server on a free loopback port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = HttpServer(handler, limits=limits)
    await server.start(sock)
    try:
        yield server
    finally:
        await server.drain(0)


@contextlib.asynccontextmanager
async def client_of(
    limits: ClientLimits | None = None, *, places: Mapping[Address, Places] | None = None
) -> AsyncIterator[Client]:
    client = Client(limits=limits, places=(places or {}).get)
    try:
        yield client
    finally:
        await client.close()


class Raw:
    """One connection whose bytes the test writes and reads itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, marker: bytes) -> bytes:
        """What comes up to and with `marker`."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readuntil(marker)

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Everything until the peer closes."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read()

    async def answer(self) -> tuple[bytes, bytes]:
        """One answer with Content-Length: its head and body."""
        head = await self.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")  # nothing is left of the answer before
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head, await self.exactly(length)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def raw(address: Address) -> AsyncIterator[Raw]:
    connection = Raw(*await asyncio.open_connection(*address))
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def raw_server(serve: Callable[[Raw], Awaitable[None]]) -> AsyncIterator[tuple[Address, list[Raw]]]:
    """A peer that does `serve` with each connection and then closes it; its address, and the connections it had."""
    connections: list[Raw] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Raw(reader, writer)
        connections.append(connection)
        try:
            await serve(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the test's client went away
        finally:
            await connection.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2], connections
    finally:
        server.close()
        for connection in connections:
            await connection.close()


async def turns_until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)


class Deaf(asyncio.Transport):
    """A transport without a socket: remembers what was written and asked of it."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.reading = True
        self.closed = False
        self.ended = False
        self.aborted = False
        self.unsent = 0
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def take(self) -> bytes:
        """What was written since the last time."""
        data = bytes(self.written)
        self.written.clear()
        return data

    async def feed(self, data: bytes) -> None:
        """Bytes arrive, once the protocol reads."""
        for _ in range(10):
            if self.reading:
                break
            await asyncio.sleep(0)
        self.protocol.data_received(data)


class DeafLoop(VirtualTimeLoop):
    """Virtual time, and connections that lead to transports without sockets and take `connecting_s` to come."""

    connecting_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.transports: list[Deaf] = []

    async def create_connection(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(self.connecting_s)
        protocol = protocol_factory()
        transport = Deaf(protocol)
        self.transports.append(transport)
        return transport, protocol


def run_deaf(
    main: Callable[[DeafLoop, Client], Awaitable[T]], *, connecting_s: float = 0.0, limits: ClientLimits | None = None
) -> T:
    """Run `main` with a client whose connections are Deaf."""

    async def run() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, DeafLoop)
        loop.connecting_s = connecting_s
        async with client_of(limits) as client:
            return await main(loop, client)

    with asyncio.Runner(loop_factory=DeafLoop) as runner:
        return runner.run(run())


class Heard:
    """A sink, and a listener: remembers every call in `calls`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.over = asyncio.Event()
        self.changed = asyncio.Event()

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        self.changed.set()

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        self._note("head", status, content_length)

    def body(self, chunk: bytes) -> None:
        self._note("body", chunk)

    def end(self) -> None:
        self._note("end")
        self.over.set()

    def failed(self, error: NetError) -> None:
        self._note("failed", error)
        self.over.set()

    def lost(self) -> None:
        self._note("lost")
        self.over.set()

    def writable(self, ready: bool) -> None:
        self._note("writable", ready)

    @property
    def received(self) -> bytes:
        return b"".join(call[1] for call in self.calls if call[0] == "body")

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    async def until(self, wanted: Callable[[Heard], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not wanted(self):
                self.changed.clear()
                await self.changed.wait()

    async def done(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.over.wait()


class Recorder:
    """A handler that gives each request a sink that remembers; the test answers through `exchanges`."""

    def __init__(self) -> None:
        self.heads: list[RequestHead] = []
        self.exchanges: list[Exchange] = []
        self.sinks: list[Heard] = []
        self._more = asyncio.Event()

    def __call__(self, head: RequestHead, exchange: Exchange) -> BodySink:
        sink = Heard()
        self.heads.append(head)
        self.exchanges.append(exchange)
        self.sinks.append(sink)
        self._more.set()
        return sink

    async def request(self, number: int = 0) -> tuple[RequestHead, Exchange, Heard]:
        """Wait for the request of that number."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.heads) <= number:
                self._more.clear()
                await self._more.wait()
        return self.heads[number], self.exchanges[number], self.sinks[number]
