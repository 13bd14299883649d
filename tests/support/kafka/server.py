"""A Kafka of our own: one node that is broker and controller (KRaft), on free ports, in a folder of its own."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
from pathlib import Path
from typing import Final

from tests.support.controlplane.servers import Server
from tests.support.kafka.jars import jars

__all__ = ["KafkaServer"]

FORMAT_TIMEOUT_S: Final = 60.0

#: Quick to start, and small: compiled once, not optimized; one thread for each thing.
_JAVA: Final = (
    "java",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

#: One node has one replica; a group need not wait for members that come late. A broker that was killed may come back
#: once its session is over.
_SETTINGS: Final = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "num.partitions": 1,
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "broker.session.timeout.ms": 3000,
    "broker.heartbeat.interval.ms": 500,
    "group.initial.rebalance.delay.ms": 0,
    "num.network.threads": 1,
    "num.io.threads": 2,
    "background.threads": 1,
    "num.recovery.threads.per.data.dir": 1,
    "log.cleaner.threads": 1,
    "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
}


class KafkaServer:
    """Answers on the same port through restarts. What it acknowledged is in its machine's memory at least: a kill of
    the process loses nothing of it."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", **settings: str | int) -> None:
        """`host` is this machine's address as clients know it. `settings` are of server.properties, with ``_`` for
        ``.``."""
        self.folder = folder
        self._host = host
        self._ports = _free_ports(2)
        self._more = {name.replace("_", "."): value for name, value in settings.items()}
        self._class_path = f"{jars()}/*"
        self._server = Server(
            name="kafka",
            argv=[*_JAVA, "-cp", self._class_path, "kafka.Kafka", str(self._properties)],
            log=folder / "kafka.log",
            ready=self._answers,
        )

    @property
    def servers(self) -> str:
        """What clients are given as bootstrap servers."""
        return f"{self._host}:{self._ports[0]}"

    @property
    def pid(self) -> int | None:
        return self._server.pid

    def start(self) -> None:
        """Start it, or start it again on what it had stored. Raises RuntimeError with its log where it does not."""
        if not self._properties.exists():
            self._format()
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        """As a crash would."""
        self._server.kill()

    def pause(self) -> None:
        """It holds its connections and answers nothing."""
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _format(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        broker, controller = self._ports
        settings = _SETTINGS | {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self._host}:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self._host}:{broker}",
            "log.dirs": self.folder / "data",
        }
        lines = [f"{name}={value}\n" for name, value in (settings | self._more).items()]
        draft = self._properties.with_suffix(".new")
        draft.write_text("".join(lines))
        # A name that begins with a hyphen would be read as an option.
        cluster = base64.urlsafe_b64encode(b"\0" + os.urandom(15)).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(draft)]
        done = subprocess.run(
            [*_JAVA, "-cp", self._class_path, *tool],
            capture_output=True,
            text=True,
            timeout=FORMAT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"Kafka's folder cannot be formatted:\n{done.stdout}{done.stderr}")
        draft.rename(self._properties)

    def _answers(self) -> bool:
        """The broker opens its port last, once it may serve."""
        try:
            with socket.create_connection((self._host, self._ports[0]), timeout=1.0):
                return True
        except OSError:
            return False


def _free_ports(count: int) -> list[int]:
    """Held together until all are known, so that none is given twice."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
