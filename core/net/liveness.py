"""How a connection whose peer's machine is gone comes to an end: one that lost power, or its network, sends no reset.

Without this a request waits for its own time-out, and where it has none for ever. The kernel does the work, on Linux:
what was sent and is not acknowledged ends the connection, and so does a peer that answers no probe while it is waited
for. A peer that is only slow acknowledges both.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Final

__all__ = ["PEER_GONE_S", "SMALL_REQUEST_BYTES", "expect_acknowledgements", "probe"]

#: A peer that was not heard of for so long is gone: time for a lost link's routes to be found again and for a few
#: retransmissions, and a tenth of what a delivery may take.
PEER_GONE_S: Final = 30
_UNACKNOWLEDGED_MS: Final = PEER_GONE_S * 1000

#: A quiet peer is asked after so long, and again each time; the last question is due when `PEER_GONE_S` are over.
_PROBE_AFTER_S: Final = 10
_PROBE_EVERY_S: Final = 5

#: A larger request may fill the peer's window while the peer holds it, for an instance that starts, say. The kernel
#: takes a window that stays full for a peer that is gone. Any window that Linux begins with holds twice this.
SMALL_REQUEST_BYTES: Final = 32 * 1024


def probe(transport: asyncio.BaseTransport) -> None:
    """Ask the peer whether it is there while nothing is on its way to it."""
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, (PEER_GONE_S - _PROBE_AFTER_S) // _PROBE_EVERY_S)


def expect_acknowledgements(transport: asyncio.BaseTransport, expected: bool) -> None:
    """Whether what is sent now has to be acknowledged within `PEER_GONE_S`; else the kernel tries for a quarter of an
    hour, by its default."""
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None:
        return
    with contextlib.suppress(OSError):  # closed meanwhile: whoever writes next hears of it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS if expected else 0)
