"""Gathers events into batches: so many, so large, or as long as the first of them may wait. Pure: times are given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from broker.courier import Batch, Delivery

__all__ = ["MAX_BATCH_BYTES", "Gathering"]

#: Of the events of one batch, but for one that is larger alone: what servers commonly take in one request.
MAX_BATCH_BYTES: Final = 1024 * 1024


class Gathering:
    """Events that wait for others to go with, and batches that are to go again as they were."""

    __slots__ = ("_bytes", "_events", "_most", "_wait_s", "again")

    def __init__(self, most: int, wait_s: float) -> None:
        self._most = most
        self._wait_s = wait_s
        self._events: deque[tuple[Delivery, float]] = deque()
        self._bytes = 0
        self.again: deque[Batch] = deque()

    def add(self, delivery: Delivery, now: float) -> None:
        self._events.append((delivery, now))
        self._bytes += _size(delivery)

    def count(self, now: float) -> int:
        """How many events the next batch has; 0 where more are waited for."""
        if self.again:
            return len(self.again[0].deliveries)
        events = self._events
        whole = len(events) >= self._most or self._bytes >= MAX_BATCH_BYTES
        if not events or not (whole or events[0][1] + self._wait_s <= now):
            return 0
        count, size = 0, 0
        for delivery, _ in events:
            size += _size(delivery)
            if count == self._most or (count and size > MAX_BATCH_BYTES):
                break
            count += 1
        return count

    def take(self, count: int) -> Batch:
        """The next batch, which has as many as `count` told."""
        if self.again:
            return self.again.popleft()
        deliveries = tuple(self._events.popleft()[0] for _ in range(count))
        self._bytes -= sum(map(_size, deliveries))
        return Batch(deliveries)

    def next_at(self) -> float | None:
        """When the next batch goes if nothing more comes."""
        return self._events[0][1] + self._wait_s if self._events else None

    def held(self) -> Iterator[Delivery]:
        """All events in it."""
        for batch in self.again:
            yield from batch.deliveries
        for delivery, _ in self._events:
            yield delivery


def _size(delivery: Delivery) -> int:
    return len(delivery.record.entry.data) + len(delivery.record.entry.head)
