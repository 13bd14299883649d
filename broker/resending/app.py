"""The management side of what could not be delivered and of replays: ``/penstock/v1/dead-letters`` and ``replays``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request, Response

from broker.ledger import UNDELIVERED
from broker.log.query import LogQuery
from broker.resending.forward import Forward
from broker.resending.letters import REASONS, LetterDetail, LetterList, Wanted, detail_of
from broker.resending.resender import Ask, Look, Redrive, Replay, Resender, Settle, SettledList
from broker.table import GIVERS, TAKERS, TableBuilder
from core.control.reconcile import View
from core.errors import InvalidInput, NotFound, PenstockError
from core.resources import Key, KindRef, Resource

__all__ = ["create_router"]

T = TypeVar("T")

#: Letters in one answer.
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
#: Of a cursor: a log's name and a number.
MAX_CURSOR: Final = 100
#: Of a request's body: an event that a person edited, in JSON, where each byte of its data may be several.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024

#: Of a position, so that it is a number that a log can have.
MAX_DIGITS: Final = 18

#: Of another plane, so by its name.
REVISION: Final = KindRef("serving.knative.dev", "v1", "Revision")

_PLACE: Final = "/dead-letters/{letter:path}"


class _Problem(msgspec.Struct, frozen=True):
    message: str


class _Dropped(msgspec.Struct, frozen=True):
    id: str


def create_router(*, readers: Mapping[str, LogQuery], view: View, forward: Forward) -> APIRouter:
    """Routes over the logs that `readers` read, by class of Broker. `view` knows Brokers,
    channels, Triggers, Subscriptions and Revisions."""
    router = APIRouter(prefix="/penstock/v1")
    builder = TableBuilder()

    def listed(kinds: Iterable[KindRef]) -> list[Resource]:
        return [resource for kind in kinds for resource in view.list(kind)]

    resender = Resender(
        readers=readers,
        forward=forward,
        table=lambda: builder.build(listed(GIVERS), listed(TAKERS)),
        has_revision=lambda namespace, name: view.get(Key(REVISION, namespace, name)) is not None,
    )
    _add_letters(router, resender)
    _add_settling(router, resender)
    _add_replays(router, resender)
    return router


def _add_letters(router: APIRouter, resender: Resender) -> None:
    letters = resender.letters

    @router.get("/dead-letters")
    async def listed(
        namespace: str | None = None,
        trigger: str | None = None,
        reason: Annotated[list[str] | None, Query()] = None,
        since: float = 0.0,
        event: str | None = None,
        after: Annotated[str | None, Query(max_length=MAX_CURSOR)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Response:
        """What could not be delivered, oldest first."""

        async def answer() -> LetterList:
            reasons = frozenset(reason or UNDELIVERED)
            if not reasons <= set(REASONS):
                raise InvalidInput(f"reason must be of {', '.join(REASONS)} (got {', '.join(sorted(reasons))}).")
            wanted = Wanted(namespace=namespace, trigger=trigger, reasons=reasons, since=since, event_id=event)
            return await asyncio.to_thread(letters.list, wanted, limit, after)

        return await _answer(answer())

    @router.get(_PLACE)
    async def shown(letter: str) -> Response:
        """One letter with its event and each attempt."""

        async def answer() -> LetterDetail:
            return detail_of(await asyncio.to_thread(letters.find, *_letter(letter)))

        return await _answer(answer())


def _add_settling(router: APIRouter, resender: Resender) -> None:
    @router.post("/dead-letters/redrive")
    async def all_redriven(request: Request) -> Response:
        """Send many letters again."""
        body = await _body(request)

        async def answer() -> SettledList:
            ask = _read(body, Settle)
            names = [_letter(letter) for letter in ask.letters]
            done = await resender.redrive_all(names, Redrive(replay=ask.replay, revision=ask.revision))
            return SettledList(tuple(done))

        return await _answer(answer())

    @router.post("/dead-letters/drop")
    async def all_dropped(request: Request) -> Response:
        """Drop many letters."""
        body = await _body(request)

        async def answer() -> SettledList:
            names = [_letter(letter) for letter in _read(body, Settle).letters]
            return SettledList(tuple(await resender.drop_all(names)))

        return await _answer(answer())

    @router.post(_PLACE + "/redrive")
    async def redriven(letter: str, request: Request) -> Response:
        """Send a letter again."""
        body = await _body(request)

        async def answer() -> object:
            return await resender.redrive(*_letter(letter), _read(body, Redrive))

        return await _answer(answer())

    @router.delete(_PLACE)
    async def dropped(letter: str) -> Response:
        """List a letter no more, and keep its event no longer than others."""

        async def answer() -> _Dropped:
            await resender.drop(*_letter(letter))
            return _Dropped(letter)

        return await _answer(answer())


def _add_replays(router: APIRouter, resender: Resender) -> None:
    @router.post("/replays/selection")
    async def selected(request: Request) -> Response:
        """Which events a replay is for."""
        body = await _body(request)

        async def answer() -> object:
            return await resender.select(_read(body, Ask))

        return await _answer(answer())

    @router.post("/replays/states")
    async def stands(request: Request) -> Response:
        """How events stand for a Trigger."""
        body = await _body(request)

        async def answer() -> object:
            return await resender.look(_read(body, Look))

        return await _answer(answer())

    @router.post("/replays")
    async def replayed(request: Request) -> Response:
        """Send events again."""
        body = await _body(request)

        async def answer() -> object:
            return await resender.replay(_read(body, Replay))

        return await _answer(answer())


def _letter(text: str) -> tuple[str, int]:
    """A letter's Trigger (``namespace/name``) and position. Raises NotFound."""
    trigger, _, position = text.rpartition("/")
    if not trigger or not position.isdecimal() or len(position) > MAX_DIGITS:
        raise NotFound(f"{text[:200]!r} is no dead letter; they are named <namespace>/<trigger>/<position>.")
    return trigger, int(position)


async def _body(request: Request) -> bytes:
    """The body; one that is too large is cut, and refused as unreadable."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            break
        parts.append(part)
    return b"".join(parts)


def _read(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The request cannot be read: {error}.") from error


async def _answer(work: Awaitable[object]) -> Response:
    try:
        found = await work
    except InvalidInput as error:
        return _json(400, _Problem(str(error)))
    except NotFound as error:
        return _json(404, _Problem(str(error)))
    except PenstockError as error:
        return _json(503, _Problem(str(error)))
    except RecursionError:
        return _json(400, _Problem("The request cannot be read: it is nested too deeply."))
    return _json(200, found)


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
