"""What a changed Trigger would have got: its filter as it is and as it would be, held against the events that came.

The filters are compiled as the data plane compiles them, and the events are those of the Broker's own log. Nothing is
changed. An event that is for one Trigger alone (a replay, a dead letter sent again) says nothing of filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from broker import filters
from broker.filters import Filter, Verdict
from broker.log.query import MAX_SCANNED, Found, LogQuery
from broker.resources import TriggerShape, compile_filter
from broker.table import Table
from core.clock import rfc3339
from core.errors import InvalidInput, Unavailable

__all__ = ["DEFAULT_LOOK", "MAX_PLANNED", "Ask", "Change", "Plan", "Planner"]

#: Events that are looked at unless more are asked for, and at most: what one answer may look at.
DEFAULT_LOOK: Final = 1000
MAX_LOOK: Final = MAX_SCANNED
#: Triggers in one plan: each costs a comparison for every event.
MAX_PLANNED: Final = 200
#: Events that are shown of those that are gained, and of those that are lost: the newest.
EXAMPLES: Final = 5

Kind = Literal["created", "configured", "unchanged", "deleted"]


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Trigger as it would be; `spec` None where it would be deleted."""

    namespace: str
    name: str
    spec: dict[str, object] | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The changes, and which events they are held against: the last `limit` of each Broker, of those that arrived from
    `since` on (seconds since the epoch)."""

    triggers: tuple[Change, ...]
    since: float | None = None
    limit: int = DEFAULT_LOOK


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is gained or lost; `why` is the clause that keeps it out, by the filter that does."""

    position: int
    id: str
    type: str
    source: str
    subject: str | None
    time: str
    why: Verdict | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    examples: tuple[Example, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one Trigger. `looked_at` events were held against it, the oldest of which arrived at `since`;
    it had `before` of them and would have `after`. `cut` tells that there are older events. Where its Broker's log
    could not be read, `problem` says so and nothing is known."""

    trigger: str
    broker: str
    change: Kind
    looked_at: int
    since: str | None
    before: int
    after: int
    gained: Difference
    lost: Difference
    cut: bool = False
    problem: str | None = None


class Planner:
    """Plans over the logs that `readers` read, by class of Broker. Blocks."""

    def __init__(self, readers: Mapping[str, LogQuery]) -> None:
        self._readers = readers

    def plan(self, ask: Ask, table: Table) -> tuple[Plan, ...]:
        """One plan for each change, in their order. Raises InvalidInput where a filter or a bound cannot be read."""
        if not 1 <= ask.limit <= MAX_LOOK:
            raise InvalidInput(f"limit must be from 1 to {MAX_LOOK} (got {ask.limit}).")
        if len(ask.triggers) > MAX_PLANNED:
            raise InvalidInput(f"A plan is for at most {MAX_PLANNED} Triggers (got {len(ask.triggers)}).")
        held = {trigger.key: trigger for trigger in table.triggers.values()}
        comparisons = []
        for change in ask.triggers:
            key = f"{change.namespace}/{change.name}"
            now = held.get(key)
            then, broker = _read(change)
            broker = broker or (now.broker if now is not None else f"{change.namespace}/default")
            comparisons.append(_Comparison(key, broker, now.filter if now is not None else None, then))
        for broker in {each.broker: None for each in comparisons}:
            self._compare([each for each in comparisons if each.broker == broker], broker, ask, table)
        return tuple(each.plan() for each in comparisons)

    def _compare(self, comparisons: list[_Comparison], broker: str, ask: Ask, table: Table) -> None:
        known = table.brokers.get(broker)
        reader = self._readers.get(known.log_class) if known is not None else None
        if reader is None:
            return  # it is not there yet, and has no events
        seen = _Seen()
        namespace, _, name = broker.partition("/")

        def look(found: Found) -> bool:
            """Called from the newest event back; what it wants is the one to end with."""
            if ask.since is not None and found.at < ask.since:
                return True
            if seen.count == ask.limit:
                seen.cut = True
                return True
            seen.count += 1
            seen.oldest = found.at
            if found.record is not None and found.record.entry.only is None:
                for each in comparisons:
                    each.hold(found, found.record.entry.attributes)
            return False

        try:
            ended = reader.newest(1, namespace=namespace, broker=name, wanted=look).events
        except Unavailable as error:
            for each in comparisons:
                each.problem = str(error)
            return
        seen.cut = seen.cut or (not ended and seen.count == MAX_LOOK)
        for each in comparisons:
            each.seen = seen


class _Seen:
    """How many events were looked at, and how far back."""

    def __init__(self) -> None:
        self.count = 0
        self.oldest: float | None = None
        self.cut = False


class _Comparison:
    """A Trigger's filter now and then; None where there is no such Trigger."""

    def __init__(self, key: str, broker: str, now: Filter | None, then: Filter | None) -> None:
        self.broker = broker
        self.problem: str | None = None
        self.seen = _Seen()
        self._key = key
        self._now, self._then = now, then
        self._before = self._after = self._gains = self._losses = 0
        self._gained: list[Example] = []
        self._lost: list[Example] = []

    def hold(self, found: Found, attributes: Mapping[str, str]) -> None:
        before = self._now is not None and self._now.matches(attributes)
        after = self._then is not None and self._then.matches(attributes)
        self._before += before
        self._after += after
        if after and not before:
            self._gains += 1
            if len(self._gained) < EXAMPLES:
                self._gained.append(_example(found, attributes, self._now))
        elif before and not after:
            self._losses += 1
            if len(self._lost) < EXAMPLES:
                self._lost.append(_example(found, attributes, self._then))

    def plan(self) -> Plan:
        oldest = self.seen.oldest
        return Plan(
            trigger=self._key,
            broker=self.broker,
            change=self._kind(),
            looked_at=self.seen.count,
            since=None if oldest is None else rfc3339(oldest, fraction=True),
            before=self._before,
            after=self._after,
            gained=Difference(count=self._gains, examples=tuple(self._gained)),
            lost=Difference(count=self._losses, examples=tuple(self._lost)),
            cut=self.seen.cut,
            problem=self.problem,
        )

    def _kind(self) -> Kind:
        if self._then is None:
            return "deleted"
        if self._now is None:
            return "created"
        return "unchanged" if self._now == self._then else "configured"


def _read(change: Change) -> tuple[Filter | None, str | None]:
    """The filter that the Trigger would have, and its Broker. Raises InvalidInput."""
    if change.spec is None:
        return None, None
    try:
        shape = msgspec.convert(change.spec, TriggerShape)
        return compile_filter(shape), f"{change.namespace}/{shape.broker or 'default'}"
    except ValueError as error:
        raise InvalidInput(f"The Trigger {change.namespace}/{change.name} cannot be read: {error}.") from error


def _example(found: Found, attributes: Mapping[str, str], against: Filter | None) -> Example:
    return Example(
        position=found.seq,
        id=attributes["id"],
        type=attributes["type"],
        source=attributes["source"],
        subject=attributes.get("subject"),
        time=rfc3339(found.at, fraction=True),
        why=None if against is None else filters.explain(against, attributes),
    )
