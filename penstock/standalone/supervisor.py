"""The supervisor: binds the sockets, starts the three processes, restarts what crashes, and ends everything in order.

It holds nothing else, so that it has no reason to fail: a crash of one process leaves the others working, and a crash
of the supervisor itself ends the rest through their life pipes.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from core.net.types import Address
from penstock.places import DEFAULT_ADMIN_PORT, DEFAULT_API_PORT, DEFAULT_BROKER_PORT, DEFAULT_GATEWAY_PORT
from penstock.standalone.child import Child, StartFailed, ended
from penstock.standalone.settings import BrokerLog, Listener, Settings, bind

__all__ = ["PROCESSES", "Ports", "Supervisor"]

#: In the order in which they are asked to stop: no new deliveries, then no new requests, then the instances.
PROCESSES: Final = ("broker", "gateway", "control")
#: How each is started.
COMMANDS: Final = {name: (sys.executable, "-m", f"penstock.standalone.{name}") for name in PROCESSES}
LISTENERS: Final = ("gateway", "broker", "api", "admin")

#: A crashed process is restarted after this long, doubled with each crash in a row, up to the cap.
RESTART_FIRST_S: Final = 0.05
RESTART_CAP_S: Final = 5.0
#: A process that ran this long had started well: its next crash counts as the first.
STEADY_S: Final = 10.0


def restart_delay_s(crashes: int) -> float:
    """How long after the last of so many crashes in a row a process is started again."""
    return min(RESTART_FIRST_S * 2.0 ** (crashes - 1), RESTART_CAP_S) if crashes < 16 else RESTART_CAP_S


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen; 0 takes any free port."""

    host: str = "127.0.0.1"
    gateway: int = DEFAULT_GATEWAY_PORT
    broker: int = DEFAULT_BROKER_PORT
    api: int = DEFAULT_API_PORT
    admin: int = DEFAULT_ADMIN_PORT


class Supervisor:
    """Owns the data directory's lock, the listening sockets and the processes.

    `commands` says how each process is started. `on_trouble` is told, in words for a person, of each process that ends
    by itself or does not start again.
    """

    def __init__(
        self,
        *,
        data: Path,
        root: Path,
        ports: Ports,
        drain_s: float,
        broker_log: BrokerLog | None = None,
        on_trouble: Callable[[str], None] = lambda said: None,
        commands: Mapping[str, Sequence[str]] = COMMANDS,
    ) -> None:
        self._data = data
        self._root = root
        self._ports = ports
        self._drain_s = drain_s
        self._broker_log = broker_log or BrokerLog()
        self._on_trouble = on_trouble
        self._commands = commands
        self._sockets: dict[str, socket.socket] = {}
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._lock: IO[str] | None = None
        self._force = asyncio.Event()

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
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._data / "logs").mkdir(exist_ok=True)
            self._lock = _lock(self._data)
        except OSError as error:
            raise StartFailed(
                f"The data directory {self._data} cannot be used: {error.strerror} ({error.filename}). "
                "Name one that can be written with --data-dir."
            ) from error
        try:
            self._bind()
            launches = await asyncio.gather(*(self._launch(name) for name in PROCESSES), return_exceptions=True)
            for failure in launches:
                if failure is not None:
                    raise failure
        except BaseException:
            self.force()  # nothing has been served yet
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
                await self._children.pop(name).end(self._drain_s, self._force)
        for sock in self._sockets.values():
            sock.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def force(self) -> None:
        """Let `stop`, under way or later, wait for no drain."""
        self._force.set()

    def _bind(self) -> None:
        for name in LISTENERS:
            port = getattr(self._ports, name)
            try:
                self._sockets[name] = bind(self._ports.host, port)
            except OSError as error:
                place = f"The {name} cannot listen on {self._ports.host}:{port}: {error.strerror}."
                raise StartFailed(f"{place} {_advice(error, name)}") from error

    async def _launch(self, name: str) -> None:
        listeners = {key: Listener(sock.fileno(), sock.getsockname()[:2]) for key, sock in self._sockets.items()}
        settings = Settings(
            name=name,
            data=str(self._data),
            root=str(self._root),
            ready_fd=-1,
            life_fd=-1,
            drain_s=self._drain_s,
            broker_log=self._broker_log,
            api=listeners["api"],
            broker=listeners["broker"],
            gateway=listeners["gateway"],
            admin=listeners["admin"],
        )
        inherit = [sock.fileno() for sock in self._sockets.values()]
        try:
            child = await Child.spawn(settings, self._commands[name], inherit=inherit, log_path=self._log(name))
        except OSError as error:
            raise StartFailed(f"The {name} process cannot be started: {error}.") from error
        self._children[name] = child
        await child.ready()

    async def _keep(self, name: str) -> None:
        """Start the process again each time it ends, with back-off."""
        loop = asyncio.get_running_loop()
        crashes, started_s, refusal = 0, loop.time(), ""
        while True:
            code = await self._children[name].wait()
            crashes = 1 if loop.time() - started_s > STEADY_S else crashes + 1
            delay_s = restart_delay_s(crashes)
            said = refusal or f"The {name} process {ended(code)}; see {self._log(name)}.{self._children[name].said()}"
            row = f" ({crashes} times in a row)" if crashes > 1 else ""
            self._on_trouble(f"{said}\nIt is started again in {delay_s:g} s{row}.")
            await asyncio.sleep(delay_s)
            started_s, refusal = loop.time(), ""
            try:
                await self._launch(name)
            except StartFailed as error:
                refusal = str(error)

    def _log(self, name: str) -> Path:
        return self._data / "logs" / f"{name}.log"


def _advice(error: OSError, name: str) -> str:
    """What a person can do about an address that cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return f"Stop what uses that port, or choose another with --{name}-port (0 takes any free one)."
    if error.errno == errno.EACCES:
        return f"Ports below 1024 are for root; choose another with --{name}-port (0 takes any free one)."
    return "Name an IPv4 address of this machine with --host."


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
