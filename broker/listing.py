"""Puts together what several logs hold, for people: their events in one list, with one place to ask on from.

Each log has positions of its own. A cursor is how far a reader is in all of them: the position alone where there is one
log, else the logs' names with a position each (``Penstock:12,Redis:7``). A cursor that is a plain number means that
position in each log, so that 0 is the beginning, whatever there is. Where a log was away, its position is ``?``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from broker.explain import EventView, Explanation, explain, listed
from broker.log.query import Found, LogQuery, Slice
from broker.sieve import Sieve
from broker.table import Table, TriggerSpec
from core.errors import InvalidInput, Unavailable

__all__ = ["Away", "Cursor", "EventList", "Library", "merged"]

T = TypeVar("T")

#: How far a reader is, by log; None where the log was away when the reader began, so that its newest events come next.
Cursor = dict[str, int | None]

_NUMBER: Final = re.compile(r"[0-9]{1,18}\Z")
_UNKNOWN: Final = "?"


class Away(msgspec.Struct, frozen=True):
    """A log that could not be read, so that an answer is without what is in it."""

    log: str
    message: str


class EventList(msgspec.Struct, frozen=True):
    """The answer of ``GET /penstock/v1/events``: ask on with ``after=<next>``; `start` is what these come after. `cut`
    tells that older events were not looked at, because an answer looks at a bounded number."""

    events: tuple[EventView, ...]
    next: str
    start: str
    away: tuple[Away, ...] = ()
    cut: bool = False


class _Part(msgspec.Struct, frozen=True):
    """What one log answers: events with how they stand, and how far it was read."""

    events: Sequence[Found]
    views: Mapping[int, EventView]
    through: int


class Library:
    """The readers of a platform's logs, by class of Broker; one may stand under several. A log that is away leaves a
    gap in an answer, which says so; only where all are away is there none."""

    def __init__(self, readers: Mapping[str, LogQuery]) -> None:
        self._classes: dict[LogQuery, list[str]] = {}
        for name, reader in readers.items():
            self._classes.setdefault(reader, []).append(name)
        #: By the first of its classes, which is the log's name in a cursor.
        self._readers = {names[0]: reader for reader, names in self._classes.items()}

    def newest(self, limit: int, sieve: Sieve, table: Table) -> EventList:
        """The last `limit` events of all logs that pass. Raises Unavailable where no log can be read."""
        parts, away = self._each(lambda name, reader: self._newest(reader, limit, sieve, table))
        through = {name: parts[name].through if name in parts else None for name in self._readers}
        last = merged({name: part.events for name, part in parts.items()})[-limit:]
        # What is left out is older than what is told: a reader that asks on has no use for it.
        start = dict(through)
        for name, event in reversed(last):
            start[name] = event.seq - 1
        told = self._told(last, parts, start, sieve)
        return EventList(told, self._text(through), self._text(start), away, sieve.cut)

    def after(self, text: str, limit: int, sieve: Sieve, table: Table) -> EventList:
        """The first `limit` events after a cursor, of which some may not pass in the end. Raises Unavailable where no
        log can be read, or InvalidInput where the cursor is none."""
        start = self._parse(text)

        def ask(name: str, reader: LogQuery) -> _Part:
            seq = start[name]
            if seq is None:  # it was away when the reader began
                return self._newest(reader, limit, sieve, table)
            found = sieve.after(reader, seq, limit)
            return self._part(reader, found, table)

        parts, away = self._each(ask)
        everything = merged({name: part.events for name, part in parts.items()})
        first = everything[:limit]
        end: Cursor = {name: parts[name].through if name in parts else start[name] for name in self._readers}
        for name in {name for name, _ in everything[limit:]}:  # what is not told now is asked for again
            end[name] = max((event.seq for of, event in first if of == name), default=start[name])
        return EventList(self._told(first, parts, start, sieve), self._text(end), self._text(start), away)

    def explain(
        self, event_id: str, table: Table, obstacles: Mapping[str, str]
    ) -> tuple[tuple[Explanation, ...], tuple[Away, ...]]:
        """Every stored event of that id in any log, as `broker.explain.explain` tells it, and the logs in which there
        may be more. Raises Unavailable where none was found and a log is away."""
        parts, away = self._each(
            lambda name, reader: explain(reader, event_id, self._triggers(reader, table), obstacles)
        )
        found = tuple(each for part in parts.values() for each in part)
        if not found and away:
            raise Unavailable(f"No log that can be read has an event with the id {event_id!r}. {_gaps(away)}")
        return found, away

    # ---- inside

    def _each(self, ask: Callable[[str, LogQuery], T]) -> tuple[dict[str, T], tuple[Away, ...]]:
        """What each log answers, and which do not."""
        found: dict[str, T] = {}
        away: list[Away] = []
        for name, reader in self._readers.items():
            try:
                found[name] = ask(name, reader)
            except Unavailable as error:
                away.append(Away(name, str(error)))
                last = error
        if away and not found:
            raise Unavailable(str(last) if len(away) == 1 else _gaps(away)) from last
        return found, tuple(away)

    def _newest(self, reader: LogQuery, limit: int, sieve: Sieve, table: Table) -> _Part:
        triggers = self._triggers(reader, table)
        found = sieve.newest(reader, limit, lambda events: listed(reader, events, triggers))
        return self._part(reader, found, table)

    def _part(self, reader: LogQuery, found: Slice, table: Table) -> _Part:
        views = listed(reader, found.events, self._triggers(reader, table)) if found.events else ()
        return _Part(found.events, {view.seq: view for view in views}, found.next)

    def _told(
        self, events: Sequence[tuple[str, Found]], parts: Mapping[str, _Part], start: Cursor, sieve: Sieve
    ) -> tuple[EventView, ...]:
        told = []
        for (name, event), cursor in zip(events, self._cursors(events, start), strict=True):
            view = sieve.judge(parts[name].views[event.seq])
            if view is not None:
                told.append(msgspec.structs.replace(view, next=cursor))
        return tuple(told)

    def _triggers(self, reader: LogQuery, table: Table) -> list[TriggerSpec]:
        """The Triggers that the reader's log may have to do with: not those of a Broker that another log serves."""
        classes = self._classes[reader]
        return [trigger for uid, trigger in table.triggers.items() if table.served(uid, classes) or table.waits(uid)]

    def _cursors(self, events: Iterable[tuple[str, Found]], start: Cursor) -> Iterator[str]:
        """The cursor after each of these events, which follow `start`."""
        reached = dict(start)
        for name, event in events:
            reached[name] = event.seq
            yield self._text(reached)

    def _text(self, cursor: Cursor) -> str:
        if len(cursor) == 1:
            return str(*cursor.values())
        return ",".join(f"{name}:{_UNKNOWN if seq is None else seq}" for name, seq in cursor.items())

    def _parse(self, text: str) -> Cursor:
        if _NUMBER.match(text):
            return dict.fromkeys(self._readers, int(text))
        cursor: Cursor = dict.fromkeys(self._readers, 0)
        for part in text.split(","):
            name, _, number = part.partition(":")
            if number != _UNKNOWN and not _NUMBER.match(number):
                raise InvalidInput(f"after={text!r} is no position: give 0, or the `next` of an earlier answer.")
            if name in cursor:  # a log that is not there any more has nothing to tell
                cursor[name] = None if number == _UNKNOWN else int(number)
        return cursor


def _gaps(away: Sequence[Away]) -> str:
    return " ".join(f"The log {each.log}: {each.message}" for each in away)


def merged(found: Mapping[str, Sequence[Found]]) -> list[tuple[str, Found]]:
    """All events with their log's name, in order of arrival; a log's own order is kept, whatever its clock did."""
    marked: list[tuple[float, int, str, Found]] = []
    for number, (name, events) in enumerate(found.items()):
        latest = 0.0
        for event in events:
            latest = max(latest, event.at)
            marked.append((latest, number, name, event))
    marked.sort(key=lambda each: each[:2])
    return [(name, event) for _, _, name, event in marked]
