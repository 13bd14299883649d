"""The frame around each role's process in a pod: its admin listener, its view of the cluster, and how it leaves.

A pod that is to end is first taken out of every Service, and whoever sends to it hears of that a little later. So the
process goes on serving for a moment after SIGTERM, not ready any more, before it drains: no request is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

from core.control.backoff import Backoff
from core.control.kubernetes.connection import ApiClient, connected, find_cluster
from core.control.kubernetes.store import KubernetesStore
from core.errors import Unavailable
from core.net.server import HttpServer
from core.net.types import Handler
from core.resources import Kind
from core.telemetry import Metrics
from penstock.cluster.health import Health
from penstock.cluster.settings import Settings
from penstock.process import Ending, run

__all__ = ["Composition", "Frame", "run_role"]

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

#: Connections that wait while the event loop is busy; the kernel caps it at net.core.somaxconn (4,096 by default).
BACKLOG: Final = 4_096

#: How long what is missing at the start is waited for between two tries.
WAIT_BACKOFF: Final = Backoff(first_s=0.2, cap_s=5.0)


class Frame:
    """What a role's composition is built into: everything pushed on `stack` is closed in the reverse order."""

    def __init__(self, settings: Settings, ending: Ending, stack: AsyncExitStack) -> None:
        self.settings = settings
        self.ending = ending
        self.stack = stack
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self._api: ApiClient | None = None
        self._servers: list[HttpServer] = []
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret

    async def store(self, kinds: Iterable[Kind]) -> KubernetesStore:
        """The cluster's API server, for these kinds. Raises InvalidInput where the configuration cannot be read."""
        return KubernetesStore(await self.api(), kinds)

    async def api(self) -> ApiClient:
        """The one client of the cluster that everything of this process shares. Raises InvalidInput."""
        if self._api is None:
            cluster = find_cluster(self.settings.kubeconfig or None, "", os.environ)
            self._api = client = await self.stack.enter_async_context(connected(cluster))
            return client
        return self._api

    async def once(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt` once it does not raise Unavailable. What this pod needs may start after it; until
        then it is not ready, and says what it waits for."""
        failures = 0
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                failures += 1
                reason = str(error)
                self.health.problem = reason.__str__
                delay_s = WAIT_BACKOFF.delay_s(failures, self._rng)
                facts = {"what": what, "error": reason, "again_in_s": round(delay_s, 3)}
                log.warning("waiting for something that is not there yet", extra={"facts": facts})
            await asyncio.sleep(delay_s)

    def listen(self, port: int) -> socket.socket:
        """A socket that listens on `port` of this pod. Raises OSError where it is taken."""
        sock = socket.create_server((self.settings.host, port), backlog=BACKLOG)
        sock.setblocking(False)
        return sock

    async def serve(self, handler: Handler, port: int) -> HttpServer:
        """Serve `handler` until the end; whoever asked for it drains it."""
        server = HttpServer(handler)
        await server.start(self.listen(port))
        self._servers.append(server)
        return server

    async def give_notice(self) -> None:
        """Serve on, and let whoever sends to this pod hear that it leaves."""
        self.health.stop()
        for server in self._servers:
            server.leave()
        await asyncio.sleep(min(self.settings.notice_s, self.ending.drain_s))


#: Builds a role into the frame; returns what `Health.problem` is to be.
Composition = Callable[[Frame], Awaitable[Callable[[], str]]]


def run_role(compose: Composition, settings: Settings) -> None:
    """Run a role's process until it is asked to end."""
    run(
        lambda ending: _framed(compose, settings, ending),
        name=settings.role,
        drain_s=settings.drain_s,
        log_level=settings.log_level,
    )


@asynccontextmanager
async def _framed(compose: Composition, settings: Settings, ending: Ending) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        frame = Frame(settings, ending, stack)
        admin = await frame.serve(frame.health.handler, settings.admin_port)
        stack.push_async_callback(admin.drain, 0)
        frame.health.problem = await compose(frame)
        stack.push_async_callback(frame.give_notice)
        yield
