"""Which stored events somebody asks for: of which Broker, what they carry, since when, and how they stand.

What an event carries is decided while a log is read; how it stands is known only from its deliveries, afterwards. Both
look at a bounded number of events for one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from broker.explain import DeliveryState, EventView
from broker.filters import ANYTHING, Filter
from broker.log.query import MAX_SCANNED, Found, LogQuery, Slice
from broker.resources import FilterShape, TriggerShape, compile_filter
from core.errors import InvalidInput

__all__ = ["STATES", "Question", "Sieve", "is_settled", "read_filters", "read_states"]

#: What people call the states of a delivery, and which they are.
STATES: Final[Mapping[str, frozenset[str]]] = {
    "pending": frozenset(("pending", "retrying")),
    "delivered": frozenset(("delivered",)),
    "failed": frozenset(("dead-lettered", "dropped", "dead", "corrupt", "redriven", "discarded")),
}
#: Events whose deliveries are looked at together, from the newest back.
_TOGETHER: Final = 500

Told = Callable[[Sequence[Found]], Sequence[EventView]]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which events. `since` is when they arrived at the earliest, in seconds since the epoch. `states` are those that
    one of an event's deliveries has to have, and `trigger` whose delivery that is (``name`` or ``namespace/name``);
    without `states` such a delivery has to be there. With `waiting`, events that can still come to the states are
    told too, as not matching."""

    namespace: str | None = None
    broker: str | None = None
    filter: Filter = ANYTHING
    id: str | None = None
    since: float | None = None
    trigger: str | None = None
    states: frozenset[str] = frozenset()
    waiting: bool = False


def read_filters(filters: str, type_: str | None = None) -> Filter:
    """The filter of a query: a Trigger's `filters` as JSON, and the type where one is given. Raises InvalidInput."""
    try:
        read = msgspec.json.decode(filters, type=tuple[FilterShape, ...])
        if type_ is not None:
            read = (FilterShape(exact={"type": type_}), *read)
        return compile_filter(TriggerShape(broker="default", filters=read)) if read else ANYTHING
    except InvalidInput:
        raise
    except ValueError as error:
        raise InvalidInput(f"The filter cannot be read: {str(error).removeprefix('spec.')}") from error


def read_states(words: Iterable[str]) -> frozenset[str]:
    """The states of a query: those of `STATES`, or a delivery's own. Raises InvalidInput."""
    known = [*STATES, *sorted(frozenset().union(*STATES.values()) - STATES.keys())]
    for word in words:
        if word not in known:
            raise InvalidInput(f"state must be one of {', '.join(known)} (got {word!r}).")
    return frozenset(words)


class Sieve:
    """One question, for one answer. `cut` tells afterwards that not all stored events were looked at."""

    def __init__(self, question: Question | None = None) -> None:
        self._question = asked = question or Question()
        self._names = frozenset(name for word in asked.states for name in STATES.get(word, (word,)))
        self._plain = asked.filter == ANYTHING and asked.id is None and asked.since is None
        self._by_delivery = bool(asked.states or asked.trigger)
        self._seen = 0
        self._older = False
        self.cut = False

    def newest(self, reader: LogQuery, limit: int, told: Told) -> Slice:
        """The last `limit` events of a log that match; `told` tells how events stand. Raises Unavailable."""
        asked = self._question
        if asked.id is not None:
            return self._by_id(reader, asked.id, limit, told)
        self._seen, self._older = 0, False
        if not self._by_delivery and asked.since is None:
            wanted = None if self._plain else self._wants
            found = reader.newest(limit, namespace=asked.namespace, broker=asked.broker, wanted=wanted)
            self._note_cut(enough=len(found.events) >= limit)
            return found
        # Kept without their data: a thousand large events would not fit into memory.
        held: list[Found] = []

        def hold(found: Found) -> bool:
            """Wants only what to end with: an event from before."""
            if self._wants(found):
                held.append(_light(found))
            return asked.since is not None and found.at < asked.since

        through = reader.newest(1, namespace=asked.namespace, broker=asked.broker, wanted=hold).next
        held.sort(key=_seq)
        events = self._standing_so(held, limit, told) if self._by_delivery else held[-limit:]
        self._note_cut(enough=len(events) >= limit)
        return Slice(tuple(events), through)

    def after(self, reader: LogQuery, seq: int, limit: int) -> Slice:
        """The first `limit` events of a log after a position, but for how they stand: `judge` tells. Raises
        Unavailable."""
        wanted = None if self._plain else self._wants
        asked = self._question
        return reader.after(seq, limit, namespace=asked.namespace, broker=asked.broker, wanted=wanted)

    def judge(self, view: EventView) -> EventView | None:
        """The event as it is told; None where it is not."""
        if not self._by_delivery or self._matches(view):
            return view
        if self._question.waiting and not is_settled(view):
            return msgspec.structs.replace(view, matches=False)
        return None

    # ---- inside

    def _wants(self, found: Found) -> bool:
        self._seen += 1
        asked = self._question
        if asked.since is not None and found.at < asked.since:
            self._older = True
            return False
        if found.record is None:
            return asked.filter == ANYTHING and asked.id is None
        attributes = found.record.entry.attributes
        return asked.id in (None, attributes["id"]) and asked.filter.matches(attributes)

    def _note_cut(self, *, enough: bool) -> None:
        if self._seen >= MAX_SCANNED and not enough and not self._older:
            self.cut = True

    def _by_id(self, reader: LogQuery, event_id: str, limit: int, told: Told) -> Slice:
        asked = self._question
        through = reader.newest(1, namespace=asked.namespace, broker=asked.broker).next
        events = [
            found
            for found in reader.by_id(event_id)
            if found.seq <= through and self._is_of(found.broker) and self._wants(found)
        ]
        if self._by_delivery:
            events = self._standing_so(events, limit, told)
        return Slice(tuple(events[-limit:]), through)

    def _is_of(self, broker: str) -> bool:
        namespace, _, name = broker.partition("/")
        return self._question.namespace in (None, namespace) and self._question.broker in (None, name)

    def _standing_so(self, events: Sequence[Found], limit: int, told: Told) -> list[Found]:
        """The last `limit` of these events that stand as is asked."""
        found: list[Found] = []
        end = len(events)
        while end > 0 and len(found) < limit:
            some = events[max(0, end - _TOGETHER) : end]
            matching = {view.seq for view in told(some) if self.judge(view) is not None}
            found = [event for event in some if event.seq in matching] + found
            end -= len(some)
        return found[-limit:]

    def _matches(self, view: EventView) -> bool:
        if view.corrupt and "corrupt" in self._names and self._question.trigger is None:
            return True
        return any(self._has_state(each) for each in view.deliveries)

    def _has_state(self, delivery: DeliveryState) -> bool:
        trigger = self._question.trigger
        if trigger is not None and trigger not in (delivery.trigger, delivery.trigger.partition("/")[2]):
            return False
        return not self._names or delivery.state in self._names


def is_settled(view: EventView) -> bool:
    """Whether nothing more comes to any delivery by itself."""
    return not any(delivery.state in STATES["pending"] for delivery in view.deliveries)


def _light(found: Found) -> Found:
    if found.record is None:
        return found
    entry = msgspec.structs.replace(found.record.entry, head=b"", data=b"")
    return msgspec.structs.replace(found, record=msgspec.structs.replace(found.record, entry=entry))


def _seq(found: Found) -> int:
    return found.seq
