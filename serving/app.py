"""The serving half's part of the API port: demand reports, instances' logs, and why a Service has the scale it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse

from serving.autoscaler import Autoscaler
from serving.demand import DemandReport
from serving.instances.port import Instances, LogLine

__all__ = ["create_router"]

#: One report of a gateway: some thousand revisions.
MAX_REPORT_BYTES: Final = 1024 * 1024

#: Revisions whose logs are told together; older ones can be asked for by name.
MAX_LOG_REVISIONS: Final = 20

#: Lines that wait for a slow reader, per request. The followers pause when it is full.
MAX_WAITING_LINES: Final = 1000

#: How often followed logs are joined by those of Revisions that were made since.
LOOK_INTERVAL_S: Final = 0.5

_decode_report = msgspec.json.Decoder(DemandReport).decode


def create_router(*, autoscaler: Autoscaler, instances: Instances) -> APIRouter:
    """Routes under ``/penstock/v1``."""
    router = APIRouter(prefix="/penstock/v1", tags=["serving"])

    @router.post("/demand", status_code=204, summary="A gateway tells its demand")
    async def demand(request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_REPORT_BYTES:
            raise HTTPException(413, f"A report may have at most {MAX_REPORT_BYTES} bytes.")
        try:
            report = _decode_report(body)
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"The demand report cannot be read: {error}.") from error
        autoscaler.report(report)
        return Response(status_code=204)

    @router.get("/logs/{namespace}/{service}", summary="What a Service's instances wrote")
    async def logs(
        namespace: str,
        service: str,
        *,
        revision: str | None = None,
        follow: bool = False,
        tail: Annotated[int | None, Query(ge=0)] = None,
    ) -> StreamingResponse:
        def present() -> list[str]:
            names = autoscaler.revisions(namespace, service)
            return [name for name in names if revision in (None, name)][-MAX_LOG_REVISIONS:]

        names = present()
        if not names:
            wanted = f' "{revision}"' if revision else ""
            raise HTTPException(404, f'There is no Revision{wanted} of the Service "{namespace}/{service}".')
        if follow:
            lines = _followed(instances, namespace, present, tail)
        else:
            lines = _told([instances.log(namespace, name, tail=tail, follow=False) for name in names])
        return StreamingResponse(_text(lines), media_type="text/plain; charset=utf-8")

    @router.get("/scaling/{namespace}/{service}", summary="The last scaling decisions, with what led to them")
    async def scaling(namespace: str, service: str) -> Response:
        decisions = autoscaler.decisions(namespace, service)
        return Response(msgspec.json.encode({"decisions": decisions}), media_type="application/json")

    return router


async def _text(lines: AsyncGenerator[LogLine]) -> AsyncGenerator[str]:
    """The lines with their instance before each."""
    async with aclosing(lines):
        async for line in lines:
            yield f"{line.instance} {line.text}\n"


async def _told(streams: Sequence[AsyncGenerator[LogLine]]) -> AsyncGenerator[LogLine]:
    for stream in streams:
        async for line in stream:
            yield line


async def _followed(
    instances: Instances, namespace: str, present: Callable[[], list[str]], tail: int | None
) -> AsyncGenerator[LogLine]:
    """The lines of all revisions as they come, also of those that are made later."""
    waiting: asyncio.Queue[LogLine] = asyncio.Queue(MAX_WAITING_LINES)
    readers: dict[str, asyncio.Task[None]] = {}

    async def read(name: str, last: int | None) -> None:
        async for line in instances.log(namespace, name, tail=last, follow=True):
            await waiting.put(line)

    async def look() -> None:
        last = tail
        while True:
            names = present()
            for name in readers.keys() - set(names):
                await _cancelled(readers.pop(name))
            for name in names:
                if name not in readers:
                    readers[name] = asyncio.create_task(read(name, last))
            last = None  # what is made later is told from its first line
            await asyncio.sleep(LOOK_INTERVAL_S)

    looking = asyncio.create_task(look())
    try:
        while True:
            yield await waiting.get()
    finally:
        await _cancelled(looking, *readers.values())


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
