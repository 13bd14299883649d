"""The management side of the broker plane: lists events and explains them. Reads the log's file beside its writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import APIRouter, Query, Response

from broker.explain import EventView, Explanation, describe, explain
from broker.log.query import LogReader, Slice
from broker.resources import BROKER, TRIGGER
from broker.table import TableBuilder, TriggerSpec
from core.control.reconcile import View
from core.errors import Unavailable

__all__ = ["create_router"]

T = TypeVar("T")

#: Events in one answer.
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000


class EventList(msgspec.Struct, frozen=True):
    """The answer of ``GET /penstock/v1/events``: ask on with ``after=<next>``."""

    events: tuple[EventView, ...]
    next: int


class ExplanationList(msgspec.Struct, frozen=True):
    """The answer of ``GET /penstock/v1/events/{id}/explain``."""

    events: tuple[Explanation, ...]


class _Problem(msgspec.Struct, frozen=True):
    message: str


def create_router(*, log_path: Path, view: View) -> APIRouter:
    """Routes over the log at `log_path`, which may not exist yet. `view` knows the Brokers and Triggers."""
    router = APIRouter(prefix="/penstock/v1")
    reader = LogReader(log_path)
    builder = TableBuilder()

    @router.get("/events")
    async def events(
        after: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        namespace: str | None = None,
        broker: str | None = None,
        type: str | None = None,  # noqa: A002 - the attribute's name
    ) -> Response:
        """Stored events in order: those after a position, or the newest."""

        def read() -> EventList:
            found: Slice
            if after is None:
                found = reader.newest(limit, namespace=namespace, broker=broker, type=type)
            else:
                found = reader.after(after, limit, namespace=namespace, broker=broker, type=type)
            deliveries = reader.deliveries([event.seq for event in found.events])
            told = tuple(describe(event, deliveries.get(event.seq, ())) for event in found.events)
            return EventList(told, found.next)

        return await _answer(read)

    @router.get("/events/{event_id:path}/explain")
    async def explained(event_id: str) -> Response:
        """What became of the events of this id, Trigger by Trigger."""
        table = builder.build(view.list(BROKER), view.list(TRIGGER))
        triggers: list[TriggerSpec] = list(table.triggers.values())

        def read() -> ExplanationList | None:
            found = explain(reader, event_id, triggers)
            return ExplanationList(found) if found else None

        return await _answer(read, missing=f"No stored event has the id {event_id!r}.")

    return router


async def _answer(read: Callable[[], T | None], missing: str = "") -> Response:
    """Read on a thread, because the file may have to come from the disk."""
    try:
        found = await asyncio.to_thread(read)
    except Unavailable as error:
        return _json(503, _Problem(str(error)))
    return _json(404, _Problem(missing)) if found is None else _json(200, found)


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
