"""What waits for the next round trip to Kafka, and the batches of records that it becomes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from broker.ledger import SETTLED, UNDELIVERED, Attempt
from broker.log.encoding import encode_attempt, encode_entry
from broker.log.kafka.layout import (
    Pair,
    Said,
    Topics,
    encode_batch,
    encode_dropped,
    encode_kept,
    encode_said,
    member_key,
    memo_key,
    position_key,
    undelivered_key,
)
from broker.log.port import MAX_PENDING_NOTES, Appended, Entry, Subscription

__all__ = ["BATCH_BYTES", "BATCH_EVENTS", "BATCH_NOTES", "BATCH_POSITIONS", "HURRIED_POSITIONS", "Batch", "payloads"]

#: Of one round trip; a batch is one record set to Kafka, whose largest size the topic limits (`topics.py`).
BATCH_EVENTS: Final = 2048
BATCH_BYTES: Final = 1024 * 1024
BATCH_NOTES: Final = 4096
#: About 4 KiB each where a Trigger has all that it may have outstanding.
BATCH_POSITIONS: Final = 256
#: The same while something is to be said after them; half of what the state topic takes, were each of twice that size.
HURRIED_POSITIONS: Final = 1024
#: Open events of all these positions, of at most eight bytes each: half of what the state topic takes. A Trigger that
#: wants order may have four times as many as another one.
BATCH_OPEN: Final = 1024 * 1024
#: About 30 KiB each where a Trigger has all that it may have outstanding in retries, and four times that in order.
BATCH_MEMOS: Final = 32
#: A quarter of what the state topic takes, also while something is to be said: a batch that it refuses as too large
#: would be refused for ever, and what is said with it never heard.
BATCH_MEMO_BYTES: Final = 4 * 1024 * 1024


class Batch:
    """Events, ledger rows, subscriptions whose position moved or was dropped, what is remembered of them, and whether
    this process says what it has; who waits for that is in `speakers`."""

    __slots__ = ("_before", "dirty", "dropped", "events", "memos", "notes", "says", "speakers")

    def __init__(self) -> None:
        self.events: deque[tuple[Entry, Appended]] = deque()
        self.notes: deque[Attempt] = deque()
        self.dirty: dict[str, Subscription] = {}
        self.dropped: dict[str, Subscription] = {}
        self.memos: dict[str, bytes] = {}
        self.says = False
        self.speakers: list[asyncio.Future[int]] = []
        #: At most how many of `dirty`, from its beginning on, come before what is said.
        self._before = 0

    @property
    def empty(self) -> bool:
        return not (self.events or self.notes or self.has_state)

    @property
    def has_state(self) -> bool:
        return bool(self.dirty or self.dropped or self.memos or self.says)

    def say(self) -> None:
        """Have said what this process has, after the positions that wait by now: a subscription is given back after its
        position is kept."""
        self.says = True
        self._before = len(self.dirty)

    def take(self, *, positions: bool) -> Batch:
        """The next round trip's share of it; without `positions` those wait."""
        taken = Batch()
        size = 0
        while self.events and len(taken.events) < BATCH_EVENTS and size < BATCH_BYTES:
            event = self.events.popleft()
            size += len(event[0].head) + len(event[0].data)
            taken.events.append(event)
        while self.notes and len(taken.notes) < BATCH_NOTES:
            taken.notes.append(self.notes.popleft())
        if positions or self.says:
            room = BATCH_OPEN
            for uid in list(self.dirty)[: HURRIED_POSITIONS if self.says else BATCH_POSITIONS]:
                room -= len(self.dirty[uid].open)
                if room < 0 and taken.dirty:
                    break
                taken.dirty[uid] = self.dirty.pop(uid)
            taken.dropped, self.dropped = self.dropped, {}
            room = BATCH_MEMO_BYTES
            for uid in list(self.memos)[: HURRIED_POSITIONS if self.says else BATCH_MEMOS]:
                room -= len(self.memos[uid])
                if room < 0 and taken.memos:
                    break
                taken.memos[uid] = self.memos.pop(uid)
            self._before -= len(taken.dirty)
            if self._before <= 0 or not self.dirty:
                taken.says, self.says = self.says, False
                taken.speakers, self.speakers = self.speakers, []
        return taken

    def put_back_notes(self, notes: deque[Attempt]) -> None:
        notes.extend(self.notes)
        while len(notes) > MAX_PENDING_NOTES:
            notes.popleft()
        self.notes = notes

    def put_back_state(self, refused: Batch) -> None:
        """What was refused, before what came since. Who spoke is told, and speaks again."""
        # A subscription of this uid that was made or dropped since says what holds now.
        again = {uid: held for uid, held in refused.dirty.items() if uid not in self.dropped}
        self.dirty = {**again, **self.dirty}
        self.memos = {**{uid: memo for uid, memo in refused.memos.items() if uid not in self.dropped}, **self.memos}
        self.dropped = {**refused.dropped, **self.dropped}
        if self.says or refused.says:
            self.say()


def payloads(
    topics: Topics, owner: str, batch: Batch, token: Callable[[str], int], statement: Callable[[], Said]
) -> tuple[dict[str, bytes], int]:
    """A batch of records for each topic that gets some, and how many the state topic gets; what is said is its last.
    `token` is a subscription's fencing token."""
    made = {}
    if batch.events:
        made[topics.events] = encode_batch(
            (entry.broker.encode(), encode_entry(entry), int(entry.at * 1000)) for entry, _ in batch.events
        )
    if batch.notes:
        made[topics.ledger] = encode_batch((None, encode_attempt(note), 0) for note in batch.notes)
    state: list[Pair] = []
    # Before positions: a subscription may have been dropped and made again.
    state += ((position_key(uid), encode_dropped(held.broker, held.name), 0) for uid, held in batch.dropped.items())
    state += ((memo_key(uid), None, 0) for uid in batch.dropped)
    state += ((memo_key(uid), memo, 0) for uid, memo in batch.memos.items())
    for uid, held in batch.dirty.items():
        state.append((position_key(uid), encode_kept(token(uid), held.broker, held.name, held.snapshot()), 0))
    undelivered = {note.seq for note in batch.notes if note.outcome in UNDELIVERED}
    state += ((undelivered_key(seq), b"", 0) for seq in sorted(undelivered))
    settled = {note.seq for note in batch.notes if note.outcome in SETTLED and note.number == 0}
    state += ((undelivered_key(seq), None, 0) for seq in sorted(settled))
    if batch.says:  # after positions: then they may be taken over
        state.append((member_key(owner), encode_said(statement()), 0))
    if state:
        made[topics.state] = encode_batch(state)
    return made, len(state)
