"""The event log on Redis Streams: group commit over the network, and several processes that share their Brokers.

How it costs little. All events that arrive while one round trip is under way share the next: one script that gives them
their positions and adds them to their Brokers' streams, sent together with the acknowledgements and ledger rows of the
meantime. How several processes share it. Every process hears every event in order of position: its own from the answer
to its append, the others' by waiting on a stream that gets an entry per append, and reading what it has not heard. Each
subscription is served by the one process that holds its lease (`leases.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Final

from redis.exceptions import RedisError

from broker.ledger import Attempt
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
    announce,
    answer,
)
from broker.log.redis import reading
from broker.log.redis.batch import Batch, append_command, other_commands
from broker.log.redis.connection import (
    COMMAND_TIMEOUT_S,
    CONNECTION_ERRORS,
    Connection,
    ended,
    say_what_may_be_lost,
    shown,
    unavailable,
    version_of,
)
from broker.log.redis.layout import FORMAT, Keys, decode_kept, seq_of, stream_id
from broker.log.redis.leases import Leases
from broker.log.redis.retention import sweep
from broker.log.redis.scripts import FULL
from core.errors import Corrupt, Overloaded, PenstockError, Unavailable

__all__ = ["DEFAULT_NAME", "RedisLog"]

logger = logging.getLogger(__name__)

DEFAULT_NAME: Final = "penstock"

#: What those are told who wait for a log that goes on no more.
ENDED: Final = "A part of the event log has ended by a fault; the log's errors say which."

#: After a failure, before what can be kept is tried again by itself; doubled each time up to the cap.
RETRY_FIRST_S: Final = 0.1
RETRY_CAP_S: Final = 5.0
#: Whose scripts may say that they run without free memory.
OLDEST_REDIS: Final = 7
#: Events of one script: Redis serves nobody else meanwhile.
BATCH_EVENTS: Final = 2048
BATCH_BYTES: Final = 8 * 1024 * 1024
#: How long a wait for other processes' events lasts before it is asked anew.
BLOCK_S: Final = 5.0


class RedisLog:
    """An EventLog and Ledger in one Redis. `open` it first, `close` it last.

    `name` is what its keys begin with. `owner` is who this process is: no two that live at a time may have the same,
    and one that is started again keeps it, so that it goes on at once with what it was doing.
    """

    def __init__(self, url: str, *, owner: str, name: str = DEFAULT_NAME, retention: Retention | None = None) -> None:
        """Raises ValueError where the URL cannot be read."""
        self._url = url
        self.retention = retention or Retention()
        self._keys = Keys(name)
        self._redis = Connection(url)
        self._waiter = Connection(url, timeout_s=BLOCK_S + COMMAND_TIMEOUT_S)
        self._leases = Leases(connection=self._redis, keys=self._keys, owner=owner, take_up=self._take_up)
        self._listeners: list[Callable[[Record], None]] = []
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
        self._others_alone = False
        self._closed = False
        self._broken = asyncio.Event()
        # What is known of the log. Held while listeners are told, so that they hear every event once and in order.
        self._telling = asyncio.Lock()
        self._last = 0
        self._moved = "0-0"
        self._delivers = asyncio.Event()
        self._subscriptions: dict[str, Subscription] = {}

    # ---- life

    async def open(self) -> None:
        """Read what is there, and begin to follow it. Raises Unavailable where Redis cannot be had."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._load()
        except CONNECTION_ERRORS as error:
            await self._disconnect()
            raise Unavailable(
                f"The event log's Redis at {shown(self._url)} cannot be used: {str(error).rstrip('.')}. "
                "Start one (Debian: apt-get install redis-server), or name another with --redis-url."
            ) from error
        except BaseException:
            await self._disconnect()
            raise
        self._tasks = [
            asyncio.create_task(self._write(), name="event log writer"),
            asyncio.create_task(self._follow(), name="event log follower"),
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
        await ended([*self._tasks, *self._reads])
        with contextlib.suppress(*CONNECTION_ERRORS):  # they end by themselves
            await self._leases.leave()
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
        await self._redis.close()
        await self._waiter.close()

    async def _load(self) -> None:
        keys = self._keys
        commands = (
            ("INFO", "server"),
            ("SET", keys.format, FORMAT, "NX"),
            ("GET", keys.format),
            ("GET", keys.seq),
            ("HGETALL", keys.positions),
        )
        info, _, held, seq, positions = _checked(await self._redis.run_all(commands))
        if (version := version_of(info)) < OLDEST_REDIS:
            raise Unavailable(f"The Redis at {shown(self._url)} has version {version}; the event log needs 7 or later.")
        if held != FORMAT:
            raise Unavailable(
                f"The event log {keys.prefix} in Redis has format {held!r}; this version reads {FORMAT!r}. Remove it."
            )
        for uid, stored in zip(positions[::2], positions[1::2], strict=True):
            self._take_up(uid.decode(), stored)
        # A Redis that lost its newest writes must not give their positions again.
        self._last = max(int(seq or 0), *(held.through for held in self._subscriptions.values()), 0)
        await say_what_may_be_lost(self._redis)

    # ---- EventLog

    def append(self, entry: Entry, then: Appended) -> None:
        events = self._next_batch.events
        if len(events) >= MAX_PENDING_EVENTS or self._pending_bytes >= MAX_PENDING_BYTES:
            then(Overloaded(f"{len(events)} events wait for Redis. Try again in a second."))
            return
        if self._closed:
            then(Unavailable("The event log is closed."))
            return
        events.append((entry, then))
        self._pending_bytes += len(entry.head) + len(entry.data)
        self._wake.set()

    def tail(self, listener: Callable[[Record], None]) -> None:
        self._listeners.append(listener)
        self._delivers.set()

    def last(self) -> int:
        return self._last

    def read(self, broker: str, after: int, limit: int, then: Callable[[Page | PenstockError], None]) -> None:
        self._start(reading.page(self._redis, self._keys, broker, after, limit, self._last), then)

    def pick(self, broker: str, seqs: Iterable[int], then: Callable[[Page | PenstockError], None]) -> None:
        self._start(reading.pick(self._redis, self._keys, broker, sorted(seqs)), then)

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
        if self._subscriptions.pop(uid, None) is not None:
            self._next_batch.dirty.pop(uid, None)
            self._next_batch.memos.pop(uid, None)
            self._next_batch.dropped[uid] = None
            self._leases.drop(uid)
            self._flush_soon()

    def subscriptions(self) -> Collection[str]:
        return self._subscriptions.keys()

    def remember(self, uid: str, memo: bytes) -> None:
        if uid in self._subscriptions:
            self._next_batch.memos[uid] = memo
            self._flush_soon()

    def recall(self, uid: str, then: Callable[[bytes | PenstockError], None]) -> None:
        self._start(reading.recall(self._redis, self._keys, uid), then)

    def claim(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        def given_up() -> None:
            self._forget(uid)
            lost()

        self._delivers.set()
        self._leases.want(uid, granted, given_up, asked)

    def release(self, uid: str) -> None:
        lease = self._leases.forget(uid)
        if lease is not None:
            self._next_batch.released.append(lease)
            self._flush_soon()

    def seek(self, broker: str, at: float, then: Callable[[int | PenstockError], None]) -> None:
        self._start(reading.seek(self._redis, self._keys, broker, at), then)

    async def retain(self, now: float) -> int:
        with contextlib.suppress(LogFull):  # positions are kept without room, and what has none waits for this
            await self.flush()
        try:
            return await sweep(self._redis, self._keys, self.retention, now)
        except CONNECTION_ERRORS as error:
            raise unavailable(error) from error

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

    # ---- writing

    def _changed(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.uid) is not subscription:
            return  # dropped or lost meanwhile: what is still in flight for it brings nothing back
        self._next_batch.dirty[subscription.uid] = subscription
        if self._timer is None:
            self._flush_soon()

    def _given_up(self, uid: str) -> None:
        """Redis says that another process holds the subscription's lease."""
        self._forget(uid)
        self._leases.taken(uid)

    def _forget(self, uid: str) -> None:
        """What is still in flight for it must not be kept: the next holder goes on from the kept position."""
        self._subscriptions.pop(uid, None)
        self._next_batch.dirty.pop(uid, None)
        self._next_batch.memos.pop(uid, None)

    def _take_up(self, uid: str, stored: bytes) -> None:
        """The subscription's position as it is kept; none where `stored` is empty."""
        self._next_batch.dirty.pop(uid, None)
        self._subscriptions.pop(uid, None)
        if not stored:
            return
        try:
            kept = decode_kept(stored)
        except Corrupt as error:
            facts = {"uid": uid, "error": str(error)}
            logger.error("a Trigger's events since its creation are delivered again", extra={"facts": facts})
            return
        self._subscriptions[uid] = Subscription(uid, kept.broker, kept.name, kept.position, self._changed)

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
                async with self._telling:
                    await self._store(batch)
                self._busy = False
            self._go_on()

    def _take(self) -> Batch:
        """The batch for this round trip. After a failure the rest goes alone once: it needs no new room where the log
        is full, and lets retention make some."""
        batch, self._next_batch = self._next_batch, Batch()
        waiting = batch.events
        if self._others_alone and batch.has_others:
            batch.events, self._next_batch.events = type(waiting)(), waiting
        else:
            size = 0
            batch.events = type(waiting)()
            while waiting and len(batch.events) < BATCH_EVENTS and size < BATCH_BYTES:
                event = waiting.popleft()
                size += len(event[0].head) + len(event[0].data)
                batch.events.append(event)
            self._next_batch.events = waiting
            self._pending_bytes -= size
        self._others_alone = False
        return batch

    async def _store(self, batch: Batch) -> None:
        """One round trip, and telling everybody how it went."""
        keys = self._keys
        others, keep = other_commands(keys, batch, self._leases.token)
        commands = list(others)
        if batch.events:
            commands.append(append_command(keys, batch.events, self._last, self.retention.full_bytes))
        try:
            answers = await self._redis.run_all(commands)
        except CONNECTION_ERRORS as error:
            self._refused(batch, unavailable(error))
            return
        refused = next((answer for answer in answers[: len(others)] if isinstance(answer, RedisError)), None)
        if refused is not None:
            self._refused_others(batch, unavailable(refused))
        else:
            self._leases.gone(batch.released)
            for uid in answers[keep] if keep is not None else ():
                self._given_up(uid.decode())
        if batch.events:
            await self._stored(batch, answers[-1])
        elif refused is None:
            self._failed, self._retry_s = None, RETRY_FIRST_S

    async def _stored(self, batch: Batch, answer: int | RedisError) -> None:
        if isinstance(answer, RedisError):
            self._refused_events(batch, unavailable(answer))
        elif answer == FULL:
            self._refused_events(batch, LogFull("The event log is full: it has its largest permitted size."))
        else:
            self._failed, self._retry_s = None, RETRY_FIRST_S
            await self._tell_own(batch, answer - len(batch.events) + 1)

    async def _tell_own(self, batch: Batch, first: int) -> None:
        told = True
        if first > self._last + 1:  # other processes' events are before ours
            try:
                await self._hear_through(first - 1)
            except CONNECTION_ERRORS as error:
                # Ours are stored, so their senders are told; the follower tells the listeners once it can.
                logger.warning("events of other processes are late", extra={"facts": {"error": str(error)}})
                told = False
        for seq, (entry, then) in enumerate(batch.events, first):
            record = Record(seq, entry)
            if told:
                self._hear(record)
            answer(then, record)

    def _refused(self, batch: Batch, error: Unavailable) -> None:
        self._refused_others(batch, error)
        self._refused_events(batch, error)

    def _refused_others(self, batch: Batch, error: Unavailable) -> None:
        held = {uid: kept for uid, kept in batch.dirty.items() if self._subscriptions.get(uid) is kept}
        batch.dirty = held
        self._next_batch.put_back(batch)
        self._fail(error)

    def _refused_events(self, batch: Batch, error: Unavailable) -> None:
        self._fail(error)
        self._others_alone = bool(batch.events)
        for _, then in batch.events:
            then(error)

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
            elif self._flushed:
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

    # ---- hearing

    def _hear(self, record: Record) -> None:
        self._last = record.seq
        announce(record, self._listeners)

    async def _follow(self) -> None:
        """Hear what other processes append and what becomes of their claims, once that is of interest."""
        await self._delivers.wait()
        retry_s, keys = RETRY_FIRST_S, self._keys
        while True:
            try:
                streams = (keys.wake, keys.moved, stream_id(self._last), self._moved)
                news = await self._waiter.run("XREAD", "BLOCK", int(BLOCK_S * 1000), "STREAMS", *streams)
                for name, entries in news or ():
                    if name == keys.moved.encode():
                        self._moved = entries[-1][0].decode()
                        self._leases.look_again()
                    else:
                        async with self._telling:
                            await self._hear_through(seq_of(entries[-1][0]))
                retry_s = RETRY_FIRST_S
            except CONNECTION_ERRORS as error:
                if retry_s == RETRY_FIRST_S:  # once an outage
                    facts = {"error": str(error)}
                    logger.warning("the event log cannot be followed now; trying again", extra={"facts": facts})
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_CAP_S)

    async def _hear_through(self, newest: int) -> None:
        """Read and tell all events up to a position. The caller holds `_telling`."""
        if not self._listeners:  # a process that only appends
            self._last = max(newest, self._last)
        while self._last < newest:
            records, through = await reading.all_between(self._redis, self._keys, self._last, newest)
            for record in records:
                self._hear(record)
            self._last = max(through, self._last)

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


def _checked(answers: list[Any]) -> list[Any]:
    for each in answers:
        if isinstance(each, RedisError):
            raise each
    return answers
