"""The gateway process' own piece: follows the store, keeps the gateway's table current, reports demand, drains.

When the API is away the last table stays in use; the gateway never answers an error because of that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Final, Protocol

from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.limits import MAX_CONNECTIONS
from core.net.client import ClientLimits
from core.net.pages import HEALTH, Pages
from core.net.types import Address, Handler
from core.telemetry import Metrics
from serving.demand import DemandReporter, Fetch
from serving.gateway import Gateway
from serving.gateways import Identity
from serving.lane import Send
from serving.resources import ENDPOINT_SLICE, REVISION, ROUTE
from serving.routing import Snapshot, routed_alike

__all__ = ["CLIENT_LIMITS", "FOLLOWED", "GatewayNode"]

_log = logging.getLogger(__name__)

#: The kinds that a gateway reads.
FOLLOWED: Final = (ROUTE, REVISION, ENDPOINT_SLICE)

#: For the gateway's Client: how many requests an instance gets is the throttler's decision, and each comes from a
#: connection of its own to the gateway, so that is the bound of connections to instances as well.
CLIENT_LIMITS: Final = ClientLimits(
    max_connections_per_address=MAX_CONNECTIONS, max_waiting_per_address=MAX_CONNECTIONS
)


class _Client(Protocol):
    """What the node needs of core.net's Client."""

    @property
    def send(self) -> Send: ...

    @property
    def fetch(self) -> Fetch: ...


class GatewayNode:
    """One gateway. The roof gives `handler` and `admin_handler` a server each, and ends with `drain`.

    `broker_address` is where hosts ``broker-ingress.*`` lead (None: nowhere), `control_address` the API port, which
    takes demand reports. `me` tells this gateway from others.
    """

    def __init__(
        self,
        *,
        store: ResourceStore,
        client: _Client,
        control_address: Address,
        broker_address: Address | None,
        me: Identity,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._pages = Pages(metrics=metrics, checks={HEALTH: self.problem})
        self._me = me
        self._reporter = DemandReporter(
            gateway_id=me.id, address=control_address, fetch=client.fetch, monotonic=time.monotonic
        )
        self._gateway = Gateway(
            send=client.send,
            reporter=self._reporter,
            metrics=metrics,
            rng=rng,
            monotonic=time.monotonic,
            broker=broker_address,
        )
        self._follower = Follower(store, FOLLOWED, self._changed, rng=rng, metrics=metrics)
        self._following: asyncio.Task[None] | None = None
        self._broken = asyncio.Event()
        self._draining = False
        self._snapshot: Snapshot | None = None

    @property
    def handler(self) -> Handler:
        """Serves requests by Host."""
        return self._gateway.handle

    @property
    def synced(self) -> bool:
        """The first table is there."""
        return self._gateway.synced

    @property
    def hosts(self) -> frozenset[bytes]:
        """The hosts that lead somewhere now: lower-case, without port."""
        return self._gateway.hosts

    @property
    def admin_handler(self) -> Handler:
        """Serves ``/healthz`` (200 once requests can be routed) and ``/metrics``."""
        return self._pages.handle

    async def start(self) -> None:
        """Begin to follow the store. Returns at once: an API that is away now is waited for."""
        self._following = asyncio.create_task(self._follower.run(), name="gateway: follow the store")
        self._following.add_done_callback(self._followed)

    async def failed(self) -> None:
        """Return once following the store has ended by itself, which is a fault. Its owner then ends the process: the
        table stays what it was, and a new process follows again."""
        await self._broken.wait()

    async def drain(self, timeout_s: float) -> None:
        """Finish the requests under way for up to `timeout_s` seconds, then end. The servers stop accepting before."""
        self._draining = True
        await self._gateway.drain(timeout_s)
        self._reporter.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            self._following = None

    def _changed(self, batch: Sequence[Observed]) -> None:
        follower, known = self._follower, self._snapshot
        slices = [observed for observed in batch if observed.key.kind == ENDPOINT_SLICE]
        others = [observed for observed in batch if observed.key.kind != ENDPOINT_SLICE]
        if known is None or not all(routed_alike(observed.before, observed.after) for observed in others):
            snapshot = Snapshot.build(
                routes=follower.list(ROUTE),
                revisions=follower.list(REVISION),
                slices=follower.list(ENDPOINT_SLICE),
                me=self._me,
            )
        elif slices:
            snapshot = known.with_slices(follower.list(ENDPOINT_SLICE))
        else:
            return
        for problem in snapshot.problems:
            if known is None or problem not in known.problems:
                _log.error("A resource cannot be routed by", extra={"facts": {"problem": problem}})
        self._snapshot = snapshot
        self._gateway.swap(snapshot)

    def problem(self) -> str:
        """Why this gateway should get no new clients, "" where it should."""
        if self._draining:
            return "stopping"
        if self._following is None or self._following.done():
            return "not following the API"
        return "" if self._gateway.synced else "waiting for the first listing from the API"

    def _followed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.critical("Following the store ended", exc_info=task.exception())
            self._broken.set()
