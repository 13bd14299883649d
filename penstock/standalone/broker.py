"""The broker process: takes events, stores them, delivers them. The only writer of the log in the data directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from broker.node import BrokerNode
from broker.resources import KINDS as BROKER_KINDS
from core.clock import SystemClock
from core.control.rest import RestStore
from core.net.client import Client
from core.net.names import Names
from core.net.server import HttpServer
from core.telemetry import Metrics
from penstock.standalone.eventlog import make_logs
from penstock.standalone.process import Ending, run_process
from penstock.standalone.settings import Settings

__all__ = ["compose"]


@asynccontextmanager
async def compose(settings: Settings, ending: Ending) -> AsyncIterator[None]:
    """The ingress, serving, and the dispatchers; on leaving, drained and closed in the reverse order of starting."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        logs = make_logs(settings)
        for log in dict.fromkeys(logs.values()):
            await log.open()
            stack.push_async_callback(log.close)
        client = Client()
        stack.push_async_callback(client.close)
        node = BrokerNode(
            store=RestStore(client, settings.api.address, BROKER_KINDS),
            logs=logs,
            client=client,
            names=Names(gateway=settings.gateway.address, broker=settings.broker.address),
            clock=SystemClock(),
            metrics=metrics,
        )
        await node.start()
        stack.push_async_callback(lambda: node.drain(ending.drain_s))
        server = HttpServer(node.handler)
        await server.start(settings.broker.socket())
        stack.push_async_callback(lambda: server.drain(ending.drain_s))
        yield


if __name__ == "__main__":
    run_process(compose)
