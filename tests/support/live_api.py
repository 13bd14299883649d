"""The API server on a real socket, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from core.clock import SystemClock
from core.control.sqlite import SqliteStore
from core.telemetry import Metrics
from penstock.apiserver.app import create_app
from tests.support.apiserver import REGISTRY

START_TIMEOUT_S = 20.0


@contextmanager
def live_api(data: Path) -> Iterator[str]:
    """The base URL of an API server that keeps its state in `data`; it is stopped when the block is left."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server: list[_Server] = []
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(listener, data, server, started)), name="live-api")
    thread.start()
    try:
        assert started.wait(START_TIMEOUT_S), "the API server did not start"
        yield address
    finally:
        for one in server:
            one.should_exit = True
        thread.join(START_TIMEOUT_S)
        listener.close()
    assert not thread.is_alive(), "the API server did not stop: a watch or a connection is held"


class _Server(uvicorn.Server):
    """Says when it is ready, and ends its watches when it is told to stop."""

    def __init__(self, config: uvicorn.Config, started: threading.Event) -> None:
        super().__init__(config)
        self._ready = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.watches.close()
        await super().shutdown(sockets)


async def _serve(listener: socket.socket, data: Path, server: list[_Server], started: threading.Event) -> None:
    clock = SystemClock()
    store = SqliteStore(data / "store.db", clock=clock)
    try:
        app = create_app(store=store, registry=REGISTRY, clock=clock, metrics=Metrics())
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)
        server.append(_Server(config, started))
        await server[0].serve(sockets=[listener])
    finally:
        store.close()
