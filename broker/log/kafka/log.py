"""The event log on Apache Kafka: group commit over the network, and several processes that share their Brokers.

How it costs little. All events that arrive while one round trip is under way share the next: one request that carries
one batch of records for each topic, the acknowledgements and ledger rows of the meantime with them. How several
processes share it. Every process hears every event in order of position: its own from the answer to its append, the
others' by waiting on the topic. Each subscription is served by the one process that holds its lease (`leases.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Final

from broker.ledger import Attempt
from broker.log.kafka import reading
from broker.log.kafka.address import shown
from broker.log.kafka.batch import Batch, payloads
from broker.log.kafka.connection import (
    CONNECTION_ERRORS,
    LATEST,
    Connection,
    patiently,
    reason,
    unavailable,
)
from broker.log.kafka.hearing import RETRY_CAP_S, RETRY_FIRST_S, Hearing, StateFollower
from broker.log.kafka.layout import (
    FORMAT,
    FORMAT_KEY,
    Kept,
    Topics,
    encode_batch,
    member_key,
    undelivered_key,
)
from broker.log.kafka.leases import Leases
from broker.log.kafka.retention import sweep
from broker.log.kafka.topics import ensure
from broker.log.port import (
    FLUSH_INTERVAL_S,
    MAX_PENDING_BYTES,
    MAX_PENDING_EVENTS,
    MAX_PENDING_NOTES,
    Appended,
    Entry,
    LogFull,
    Page,
    Position,
    Record,
    Retention,
    Subscription,
)
from core.errors import Overloaded, PenstockError, Unavailable

__all__ = ["DEFAULT_NAME", "KafkaLog"]

logger = logging.getLogger(__name__)

DEFAULT_NAME: Final = "penstock"

#: What those are told who wait for a log that goes on no more.
ENDED: Final = "A part of the event log has ended by a fault; the log's errors say which."

#: Positions wait so long for others: each is a record that every process reads, and that compaction has to remove.
POSITIONS_INTERVAL_S: Final = 0.05


#: A process whose positions are beyond the log's end keeps them no longer than this after Kafka has lost it.
LOSS_NOTICED_MS: Final = 60_000


class KafkaLog:
    """An EventLog and Ledger in one Kafka. `open` it first, `close` it last.

    `servers` is as `address_of` reads it, `name` what its topics begin with. `owner` is who this process is: no two
    that live at a time may have the same, and one that is started again keeps it, so that it goes on at once with what
    it was doing.
    """

    def __init__(
        self, servers: str, *, owner: str, name: str = DEFAULT_NAME, retention: Retention | None = None
    ) -> None:
        """Raises ValueError where the servers cannot be read."""
        self._servers = servers
        self._owner = owner
        self.retention = retention or Retention()
        self._topics = Topics.of(name)
        # What waits for replicas, what waits for others' events, and what is asked in between hold each other up in
        # nothing.
        self._writes = Connection(servers)
        self._asks = Connection(servers)
        self._hearing = Hearing(servers, self._asks, self._topics.events, self.retention)
        self._follower = StateFollower(self._asks, self._topics.state)
        self._state = self._follower.state
        self._leases = Leases(
            owner=owner, state=self._state, say=self._say, catch_up=self._follower.catch_up, take_up=self._take_up
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._reads: set[asyncio.Task[None]] = set()
        # What waits for the next round trip, and how the last one went.
        self._next_batch = Batch()
        self._pending_bytes = 0
        self._busy = False
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._flushed: list[asyncio.Future[None]] = []
        self._failed: Unavailable | None = None
        self._retry_s = RETRY_FIRST_S
        self._positions_s = 0.0
        self._closed = False
        self._broken = asyncio.Event()
        self._subscriptions: dict[str, Subscription] = {}

    # ---- life

    async def open(self) -> None:
        """Read what is there, and begin to follow it. Raises Unavailable where Kafka cannot be had."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._load()
        except CONNECTION_ERRORS as error:
            await self._disconnect()
            raise Unavailable(
                f"The event log's Kafka at {shown(self._servers)} cannot be used: {reason(error)}. "
                "Start one, or name another with --kafka-servers."
            ) from error
        except BaseException:
            await self._disconnect()
            raise
        self._tasks = [
            asyncio.create_task(self._write(), name="event log writer"),
            asyncio.create_task(self._hearing.run(), name="event log follower"),
            asyncio.create_task(self._leases.run(), name="event log leases"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._must_go_on)

    async def close(self) -> None:
        """Make everything durable that can be, give the leases back, and disconnect."""
        try:
            await self.flush()
        except Unavailable as error:
            facts = {"error": str(error)}
            logger.warning("the event log is closed with changes that could not be kept", extra={"facts": facts})
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await _ended([*self._tasks, *self._reads])
        if self._leases.has_spoken and self._failed is None:  # else others wait for the leases' end
            await self._writes.produce({self._topics.state: encode_batch([(member_key(self._owner), None, 0)])})
        for _, then in self._next_batch.events:
            then(Unavailable("The event log is closed."))
        await self._disconnect()

    async def failed(self) -> None:
        await self._broken.wait()

    def _must_go_on(self, task: asyncio.Task[None]) -> None:
        """A part that ended by itself has a fault: without it nothing may be accepted."""
        if not task.cancelled():
            facts = {"part": task.get_name()}
            logger.critical("part of the event log ended", exc_info=task.exception(), extra={"facts": facts})
            self._closed = True
            self._broken.set()
            self._end_flushes(Unavailable(ENDED))

    async def _disconnect(self) -> None:
        for connection in (self._writes, self._asks, self._hearing):
            await connection.close()

    async def _load(self) -> None:
        await ensure(self._asks, self._topics, self.retention)
        await self._writes.know((self._topics.events, self._topics.ledger, self._topics.state))
        await self._follower.catch_up(None)
        if not self._state.format:
            (made,) = (
                await self._writes.produce({self._topics.state: encode_batch([(FORMAT_KEY, FORMAT, 0)])})
            ).values()
            if not isinstance(made, int):
                raise made
        elif self._state.format != FORMAT:
            raise Unavailable(
                f"The event log {self._topics.state} in Kafka has format {self._state.format!r}; this version reads "
                f"{FORMAT!r}. Remove its topics."
            )
        await self._hearing.open()
        for uid, kept in self._state.all_kept().items():
            self._subscriptions[uid] = self._subscription(uid, kept)

    # ---- EventLog

    def append(self, entry: Entry, then: Appended) -> None:
        events = self._next_batch.events
        if len(events) >= MAX_PENDING_EVENTS or self._pending_bytes >= MAX_PENDING_BYTES:
            then(Overloaded(f"{len(events)} events wait for Kafka. Try again in a second."))
            return
        if self._closed:
            then(Unavailable("The event log is closed."))
            return
        if self._hearing.room <= 0:
            then(LogFull("The event log is full: it has its largest permitted size."))
            return
        events.append((entry, then))
        self._pending_bytes += len(entry.head) + len(entry.data)
        self._wake.set()

    def tail(self, listener: Callable[[Record], None]) -> None:
        self._hearing.tell(listener)

    def last(self) -> int:
        return self._hearing.last

    def read(self, broker: str, after: int, limit: int, then: Callable[[Page | PenstockError], None]) -> None:
        self._start(reading.page(self._asks, self._topics.events, broker, after, limit, self._hearing.last), then)

    def pick(self, broker: str, seqs: Iterable[int], then: Callable[[Page | PenstockError], None]) -> None:
        self._start(reading.pick(self._asks, self._topics.events, broker, sorted(seqs), self._hearing.last), then)

    def subscribe(self, uid: str, broker: str, name: str, start: int) -> Subscription:
        held = self._subscriptions.get(uid)
        if held is not None:
            held.name = name
            return held
        made = Subscription(uid, broker, name, Position(start), self._changed)
        self._subscriptions[uid] = made
        self._changed(made)
        return made

    def unsubscribe(self, uid: str) -> None:
        held = self._subscriptions.pop(uid, None)
        if held is not None:
            self._next_batch.dirty.pop(uid, None)
            self._next_batch.memos.pop(uid, None)
            self._next_batch.dropped[uid] = held
            self._leases.drop(uid)
            self._flush_soon()

    def subscriptions(self) -> Collection[str]:
        return self._subscriptions.keys()

    def remember(self, uid: str, memo: bytes) -> None:
        if uid in self._subscriptions:
            self._next_batch.memos[uid] = memo
            self._flush_soon()

    def recall(self, uid: str, then: Callable[[bytes | PenstockError], None]) -> None:
        self._start(self._recall(uid), then)

    def claim(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        def given_up() -> None:
            # What is still in flight for it must not be kept: the next holder goes on from the kept position.
            self._subscriptions.pop(uid, None)
            self._next_batch.dirty.pop(uid, None)
            self._next_batch.memos.pop(uid, None)
            lost()

        self._leases.want(uid, granted, given_up, asked)

    def release(self, uid: str) -> None:
        if self._leases.forget(uid):
            self._next_batch.say()
            self._wake.set()

    def seek(self, broker: str, at: float, then: Callable[[int | PenstockError], None]) -> None:
        self._start(reading.seek(self._asks, self._topics.events, at, self._hearing.last), then)

    async def _recall(self, uid: str) -> bytes:
        await self._follower.catch_up(None)
        return self._state.memo(uid)

    async def retain(self, now: float) -> int:
        await self.flush()
        try:
            await self._follower.catch_up(None)
            hearing = self._hearing
            removed, upto = await sweep(
                self._asks, self._topics.events, self._state, hearing.sizes, self.retention, now, hearing.last
            )
            gone = sorted(seq for seq in self._state.undelivered if seq <= upto)
            if gone:
                batch = encode_batch((undelivered_key(seq), None, 0) for seq in gone)
                await self._asks.produce({self._topics.state: batch})
            await self._hearing.look_for_room()
        except CONNECTION_ERRORS as error:
            raise unavailable(error) from error
        return removed

    async def flush(self) -> None:
        if self._broken.is_set():
            raise Unavailable(ENDED)
        if self._next_batch.empty and not self._busy:
            return
        done: asyncio.Future[None] = self._loop.create_future()
        self._flushed.append(done)
        self._wake.set()
        await done

    # ---- Ledger

    def note(self, attempt: Attempt) -> None:
        notes = self._next_batch.notes
        if len(notes) >= MAX_PENDING_NOTES:
            notes.popleft()
        notes.append(attempt)
        if self._timer is None:
            self._flush_soon()

    # ---- subscriptions and leases

    def _subscription(self, uid: str, kept: Kept) -> Subscription:
        return Subscription(uid, kept.broker, kept.name, kept.position, self._changed)

    def _changed(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.uid) is not subscription:
            return  # dropped or lost meanwhile: what is still in flight for it brings nothing back
        self._next_batch.dirty[subscription.uid] = subscription
        if self._timer is None:
            self._flush_soon()

    async def _say(self) -> int:
        """Have said what the leases say now; its offset. Raises Unavailable."""
        said: asyncio.Future[int] = self._loop.create_future()
        self._next_batch.say()
        self._next_batch.speakers.append(said)
        self._wake.set()
        return await said

    async def _take_up(self, uid: str, kept: Kept | None) -> None:
        """Go on from the position as it is kept."""
        self._next_batch.dirty.pop(uid, None)
        self._subscriptions.pop(uid, None)
        if kept is None:
            return
        if kept.through > self._hearing.last:
            kept = await self._within_the_log(uid, kept)
            # What is open is looked for in what was heard: beyond that it would be taken for what is not kept any more.
            await self._hearing.catch_up(kept.through)
        self._subscriptions[uid] = self._subscription(uid, kept)

    async def _within_the_log(self, uid: str, kept: Kept) -> Kept:
        """The position, or where Kafka has lost what was before it the one from which on all is new: positions come
        again then, and what came since the loss has small ones."""
        events = self._topics.events
        end = await patiently(lambda: self._asks.offset(events, LATEST))
        if kept.through <= end:
            return kept
        since_ms = max(self._state.kept_ms(uid) - LOSS_NOTICED_MS, 0)
        offset = await patiently(lambda: self._asks.offset(events, since_ms))
        through = end if offset < 0 else offset
        facts = {"uid": uid, "through": kept.through, "last": end, "from": through}
        logger.error(
            "Kafka has lost events that were acknowledged; a Trigger goes on without them", extra={"facts": facts}
        )
        return Kept(kept.token, kept.broker, kept.name, through)

    # ---- writing

    def _flush_soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(FLUSH_INTERVAL_S if self._failed is None else self._retry_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self._wake.set()

    async def _write(self) -> None:
        """Store what waits, whenever something does."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._next_batch.empty:
                self._busy = True
                batch = self._take()
                async with self._hearing.lock:
                    await self._store(batch)
                self._busy = False
            self._go_on()

    def _take(self) -> Batch:
        now_s = self._loop.time()
        positions = bool(self._flushed) or now_s - self._positions_s >= POSITIONS_INTERVAL_S
        batch = self._next_batch.take(positions=positions)
        if positions:
            self._positions_s = now_s
        self._pending_bytes -= sum(len(entry.head) + len(entry.data) for entry, _ in batch.events)
        return batch

    async def _store(self, batch: Batch) -> None:
        """One round trip, and telling everybody how it went."""
        topics = self._topics
        made, records = payloads(topics, self._owner, batch, self._leases.token, self._leases.statement)
        results = await self._writes.produce(made)
        failed = {topic: unavailable(result) for topic, result in results.items() if not isinstance(result, int)}
        if topics.ledger in failed:
            self._next_batch.put_back_notes(batch.notes)
        written = results.get(topics.state)
        if isinstance(written, int):
            for speaker in batch.speakers:
                if not speaker.done():
                    speaker.set_result(written + records - 1)
        elif written is not None:
            self._refused_state(batch, failed[topics.state])
        if failed:
            self._fail(next(iter(failed.values())))
        else:
            self._failed, self._retry_s = None, RETRY_FIRST_S
        if batch.events:
            first = results[topics.events]
            if isinstance(first, int):
                await self._hearing.tell_own(batch.events, first + 1)
            else:
                for _, then in batch.events:
                    then(failed[topics.events])

    def _refused_state(self, batch: Batch, error: Unavailable) -> None:
        batch.dirty = {uid: kept for uid, kept in batch.dirty.items() if self._subscriptions.get(uid) is kept}
        self._next_batch.put_back_state(batch)
        for speaker in batch.speakers:
            if not speaker.done():
                speaker.set_exception(error)

    def _fail(self, error: Unavailable) -> None:
        if self._failed is None:
            facts = {"error": str(error)}
            logger.error("the event log cannot be written; new events are refused", extra={"facts": facts})
        self._failed = error

    def _go_on(self) -> None:
        """After a round trip: the next where something waits that should not wait longer."""
        waits = self._next_batch
        if waits.events:
            self._wake.set()
        elif not waits.empty:
            if self._failed is not None:
                self._flush_soon()
                self._retry_s = min(self._retry_s * 2, RETRY_CAP_S)
            elif self._flushed or waits.says:
                self._wake.set()
            else:
                self._flush_soon()
        if self._flushed and (self._failed is not None or waits.empty):
            self._end_flushes(None if waits.empty else self._failed)

    def _end_flushes(self, error: Unavailable | None) -> None:
        waiting, self._flushed = self._flushed, []
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    # ---- reading

    def _start(self, work: Coroutine[Any, Any, Any], then: Callable[[Any], None]) -> None:
        task = asyncio.create_task(_answer(work, then), name="event log read")
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)


async def _answer(work: Coroutine[Any, Any, Any], then: Callable[[Any], None]) -> None:
    try:
        result = await work
    except CONNECTION_ERRORS as error:
        result = unavailable(error)
    try:
        then(result)
    except Exception:  # boundary: the reader's own fault
        logger.exception("what was read from the event log could not be used")


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    pending = set(tasks)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
