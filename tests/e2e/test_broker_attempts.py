"""Retries across kill -9: how often an event was tried, and when it is due again, is known to the next process."""

import asyncio
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from core.net.body import collect
from core.net.client import Client
from core.net.server import HttpServer
from core.net.types import BodySink, Exchange, RequestHead
from tests.e2e.test_broker_crash import DEADLINE_S, Broker, named
from tests.support.broker import binary

pytestmark = pytest.mark.e2e

#: Attempts 1.2 s and 2.4 s apart, and up to 20 % more.
DELIVERY = {"retry": 2, "backoffPolicy": "linear", "backoffDelay": "PT1.2S"}
#: What was tried is kept a second later at most, and on disk soon after.
KEPT_S = 1.2


@pytest.mark.service("redis")
async def test_attempts_go_on_counting_and_keep_their_time_though_the_broker_is_killed(redis_url: str, tmp_path: Path):
    async with asyncio.TaskGroup() as tasks:  # side by side, because they mostly wait
        tasks.create_task(kill_between_attempts(str(tmp_path / "log.db")))
        tasks.create_task(kill_between_attempts(named(redis_url)("first")))


async def kill_between_attempts(log: str) -> None:
    times: asyncio.Queue[float] = asyncio.Queue()
    letters: asyncio.Queue[bytes] = asyncio.Queue()

    def handle(head: RequestHead, exchange: Exchange) -> BodySink:
        def received(_: bytes) -> None:
            if head.target == b"/sink":
                letters.put_nowait(dict(head.headers)[b"ce-knativeerrorcode"])
                exchange.respond(202, [])
            else:
                times.put_nowait(time.monotonic())
                exchange.respond(503, [])

        return collect(exchange, max_bytes=1024, then=received)

    server, client = HttpServer(handle), Client()
    await server.start(bound())
    base = f"http://127.0.0.1:{server.address[1]}"
    delivery = {**DELIVERY, "deadLetterSink": {"uri": f"{base}/sink"}}
    with bound() as reserved:
        port = reserved.getsockname()[1]
    broker = Broker("ingress,dispatch", log, port, [f"{base}/ {json.dumps(delivery)}"])
    await broker.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            headers = [(b"host", b"ingress.test"), *binary("e1")]
            answer = await client.request(
                ("127.0.0.1", port), b"POST", b"/default/default", headers, b"{}", timeout_s=10, max_bytes=1000
            )
            assert answer.status == 202
            await times.get()
            second = await times.get()
            await asyncio.sleep(KEPT_S)
            assert await broker.end(signal.SIGKILL) == -signal.SIGKILL
            await broker.start()
            third = await times.get()
            assert third - second > 2.3, "it was not due before"
            assert await letters.get() == b"503"
        assert times.empty(), "three attempts in all"
        assert await broker.end(signal.SIGTERM) == 0
    finally:
        await client.close()
        await server.drain(1)


def bound() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock
