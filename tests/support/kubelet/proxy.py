"""A stand-in for kube-proxy: listens on Services' addresses and forwards each connection to the next ready endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import Final

from tests.support.kubelet.services import Address

__all__ = ["Proxy"]

_LOG = logging.getLogger("network.proxy")
_CHUNK: Final = 256 * 1024
_CONNECT_TIMEOUT_S: Final = 2.0
#: Closing sends a reset: the other end failed, and this one is to know.
_ABORT: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 1024


class Proxy:
    """Owns a listener for each address of the table, and the connections that came through it."""

    def __init__(self) -> None:
        self._table: dict[Address, tuple[Address, ...]] = {}
        self._next: dict[Address, int] = {}
        self._listeners: dict[Address, asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def apply(self, table: dict[Address, tuple[Address, ...]]) -> None:
        """Take a new table. Connections that are open stay, though their endpoint is in it no more."""
        self._table = table
        for address in [one for one in self._listeners if one not in table]:
            self._listeners.pop(address).close()
        for address in table:
            if address not in self._listeners:
                try:
                    self._listeners[address] = await self._listen(address)
                except OSError as error:
                    _LOG.warning("%s: %s", address, error)

    async def _listen(self, address: Address) -> asyncio.Server:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._forward(address, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        host, port = address
        return await asyncio.start_server(accepted, host, port, limit=_CHUNK, backlog=_BACKLOG)

    async def _forward(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await self._connect(address)
        if behind is None:
            _abort(writer)
            return
        target_reader, target = behind
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, target))
                group.create_task(_pump(target_reader, writer))
        except* OSError:
            _abort(writer)
            _abort(target)
        finally:
            for end in (writer, target):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _connect(self, address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """To the next endpoint that takes it, each tried once."""
        for _ in range(len(self._table.get(address, ()))):
            targets = self._table.get(address, ())
            if not targets:
                break
            number = self._next[address] = self._next.get(address, -1) + 1
            host, port = targets[number % len(targets)]
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(host, port, limit=_CHUNK)
            except (OSError, TimeoutError):
                continue
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    writer.transport.abort()
