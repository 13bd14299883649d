"""What could not be delivered: each event and Trigger, with the reason and the attempts. Reads the logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from typing import Final

import msgspec

from broker.explain import AttemptView, attempt_views
from broker.ledger import UNDELIVERED, Attempt, standing
from broker.listing import Away
from broker.log.query import Delivery, Found, LogQuery
from core.clock import rfc3339
from core.errors import InvalidInput, NotFound, Unavailable
from core.events import CloudEvent, to_structured

__all__ = ["REASONS", "Held", "Letter", "LetterDetail", "LetterList", "Letters", "Wanted", "missing"]

#: Why an event is a dead letter. A letter that the dead-letter sink took is one only where that is asked for.
REASONS: Final = (*sorted(UNDELIVERED), "dead-lettered")
#: Positions whose letters are read at once, and looked at for one answer.
_TOGETHER: Final = 200
MAX_SCANNED: Final = 20_000


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that one Trigger's subscriber did not get. `id` is ``<namespace>/<trigger>/<position>``; `time` is when
    the event arrived, `failed` when the last attempt began, `status` what that was answered (0 for no answer).
    `repeats` is the position of the event that this one was sent again for."""

    id: str
    trigger: str
    broker: str
    position: int
    time: str
    failed: str
    outcome: str
    status: int
    attempts: int
    reason: str | None
    event_id: str = ""
    type: str = ""
    source: str = ""
    subject: str | None = None
    repeats: int | None = None


class LetterDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A letter with all of its event, in CloudEvents' JSON format (null where it is corrupt), and each attempt."""

    letter: Letter
    event: msgspec.Raw
    attempts: tuple[AttemptView, ...]


class LetterList(msgspec.Struct, frozen=True):
    """The answer of ``GET /penstock/v1/dead-letters``: ask on with ``after=<next>``, unless that is null.
    `away` are the logs that could not be read, and whose letters are missing."""

    letters: tuple[Letter, ...]
    next: str | None
    away: tuple[Away, ...] = ()


class Held(msgspec.Struct, frozen=True):
    """A dead letter. `left` is for how many other subscriptions its event is undelivered as well; `reader` is that of
    the log that has it."""

    reader: LogQuery
    found: Found
    delivery: Delivery
    last: Attempt
    left: int

    @property
    def event(self) -> CloudEvent | None:
        """None where the stored bytes are not what was written."""
        return None if self.found.record is None else self.found.record.entry.event()

    @property
    def trigger(self) -> str:
        """``namespace/name``, or the uid of one whose name was not kept."""
        return self.delivery.name or self.delivery.uid

    @property
    def id(self) -> str:
        return f"{self.trigger}/{self.found.seq}"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: of this namespace, of this Trigger, for one of these reasons, whose last attempt began at `since`
    or later (seconds since the epoch), of an event of this id."""

    namespace: str | None = None
    trigger: str | None = None
    reasons: frozenset[str] = UNDELIVERED
    since: float = 0.0
    event_id: str | None = None

    def has(self, held: Held) -> bool:
        namespace, _, name = held.trigger.partition("/")
        record = held.found.record
        return (
            held.last.outcome in self.reasons
            and self.namespace in (None, namespace)
            and self.trigger in (None, name)
            and held.last.at >= self.since
            and (self.event_id is None or (record is not None and record.entry.attributes["id"] == self.event_id))
        )


class Letters:
    """The dead letters of a platform's logs, of which `readers` has one under each class of Broker. All methods
    block."""

    def __init__(self, readers: Mapping[str, LogQuery]) -> None:
        self._logs: list[tuple[str, LogQuery]] = []
        for name, reader in readers.items():
            if all(reader is not held for _, held in self._logs):
                self._logs.append((name, reader))

    def list(self, wanted: Wanted, limit: int, after: str | None = None) -> LetterList:
        """The first `limit` letters after a cursor: log by log, oldest first. Raises InvalidInput where it is none."""
        name, start = self._cursor(after)
        letters: list[Letter] = []
        away: list[Away] = []
        for number, (log, reader) in enumerate(self._logs):
            if number < name:
                continue
            seq = start if number == name else 0
            try:
                reached = self._read(reader, wanted, seq, limit, letters)
            except Unavailable as error:
                away.append(Away(log, str(error)))
            else:
                if reached is not None:
                    return LetterList(tuple(letters), f"{log}:{reached}", tuple(away))
        return LetterList(tuple(letters), None, tuple(away))

    def _read(
        self, reader: LogQuery, wanted: Wanted, after: int, limit: int, letters: MutableSequence[Letter]
    ) -> int | None:
        """Add one log's letters after a position; how far that came, None for to the end. Raises Unavailable."""
        seq, scanned = after, 0
        while found := self._some(reader, wanted, seq):
            for seq, helds in found:
                letters += [letter_of(held) for held in helds if wanted.has(held)]
                scanned += 1
                if len(letters) >= limit or scanned >= MAX_SCANNED:
                    return seq
        return None

    def find(self, trigger: str, position: int) -> Held:
        """The letter of this Trigger (``namespace/name``) and position. Raises NotFound, and Unavailable where a log
        that may have it cannot be read."""
        found = self.find_all([(trigger, position)])[0]
        if found is None:
            raise missing(trigger, position)
        return found

    def find_all(self, names: Sequence[tuple[str, int]]) -> Sequence[Held | None]:
        """The letters of these Triggers and positions; None for each that there is not. Raises Unavailable where one is
        not found and a log cannot be read."""
        wanted = set(names)
        positions = sorted({position for _, position in names})
        held: dict[tuple[str, int], Held] = {}
        away: Unavailable | None = None
        for _, reader in self._logs:
            try:
                for found, deliveries in read(reader, positions):
                    for each in helds_of(reader, found, deliveries):
                        name = (each.trigger, found.seq)
                        if name in wanted and each.last.outcome in REASONS:
                            held.setdefault(name, each)
            except Unavailable as error:
                away = error
        if away is not None and len(held) < len(wanted):
            raise away
        return [held.get(name) for name in names]

    def _some(self, reader: LogQuery, wanted: Wanted, after: int) -> Sequence[tuple[int, Sequence[Held]]]:
        """What comes next after a position, by position; empty at the log's end."""
        seqs: set[int] = set()
        if wanted.reasons & UNDELIVERED:
            seqs.update(reader.undelivered(after, _TOGETHER))
        if wanted.reasons - UNDELIVERED:
            seqs.update(reader.undelivered(after, _TOGETHER, dead_lettered=True))
        first = sorted(seqs)[:_TOGETHER]
        told = {found.seq: helds_of(reader, found, deliveries) for found, deliveries in read(reader, first)}
        return [(seq, told.get(seq, ())) for seq in first]

    def _cursor(self, after: str | None) -> tuple[int, int]:
        """Which of the logs, and the position in it."""
        if after is None:
            return 0, 0
        log, _, seq = after.partition(":")
        names = [name for name, _ in self._logs]
        if log not in names or not seq.isdecimal() or len(seq) > 18:
            raise InvalidInput(
                f"after={after!r} is no position: leave it out, or give the `next` of an earlier answer."
            )
        return names.index(log), int(seq)


def missing(trigger: str, position: int) -> NotFound:
    """That there is no such letter."""
    return NotFound(
        f"There is no dead letter {trigger}/{position}: it was delivered, redriven or dropped meanwhile, "
        "or is no longer kept."
    )


def read(reader: LogQuery, seqs: Sequence[int]) -> Iterator[tuple[Found, Sequence[Delivery]]]:
    """Events with what became of them."""
    deliveries = reader.deliveries(seqs)
    for found in reader.at(seqs):
        yield found, deliveries.get(found.seq, ())


def helds_of(reader: LogQuery, found: Found, deliveries: Sequence[Delivery]) -> Sequence[Held]:
    """How an event stands for each subscription that it was tried for."""
    lasts = [standing(delivery.attempts) for delivery in deliveries]
    undelivered = sum(last.outcome in UNDELIVERED for last in lasts)
    return [
        Held(reader, found, delivery, last, undelivered - (last.outcome in UNDELIVERED))
        for delivery, last in zip(deliveries, lasts, strict=True)
    ]


def letter_of(held: Held) -> Letter:
    found, last = held.found, held.last
    attributes = found.record.entry.attributes if found.record is not None else {}
    return Letter(
        id=held.id,
        trigger=held.trigger,
        broker=found.broker,
        position=found.seq,
        time=rfc3339(found.at, fraction=True),
        failed=rfc3339(last.at, fraction=True),
        outcome=last.outcome,
        status=last.status,
        attempts=last.number,
        reason=last.reason,
        event_id=attributes.get("id", ""),
        type=attributes.get("type", ""),
        source=attributes.get("source", ""),
        subject=attributes.get("subject"),
        repeats=found.record.entry.cause if found.record is not None and found.record.entry.only else None,
    )


def detail_of(held: Held) -> LetterDetail:
    event = held.event
    told = msgspec.Raw(b"null") if event is None else msgspec.Raw(to_structured(event)[1])
    return LetterDetail(letter=letter_of(held), event=told, attempts=attempt_views(held.delivery.attempts))
