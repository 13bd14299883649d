"""Which stored events a replay is for: those of a Trigger's Broker in a range of time, that a filter lets through, or
of some ids. Reads one log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from broker.filters import Filter
from broker.log.query import Found, LogQuery
from core.clock import rfc3339

__all__ = ["REPLAY_ATTRIBUTE", "Candidate", "Criteria", "Selection", "Window", "select", "window"]

#: Marks an event that was sent again, with the id of the replay.
REPLAY_ATTRIBUTE: Final = "penstockreplay"
#: Events read at once, and looked at for one answer.
_TOGETHER: Final = 500
MAX_SCANNED: Final = 20_000


class Criteria(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of the Broker `namespace`/`broker`: that `filter` lets through, or of these ids where there are
    any. Events that are themselves for one Trigger alone, which are repeats, are not among them."""

    namespace: str
    broker: str
    filter: Filter
    ids: frozenset[str] = frozenset()

    def wants(self, found: Found) -> bool:
        if found.record is None or found.record.entry.only is not None:
            return False
        attributes = found.record.entry.attributes
        return attributes["id"] in self.ids if self.ids else self.filter.matches(attributes)


class Window(msgspec.Struct, frozen=True):
    """The positions after `after`, up to and with `through`."""

    after: int
    through: int


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An event that would be replayed."""

    position: int
    id: str
    type: str
    source: str
    subject: str | None
    time: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Some candidates, oldest first. Ask on with `after`=`next`; null at the end. `corrupt` counts events in between
    whose bytes are not what was written, which cannot be replayed."""

    candidates: tuple[Candidate, ...]
    next: int | None
    through: int
    corrupt: int = 0


def window(reader: LogQuery, namespace: str, broker: str, since: float | None, until: float | None) -> Window:
    """The positions of the Broker's events that arrived from `since` on and before `until` (seconds since the epoch),
    found by halving: arrival times grow with positions, but for what a stepped clock shuffles. Blocks."""
    newest = reader.newest(1, namespace=namespace, broker=broker)
    last = newest.events[-1].seq if newest.events else 0

    def first_from(at: float) -> int:
        """The position of the first event that arrived at `at` or later; after the last where there is none."""

        def following(seq: int) -> Found | None:
            events = reader.after(seq, 1, namespace=namespace, broker=broker).events
            return events[0] if events else None

        return _halve(following, at, last)

    after = 0 if since is None else first_from(since) - 1
    return Window(after, last if until is None else min(last, first_from(until) - 1))


def _halve(following: Callable[[int], Found | None], at: float, last: int) -> int:
    low, high = 0, last + 1  # the answer's bounds, both possible
    while low < high:
        middle = (low + high) // 2
        found = following(middle)
        if found is None or found.at >= at:
            high = middle  # nothing older follows, so the answer is not beyond
        else:
            low = found.seq
            if low >= last:
                return last + 1
            high = max(high, low + 1)
    found = following(low)
    return last + 1 if found is None else found.seq


def select(reader: LogQuery, criteria: Criteria, where: Window, limit: int) -> Selection:
    """The first `limit` candidates in a window. Blocks."""
    if criteria.ids:
        return _select_ids(reader, criteria, where)
    candidates: list[Candidate] = []
    seq, scanned, corrupt = where.after, 0, 0
    while seq < where.through and scanned < MAX_SCANNED:
        found = reader.after(seq, _TOGETHER, namespace=criteria.namespace, broker=criteria.broker)
        for event in found.events:
            if event.seq > where.through:
                return Selection(candidates=tuple(candidates), next=None, through=where.through, corrupt=corrupt)
            seq, scanned = event.seq, scanned + 1
            corrupt += event.record is None
            if criteria.wants(event):
                candidates.append(candidate_of(event))
                if len(candidates) == limit:
                    break
        else:
            if found.next <= seq and not found.events:
                seq = where.through
            seq = max(seq, found.next)
            continue
        break
    done = seq >= where.through
    return Selection(candidates=tuple(candidates), next=None if done else seq, through=where.through, corrupt=corrupt)


def _select_ids(reader: LogQuery, criteria: Criteria, where: Window) -> Selection:
    found = {event.seq: event for event_id in criteria.ids for event in reader.by_id(event_id)}
    of = f"{criteria.namespace}/{criteria.broker}"
    candidates = tuple(
        candidate_of(event)
        for seq, event in sorted(found.items())
        if event.broker == of and where.after < seq <= where.through and criteria.wants(event)
    )
    return Selection(candidates=candidates, next=None, through=where.through)


def candidate_of(found: Found) -> Candidate:
    assert found.record is not None  # noqa: S101 - `Criteria.wants` said so; tells the type checker
    attributes = found.record.entry.attributes
    return Candidate(
        position=found.seq,
        id=attributes["id"],
        type=attributes["type"],
        source=attributes["source"],
        subject=attributes.get("subject"),
        time=rfc3339(found.at, fraction=True),
    )
