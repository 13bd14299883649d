"""A small broker process for tests and measurements: one Broker, its Triggers, a real log, a real listener.

``python -m tests.support.broker_process <roles> <log> <port> <subscriber URL>...``: one Trigger for each URL, of uid
``trigger-<n>``, which takes everything; its delivery spec may follow the URL, as JSON after a space. Roles are
``ingress``, ``dispatch``, or both with a comma. The log is a file's path, or ``<redis URL>#<name>?<owner>``, or
``plaintext://<Kafka's servers>#<name>?<owner>``. Prints "ready <port>" once it is there; drains on SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import sys
from pathlib import Path

import uvloop

from broker.log.kafka.log import KafkaLog
from broker.log.redis.log import RedisLog
from broker.log.sqlite import SqliteLog
from broker.node import ROLES, BrokerNode
from broker.resources import BROKER, DEFAULT_CLASS, TRIGGER
from core.clock import SystemClock
from core.control.memory import MemoryStore
from core.control.port import Listing
from core.net.client import Client
from core.net.names import Names
from core.net.server import HttpServer
from core.resources import KindRef, ObjectMeta, Resource
from core.telemetry import Metrics

#: On a busy machine; what is under way takes milliseconds.
DRAIN_S = 5.0


def broker(name: str = "default", **spec: object) -> Resource:
    return Resource(
        ref=BROKER, meta=ObjectMeta(name=name, namespace="default", uid=f"broker-{name}"), body={"spec": spec}
    )


def trigger(uid: str, uri: str, **spec: object) -> Resource:
    meta = ObjectMeta(name=uid, namespace="default", uid=uid, resource_version="1")
    delivery = spec.get("delivery")
    sink = delivery.get("deadLetterSink", {}).get("uri") if isinstance(delivery, dict) else None
    status = {"subscriberUri": uri, "deadLetterSinkUri": sink}
    body = {"spec": {"broker": "default", "subscriber": {"uri": uri}, **spec}, "status": status}
    return Resource(ref=TRIGGER, meta=meta, body=body)


class FixedStore(MemoryStore):
    """A store whose resources keep the uids they are given, so that positions are found again by the next process."""

    def __init__(self, resources: list[Resource]) -> None:
        super().__init__()
        self._fixed = resources

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        return Listing(tuple(r for r in self._fixed if r.ref == kind), (await super().list(kind, namespace)).version)


def make_log(where: str) -> SqliteLog | RedisLog | KafkaLog:
    url, _, names = where.partition("#")
    name, _, owner = names.partition("?")
    if where.startswith("redis"):
        return RedisLog(url, name=name, owner=owner)
    if where.startswith("plaintext"):
        return KafkaLog(url, name=name, owner=owner)
    return SqliteLog(Path(where))


async def main(roles: str, where: str, port: int, uris: list[str]) -> None:
    delivery = {"retry": 100, "backoffPolicy": "linear", "backoffDelay": "PT0.05S"}
    triggers = []
    for n, given in enumerate(uris):
        uri, _, own = given.partition(" ")
        spec = json.loads(own) if own else delivery
        triggers.append(trigger(f"trigger-{n}", uri, delivery=spec))
    await serve(roles, make_log(where), port, [broker(), *triggers])


async def serve(roles: str, log: SqliteLog | RedisLog | KafkaLog, port: int, resources: list[Resource]) -> None:
    """A broker process on this log with these Brokers and Triggers, until SIGTERM."""
    await log.open()
    client = Client()
    node = BrokerNode(
        store=FixedStore(resources),
        logs={DEFAULT_CLASS: log},
        client=client,
        names=Names(),
        clock=SystemClock(),
        metrics=Metrics(),
        roles=frozenset(role for role in ROLES if role in roles.split(",")),
    )
    server = HttpServer(node.handler)
    await node.start()
    await node.synced.wait()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    await server.start(sock)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"ready {server.address[1]}", flush=True)
    await stop.wait()
    await server.drain(DRAIN_S)
    await node.drain(DRAIN_S)
    await client.close()
    await log.close()


if __name__ == "__main__":
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
