"""A scripted function instance on a loopback port, and a raw client connection: the two ends of a gateway's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from serving.routing import Endpoint

__all__ = ["Call", "Function", "Script", "connect", "read_answer", "read_head", "until"]

#: How long a test waits for what must come; only a failing test waits this long.
DEADLINE_S = 10.0


class Call:
    """One request at an instance, its body not read yet."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        start, *lines = head.decode("latin-1").split("\r\n")[:-2]
        self.method, self.target, _ = start.split(" ")
        self.headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.reader = reader
        self.writer = writer
        #: The number of the request on its connection, from 1.
        self.number = number

    def header(self, name: str) -> str | None:
        found = [value for held, value in self.headers if held == name]
        assert len(found) < 2, f"{name} came more than once"
        return found[0] if found else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if self.header("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
            return
        left = int(self.header("content-length") or 0)
        while left:
            piece = await self.reader.read(min(left, 65_536))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    def answer(self, status: int = 200, body: bytes = b"ok", *, headers: str = "") -> None:
        self.writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body)


Script = Callable[[Call], Awaitable[None]]


class Function:
    """Answers every request by `script`; a script that returns without a whole answer should close the connection."""

    def __init__(self, script: Script, name: str = "a") -> None:
        self._script = script
        self._name = name
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: Requests under way, the most there ever were, and all.
        self.running = 0
        self.most = 0
        self.calls = 0

    @property
    def endpoint(self) -> Endpoint:
        assert self._server is not None
        return Endpoint(self._name, self._server.sockets[0].getsockname()[:2])

    async def __aenter__(self) -> Function:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = 0
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                number += 1
                self.calls += 1
                self.running += 1
                self.most = max(self.most, self.running)
                try:
                    await self._script(Call(head, reader, writer, number))
                finally:
                    self.running -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway closed the connection, or the test is over
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


@asynccontextmanager
async def connect(
    address: tuple[str, int], *, limit: int = 65_536
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client connection that is closed at the end."""
    reader, writer = await asyncio.open_connection(*address, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """An answer's status and headers."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    start, *lines = head.decode("latin-1").split("\r\n")[:-2]
    return int(start.split(" ")[1]), {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """A whole answer of stated length."""
    status, headers = await read_head(reader)
    return status, headers, await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), DEADLINE_S)


async def until(holds: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait for what other tasks and sockets bring about. Fails after a deadline."""
    async with asyncio.timeout(deadline_s):
        while not holds():  # noqa: ASYNC110 - what is waited for lies beyond sockets, where no event can be set
            await asyncio.sleep(0.001)
