"""The broker process: takes events, stores them, delivers them. The only writer of the log in the data directory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from broker.kinds import KINDS as BROKER_KINDS
from broker.learning import EventTypeLearner
from broker.node import FOLLOWED, BrokerNode
from broker.resources import DEFAULT_CLASS
from core.clock import SystemClock
from core.control.rest import RestStore
from core.control.sqlite import read_stored
from core.errors import PenstockError
from core.net.client import Client
from core.net.names import Names
from core.net.server import HttpServer
from core.resources import Resource
from core.telemetry import Metrics
from penstock.logs import further_logs
from penstock.process import running
from penstock.standalone.eventlog import classes, make_log
from penstock.standalone.process import Ending, run_process
from penstock.standalone.settings import Settings

__all__ = ["compose"]

logger = logging.getLogger(__name__)

#: Before it is said that events can be published. Control starts at the same time and tells of the Brokers soon; where
#: it does not, what can be done without it goes on.
PATIENCE_S: Final = 2.0


@asynccontextmanager
async def compose(settings: Settings, ending: Ending) -> AsyncIterator[None]:
    """The ingress, serving, and the dispatchers; on leaving, drained and closed in the reverse order of starting."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        served = classes(settings.broker_log)
        by_default = served[DEFAULT_CLASS]
        log = make_log(by_default, settings)
        await log.open()
        stack.push_async_callback(log.close)
        await stack.enter_async_context(running(event_log=log.failed()))
        client = Client()
        stack.push_async_callback(client.close)
        store = RestStore(client, settings.api.address, BROKER_KINDS)
        learner = EventTypeLearner(store)
        node = BrokerNode(
            store=store,
            logs={name: log for name, kind in served.items() if kind == by_default},
            client=client,
            names=Names(gateway=settings.gateway.address, broker=settings.broker.address),
            clock=SystemClock(),
            metrics=metrics,
            awaited=frozenset(served),
            hear=learner.hear,
        )
        others = further_logs(node, served, lambda kind: make_log(kind, settings))
        await stack.enter_async_context(running(node=node.failed(), learn=learner.run(), **others))
        await node.start(_last_known(Path(settings.data) / "store.db"))
        stack.push_async_callback(lambda: node.drain(ending.drain_s))
        server = HttpServer(node.handler)
        await server.start(settings.broker.socket())
        stack.push_async_callback(lambda: server.drain(ending.drain_s))
        await node.known(PATIENCE_S)
        yield


def _last_known(store: Path) -> tuple[Resource, ...]:
    """The Brokers, Triggers and their like that stand in the store, so that events are taken and delivered although
    control, which serves the store, is away when this process starts."""
    try:
        return read_stored(store, FOLLOWED)
    except PenstockError as error:
        facts = {"error": str(error)}
        logger.warning("the store cannot be read; waiting for the API to tell the Brokers", extra={"facts": facts})
        return ()


if __name__ == "__main__":
    run_process(compose)
