"""The in-memory EventLog: the fake for tests, and the oracle that durable logs are compared with."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from typing import Final

from broker.ledger import SETTLED, UNDELIVERED, Attempt
from broker.log.port import (
    MAX_PENDING_BYTES,
    MAX_PENDING_EVENTS,
    Appended,
    Entry,
    Page,
    Position,
    Record,
    Retention,
    Subscription,
    announce,
    answer,
)
from core.errors import Overloaded, PenstockError

__all__ = ["MemoryLog"]

_PAGE_BYTES: Final = 1024 * 1024


class MemoryLog:
    """An EventLog and Ledger in lists. What is appended in one turn of the loop becomes "durable" in the next."""

    def __init__(self, *, retention: Retention | None = None) -> None:
        self._retention = retention or Retention()
        self._records: list[Record] = []
        self._subscriptions: dict[str, Subscription] = {}
        self._pending: list[tuple[Record, Appended]] = []
        self._pending_bytes = 0
        self._next = 1
        self._last = 0
        self._listeners: list[Callable[[Record], None]] = []
        self.attempts: list[Attempt] = []
        self.memos: dict[str, bytes] = {}

    # ---- EventLog

    def append(self, entry: Entry, then: Appended) -> None:
        if len(self._pending) >= MAX_PENDING_EVENTS or self._pending_bytes >= MAX_PENDING_BYTES:
            then(Overloaded(f"{len(self._pending)} events wait to be stored. Try again in a second."))
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._commit)
        self._pending.append((Record(self._next, entry), then))
        self._pending_bytes += len(entry.head) + len(entry.data)
        self._next += 1

    def tail(self, listener: Callable[[Record], None]) -> None:
        self._listeners.append(listener)

    def last(self) -> int:
        return self._last

    def read(self, broker: str, after: int, limit: int, then: Callable[[Page | PenstockError], None]) -> None:
        asyncio.get_running_loop().call_soon(lambda: then(self._page(broker, after, limit)))

    def pick(self, broker: str, seqs: Iterable[int], then: Callable[[Page | PenstockError], None]) -> None:
        asyncio.get_running_loop().call_soon(lambda: then(self._picked(broker, set(seqs))))

    def subscribe(self, uid: str, broker: str, name: str, start: int) -> Subscription:
        held = self._subscriptions.get(uid)
        if held is None:
            held = self._subscriptions[uid] = Subscription(uid, broker, name, Position(start), _kept)
        return held

    def unsubscribe(self, uid: str) -> None:
        self._subscriptions.pop(uid, None)
        self.memos.pop(uid, None)

    def subscriptions(self) -> Collection[str]:
        return self._subscriptions.keys()

    def remember(self, uid: str, memo: bytes) -> None:
        if uid in self._subscriptions:
            self.memos[uid] = memo

    def recall(self, uid: str, then: Callable[[bytes | PenstockError], None]) -> None:
        asyncio.get_running_loop().call_soon(then, self.memos.get(uid, b""))

    def claim(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        granted()  # nobody else delivers from this log

    def release(self, uid: str) -> None:
        return

    def seek(self, broker: str, at: float, then: Callable[[int | PenstockError], None]) -> None:
        before = [r.seq for r in self._records if r.entry.broker == broker and r.entry.at < at]
        asyncio.get_running_loop().call_soon(then, before[-1] if before else 0)

    async def retain(self, now: float) -> int:
        settled = {a.seq for a in self.attempts if a.outcome in SETTLED and a.number == 0}
        undelivered = {a.seq for a in self.attempts if a.outcome in UNDELIVERED} - settled
        size = sum(_size(record) for record in self._records)
        kept = []
        for record in self._records:
            age = now - record.entry.at
            keep_s = self._retention.undelivered_age_s if record.seq in undelivered else self._retention.max_age_s
            crowded = size > self._retention.max_bytes and record.seq not in undelivered
            if (age > keep_s or crowded) and record.seq <= self._low_water(record.entry.broker):
                size -= _size(record)
            else:
                kept.append(record)
        removed = len(self._records) - len(kept)
        self._records = kept
        return removed

    async def flush(self) -> None:
        self._commit()

    # ---- Ledger

    def note(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    # ---- inside

    def _commit(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        for record, then in pending:
            self._records.append(record)
            self._last = record.seq
            announce(record, self._listeners)
            answer(then, record)

    def _page(self, broker: str, after: int, limit: int) -> Page:
        found: list[Record] = []
        size = 0
        for record in self._records[bisect_right(self._records, after, key=lambda r: r.seq) :]:
            if record.entry.broker != broker:
                continue
            if len(found) == limit or size > _PAGE_BYTES:
                return Page(found, found[-1].seq, more=True)
            found.append(record)
            size += _size(record)
        return Page(found, max(after, self._last))

    def _picked(self, broker: str, wanted: set[int]) -> Page:
        found: list[Record] = []
        size = 0
        for record in self._records:
            if record.seq in wanted and record.entry.broker == broker:
                if size > _PAGE_BYTES:
                    return Page(found, found[-1].seq, more=True)
                found.append(record)
                size += _size(record)
        return Page(found, max(wanted, default=0))

    def _low_water(self, broker: str) -> int:
        marks = [s.position().low_water for s in self._subscriptions.values() if s.broker == broker]
        return min(marks, default=self._last)


def _kept(subscription: Subscription) -> None:
    subscription.snapshot()


def _size(record: Record) -> int:
    return len(record.entry.head) + len(record.entry.data)
