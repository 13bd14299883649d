"""How one process hears the log: every event of every process once, in order of position."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from aiokafka.errors import OffsetOutOfRangeError

from broker.log.kafka import reading
from broker.log.kafka.connection import (
    CONNECTION_ERRORS,
    EARLIEST,
    LATEST,
    REQUEST_TIMEOUT_S,
    Connection,
    Fetched,
    patiently,
    reason,
)
from broker.log.kafka.layout import stored_in
from broker.log.kafka.retention import Sizes
from broker.log.kafka.state import State
from broker.log.port import Appended, Entry, Record, Retention, announce, answer
from core.errors import Corrupt

__all__ = ["RETRY_CAP_S", "RETRY_FIRST_S", "Hearing", "StateFollower"]

logger = logging.getLogger(__name__)

#: After a failure, before it is tried again; doubled each time up to the cap.
RETRY_FIRST_S: Final = 0.1
RETRY_CAP_S: Final = 5.0
#: How long a wait for other processes' events lasts before it is asked anew.
BLOCK_S: Final = 5.0
#: After a wait that brought only what this process appended itself. Its own answers tell what others appended before.
PACE_S: Final = 0.05
#: How often it is looked how much room the events take.
SIZE_INTERVAL_S: Final = 15.0


class Hearing:
    """The events' topic as this process has heard it. `open` it first.

    `lock` is held while listeners are told; who appends holds it from before its request until `tell_own`, so that
    nobody is told of what comes later first.
    """

    def __init__(self, servers: str, asks: Connection, topic: str, retention: Retention) -> None:
        """Raises ValueError where the servers cannot be read."""
        self.lock = asyncio.Lock()
        self._listeners: list[Callable[[Record], None]] = []
        self._listened = asyncio.Event()
        #: The newest position heard.
        self.last = 0
        #: How many bytes more the log may take.
        self.room = retention.full_bytes
        self._asks = asks
        self._waits = Connection(servers, timeout_s=BLOCK_S + REQUEST_TIMEOUT_S)
        self._topic = topic
        self._retention = retention

    async def open(self) -> None:
        """Go on from the log's end. Raises CONNECTION_ERRORS."""
        await self._waits.know((self._topic,))
        self.last = await patiently(lambda: self._asks.offset(self._topic, LATEST))
        start = await patiently(lambda: self._asks.offset(self._topic, EARLIEST))
        size = await self._asks.size(self._topic)
        self.sizes = Sizes(start=start, end=self.last, size=size, largest=self._retention.max_bytes)
        self.room = self._retention.full_bytes - size

    async def close(self) -> None:
        await self._waits.close()

    async def run(self) -> None:
        """Hear what other processes append, until cancelled."""
        loop = asyncio.get_running_loop()
        retry_s, size_s = RETRY_FIRST_S, loop.time()
        while True:
            try:
                await self._hear_new()
                if loop.time() - size_s >= SIZE_INTERVAL_S:
                    size_s = loop.time()
                    await self.look_for_room()
                retry_s = RETRY_FIRST_S
            except CONNECTION_ERRORS as error:
                if retry_s == RETRY_FIRST_S:  # once an outage
                    facts = {"error": reason(error)}
                    logger.warning("the event log cannot be followed now; trying again", extra={"facts": facts})
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_CAP_S)

    def tell(self, listener: Callable[[Record], None]) -> None:
        """Tell it of every event from now on."""
        self._listeners.append(listener)
        self._listened.set()

    async def tell_own(self, events: Iterable[tuple[Entry, Appended]], first: int) -> None:
        """Tell of this process's own events, which got positions from `first` on. The caller holds `lock`. Raises
        Corrupt where these have been given before."""
        if first <= self.last:
            raise _lost(first - 1, self.last)
        told = True
        if first > self.last + 1:  # other processes' events are before ours
            try:
                await self._hear_through(first - 1)
            except CONNECTION_ERRORS as error:
                # Ours are stored, so their senders are told; the follower tells the listeners once it can.
                logger.warning("events of other processes are late", extra={"facts": {"error": reason(error)}})
                told = False
        for seq, (entry, then) in enumerate(events, first):
            record = Record(seq, entry)
            if told:
                self._hear(record)
            answer(then, record)

    async def catch_up(self, newest: int) -> None:
        """Hear all events up to a position that Kafka has. Raises CONNECTION_ERRORS."""
        async with self.lock:
            await self._hear_through(newest)

    async def look_for_room(self) -> None:
        """Raises CONNECTION_ERRORS."""
        self.room = self._retention.full_bytes - await self._asks.size(self._topic)

    # ---- inside

    def _hear(self, record: Record) -> None:
        size = len(record.entry.head) + len(record.entry.data)
        self.last = record.seq
        if self._listeners:  # else nobody here delivers, or forgets anything: it would be counted for ever
            self.sizes.add(record.seq, size)
        self.room -= size
        announce(record, self._listeners)

    async def _hear_new(self) -> None:
        """Wait for what is new and tell it."""
        if not self._listeners:
            await self._skip()
            return
        asked = {self._topic: self.last}
        try:
            fetched = (await self._waits.fetch(asked, max_bytes=reading.FETCH_BYTES, wait_s=BLOCK_S))[self._topic]
        except OffsetOutOfRangeError:
            await self._must_be_there()
            return
        async with self.lock:
            new = list(stored_in(fetched.data, self.last))
            through = new[-1].offset + 1 if new else 0
            for record in reading.heard_in(new):
                self._hear(record)
            self.last = max(self.last, through)
        if fetched.data and not new:
            await asyncio.sleep(PACE_S)

    async def _hear_through(self, newest: int) -> None:
        """Read and tell all events up to a position. Where it raises CONNECTION_ERRORS, `last` is how far it came."""
        if not self._listeners:  # a process that only appends
            self.last = max(newest, self.last)
        while self.last < newest:
            records, through = await reading.records_between(self._asks, self._topic, self.last, newest)
            for record in records:
                self._hear(record)
            self.last = max(through, self.last)

    async def _skip(self) -> None:
        """A process that only appends reads nothing: it is enough to know now and then how far the log is."""
        async with self.lock:
            end = await patiently(lambda: self._asks.offset(self._topic, LATEST))
            if end < self.last:
                raise _lost(end, self.last)
            self.last = end
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BLOCK_S):
                await self._listened.wait()

    async def _must_be_there(self) -> None:
        """What comes next is not there. Raises Corrupt where Kafka has lost what was heard."""
        end = await patiently(lambda: self._asks.offset(self._topic, LATEST))
        start = await patiently(lambda: self._asks.offset(self._topic, EARLIEST))
        async with self.lock:
            if end < self.last:
                raise _lost(end, self.last)
            if self.last < start:
                facts = {"last": self.last, "start": start}
                logger.error("events were removed before they were heard", extra={"facts": facts})
                self.last = start


def _lost(end: int, last: int) -> Corrupt:
    """Positions come again: only a process that starts anew goes on right with them."""
    return Corrupt(f"Kafka has lost events: it has {end} of the {last} that were acknowledged.")


class StateFollower:
    """The state topic as far as it was read."""

    def __init__(self, asks: Connection, topic: str) -> None:
        self.state = State()
        self._asks = asks
        self._topic = topic
        self._lock = asyncio.Lock()

    async def catch_up(self, through: int | None) -> None:
        """Read through an offset, or to the end. Raises CONNECTION_ERRORS."""
        state = self.state
        async with self._lock:
            while through is None or state.next <= through:
                try:
                    fetched = await patiently(self._fetch)
                except OffsetOutOfRangeError:
                    state.next = await patiently(lambda: self._asks.offset(self._topic, EARLIEST))
                    continue
                for stored in stored_in(fetched.data, state.next):
                    state.apply(stored)
                if state.next >= fetched.end and through is None:
                    return

    async def _fetch(self) -> Fetched:
        return (await self._asks.fetch({self._topic: self.state.next}, max_bytes=reading.FETCH_BYTES))[self._topic]
