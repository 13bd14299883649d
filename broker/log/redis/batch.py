"""What waits for the next round trip to Redis, and the commands that it becomes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from broker.ledger import SETTLED, UNDELIVERED, Attempt
from broker.log.encoding import encode_attempt, encode_entry
from broker.log.port import MAX_PENDING_NOTES, Appended, Entry, Subscription
from broker.log.redis.connection import Word
from broker.log.redis.layout import Keys, encode_kept
from broker.log.redis.scripts import APPEND, KEEP, RELEASE

__all__ = ["Batch", "append_command", "other_commands"]


class Batch:
    """Events, ledger rows, subscriptions whose position moved or was dropped, what is remembered of them, and leases to
    give back."""

    __slots__ = ("dirty", "dropped", "events", "memos", "notes", "released")

    def __init__(self) -> None:
        self.events: deque[tuple[Entry, Appended]] = deque()
        self.notes: deque[Attempt] = deque()
        self.dirty: dict[str, Subscription] = {}
        self.dropped: dict[str, None] = {}
        self.memos: dict[str, bytes] = {}
        self.released: list[tuple[str, str]] = []

    @property
    def empty(self) -> bool:
        return not (self.events or self.has_others)

    @property
    def has_others(self) -> bool:
        return bool(self.notes or self.dirty or self.dropped or self.memos or self.released)

    def put_back(self, refused: Batch) -> None:
        """All but the events of a batch that was refused, before what came since."""
        refused.notes.extend(self.notes)
        while len(refused.notes) > MAX_PENDING_NOTES:
            refused.notes.popleft()
        self.notes = refused.notes
        # A subscription of this uid that was made or dropped since says what holds now.
        again = {uid: held for uid, held in refused.dirty.items() if uid not in self.dropped}
        self.dirty = {**again, **self.dirty}
        self.memos = {**{uid: memo for uid, memo in refused.memos.items() if uid not in self.dropped}, **self.memos}
        self.dropped = {**refused.dropped, **self.dropped}
        self.released = refused.released + self.released


def append_command(keys: Keys, events: Iterable[tuple[Entry, Appended]], newest: int, largest: int) -> tuple[Word, ...]:
    """The events in one script."""
    streams: dict[str, int] = {}
    stored: list[Word] = []
    first = 7
    for entry, _ in events:
        number = streams.setdefault(entry.broker, len(streams) + first)
        stored.append(number)
        stored.append(encode_entry(entry))
    names = [keys.seq, keys.wake, keys.bytes, keys.ids, keys.causes, keys.brokers, *map(keys.events, streams)]
    return ("EVAL", APPEND, len(names), *names, newest, largest, *streams, *stored)


def other_commands(keys: Keys, batch: Batch, token: Callable[[str], str]) -> tuple[list[tuple[Word, ...]], int | None]:
    """Everything but the events, and which of the commands is `KEEP`'s, if one is. `token` is a subscription's fencing
    token."""
    commands: list[tuple[Word, ...]] = []
    keep = None
    if batch.dropped:  # before positions: a subscription may have been dropped and made again
        commands.append(("HDEL", keys.positions, *batch.dropped))
        commands.append(("HDEL", keys.fences, *batch.dropped))
        commands.append(("HDEL", keys.memos, *batch.dropped))
    if batch.dirty:
        arguments: list[Word] = []
        for uid, held in batch.dirty.items():
            position = held.snapshot()
            arguments += (uid, token(uid), held.name)
            arguments.append(encode_kept(held.broker, held.name, position.through, position.open))
        keep = len(commands)
        commands.append(("EVAL", KEEP, 3, keys.positions, keys.fences, keys.names, *arguments))
    if batch.memos:  # not fenced: a late one of a process that lost its lease only has attempts counted less exactly
        commands.append(("HSET", keys.memos, *(word for memo in batch.memos.items() for word in memo)))
    if batch.notes:
        rows: list[Word] = []
        for attempt in batch.notes:
            rows += (attempt.seq, encode_attempt(attempt))
        commands.append(("ZADD", keys.attempts, *rows))
        undelivered = [note.seq for note in batch.notes if note.outcome in UNDELIVERED]
        if undelivered:
            commands.append(("ZADD", keys.undelivered, *(word for seq in undelivered for word in (seq, seq))))
        settled = [note.seq for note in batch.notes if note.outcome in SETTLED and note.number == 0]
        if settled:
            commands.append(("ZREM", keys.undelivered, *settled))
    if batch.released:
        names = [keys.moved, *(key for key, _ in batch.released)]
        commands.append(("EVAL", RELEASE, len(names), *names, *(value for _, value in batch.released)))
    return commands, keep
