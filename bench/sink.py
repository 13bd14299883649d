"""A subscriber that notes when each event arrived, for the latency from publishing to delivery."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

__all__ = ["Sink"]

_ID: Final = re.compile(rb"\r\nce-id:[ \t]*[^\r]*?(\d+)[ \t]*\r\n", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_ACCEPTED: Final = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
#: Events here are 1,000 bytes; more than this without a complete one is not an event.
MAX_BUFFER_BYTES: Final = 1024 * 1024


class Sink(asyncio.Protocol):
    """One connection of the subscriber: answers 202, and calls `arrived` with the number at the end of the event's id.

    A request that it cannot read closes the connection, which the sender sees as a failure.
    """

    __slots__ = ("_arrived", "_buffer", "_transport")

    def __init__(self, arrived: Callable[[int], None]) -> None:
        self._arrived = arrived
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and self._take():
            pass

    def _take(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_BUFFER_BYTES:
                self._transport.abort()
            return False
        head = self._buffer[: end + 2]
        number, length = _ID.search(head), _LENGTH.search(head)
        if number is None or length is None:
            self._transport.abort()
            self._buffer = b""
            return False
        total = end + 4 + int(length[1])
        if len(self._buffer) < total:
            return False
        self._buffer = self._buffer[total:]
        self._arrived(int(number[1]))
        self._transport.write(_ACCEPTED)
        return True
