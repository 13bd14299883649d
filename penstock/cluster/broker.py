"""The processes of the broker: ingresses take events and store them, dispatchers deliver what is stored."""

from __future__ import annotations

from collections.abc import Callable

from broker.kinds import KINDS as BROKER_KINDS
from broker.learning import EventTypeLearner
from broker.log.port import OwnLog
from broker.node import BrokerNode, Role
from broker.resources import DEFAULT_CLASS
from core.clock import SystemClock
from core.net.client import Client
from core.net.names import Names
from penstock.cluster.eventlog import classes, make_log
from penstock.cluster.peers import PEER_KINDS, Peers
from penstock.cluster.process import Frame
from penstock.logs import further_logs
from penstock.process import running

__all__ = ["compose_dispatcher", "compose_ingress"]


async def compose_ingress(frame: Frame) -> Callable[[], str]:
    """One of several ingresses: each knows all Brokers."""
    # Without peers: an ingress sends nothing.
    node = await _node(frame, Client(), "ingress")
    server = await frame.serve(node.handler, frame.settings.port)
    frame.stack.push_async_callback(lambda: server.drain(frame.ending.drain_s))
    return node.problem


async def compose_dispatcher(frame: Frame) -> Callable[[], str]:
    """One of several dispatchers: each delivers for those Triggers that it holds."""
    peers = Peers(await frame.store(PEER_KINDS), frame.settings.release, routes=True, metrics=frame.metrics)
    client = Client(places=peers.places)
    frame.stack.push_async_callback(client.close)
    await frame.stack.enter_async_context(running(peers=peers.run()))
    node = await _node(frame, client, "dispatch")
    return node.problem


async def _node(frame: Frame, client: Client, role: Role) -> BrokerNode:
    settings = frame.settings
    kinds = classes(settings.event_log)
    by_default = kinds[DEFAULT_CLASS]

    async def opened() -> OwnLog:
        log = make_log(by_default, settings)
        await log.open()
        return log

    log = await frame.once(f"the event log on {by_default}", opened)
    frame.stack.push_async_callback(log.close)
    store = await frame.store(BROKER_KINDS)
    learner = EventTypeLearner(store)
    node = BrokerNode(
        store=store,
        logs={name: log for name, kind in kinds.items() if kind == by_default},
        client=client,
        # Names are resolved where connections are opened, because what they stand for changes.
        names=Names(),
        clock=SystemClock(),
        metrics=frame.metrics,
        awaited=frozenset(kinds),
        roles=frozenset({role}),
        hear=learner.hear,
    )
    others = further_logs(node, kinds, lambda kind: make_log(kind, settings))
    await frame.stack.enter_async_context(
        running(event_log=log.failed(), node=node.failed(), learn=learner.run(), **others)
    )
    await node.start()
    frame.stack.push_async_callback(lambda: node.drain(frame.ending.drain_s))
    return node
