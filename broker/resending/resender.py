"""What people have done with stored events: sent again to one Trigger or one Revision, or dropped. Reads the logs and
asks the ingress, which is the way into them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Final

import msgspec

from broker.directed import Wish
from broker.filters import Filter
from broker.ledger import UNDELIVERED, standing
from broker.log.query import Found, LogQuery
from broker.resending.forward import Forward
from broker.resending.letters import Held, Letters
from broker.resending.letters import missing as missing_letter
from broker.resending.replaying import (
    MAX_SCANNED,
    REPLAY_ATTRIBUTE,
    Criteria,
    Selection,
    Window,
    select,
    window,
)
from broker.resources import TriggerShape, compile_filter
from broker.table import Table, TriggerSpec
from core.errors import InvalidInput, NotFound, PenstockError, Unavailable
from core.events import CloudEvent, from_http

__all__ = [
    "MAX_POSITIONS",
    "Ask",
    "Asked",
    "Look",
    "Redrive",
    "Redriven",
    "Replay",
    "Replayed",
    "Resender",
    "Seen",
    "Settle",
    "SettledList",
]

#: Events sent again for one request: it is answered within some seconds, and who asks sets the pace.
MAX_POSITIONS: Final = 200
#: Of ids that one request asks for: each is looked up by itself.
MAX_IDS: Final = 1000
#: A row of the ledger is written within `FLUSH_INTERVAL_S`, or with the next event; a log on a server that is busy
#: takes longer.
NOTED_S: Final = 5.0
LOOK_S: Final = 0.01
#: Sent at a time: those that arrive while a commit is under way share the next.
_AT_ONCE: Final = 16

_REPLAY: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,62}[a-z0-9])?\Z")
_STRUCTURED: Final = [(b"content-type", b"application/cloudevents+json")]

#: A position as the logs have them: their files and topics count in 64 bits.
Position = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Which events a replay to the Trigger `trigger` is for. Times in seconds since the epoch. `filters` is as in a
    Trigger; None takes the Trigger's own filter. With `after` and `through`, of an earlier answer, it goes on."""

    namespace: str
    trigger: str
    since: float | None = None
    until: float | None = None
    filters: tuple[dict[str, object], ...] | None = None
    ids: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_IDS)] = ()
    after: Position | None = None
    through: Position | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_SCANNED)] = MAX_POSITIONS


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: the candidates, and where they would go."""

    selection: Selection
    trigger: str
    broker: str
    subscriber: str | None


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send the events at `positions` again to a Trigger, or to a Revision of its namespace, marked with the id of the
    replay. With `resumed`, those that this replay has sent before are left out."""

    replay: str
    namespace: str
    trigger: str
    positions: tuple[Position, ...]
    revision: str | None = None
    resumed: bool = False


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """How many were sent, left out as sent before, and not sent because they are no longer kept or are corrupt; the
    positions that they have got, now or before."""

    sent: int
    before: int
    missing: int
    positions: tuple[int, ...]


class Look(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the events at `positions` stand for a Trigger."""

    namespace: str
    trigger: str
    positions: tuple[Position, ...]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How many are in which state: an outcome of the ledger, or "pending" before the first attempt."""

    states: dict[str, int]


class Redrive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send a dead letter again, as it is or, where there is one, as `event` (CloudEvents' JSON format) says."""

    replay: str
    event: msgspec.Raw = msgspec.Raw(b"")
    revision: str | None = None


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """The position that the event has got."""

    position: int
    event_id: str


class Settle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send these letters (``namespace/trigger/position``) again, or drop them; `replay` and `revision` are as in
    `Redrive`."""

    letters: tuple[str, ...]
    replay: str = ""
    revision: str | None = None


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a letter: the position of what was sent, or the error. `again` tells that trying again may help,
    `gone` that there is no such letter."""

    letter: str
    position: int | None = None
    error: str | None = None
    again: bool = False
    gone: bool = False


class SettledList(msgspec.Struct, frozen=True):
    """What became of each letter, in the order in which they were named."""

    letters: tuple[Settled, ...]


class Resender:
    """`readers` are those of the logs by class of Broker; `table` tells the Brokers and Triggers as they are now, and
    `has_revision` whether a namespace has a Revision of a name. All raise NotFound, InvalidInput and Unavailable."""

    def __init__(
        self,
        *,
        readers: Mapping[str, LogQuery],
        forward: Forward,
        table: Callable[[], Table],
        has_revision: Callable[[str, str], bool],
    ) -> None:
        self._readers = readers
        self._forward = forward
        self._table = table
        self._has_revision = has_revision
        self.letters = Letters(readers)

    # ---- dead letters

    async def redrive(self, trigger: str, position: int, ask: Redrive) -> Redriven:
        """Send the letter of the Trigger (``namespace/name``) again. It is listed no more once the event is stored,
        which is listed if it fails as well."""
        held = await asyncio.to_thread(self.letters.find, trigger, position)
        table = self._table()
        done = await self._redrive(held, held.left, ask, table, _by_name(table))
        await self._noted([(trigger, position)])
        return done

    async def drop(self, trigger: str, position: int) -> None:
        """Note that nobody wants the letter any more."""
        held = await asyncio.to_thread(self.letters.find, trigger, position)
        await self._drop(held, held.left, self._table())
        await self._noted([(trigger, position)])

    async def redrive_all(self, names: Sequence[tuple[str, int]], ask: Redrive) -> Sequence[Settled]:
        """`redrive` for many letters, as they are; those that fail keep the others from nothing."""

        table = self._table()
        triggers = _by_name(table)

        async def redriven(held: Held, left: int) -> int | None:
            return (await self._redrive(held, left, ask, table, triggers)).position

        return await self._each(names, redriven)

    async def drop_all(self, names: Sequence[tuple[str, int]]) -> Sequence[Settled]:
        """`drop` for many letters."""
        table = self._table()
        return await self._each(names, lambda held, left: self._drop(held, left, table))

    async def _each(
        self, names: Sequence[tuple[str, int]], work: Callable[[Held, int], Awaitable[int | None]]
    ) -> Sequence[Settled]:
        """What became of each letter, in their order."""
        if len(names) > MAX_POSITIONS:
            raise InvalidInput(f"letters: there must be at most {MAX_POSITIONS} at once (got {len(names)}).")
        distinct = tuple(dict.fromkeys(names))
        helds = dict(zip(distinct, await asyncio.to_thread(self.letters.find_all, distinct), strict=True))
        settled: dict[tuple[str, int], Settled] = {}

        async def settle(name: tuple[str, int], left: int) -> bool:
            letter, held = f"{name[0]}/{name[1]}", helds[name]
            try:
                if held is None:
                    raise missing_letter(*name)
                settled[name] = Settled(letter=letter, position=await work(held, left))
            except PenstockError as error:
                again, gone = isinstance(error, Unavailable), isinstance(error, NotFound) and held is None
                settled[name] = Settled(letter=letter, error=str(error), again=again, gone=gone)
            return settled[name].error is None

        async def settle_event(letters: Sequence[tuple[str, int]]) -> None:
            """One after another: what fails is still undelivered, and who says that nobody is left makes the log
            forget it."""
            done = 0
            for name in letters:
                held = helds[name]
                undelivered = held is not None and held.last.outcome in UNDELIVERED
                left = 0 if held is None else max(0, held.left - done)
                if await settle(name, left) and undelivered:
                    done += 1

        events: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for name, held in helds.items():
            of = name if held is None else (held.found.broker, held.found.seq)  # positions are a log's own
            events.setdefault(of, []).append(name)
        together = tuple(events.values())
        for start in range(0, len(together), _AT_ONCE):
            await asyncio.gather(*map(settle_event, together[start : start + _AT_ONCE]))
        await self._noted([name for name, told in settled.items() if told.error is None])
        return [settled[name] for name in names]

    async def _redrive(
        self, held: Held, left: int, ask: Redrive, table: Table, triggers: Mapping[str, TriggerSpec]
    ) -> Redriven:
        position = held.found.seq
        hint = "Another one gets the event with: penstock replay --trigger NAME --id EVENT"
        spec = _trigger(triggers, held.trigger, hint)
        self._check(spec, ask.replay, ask.revision)
        self._check_log(held, spec.broker, table)
        event = self._edited(ask.event) if bytes(ask.event) else held.event
        if event is None:
            raise InvalidInput(
                f"The event of {held.id} is corrupt and cannot be sent again as it is. Drop it, or give another."
            )
        wish = Wish(ask.revision, position, held.delivery.uid, left)
        marked = event.with_attributes(**{REPLAY_ATTRIBUTE: ask.replay})
        return Redriven(position=await self._forward.send(spec.broker, spec.name, marked, wish), event_id=event.id)

    async def _drop(self, held: Held, left: int, table: Table) -> None:
        self._check_log(held, held.found.broker, table)
        await self._forward.discard(held.found.broker, held.found.seq, Wish(None, None, held.delivery.uid, left))

    async def _noted(self, names: Sequence[tuple[str, int]]) -> None:
        """Wait until the ledger says what was done with these letters, so that it is done for good, and who asks for
        the next letter of the same event finds one less. Raises Unavailable where it does not come."""
        until = asyncio.get_running_loop().time() + NOTED_S
        while any(held is not None for held in await asyncio.to_thread(self.letters.find_all, names)):
            if asyncio.get_running_loop().time() > until:
                raise Unavailable("What was done with the letters is not in the ledger yet. Look again later.")
            await asyncio.sleep(LOOK_S)

    # ---- replays

    async def select(self, ask: Ask) -> Asked:
        """Some of the events that a replay is for, and where to ask on."""
        spec, reader = self._of(f"{ask.namespace}/{ask.trigger}")
        broker = spec.broker.partition("/")[2]
        wanted = spec.filter if ask.filters is None else _filter(ask.filters)
        criteria = Criteria(namespace=ask.namespace, broker=broker, filter=wanted, ids=frozenset(ask.ids))

        def read() -> Selection:
            if ask.after is not None and ask.through is not None:
                where = Window(ask.after, ask.through)
            else:
                where = window(reader, ask.namespace, broker, ask.since, ask.until)
            return select(reader, criteria, where, ask.limit)

        selection = await asyncio.to_thread(read)
        return Asked(selection=selection, trigger=spec.key, broker=spec.broker, subscriber=spec.subscriber_uri)

    async def replay(self, ask: Replay) -> Replayed:
        """Send events again. Each is on disk when this returns; where it raises, some may have been sent, which a
        request with `resumed` leaves out."""
        spec, reader = self._of(f"{ask.namespace}/{ask.trigger}")
        self._check(spec, ask.replay, ask.revision)
        if len(ask.positions) > MAX_POSITIONS:
            raise InvalidInput(f"positions: there must be at most {MAX_POSITIONS} at once (got {len(ask.positions)}).")

        def read() -> tuple[list[Found], list[int]]:
            fresh: list[Found] = []
            before: list[int] = []
            for found in reader.at(ask.positions):
                if found.broker == spec.broker and found.record is not None:
                    sent_as = _sent_as(reader, found.seq, spec.uid, ask.replay) if ask.resumed else None
                    if sent_as is None:
                        fresh.append(found)
                    else:
                        before.append(sent_as)
            return fresh, before

        found, before = await asyncio.to_thread(read)
        positions: list[int] = []
        for start in range(0, len(found), _AT_ONCE):
            sending = (self._again(spec, each, ask) for each in found[start : start + _AT_ONCE])
            results = await asyncio.gather(*sending, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                positions.append(result)
        missing = len(set(ask.positions)) - len(found) - len(before)
        return Replayed(
            sent=len(positions), before=len(before), missing=missing, positions=tuple(sorted(before + positions))
        )

    async def look(self, ask: Look) -> Seen:
        """How events that were sent again stand."""
        spec, reader = self._of(f"{ask.namespace}/{ask.trigger}")
        if len(ask.positions) > MAX_POSITIONS:
            raise InvalidInput(f"positions: there must be at most {MAX_POSITIONS} at once (got {len(ask.positions)}).")

        def read() -> Counter[str]:
            told = reader.deliveries(ask.positions)
            attempts = {
                seq: delivery.attempts
                for seq, deliveries in told.items()
                for delivery in deliveries
                if delivery.uid == spec.uid
            }
            return Counter(standing(attempts[seq]).outcome if seq in attempts else "pending" for seq in ask.positions)

        return Seen(states=dict(await asyncio.to_thread(read)))

    # ---- inside

    async def _again(self, spec: TriggerSpec, found: Found, ask: Replay) -> int:
        assert found.record is not None  # noqa: S101 - `replay` left out those without; tells the type checker
        event = found.record.entry.event().with_attributes(**{REPLAY_ATTRIBUTE: ask.replay})
        return await self._forward.send(spec.broker, spec.name, event, Wish(ask.revision, found.seq))

    def _of(self, key: str) -> tuple[TriggerSpec, LogQuery]:
        """The Trigger and the log of its Broker."""
        table = self._table()
        spec = _trigger(_by_name(table), key, "List those that exist with: penstock get triggers -A")
        broker = table.brokers.get(spec.broker)
        reader = self._readers.get(broker.log_class) if broker is not None else None
        if reader is None:
            raise NotFound(f"The Broker {spec.broker} of the Trigger {key} does not exist, or its class is not served.")
        return spec, reader

    def _check(self, spec: TriggerSpec, replay: str, revision: str | None) -> None:
        if not _REPLAY.match(replay):
            rule = "must be at most 64 lower case letters, digits and '-', starting and ending with a letter or digit"
            raise InvalidInput(f"replay={replay[:100]!r} {rule}.")
        if revision is not None and not self._has_revision(spec.namespace, revision):
            hint = "List those that exist with: penstock get revisions"
            raise NotFound(f"There is no Revision {revision!r} in the namespace {spec.namespace!r}. {hint}.")

    def _check_log(self, held: Held, broker: str, table: Table) -> None:
        """The ingress notes what was done in the log that the Broker has now. Where that is another one than the
        letter's, another event has its position there."""
        known = table.brokers.get(broker)
        if known is not None and self._readers.get(known.log_class) is not held.reader:
            raise InvalidInput(
                f"{held.id} is in another log than that of the class {known.log_class}, which the Broker {broker} has "
                "now, and cannot be settled. Leave it until it is no longer kept, and publish its event anew to have "
                "it delivered."
            )

    def _edited(self, raw: msgspec.Raw) -> CloudEvent:
        return from_http(_STRUCTURED, bytes(raw))


def _by_name(table: Table) -> Mapping[str, TriggerSpec]:
    """The Triggers by ``namespace/name``: looked up once for a request, which may be for many letters."""
    return {trigger.key: trigger for trigger in table.triggers.values()}


def _trigger(triggers: Mapping[str, TriggerSpec], key: str, hint: str) -> TriggerSpec:
    """Raises NotFound, with what to do."""
    found = triggers.get(key)
    if found is None:
        namespace, _, name = key.partition("/")
        raise NotFound(f"There is no Trigger {name!r} in the namespace {namespace!r}. {hint}.")
    return found


def _sent_as(reader: LogQuery, seq: int, uid: str, replay: str) -> int | None:
    """At which position this replay has sent the event at `seq` to the Trigger before; None where it has not."""
    for found in reader.replies(seq):
        entry = found.record.entry if found.record is not None else None
        if entry is None or entry.only is None or entry.only.uid != uid:
            continue  # a reply, or for somebody else
        if entry.attributes.get(REPLAY_ATTRIBUTE) == replay:
            return found.seq
    return None


def _filter(filters: Sequence[dict[str, object]]) -> Filter:
    try:
        return compile_filter(msgspec.convert({"filters": list(filters)}, TriggerShape))
    except PenstockError:
        raise
    except ValueError as error:
        raise InvalidInput(f"The filter cannot be read: {error}.") from error
