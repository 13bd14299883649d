"""The supervisor: binds the sockets, starts the three processes, restarts what crashes, and ends everything in order.

It holds nothing else, so that it has no reason to fail: a crash of one process leaves the others working, and a crash
of the supervisor itself ends the rest through their life pipes.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec

from core.net.types import Address
from penstock.places import DEFAULT_ADMIN_PORT, DEFAULT_API_PORT, DEFAULT_BROKER_PORT, DEFAULT_GATEWAY_PORT
from penstock.standalone.child import Child, StartFailed
from penstock.standalone.settings import Listener, Settings, bind

__all__ = ["PROCESSES", "Ports", "Supervisor"]

log: Final = logging.getLogger(__name__)

#: In the order in which they are asked to stop: no new deliveries, then no new requests, then the instances.
PROCESSES: Final = ("broker", "gateway", "control")
LISTENERS: Final = ("gateway", "broker", "api", "admin")

#: A crashed process is restarted after this long, doubled with each crash in a row, up to the cap.
RESTART_FIRST_S: Final = 0.05
RESTART_CAP_S: Final = 5.0
#: A process that ran this long had started well: its next crash counts as the first.
STEADY_S: Final = 10.0


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen; 0 takes any free port."""

    host: str = "127.0.0.1"
    gateway: int = DEFAULT_GATEWAY_PORT
    broker: int = DEFAULT_BROKER_PORT
    api: int = DEFAULT_API_PORT
    admin: int = DEFAULT_ADMIN_PORT


class Supervisor:
    """Owns the data directory's lock, the listening sockets and the processes."""

    def __init__(
        self,
        *,
        data: Path,
        root: Path,
        ports: Ports,
        drain_s: float,
        on_restart: Callable[[str, int], None] = lambda name, code: None,
    ) -> None:
        self._data = data
        self._root = root
        self._ports = ports
        self._drain_s = drain_s
        self._on_restart = on_restart
        self._sockets: dict[str, socket.socket] = {}
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._lock: IO[str] | None = None

    @property
    def addresses(self) -> dict[str, Address]:
        """Where each listener is, by name: gateway, broker, api, admin."""
        return {name: sock.getsockname()[:2] for name, sock in self._sockets.items()}

    @property
    def pids(self) -> dict[str, int]:
        return {name: child.process.pid for name, child in self._children.items()}

    async def start(self) -> None:
        """Bind, start all processes side by side and wait until they serve. Raises StartFailed, with nothing left."""
        try:
            (self._data / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartFailed(f"The data directory {self._data} cannot be made: {error.strerror}.") from error
        self._lock = _lock(self._data)
        try:
            self._bind()
            launches = await asyncio.gather(*(self._launch(name) for name in PROCESSES), return_exceptions=True)
            for failure in launches:
                if failure is not None:
                    raise failure
        except BaseException:
            await self.stop()
            raise
        self._keepers = [asyncio.create_task(self._keep(name), name=f"keep {name}") for name in PROCESSES]

    async def stop(self) -> None:
        """Ask each process in turn to drain and end, killing what does not; close the sockets; free the directory."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for name in PROCESSES:
            if name in self._children:
                await self._children.pop(name).end(self._drain_s)
        for sock in self._sockets.values():
            sock.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _bind(self) -> None:
        for name in LISTENERS:
            port = getattr(self._ports, name)
            try:
                self._sockets[name] = bind(self._ports.host, port)
            except OSError as error:
                raise StartFailed(
                    f"The {name} cannot listen on {self._ports.host}:{port}: {error.strerror}. "
                    f"Stop what uses that port, or choose another with --{name}-port (0 takes any free one)."
                ) from error

    async def _launch(self, name: str) -> None:
        listeners = {key: Listener(sock.fileno(), sock.getsockname()[:2]) for key, sock in self._sockets.items()}
        settings = Settings(
            name=name,
            data=str(self._data),
            root=str(self._root),
            ready_fd=-1,
            life_fd=-1,
            drain_s=self._drain_s,
            api=listeners["api"],
            broker=listeners["broker"],
            gateway=listeners["gateway"],
            admin=listeners["admin"],
        )
        log_path = self._data / "logs" / f"{name}.log"
        inherit = [sock.fileno() for sock in self._sockets.values()]
        child = await Child.spawn(settings, inherit=inherit, log_path=log_path)
        self._children[name] = child
        await child.ready(log_path)

    async def _keep(self, name: str) -> None:
        """Restart the process each time it ends, with back-off."""
        delay_s = RESTART_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            code = await self._children[name].wait()
            self._on_restart(name, code)
            if loop.time() - started_s > STEADY_S:
                delay_s = RESTART_FIRST_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_CAP_S)
            try:
                await self._launch(name)
            except StartFailed as error:
                log.error("process does not start", extra={"facts": {"name": name, "error": str(error)}})


def _lock(data: Path) -> IO[str]:
    """Hold the data directory for this platform alone. Raises StartFailed naming the process that has it."""
    file = (data / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StartFailed(
            f"Another platform (process {holder}) runs on the data directory {data}. "
            "Stop it, or name another directory with --data-dir."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
