"""What one server and one client allow."""

from __future__ import annotations

import msgspec

from core import limits as shared

__all__ = ["ClientLimits", "ServerLimits"]


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one server allows. Times in seconds, to the accuracy of the sweep (one second); sizes in bytes."""

    #: For a whole head, from its first byte (from the connection's start for its first request).
    head_timeout_s: float = shared.HEAD_TIMEOUT_S
    #: A keep-alive connection without a request.
    idle_timeout_s: float = shared.IDLE_TIMEOUT_S
    #: No byte of a body that is wanted, or none of an answer taken: nginx waits as long between two reads or writes.
    stall_timeout_s: float = 60.0
    #: How long what a refused client still sends is read and dropped, so that it can read why it was refused.
    linger_timeout_s: float = 2.0
    max_connections: int = shared.MAX_CONNECTIONS
    #: Of a request that was answered early, this much is read and dropped to keep the connection.
    max_dropped_bytes: int = 256 * 1024
    #: An answer's unsent bytes at which its writer is told to stop, and at which to go on.
    write_high_water: int = 256 * 1024
    write_low_water: int = 64 * 1024


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client allows, per address (host, port, tls). Times in seconds."""

    #: More than one peer on this machine can use; as many as nginx' default worker_connections.
    max_connections_per_address: int = 512
    max_idle_per_address: int = 128
    #: Requests that wait for a connection; each holds its head and at most 256 KiB of body.
    max_waiting_per_address: int = 1024
    #: Shorter than the server's: uvicorn and Node.js close after 5 s, ours after 75 s.
    idle_timeout_s: float = 4.0
    connect_timeout_s: float = shared.CONNECT_TIMEOUT_S
