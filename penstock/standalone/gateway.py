"""The gateway process: every request to a function goes through it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from core.control.rest import RestStore
from core.net.client import Client
from core.net.server import HttpServer
from core.resources.builtin import KINDS as BUILTIN_KINDS
from core.telemetry import Metrics
from penstock.process import ANSWER_S, running
from penstock.standalone.process import Ending, run_process
from penstock.standalone.settings import Settings
from serving.gateways import Identity
from serving.node import CLIENT_LIMITS, GatewayNode
from serving.resources import KINDS as SERVING_KINDS

__all__ = ["compose"]

#: There is one gateway on one machine; in a cluster each has its pod's name.
ME: Final = Identity(id="standalone")


@asynccontextmanager
async def compose(settings: Settings, ending: Ending) -> AsyncIterator[None]:
    """The gateway and its admin listener, serving; on leaving, drained and closed."""
    metrics = Metrics()
    client = Client(limits=CLIENT_LIMITS)
    node = GatewayNode(
        store=RestStore(client, settings.api.address, (*BUILTIN_KINDS, *SERVING_KINDS)),
        client=client,
        control_address=settings.api.address,
        broker_address=settings.broker.address,
        me=ME,
        metrics=metrics,
        rng=random.Random(),  # noqa: S311 - traffic splitting, not a secret
    )
    server = HttpServer(node.handler)
    admin = HttpServer(node.admin_handler)
    await node.start()
    await server.start(settings.gateway.socket())
    await admin.start(settings.admin.socket())
    try:
        async with running(node=node.failed()):
            yield
    finally:
        # Together: the server waits for its requests, and the node answers those that are held and cannot be served.
        await asyncio.gather(node.drain(ending.drain_s), server.drain(ending.drain_s + ANSWER_S))
        await admin.drain(0)
        await client.close()


if __name__ == "__main__":
    run_process(compose)
