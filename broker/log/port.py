"""The EventLog port: durable append, read from a position, positions per subscription, seek by time, retention.

Every adapter (SQLite, Redis, Kafka, the in-memory fake) passes `tests/conformance/event_log.py`. What is called for
every event is callbacks on the event loop's thread and makes no task; what is called now and then is a coroutine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from broker.ledger import Ledger
from broker.log.direction import Direction
from core.errors import PenstockError, Unavailable
from core.events import CloudEvent

__all__ = [
    "FLUSH_INTERVAL_S",
    "MAX_PENDING_BYTES",
    "MAX_PENDING_EVENTS",
    "MAX_PENDING_NOTES",
    "Appended",
    "Entry",
    "EventLog",
    "LedgerLog",
    "LogFull",
    "OwnLog",
    "Page",
    "Position",
    "Record",
    "Retention",
    "Subscription",
    "announce",
    "answer",
]

logger = logging.getLogger(__name__)

#: Events that wait for their commit. A commit takes about a millisecond and takes all that wait: more than this means
#: that the disk has stopped, and that new events should be refused with Retry-After instead of held in memory.
MAX_PENDING_EVENTS: Final = 8192
MAX_PENDING_BYTES: Final = 64 * 1024 * 1024


#: Acknowledgements and ledger rows wait this long at most for an event's commit to ride along with: what a crash may
#: deliver a second time.
FLUSH_INTERVAL_S: Final = 0.02
#: Ledger rows that wait while they cannot be written; after that the oldest go.
MAX_PENDING_NOTES: Final = 100_000


class LogFull(Unavailable):
    """There is no room for the event: the disk is full, or the log has its largest permitted size."""


class Entry(msgspec.Struct, frozen=True):
    """An event as it is kept.

    `broker` is ``namespace/name``; `attributes` the event's context attributes; `head` its header lines in binary mode
    as they go on the wire (`core.events.binary_head`), so that a delivery need not encode them; `data` its payload.
    `at` is when it arrived, in seconds since the epoch. `ttl` is how many more times it may come back as a reply.
    `cause` is the position of the event that it replies to, and `via` the uid of the Trigger whose subscriber replied.
    With `only`, it is for one subscription alone, and `cause` is the position of the event that it repeats.
    """

    broker: str
    attributes: dict[str, str]
    head: bytes
    data: bytes
    at: float
    ttl: int
    cause: int | None = None
    via: str | None = None
    only: Direction | None = None

    def event(self) -> CloudEvent:
        return CloudEvent(attributes=self.attributes, data=self.data or None)


class Record(msgspec.Struct, frozen=True):
    """An entry with its position in the log. Positions only grow, over all Brokers of a log; they may have gaps."""

    seq: int
    entry: Entry


Appended = Callable[[Record | PenstockError], None]


class Page(msgspec.Struct, frozen=True):
    """What a read found, in order. `through` is how far it looked: read on after it. `corrupt` are positions whose
    bytes are not what was written; `more` tells that the page ended for its size and not for want of events."""

    records: Sequence[Record]
    through: int
    corrupt: tuple[int, ...] = ()
    more: bool = False


class Position(msgspec.Struct, frozen=True):
    """How far a subscription is: it has looked at everything up to `through`, and is done with all of it but `open`."""

    through: int
    open: tuple[int, ...] = ()

    @property
    def low_water(self) -> int:
        """Everything up to here is done."""
        return self.open[0] - 1 if self.open else self.through


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long events are kept. Sizes in bytes, times in seconds.

    An event goes once every subscription of its Broker is done with it and it is older than `max_age_s`, or the log is
    larger than `max_bytes`. Events that could not be delivered stay for `undelivered_age_s`; a log that is removed only
    from its beginning keeps them, and what came after them, while it is no larger than `max_bytes`. Beyond `full_bytes`
    new events are refused: what waits for a subscriber that is gone must not fill the disk.
    """

    max_age_s: float = 7 * 86_400.0
    max_bytes: int = 1024**3
    undelivered_age_s: float = 30 * 86_400.0
    full_bytes: int = 8 * 1024**3


class Subscription:
    """One subscription's progress, kept by the log it came from. Used on the loop's thread only.

    Acknowledgements come in any order. `changed` is called when there is something new to keep; a change is durable
    at the next commit, at the latest after the log's flush interval.
    """

    __slots__ = ("_changed", "_dirty", "broker", "name", "open", "through", "uid")

    def __init__(
        self, uid: str, broker: str, name: str, position: Position, changed: Callable[[Subscription], None]
    ) -> None:
        self.uid = uid
        self.broker = broker
        self.name = name
        self.through = position.through
        self.open: set[int] = set(position.open)
        self._dirty = False
        self._changed = changed

    def take(self, seq: int) -> None:
        """The event at `seq` is one to deliver; everything before it has been looked at."""
        self.open.add(seq)
        self.through = max(seq, self.through)

    def skip(self, through: int) -> None:
        """Everything up to `through` has been looked at, and nothing more is wanted of it."""
        if through > self.through:
            self.through = through
            self._mark()

    def ack(self, seq: int) -> None:
        """The subscription is done with the event at `seq`, for good."""
        self.open.discard(seq)
        if not self._dirty:
            self._mark()

    def keep(self) -> None:
        """Keep the position as it is: also what was taken and is not done with counts from then on as looked at."""
        self._mark()

    def position(self) -> Position:
        return Position(self.through, tuple(sorted(self.open)))

    def snapshot(self) -> Position:
        """For the log: the position to keep now; later changes are announced anew."""
        self._dirty = False
        return self.position()

    def _mark(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._changed(self)


class EventLog(Protocol):
    """The durable sequence of events of all Brokers of one installation."""

    def append(self, entry: Entry, then: Appended) -> None:
        """Keep an event; `then` hears its Record once it is durable, or why it was refused: Overloaded (too much
        waits), LogFull, Unavailable. `then` may be called before this returns only with an error."""
        ...

    def tail(self, listener: Callable[[Record], None]) -> None:
        """Tell `listener` every event once it is durable, in order of position, before its `then`."""
        ...

    def last(self) -> int:
        """The newest durable position; 0 in a new log."""
        ...

    def read(self, broker: str, after: int, limit: int, then: Callable[[Page | PenstockError], None]) -> None:
        """The next events of one Broker after a position, at most `limit`, fewer where they are large."""
        ...

    def pick(self, broker: str, seqs: Iterable[int], then: Callable[[Page | PenstockError], None]) -> None:
        """The events at these positions; those that are no longer kept are left out. A page that ends for its size has
        looked at those up to its `through`: pick the others again."""
        ...

    def subscribe(self, uid: str, broker: str, name: str, start: int) -> Subscription:
        """The subscription `uid` at its kept position, or a new one at `start`; `name` is for people."""
        ...

    def unsubscribe(self, uid: str) -> None:
        """Drop a subscription's position: it holds back nothing any more."""
        ...

    def subscriptions(self) -> Collection[str]:
        """The uids of all kept subscriptions."""
        ...

    def remember(self, uid: str, memo: bytes) -> None:
        """Keep a word of the subscription's dispatcher to the next one, in place of an earlier one: tens of kilobytes
        at most, durable as a position is. It goes with the subscription."""
        ...

    def recall(self, uid: str, then: Callable[[bytes | PenstockError], None]) -> None:
        """What was last remembered of the subscription; empty where nothing was."""
        ...

    def claim(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        """Become the one process that delivers for the subscription `uid`, of all that share the log: `granted` when
        that is so and its kept position is known, `lost` when it no longer is; then `granted` may come again. A process
        that lost it stops delivering; what it acknowledges after is not kept. Claiming what is held is granted at once.

        `asked` when another process should have it (`broker.log.balance`): this one makes no more attempts, lets those
        under way end, calls `release`, and claims again, to be there when the other one fails. Until then it holds it.

        A log of a single process grants before this returns, never loses and never asks."""
        ...

    def release(self, uid: str) -> None:
        """Claim it no more: another process may have it, from the position as it is now, which is durable before."""
        ...

    def seek(self, broker: str, at: float, then: Callable[[int | PenstockError], None]) -> None:
        """The position after which the Broker's events that arrived at `at` (seconds since the epoch) or later come."""
        ...

    async def retain(self, now: float) -> int:
        """Remove what need not be kept; how many events went."""
        ...

    async def flush(self) -> None:
        """Wait until every change made so far is durable. Raises Unavailable."""
        ...


class LedgerLog(EventLog, Ledger, Protocol):
    """An event log that also keeps the ledger of what became of its events, as every adapter does."""


class OwnLog(LedgerLog, Protocol):
    """A log as the process has it that opens and closes it."""

    async def open(self) -> None:
        """Read what is there, and begin to follow it. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Make everything durable that can be, and give it free for others."""
        ...

    async def failed(self) -> None:
        """Wait until a part of the log has ended by a fault of its own. It takes nothing more then and answers nobody
        who waits: a process that starts anew is better than one that goes on so."""
        ...


def announce(record: Record, listeners: Iterable[Callable[[Record], None]]) -> None:
    """Tell every listener of a durable event, whatever becomes of the others."""
    for listener in listeners:
        try:
            listener(record)
        except Exception:  # boundary: one listener's fault must not keep the event from the others
            logger.exception("a listener of the event log failed")


def answer(then: Appended, record: Record) -> None:
    """Tell the appender of a durable event."""
    try:
        then(record)
    except Exception:  # boundary: one appender's fault must not keep the others' answers back
        logger.exception("an appender's answer failed")
