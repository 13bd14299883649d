"""Serves an app on a socket that is bound already, inside a process that has its own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

__all__ = ["serving"]


@asynccontextmanager
async def serving(app: FastAPI, sock: socket.socket, *, drain_s: float) -> AsyncIterator[None]:
    """The app answers on `sock` until leaving; then watches end and requests under way get `drain_s` seconds."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(drain_s),
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not `serve()`: that would take the signals, which are the process's business.
    await server.startup(sockets=[sock])
    ticking = asyncio.create_task(server.main_loop(), name="api")
    try:
        yield
    finally:
        # Watches, where it has them: they would hold the end up.
        if (watches := getattr(app.state, "watches", None)) is not None:
            watches.close()
        server.should_exit = True
        await ticking
        await server.shutdown(sockets=[sock])
