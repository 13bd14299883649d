"""The management side of the broker plane: lists events and explains them. Reads the log beside its writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import APIRouter, Query, Response

from broker.explain import EventView, Explanation, explain, listed
from broker.log.query import LogQuery, Slice
from broker.resources import BROKER, TRIGGER
from broker.table import TableBuilder, TriggerSpec
from core.control.reconcile import View
from core.errors import Unavailable
from core.resources import Resource

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


def create_router(*, reader: LogQuery, view: View) -> APIRouter:
    """Routes over the log that `reader` reads. `view` knows the Brokers and Triggers."""
    router = APIRouter(prefix="/penstock/v1")
    builder = TableBuilder()

    def known_triggers() -> list[TriggerSpec]:
        return list(builder.build(view.list(BROKER), view.list(TRIGGER)).triggers.values())

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
            return EventList(listed(reader, found.events, triggers), found.next)

        triggers = known_triggers()
        return await _answer(read)

    @router.get("/events/{event_id:path}/explain")
    async def explained(event_id: str) -> Response:
        """What became of the events of this id, Trigger by Trigger."""
        triggers, obstacles = known_triggers(), _obstacles(view.list(TRIGGER))

        def read() -> ExplanationList | None:
            found = explain(reader, event_id, triggers, obstacles)
            return ExplanationList(found) if found else None

        return await _answer(read, missing=f"No stored event has the id {event_id!r}.")

    return router


def _obstacles(triggers: Iterable[Resource]) -> dict[str, str]:
    """Why Triggers have no subscriber to deliver to, by uid."""
    found = {}
    for trigger in triggers:
        if not trigger.status.get("subscriberUri"):
            conditions = trigger.status.get("conditions") or ()
            told = next(
                (entry.get("message") for entry in conditions if entry.get("type") == "SubscriberResolved"), None
            )
            found[trigger.meta.uid] = told or "Its subscriber has no address yet."
    return found


async def _answer(read: Callable[[], T | None], missing: str = "") -> Response:
    """Read on a thread, because the file may have to come from the disk."""
    try:
        found = await asyncio.to_thread(read)
    except Unavailable as error:
        return _json(503, _Problem(str(error)))
    return _json(404, _Problem(missing)) if found is None else _json(200, found)


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
