"""What the supervisor tells its processes: where things are, which sockets are theirs, and how to say "ready".

A process gets its `Settings` as JSON in the environment variable ``PENSTOCK_PROCESS``; sockets and pipes are inherited
file descriptors. All listening sockets are bound by the supervisor and outlive a process that crashes: its clients wait
in the backlog until the next one accepts, instead of being refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from broker.log.port import Retention
from core.net.types import Address

__all__ = ["READY", "VARIABLE", "BrokerLog", "Listener", "Settings", "bind", "functions_environment", "read_settings"]

VARIABLE: Final = "PENSTOCK_PROCESS"
#: What functions do not inherit: the event log's password may be in both.
_NOT_FOR_FUNCTIONS: Final = frozenset({VARIABLE, "PENSTOCK_REDIS_URL", "PENSTOCK_KAFKA_BOOTSTRAP_SERVERS"})
#: What a process writes to `Settings.ready_fd` once it serves. Anything else is the reason why it cannot.
READY: Final = b"ready\n"

#: Connections that wait while a process restarts; the kernel caps it at net.core.somaxconn (4,096 by default).
_BACKLOG: Final = 4_096


class Listener(msgspec.Struct, frozen=True):
    """A listening socket: its inherited file descriptor and where it listens."""

    fd: int
    address: Address

    def socket(self) -> socket.socket:
        """The inherited socket, ready for an event loop."""
        sock = socket.socket(fileno=self.fd)
        sock.setblocking(False)
        return sock


class BrokerLog(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps the events of Brokers of the default class: ``sqlite`` in the data directory, ``redis`` or
    ``kafka``. Brokers may ask for a server's class wherever its address is given: `redis_url`, `kafka_servers`.
    Each log keeps events as `retention` says."""

    kind: str = "sqlite"
    redis_url: str = ""
    kafka_servers: str = ""
    retention: Retention = Retention()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One process's settings. It writes READY to `ready_fd` once it serves; `life_fd` ends when the supervisor dies."""

    name: str
    data: str
    root: str
    api: Listener
    broker: Listener
    gateway: Listener
    admin: Listener
    ready_fd: int
    life_fd: int
    drain_s: float = 10.0
    broker_log: BrokerLog = BrokerLog()
    log_level: str = "INFO"

    @property
    def url_suffix(self) -> str:
        """What follows ``<service>.<namespace>`` in a Service's URL."""
        return f".localhost:{self.gateway.address[1]}"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket that child processes can inherit. Raises OSError where the address is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.set_inheritable(True)
    except OSError:
        sock.close()
        raise
    return sock


def functions_environment(own: Mapping[str, str]) -> dict[str, str]:
    """What functions inherit of this process's environment."""
    return {name: value for name, value in own.items() if name not in _NOT_FOR_FUNCTIONS}


def read_settings() -> Settings:
    """This process's settings. Raises KeyError where it was not started by the supervisor."""
    return msgspec.json.decode(os.environ[VARIABLE].encode(), type=Settings)
