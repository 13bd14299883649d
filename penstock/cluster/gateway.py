"""A gateway's process: requests to functions, from outside and from other pods."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from core.net.client import Client
from core.resources.builtin import KINDS as BUILTIN_KINDS
from penstock.cluster.peers import Peers
from penstock.cluster.process import Frame
from penstock.process import ANSWER_S, running
from serving.gateways import Identity
from serving.node import CLIENT_LIMITS, GatewayNode
from serving.resources import KINDS as SERVING_KINDS

__all__ = ["compose"]


async def compose(frame: Frame) -> Callable[[], str]:
    """One of several gateways; its reports bear its pod's name."""
    settings = frame.settings
    store = await frame.store((*BUILTIN_KINDS, *SERVING_KINDS))
    peers = Peers(store, settings.release, routes=False, metrics=frame.metrics)
    client = Client(limits=CLIENT_LIMITS, places=peers.places)
    frame.stack.push_async_callback(client.close)
    await frame.stack.enter_async_context(running(peers=peers.run()))
    node = GatewayNode(
        store=store,
        client=client,
        control_address=(settings.release.host(settings.release.control), settings.control_port),
        broker_address=None,
        me=Identity(id=settings.pod, namespace=settings.release.namespace),
        metrics=frame.metrics,
        rng=random.Random(),  # noqa: S311 - traffic splitting, not a secret
    )
    await frame.stack.enter_async_context(running(node=node.failed()))
    await node.start()
    server = await frame.serve(node.handler, settings.port)

    async def drain() -> None:
        # Together: the server waits for its requests, and the node answers those that are held and cannot be served.
        drain_s = frame.ending.drain_s
        await asyncio.gather(node.drain(drain_s), server.drain(drain_s + ANSWER_S))

    frame.stack.push_async_callback(drain)
    return node.problem
