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
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.controlplane.build import binaries, compiles
from tests.support.controlplane.servers import ControlPlane
from tests.support.kafka.jars import jars
from tests.support.kafka.server import KafkaServer
from tests.support.netns import inside

__all__ = ["SERVICES", "RedisServer", "Service", "missing"]

#: A server that does not answer by then does not start.
START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.01


class Service:
    """What tests need: a server, which its variable names where one runs already and its programs start, or a program.

    `prepare` makes what takes too long for a test's time limit; it is given what says how far it is. `usable` says
    whether the programs can be used here at all.
    """

    def __init__(
        self,
        *,
        name: str,
        variable: str | None = None,
        programs: tuple[str, ...],
        install: str,
        prepare: Callable[[Callable[[str], None]], object] | None = None,
        usable: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self.variable = variable
        self.programs = programs
        self.install = install
        self._prepare = prepare
        self._usable = usable

    @property
    def given(self) -> bool:
        return bool(self.variable and os.environ.get(self.variable))

    @property
    def available(self) -> bool:
        return self.given or self.startable

    @property
    def startable(self) -> bool:
        """Whether a test can have one of its own, to kill it."""
        return self._usable() and all(shutil.which(program) for program in self.programs)

    def prepare(self, say: Callable[[str], None]) -> None:
        if self._prepare is not None:
            self._prepare(say)


SERVICES: Final = {
    service.name: service
    for service in (
        Service(
            name="redis", variable="REDIS_URL", programs=("redis-server",), install="apt-get install -y redis-server"
        ),
        Service(
            name="kubernetes",
            variable="KUBECONFIG",
            programs=("etcd", "go", "setpriv"),
            usable=compiles,
            install="apt-get install -y etcd-server, and Go 1.24 or later from https://go.dev/dl",
            prepare=binaries,
        ),
        Service(
            name="kafka",
            variable="KAFKA_BOOTSTRAP_SERVERS",
            programs=("java", "mvn", "setpriv"),
            install="apt-get install -y default-jre-headless maven",
            prepare=jars,
        ),
        Service(
            name="cluster",
            programs=("ip", "nsenter", "unshare"),
            usable=inside,
            install="`make cluster`, which needs iproute2 and root, or user namespaces with overlay file systems",
        ),
        Service(name="kcat", programs=("kcat",), install="apt-get install -y kcat"),
        Service(name="strace", programs=("strace",), install="apt-get install -y strace"),
    )
}


def missing() -> list[Service]:
    """Those of which a test that needs its own has none."""
    return [service for service in SERVICES.values() if not service.startable]


class RedisServer:
    """A redis-server of our own that answers once what it wrote is on disk. `placed` says how it is run where its
    folder is on a disk of its own."""

    def __init__(self, folder: Path, placed: Callable[..., list[str]] = lambda *command: [*command]) -> None:
        self.folder = folder
        self._placed = placed
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
            self._placed("redis-server", *flags, *options), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
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


def main(*arguments: str) -> int:
    """Run every server until Ctrl-C, and print the variables that tests and ``penstock up`` take. With ``--missing``
    only say what tests do without here, and how to get it."""
    only_say = "--missing" in arguments
    absent = [service for service in missing() if service.variable or only_say]
    for service in absent:
        print(f"{service.name} could not be had. Provide it by: {service.install}", file=sys.stderr)
    if absent or only_say:
        return 0 if only_say else 1
    for prepare in (binaries, jars):
        prepare(lambda line: print(line, file=sys.stderr, flush=True))
    with tempfile.TemporaryDirectory(prefix="penstock-services-") as folder:
        redis = RedisServer(Path(folder) / "redis")
        kubernetes = ControlPlane(Path(folder) / "kubernetes")
        kafka = KafkaServer(Path(folder) / "kafka")
        try:
            redis.start()
            kubernetes.start()
            kafka.start()
            print(f"export REDIS_URL={redis.url}")
            print(f"export KAFKA_BOOTSTRAP_SERVERS={kafka.servers}")
            print(f"export KUBECONFIG={kubernetes.access.kubeconfig}", flush=True)
            print("Ctrl-C stops them and removes what they stored.", file=sys.stderr)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
            signal.pause()
        finally:
            kafka.stop()
            kubernetes.stop()
            redis.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
