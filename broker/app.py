"""The management side of the broker plane: lists events and explains them. Reads the logs beside their writers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request, Response

from broker.conditions import condition_of
from broker.explain import Explanation
from broker.flow.settings import PAUSED
from broker.listing import Away, EventList, Library
from broker.log.query import LogQuery
from broker.messaging import SUBSCRIPTION
from broker.planning import Ask, Plan, Planner
from broker.resources import TRIGGER
from broker.sieve import Question, Sieve, read_filters, read_states
from broker.table import GIVERS, TAKERS, Table, TableBuilder
from core.control.reconcile import View
from core.errors import InvalidInput, Unavailable
from core.resources import KindRef, Resource

__all__ = ["create_router"]

T = TypeVar("T")

#: The condition that tells whether there is somebody to deliver to.
_RESOLVED: Final = {TRIGGER: "SubscriberResolved", SUBSCRIPTION: "ReferencesResolved"}

#: What a pending event waits for where that is a person.
_PAUSED: Final = {
    TRIGGER: "it is paused; `penstock trigger resume {0.name} -n {0.namespace}` lets it go on",
    SUBSCRIPTION: "it is paused by its annotation " + PAUSED,
}

#: Events in one answer.
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
#: Of a cursor: a platform has a handful of logs, with a name and a number each.
MAX_CURSOR: Final = 500
#: Of the Triggers of a plan.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
#: Of filters in a query, in characters: a request line has its limit too.
MAX_FILTERS: Final = 8000


class ExplanationList(msgspec.Struct, frozen=True):
    """The answer of ``GET /penstock/v1/events/{id}/explain``."""

    events: tuple[Explanation, ...]
    away: tuple[Away, ...] = ()


class PlanList(msgspec.Struct, frozen=True):
    """The answer of ``POST /penstock/v1/plan``."""

    plans: tuple[Plan, ...]


class _Problem(msgspec.Struct, frozen=True):
    message: str


def create_router(*, readers: Mapping[str, LogQuery], view: View) -> APIRouter:
    """Routes over the logs that `readers` read, by class of Broker. `view` knows the Brokers, channels, Triggers and
    Subscriptions."""
    router = APIRouter(prefix="/penstock/v1")
    builder, library, planner = TableBuilder(), Library(readers), Planner(readers)

    def listed(kinds: Iterable[KindRef]) -> list[Resource]:
        return [resource for kind in kinds for resource in view.list(kind)]

    def table() -> Table:
        return builder.build(listed(GIVERS), listed(TAKERS))

    @router.get("/events")
    async def events(  # noqa: PLR0913, PLR0917 - what is asked, each by its name
        after: Annotated[str | None, Query(max_length=MAX_CURSOR)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        namespace: str | None = None,
        broker: str | None = None,
        type: str | None = None,  # noqa: A002 - the attribute's name
        id: str | None = None,  # noqa: A002 - the attribute's name
        filters: Annotated[str, Query(max_length=MAX_FILTERS)] = "[]",
        since: float | None = None,
        trigger: str | None = None,
        state: Annotated[list[str] | None, Query()] = None,
        waiting: bool = False,
    ) -> Response:
        """Stored events in order: those after a cursor, or the newest."""

        def read() -> EventList:
            sieve = Sieve(
                Question(
                    namespace=namespace,
                    broker=broker,
                    filter=read_filters(filters, type),
                    id=id,
                    since=since,
                    trigger=trigger,
                    states=read_states(state or ()),
                    waiting=waiting,
                )
            )
            return library.newest(limit, sieve, known) if after is None else library.after(after, limit, sieve, known)

        known = table()
        return await _answer(read)

    @router.get("/events/{event_id:path}/explain")
    async def explained(event_id: str) -> Response:
        """What became of the events of this id, Trigger by Trigger."""
        known, obstacles = table(), _obstacles(listed(TAKERS))

        def read() -> ExplanationList | None:
            found, away = library.explain(event_id, known, obstacles)
            return ExplanationList(found, away) if found else None

        return await _answer(read, missing=f"No stored event has the id {event_id!r}.")

    @router.post("/plan")
    async def planned(request: Request) -> Response:
        """Which of the events that came some changed Triggers would gain or lose."""
        body, known = await _body(request), table()

        def read() -> PlanList:
            try:
                ask = msgspec.json.decode(body, type=Ask)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidInput(f"The request cannot be read: {error}.") from error
            return PlanList(planner.plan(ask, known))

        return await _answer(read)

    return router


async def _body(request: Request) -> bytes:
    """The body; one that is too large is cut, and refused as unreadable."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            break
    return b"".join(parts)[:MAX_BODY_BYTES]


def _obstacles(triggers: Iterable[Resource]) -> dict[str, str]:
    """Why nothing is delivered for Triggers and Subscriptions now, by uid: they are paused, or have no subscriber to
    deliver to."""
    found = {}
    for trigger in triggers:
        if trigger.meta.annotations.get(PAUSED) == "true":
            found[trigger.meta.uid] = _PAUSED[trigger.ref].format(trigger.meta)
            continue
        state = condition_of(trigger, _RESOLVED[trigger.ref])
        resolved = trigger.status.get("physicalSubscription") or trigger.status
        if not resolved.get("subscriberUri") or state.get("status") == "False":
            told = state.get("message")
            found[trigger.meta.uid] = told or "Its subscriber has no address yet."
    return found


async def _answer(read: Callable[[], T | None], missing: str = "") -> Response:
    """Read on a thread, because the file may have to come from the disk."""
    try:
        found = await asyncio.to_thread(read)
    except InvalidInput as error:
        return _json(400, _Problem(str(error)))
    except Unavailable as error:
        return _json(503, _Problem(str(error)))
    except RecursionError:
        return _json(400, _Problem("The request cannot be read: it is nested too deeply."))
    return _json(404, _Problem(missing)) if found is None else _json(200, found)


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
