"""Real servers for tests: started on free loopback ports in folders of their own, stopped with nothing left.

``python -m tests.support.services`` (``make services``) runs them for a person until Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

__all__ = ["SERVICES", "RedisServer", "Service", "missing"]

#: A server that does not answer by then does not start.
START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.01


class Service:
    """A server that tests need: its variable names one that runs already, its program starts one."""

    def __init__(self, *, name: str, variable: str, program: str, install: str) -> None:
        self.name = name
        self.variable = variable
        self.program = program
        self.install = install

    @property
    def available(self) -> bool:
        return bool(os.environ.get(self.variable)) or self.startable

    @property
    def startable(self) -> bool:
        """Whether a test can have one of its own, to kill it."""
        return shutil.which(self.program) is not None


SERVICES: Final = {
    service.name: service
    for service in (
        Service(name="redis", variable="REDIS_URL", program="redis-server", install="apt-get install -y redis-server"),
    )
}


def missing() -> list[Service]:
    return [service for service in SERVICES.values() if not service.available]


class RedisServer:
    """A redis-server of our own that answers once what it wrote is on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start it, or start it again on what it had stored. Raises RuntimeError with its log where it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendonly": "yes"}
        settings |= {"appendfsync": "always", "daemonize": "no", "logfile": self.folder / "redis.log"}
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            ["redis-server", *flags, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"redis-server does not start:\n{(self.folder / 'redis.log').read_text()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It holds its connections and answers nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> int:
    """Run every server until Ctrl-C, and print the variables that tests and ``penstock up`` take."""
    absent = missing()
    for service in absent:
        print(f"{service.name}: not installed. {service.install}", file=sys.stderr)
    if absent:
        return 1
    with tempfile.TemporaryDirectory(prefix="penstock-services-") as folder:
        redis = RedisServer(Path(folder) / "redis")
        redis.start()
        try:
            print(f"export REDIS_URL={redis.url}", flush=True)
            print("Ctrl-C stops it and removes what it stored.", file=sys.stderr)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
            signal.pause()
        finally:
            redis.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
