"""Where did my event go? Puts together what the log holds and what the Triggers ask for, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from broker import filters
from broker.filters import Verdict
from broker.ledger import SETTLED, Attempt, standing
from broker.log.port import Position
from broker.log.query import Delivery, Found, LogQuery
from broker.table import TriggerSpec
from core.clock import rfc3339

__all__ = [
    "AttemptView",
    "DeliveryState",
    "EventView",
    "Explanation",
    "TriggerView",
    "attempt_views",
    "describe",
    "explain",
    "listed",
]

#: Replies to replies that are followed, and events in one answer: a loop makes a tree of 255 levels.
MAX_DEPTH: Final = 10
MAX_EVENTS: Final = 500

#: Rows of the ledger in which nobody was sent anything.
_NOT_SENT: Final = SETTLED | {"repeat"}


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `status` is 0 where there was no answer. `revision` is the one that answered, where a gateway told
    it, and `cold_start_ms` how long the attempt waited because no instance was ready."""

    number: int
    time: str
    status: int
    latency_ms: float
    outcome: str
    reason: str | None
    revision: str | None = None
    cold_start_ms: float | None = None


class DeliveryState(msgspec.Struct, frozen=True, kw_only=True):
    """How one event stands for one Trigger: its last attempt, and how many there were; "pending" before the first."""

    trigger: str
    state: str
    status: int
    attempts: int
    reason: str | None


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """A stored event as it is listed. `time` is when it arrived, `size` its data's bytes; `corrupt` tells that its
    bytes are not what was written, so that nothing is known of it but its place. In a list, `next` is the cursor to ask
    on from after it (`broker.listing`), and `matches` is false where it can still come to what was asked for. An event
    for one Trigger alone tells in `only` for which, and in `repeats` the position of the event that it was sent again
    for."""

    seq: int
    broker: str
    time: str
    size: int
    id: str = ""
    type: str = ""
    source: str = ""
    subject: str | None = None
    attributes: dict[str, str] = {}
    cause: int | None = None
    only: str | None = None
    repeats: int | None = None
    corrupt: bool = False
    deliveries: tuple[DeliveryState, ...] = ()
    next: str | None = None
    matches: bool = True


class TriggerView(msgspec.Struct, frozen=True, kw_only=True):
    """One Trigger's part in an event's story.

    `matched` is what its filter says now, None where the Trigger is gone; `failed` the clause that says no. `state` is
    the last attempt's outcome; without any attempt "pending" (it comes), "not wanted", or "not offered" (the event is
    older than the Trigger, or than its present filter). `waits_for` says what keeps an event from being sent that is
    pending or to be tried again.
    `repeats` are the events that were sent again to it for this one.
    """

    trigger: str
    matched: bool | None
    failed: Verdict | None = None
    state: str
    waits_for: str | None = None
    attempts: tuple[AttemptView, ...] = ()
    replies: tuple[Explanation, ...] = ()
    repeats: tuple[Explanation, ...] = ()


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """An event, every Trigger of its Broker (only the one that it is for, where there is one), and the replies that it
    caused."""

    event: EventView
    triggers: tuple[TriggerView, ...]
    cut: bool = False


def describe(
    found: Found,
    deliveries: Sequence[Delivery],
    pending: Iterable[TriggerSpec] = (),
    names: Mapping[str, str] = MappingProxyType({}),
) -> EventView:
    """The event with how it stands for each Trigger that was tried, then for those that wait for it. `names` are those
    of the Triggers that there are, by uid."""
    tried = (
        DeliveryState(
            trigger=delivery.name,
            state=last.outcome,
            status=last.status,
            attempts=sum(attempt.outcome not in _NOT_SENT for attempt in delivery.attempts),
            reason=last.reason,
        )
        for delivery in deliveries
        for last in (standing(delivery.attempts),)
    )
    waiting = (
        DeliveryState(trigger=trigger.key, state="pending", status=0, attempts=0, reason=None) for trigger in pending
    )
    states = (*tried, *waiting)
    time = rfc3339(found.at, fraction=True)
    if found.record is None:
        return EventView(
            seq=found.seq, broker=found.broker, time=time, size=found.size, corrupt=True, deliveries=states
        )
    attributes, only = found.record.entry.attributes, found.record.entry.only
    names = {**names, **{each.uid: each.name for each in deliveries}}
    return EventView(
        seq=found.seq,
        broker=found.broker,
        time=time,
        size=found.size,
        id=attributes["id"],
        type=attributes["type"],
        source=attributes["source"],
        subject=attributes.get("subject"),
        attributes=attributes,
        cause=found.record.entry.cause if only is None else None,
        only=None if only is None else names.get(only.uid, only.uid),
        repeats=None if only is None else found.record.entry.cause,
        deliveries=states,
    )


def listed(reader: LogQuery, events: Sequence[Found], triggers: Iterable[TriggerSpec]) -> tuple[EventView, ...]:
    """These events, each as `describe` tells it. Raises Unavailable."""
    deliveries = reader.deliveries([event.seq for event in events])
    positions = reader.positions()
    by_broker: dict[str, list[TriggerSpec]] = {}
    names: dict[str, str] = {}
    for trigger in triggers:
        names[trigger.uid] = trigger.key
        by_broker.setdefault(trigger.broker, []).append(trigger)
    views = []
    for event in events:
        tried = deliveries.get(event.seq, ())
        known = {delivery.uid for delivery in tried}
        pending = [
            trigger
            for trigger in by_broker.get(event.broker, ())
            if trigger.uid not in known and _is_pending(trigger, event, positions)
        ]
        views.append(describe(event, tried, pending, names))
    return tuple(views)


def explain(
    reader: LogQuery,
    event_id: str,
    triggers: Iterable[TriggerSpec],
    obstacles: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Explanation, ...]:
    """Every stored event of that id, explained by the Triggers as they are now. `obstacles` has, by the uid of a
    Trigger that has no subscriber to deliver to, the reason. Raises Unavailable."""
    story = _Story(reader, tuple(triggers), obstacles)
    events = reader.by_id(event_id)
    # What was sent again is told under what it repeats.
    seqs = {found.seq for found in events}
    return tuple(story.tell(found, MAX_DEPTH) for found in events if _repeated(found) not in seqs)


class _Story:
    def __init__(self, reader: LogQuery, triggers: tuple[TriggerSpec, ...], obstacles: Mapping[str, str]) -> None:
        self._reader = reader
        self._triggers = triggers
        self._obstacles = obstacles
        self._positions = reader.positions()
        self._names = {trigger.uid: trigger.key for trigger in triggers}
        self._left = MAX_EVENTS

    def tell(self, found: Found, depth: int) -> Explanation:
        self._left -= 1
        deliveries = self._reader.deliveries([found.seq]).get(found.seq, ())
        event = describe(found, deliveries, names=self._names)
        if found.record is None:
            return Explanation(event=event, triggers=())
        replies = self._reader.replies(found.seq)
        cut = bool(replies) and (depth == 0 or self._left < len(replies))
        told: dict[str, list[Explanation]] = {}
        again: dict[str, list[Explanation]] = {}
        for reply in () if cut else replies:
            entry = reply.record.entry if reply.record is not None else None
            if entry is not None and entry.only is not None:
                again.setdefault(entry.only.uid, []).append(self.tell(reply, depth - 1))
            else:
                via = entry.via if entry is not None else None
                told.setdefault(via or "", []).append(self.tell(reply, depth - 1))
        by_uid = {delivery.uid: delivery for delivery in deliveries}
        views = []
        only = found.record.entry.only
        for trigger in self._triggers:
            if trigger.broker == found.broker and (only is None or only.uid == trigger.uid):
                attempts = by_uid.pop(trigger.uid).attempts if trigger.uid in by_uid else ()
                view = self._trigger(trigger, found, attempts, told.get(trigger.uid, []))
                views.append(msgspec.structs.replace(view, repeats=tuple(again.get(trigger.uid, ()))))
        for uid, delivery in by_uid.items():  # Triggers that are gone
            views.append(
                TriggerView(
                    trigger=delivery.name,
                    matched=None,
                    state=standing(delivery.attempts).outcome,
                    attempts=attempt_views(delivery.attempts),
                    replies=tuple(told.get(uid, [])),
                    repeats=tuple(again.get(uid, ())),
                )
            )
        return Explanation(event=event, triggers=tuple(sorted(views, key=lambda view: view.trigger)), cut=cut)

    def _trigger(
        self, trigger: TriggerSpec, found: Found, attempts: Sequence[Attempt], replies: Sequence[Explanation]
    ) -> TriggerView:
        assert found.record is not None  # noqa: S101 - tell() returned early; tells the type checker
        verdict = filters.explain(trigger.filter, found.record.entry.attributes)
        if found.record.entry.only is not None:  # whatever the filter says
            verdict = Verdict(matched=True)
        if attempts:
            state: str = standing(attempts).outcome
        elif not verdict.matched:
            state = "not wanted"
        else:
            state = "pending" if _is_ahead(self._positions.get(trigger.uid), found.seq) else "not offered"
        return TriggerView(
            trigger=trigger.key,
            matched=verdict.matched,
            failed=None if verdict.matched else verdict,
            state=state,
            waits_for=self._waits_for(trigger, found.at, state),
            attempts=attempt_views(attempts),
            replies=tuple(replies),
        )

    def _waits_for(self, trigger: TriggerSpec, at: float, state: str) -> str | None:
        if state not in ("pending", "retrying"):
            return None
        obstacle = self._obstacles.get(trigger.uid)
        if obstacle is None and state == "pending" and trigger.flow.delay_s:
            due = rfc3339(at + trigger.flow.delay_s, fraction=True)
            return f"it is delivered no sooner than {due}, {trigger.flow.delay_s:g} s after it arrived"
        return obstacle


def _is_pending(trigger: TriggerSpec, event: Found, positions: Mapping[str, Position]) -> bool:
    """Whether an event that was not tried yet comes to this Trigger."""
    if event.record is None or not _is_ahead(positions.get(trigger.uid), event.seq):
        return False
    only = event.record.entry.only
    if only is not None:
        return only.uid == trigger.uid
    return filters.explain(trigger.filter, event.record.entry.attributes).matched


def _repeated(found: Found) -> int | None:
    """The position of the event that this one was sent again for."""
    entry = found.record.entry if found.record is not None else None
    return entry.cause if entry is not None and entry.only is not None else None


def _is_ahead(position: Position | None, seq: int) -> bool:
    """Whether the subscription has the event still before it."""
    return position is None or seq > position.through or seq in position.open


def attempt_views(attempts: Sequence[Attempt]) -> tuple[AttemptView, ...]:
    return tuple(
        AttemptView(
            number=attempt.number,
            time=rfc3339(attempt.at, fraction=True),
            status=attempt.status,
            latency_ms=round(attempt.latency_s * 1000, 3),
            outcome=attempt.outcome,
            reason=attempt.reason,
            revision=attempt.revision,
            cold_start_ms=None if attempt.cold_start_s is None else round(attempt.cold_start_s * 1000, 3),
        )
        for attempt in attempts
    )
