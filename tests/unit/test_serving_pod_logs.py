"""Containers' logs over HTTP: lines however they are cut, and what a refusal means."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from core.errors import NotFound, PenstockError, Unavailable
from serving.instances.kubernetes.client import MAX_LINE_BYTES, ClusterPodLogs

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATH = "/api/v1/namespaces/shop/pods/hello-1/log"


@asynccontextmanager
async def logs_of(handler: Handler) -> AsyncIterator[ClusterPodLogs]:
    """An API server that answers by `handler`, and the logs that it gives."""
    app = web.Application()
    app.router.add_get(PATH, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        yield ClusterPodLogs(client)
    finally:
        await client.close()
        await runner.cleanup()


def sent(*pieces: bytes) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return answer


async def lines(logs: ClusterPodLogs, *, tail: int | None = None, since: str | None = None, follow: bool = False):
    reading = logs.read("shop", "hello-1", "user-container", tail=tail, since=since, follow=follow)
    return [line async for line in reading]


async def test_lines_come_out_with_their_times_however_they_were_cut():
    async with logs_of(
        sent(b"2026-01-01T00:00:00.1Z on", b"e\n2026-01-01T00:00:00.2Z two  words\n2026", b"-x z")
    ) as logs:
        assert await lines(logs) == [
            ("2026-01-01T00:00:00.1Z", "one"),
            ("2026-01-01T00:00:00.2Z", "two  words"),
            ("2026-x", "z"),
        ]


async def test_a_line_without_end_is_told_as_far_as_it_goes_and_the_next_is_whole():
    long = b"t " + b"x" * (MAX_LINE_BYTES + 10)
    async with logs_of(sent(long, b"y" * MAX_LINE_BYTES, b"y\nt next\n")) as logs:
        (first, second) = await lines(logs)
        assert first[0] == "t"
        assert first[1] == "x" * (MAX_LINE_BYTES - 2)
        assert second == ("t", "next")


async def test_what_is_asked_for_is_asked_of_the_kubelet():
    asked = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.update(request.query)
        return web.Response()

    async with logs_of(answer) as logs:
        assert await lines(logs, tail=3, since="2026-01-01T00:00:00Z", follow=True) == []
    assert asked == {
        "container": "user-container",
        "timestamps": "true",
        "follow": "true",
        "tailLines": "3",
        "sinceTime": "2026-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (400, NotFound), (403, Unavailable), (500, Unavailable), (502, Unavailable)],
)
async def test_a_refusal_says_whether_there_is_a_log(status: int, error: type[PenstockError]):
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="container is waiting to start")

    async with logs_of(answer) as logs:
        with pytest.raises(error, match="waiting to start"):
            await lines(logs)


async def test_a_connection_that_breaks_off_is_an_api_that_is_away():
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"t one\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with logs_of(answer) as logs:
        reading = logs.read("shop", "hello-1", "c", tail=None, since=None, follow=True)
        assert await anext(reading) == ("t", "one")
        with pytest.raises(Unavailable, match="shop/hello-1"):
            await anext(reading)
