"""Puts together what several logs hold, for people: their events in one list, with one place to ask on from.

Each log has positions of its own. A cursor is how far a reader is in all of them: the position alone where there is one
log, else the logs' names with a position each (``Penstock:12,Redis:7``). A cursor that is a plain number means that
position in each log, so that 0 is the beginning, whatever there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from broker.explain import EventView, Explanation, explain, listed
from broker.log.query import Found, LogQuery, Slice
from broker.table import Table, TriggerSpec
from core.errors import InvalidInput

__all__ = ["Cursor", "EventList", "Library", "merged"]

#: How far a reader is, by log.
Cursor = dict[str, int]

_NUMBER: Final = re.compile(r"[0-9]{1,18}\Z")
#: What one log answers to a question about its events.
Ask = Callable[[LogQuery, int], Slice]


class EventList(msgspec.Struct, frozen=True):
    """The answer of ``GET /penstock/v1/events``: ask on with ``after=<next>``."""

    events: tuple[EventView, ...]
    next: str


class Library:
    """The readers of a platform's logs, by class of Broker; one may stand under several."""

    def __init__(self, readers: Mapping[str, LogQuery]) -> None:
        self._classes: dict[LogQuery, list[str]] = {}
        for name, reader in readers.items():
            self._classes.setdefault(reader, []).append(name)
        #: By the first of its classes, which is the log's name in a cursor.
        self._readers = {names[0]: reader for reader, names in self._classes.items()}

    def newest(self, limit: int, ask: Callable[[LogQuery], Slice], table: Table) -> EventList:
        """The last `limit` events of all logs, of those that `ask` gives of each. Raises Unavailable."""
        slices = {name: ask(reader) for name, reader in self._readers.items()}
        through = {name: found.next for name, found in slices.items()}
        last = merged({name: found.events for name, found in slices.items()})[-limit:]
        # What is left out is older than what is told: a reader that asks on has no use for it.
        start = dict(through)
        for name, event in reversed(last):
            start[name] = event.seq - 1
        return self._list(last, start, through, table)

    def after(self, text: str, limit: int, ask: Ask, table: Table) -> EventList:
        """The first `limit` events after a cursor. Raises Unavailable, or InvalidInput where it is none."""
        start = self._parse(text)
        slices = {name: ask(reader, start[name]) for name, reader in self._readers.items()}
        everything = merged({name: found.events for name, found in slices.items()})
        first = everything[:limit]
        end = {name: found.next for name, found in slices.items()}
        for name in {name for name, _ in everything[limit:]}:  # what is not told now is asked for again
            end[name] = max((event.seq for of, event in first if of == name), default=start[name])
        return self._list(first, start, end, table)

    def explain(self, event_id: str, table: Table, obstacles: Mapping[str, str]) -> tuple[Explanation, ...]:
        """Every stored event of that id in any log, as `broker.explain.explain` tells it. Raises Unavailable."""
        found: list[Explanation] = []
        for reader in self._readers.values():
            found += explain(reader, event_id, self._triggers(reader, table), obstacles)
        return tuple(found)

    # ---- inside

    def _list(self, events: Sequence[tuple[str, Found]], start: Cursor, end: Cursor, table: Table) -> EventList:
        views: dict[tuple[str, int], EventView] = {}
        for name, reader in self._readers.items():
            own = [event for of, event in events if of == name]
            told = listed(reader, own, self._triggers(reader, table)) if own else ()
            views |= {(name, view.seq): view for view in told}
        cursors = self._cursors(events, start)
        return EventList(
            tuple(
                msgspec.structs.replace(views[(name, event.seq)], next=cursor)
                for (name, event), cursor in zip(events, cursors, strict=True)
            ),
            self._text(end),
        )

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
        return ",".join(f"{name}:{seq}" for name, seq in cursor.items())

    def _parse(self, text: str) -> Cursor:
        if _NUMBER.match(text):
            return dict.fromkeys(self._readers, int(text))
        cursor = dict.fromkeys(self._readers, 0)
        for part in text.split(","):
            name, _, number = part.partition(":")
            if not _NUMBER.match(number):
                raise InvalidInput(f"after={text!r} is no position: give 0, or the `next` of an earlier answer.")
            if name in cursor:  # a log that is not there any more has nothing to tell
                cursor[name] = int(number)
        return cursor


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
