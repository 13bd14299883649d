"""The serving half's part of the API port: demand reports, instances' logs, and why a Service has the scale it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
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
        names = autoscaler.revisions(namespace, service)
        if revision is not None:
            names = [name for name in names if name == revision]
        if not names:
            wanted = f' "{revision}"' if revision else ""
            raise HTTPException(404, f'There is no Revision{wanted} of the Service "{namespace}/{service}".')
        streams = [instances.log(namespace, name, tail=tail, follow=follow) for name in names[-MAX_LOG_REVISIONS:]]
        return StreamingResponse(_text(streams, follow=follow), media_type="text/plain; charset=utf-8")

    @router.get("/scaling/{namespace}/{service}", summary="The last scaling decisions, with what led to them")
    async def scaling(namespace: str, service: str) -> Response:
        decisions = autoscaler.decisions(namespace, service)
        return Response(msgspec.json.encode({"decisions": decisions}), media_type="application/json")

    return router


async def _text(streams: Sequence[AsyncGenerator[LogLine]], *, follow: bool) -> AsyncGenerator[str]:
    """The lines with their instance before each; followed streams are told as they come."""
    if follow:
        async with aclosing(_merged(streams)) as lines:
            async for line in lines:
                yield f"{line.instance} {line.text}\n"
        return
    for stream in streams:
        async for line in stream:
            yield f"{line.instance} {line.text}\n"


async def _merged(streams: Sequence[AsyncGenerator[LogLine]]) -> AsyncGenerator[LogLine]:
    waiting: asyncio.Queue[LogLine] = asyncio.Queue(MAX_WAITING_LINES)

    async def read(stream: AsyncGenerator[LogLine]) -> None:
        async for line in stream:
            await waiting.put(line)

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    try:
        while True:
            yield await waiting.get()
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
