"""A gateway's process for tests, one of several: ``python -m tests.support.gateway_process <id> <API port>``.

It listens on a free port of 127.0.0.1 and prints "ready <port>" once it can route. SIGTERM drains it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sys

import uvloop

from core.control.rest import RestStore
from core.net.client import Client
from core.net.server import HttpServer
from core.resources.builtin import KINDS as BUILTIN_KINDS
from core.telemetry import Metrics
from serving.gateways import Identity
from serving.node import CLIENT_LIMITS, GatewayNode
from serving.resources import KINDS as SERVING_KINDS

#: Where the gateways are listed.
NAMESPACE = "penstock"


async def main(name: str, api_port: int) -> None:
    api = ("127.0.0.1", api_port)
    client = Client(limits=CLIENT_LIMITS)
    node = GatewayNode(
        store=RestStore(client, api, (*BUILTIN_KINDS, *SERVING_KINDS)),
        client=client,
        control_address=api,
        broker_address=None,
        me=Identity(id=name, namespace=NAMESPACE),
        metrics=Metrics(),
        rng=random.Random(),
    )
    server = HttpServer(node.handler)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await node.start()
    await server.start(socket.create_server(("127.0.0.1", 0)))
    while not node.synced:  # noqa: ASYNC110 - a probe's way to find out
        await asyncio.sleep(0.01)
    print(f"ready {server.address[1]}", flush=True)
    await ended.wait()
    await asyncio.gather(node.drain(10.0), server.drain(10.5))
    await client.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
