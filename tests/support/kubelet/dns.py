"""The cluster's name server: A for Services and CNAME for ExternalName, over UDP. The messages are RFC 1035's."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Callable
from typing import Final

from tests.support.kubelet.services import Names, resolve

__all__ = ["NameServer", "answer"]

_A: Final = 1
_CNAME: Final = 5
_IN: Final = 1
#: An answer to what was asked, authoritative, recursion available.
_FLAGS: Final = 0x8580
_NOT_IMPLEMENTED: Final = 4
_NXDOMAIN: Final = 3
#: Services change at any time, and nobody is to remember what they were.
_TTL_S: Final = 0


class NameServer(asyncio.DatagramProtocol):
    def __init__(self, table: Callable[[], Names]) -> None:
        self._table = table
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport) or hasattr(transport, "sendto")
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        reply = answer(self._table(), data)
        if reply and self._transport is not None:
            self._transport.sendto(reply, address)


def answer(table: Names, query: bytes) -> bytes:
    """The reply to a query; nothing where it cannot be read."""
    try:
        number, flags, questions = struct.unpack_from("!HHH", query)
        name, end = _name(query, 12)
        kind, _ = struct.unpack_from("!HH", query, end)
    except (struct.error, IndexError, UnicodeDecodeError):
        return b""
    question = query[12 : end + 4]
    if flags & 0x8000 or questions != 1:
        return struct.pack("!HHHHHH", number, _FLAGS | _NOT_IMPLEMENTED, 0, 0, 0, 0)
    found = resolve(table, name)
    if found is None:
        return struct.pack("!HHHHHH", number, _FLAGS | _NXDOMAIN, 1, 0, 0, 0) + question
    chain, addresses = found
    records = [_record(alias, _CNAME, _encoded(target)) for alias, target in chain]
    if kind == _A:
        owner = chain[-1][1] if chain else name
        records += [_record(owner, _A, ipaddress.IPv4Address(address).packed) for address in addresses]
    return struct.pack("!HHHHHH", number, _FLAGS, 1, len(records), 0, 0) + question + b"".join(records)


def _record(name: str, kind: int, data: bytes) -> bytes:
    return _encoded(name) + struct.pack("!HHIH", kind, _IN, _TTL_S, len(data)) + data


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name that begins there, and where it ends. A question has no compression."""
    labels = []
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels), at + 1
