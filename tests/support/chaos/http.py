"""The least of HTTP/1.1 that the checker needs, on plain asyncio: nothing of the platform that it judges."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

__all__ = ["Answer", "Message", "Server", "publish"]

#: One message's head or body; the checker's own events have some hundred bytes.
_LIMIT_BYTES = 256 * 1024


class Message(msgspec.Struct, frozen=True):
    """A request or an answer: its first line's words, its headers by name in lower case, and its body."""

    words: list[str]
    headers: dict[str, str]
    body: bytes


class Answer(msgspec.Struct, frozen=True):
    """What a subscriber answers."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""


#: Answers a request; None closes the connection without a word.
Handler = Callable[[Message], Awaitable[Answer | None]]


class Server:
    """Listens on a free loopback port; each connection is served until it or the server is closed."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=_LIMIT_BYTES)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # What is cut off has a killed process at its other end.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    answer = await self._handler(await _read(reader))
                    if answer is None:
                        return
                    writer.write(_encode(f"HTTP/1.1 {answer.status} Said", answer.headers, answer.body))
                    await writer.drain()
        finally:
            writer.transport.abort()


async def publish(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], target: str, headers: dict[str, str], body: bytes
) -> int:
    """POST on an open connection; the answer's status. Raises OSError or IncompleteReadError where there is none."""
    reader, writer = connection
    writer.write(_encode(f"POST {target} HTTP/1.1", {"host": "ingress.test", **headers}, body))
    return int((await _read(reader)).words[1])


def _encode(first: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def _read(reader: asyncio.StreamReader) -> Message:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Message(first.split(" "), headers, await reader.readexactly(int(headers.get("content-length", "0"))))
