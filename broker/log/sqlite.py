"""The SQLite event log: WAL, synchronous=FULL, group commit.

How it costs little. Rows are inserted on the event loop's thread, which is work in memory; the commit, which waits for
the disk, runs on one writer thread, and the two take turns with the connection. Events that arrive while a commit runs
share the next one. A writer thread that inserted rows would need the interpreter's lock back after every row, from a
loop that is busy; so it asks for it once per commit only. Reads use a connection of their own, on the loop's thread, a
bounded page at a time: what is read has mostly just been written and comes from memory. Checkpoints have a thread and a
connection too (`broker.log.checkpoints`).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final, TypeVar

from broker.ledger import Attempt
from broker.log import retention as sweeping
from broker.log import schema
from broker.log.checkpoints import Checkpoints
from broker.log.files import Files
from broker.log.pages import Pages
from broker.log.port import (
    FLUSH_INTERVAL_S,
    MAX_PENDING_BYTES,
    MAX_PENDING_EVENTS,
    MAX_PENDING_NOTES,
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
from broker.log.refusals import unavailable
from core.errors import Overloaded, PenstockError, Unavailable

__all__ = ["SqliteLog"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: After a failed commit, before what can be kept is tried again by itself.
RETRY_INTERVAL_S: Final = 1.0
#: How far the index by id may lag behind the events.
INDEX_EVERY: Final = 1024


class _Batch:
    """What one commit holds: events, ledger rows, subscriptions whose position moved or was dropped, what is remembered
    of them, new Brokers. `data_bytes` is the size of all that may be large."""

    __slots__ = ("brokers", "data_bytes", "dirty", "dropped", "events", "memos", "notes")

    def __init__(self) -> None:
        self.data_bytes = 0
        self.events: list[tuple[Record, Appended]] = []
        self.notes: deque[schema.AttemptRow] = deque()
        self.dirty: dict[str, Subscription] = {}
        self.dropped: list[int] = []
        self.memos: dict[int, bytes] = {}
        self.brokers: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        return not (self.events or self.notes or self.dirty or self.dropped or self.memos)

    def put_back(self, refused: _Batch) -> None:
        """All but the events of a batch that was not committed, before what came since."""
        refused.notes.extend(self.notes)
        self.notes = refused.notes
        self.dirty = {**refused.dirty, **self.dirty}
        self.dropped = refused.dropped + self.dropped
        self.memos = {**refused.memos, **self.memos}
        self.brokers = {**refused.brokers, **self.brokers}


class SqliteLog:
    """An EventLog and Ledger in one SQLite file that this process alone writes. `open` it first, `close` it last."""

    def __init__(self, path: Path, *, retention: Retention | None = None) -> None:
        self._path = path
        self._retention = retention or Retention()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="event-log", daemon=True)
        self._listeners: list[Callable[[Record], None]] = []
        # What waits for the next commit, whether one runs now, and why the last one failed.
        self._next_batch = _Batch()
        self._pending_bytes = 0
        self._busy = False
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._maintenance: deque[Callable[[], None]] = deque()
        self._flushed: list[asyncio.Future[None]] = []
        self._failed: Unavailable | None = None
        self._positions_alone = False
        self._closed = False
        self._broken = asyncio.Event()
        # What is known of the file.
        self._next = 1
        self._last = 0
        self._indexed = 0
        self._brokers: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._uids: dict[int, str] = {}
        self._subscriptions: dict[str, Subscription] = {}

    # ---- life

    async def open(self) -> None:
        """Open or make the file. Raises Unavailable where that is not possible."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        try:
            self._files = await self._job(lambda: Files(self._path, self._retention.full_bytes))
        except Unavailable:
            self._stop_thread()
            raise
        found = self._files.found
        self._writer, self._pages = self._files.writer, Pages(self._files.reader, self._path, self._uids)
        self._checkpoints = Checkpoints(
            self._files.checkpointer,
            self._writer,
            held_bytes=found.log_bytes,
            soon=self._loop.call_soon_threadsafe,
            between_commits=self._between_commits,
        )
        self._last, self._next, self._indexed = found.last, found.last + 1, found.indexed
        self._brokers = {name: number for number, name in found.brokers.items()}
        for kept in found.subscriptions:
            self._numbers[kept.uid], self._uids[kept.number] = kept.number, kept.uid
            if kept.position is not None:
                held = Subscription(kept.uid, kept.broker, kept.name, kept.position, self._changed)
                self._subscriptions[kept.uid] = held

    async def close(self) -> None:
        """Make everything durable that can be, and close the file."""
        try:
            await self.flush()
        except Unavailable as error:
            facts = {"error": str(error)}
            logger.warning("the event log is closed with changes that could not be kept", extra={"facts": facts})
        self._closed = True
        for handle in (self._scheduled, self._timer):
            if handle is not None:
                handle.cancel()
        await self._job(self._close_files)
        self._stop_thread()

    def _close_files(self) -> None:
        self._checkpoints.close()
        self._files.close()

    async def failed(self) -> None:
        await self._broken.wait()

    # ---- EventLog

    def append(self, entry: Entry, then: Appended) -> None:
        events = self._next_batch.events
        if len(events) >= MAX_PENDING_EVENTS or self._pending_bytes >= MAX_PENDING_BYTES:
            then(Overloaded(f"{len(events)} events wait for the disk. Try again in a second."))
            return
        if self._closed:
            then(Unavailable("The event log is closed."))
            return
        events.append((Record(self._next, entry), then))
        self._next += 1
        self._pending_bytes += len(entry.head) + len(entry.data)
        if self._scheduled is None and not self._busy:
            self._scheduled = self._loop.call_soon(self._write)

    def tail(self, listener: Callable[[Record], None]) -> None:
        self._listeners.append(listener)

    def last(self) -> int:
        return self._last

    def read(self, broker: str, after: int, limit: int, then: Callable[[Page | PenstockError], None]) -> None:
        self._loop.call_soon(self._read, broker, after, limit, then)

    def pick(self, broker: str, seqs: Iterable[int], then: Callable[[Page | PenstockError], None]) -> None:
        self._loop.call_soon(self._pick, broker, tuple(seqs), then)

    def subscribe(self, uid: str, broker: str, name: str, start: int) -> Subscription:
        held = self._subscriptions.get(uid)
        if held is not None:
            held.name = name
            return held
        number = self._numbers.get(uid) or next(reversed(self._uids), 0) + 1  # some numbers may have no row
        self._numbers[uid], self._uids[number] = number, uid
        self._broker_number(broker)
        made = Subscription(uid, broker, name, Position(start), self._changed)
        self._subscriptions[uid] = made
        self._changed(made)
        return made

    def unsubscribe(self, uid: str) -> None:
        if self._subscriptions.pop(uid, None) is not None:
            self._next_batch.dirty.pop(uid, None)
            self._next_batch.memos.pop(self._numbers[uid], None)
            self._next_batch.dropped.append(self._numbers[uid])
            self._flush_soon()

    def subscriptions(self) -> Collection[str]:
        return self._subscriptions.keys()

    def remember(self, uid: str, memo: bytes) -> None:
        if uid in self._subscriptions:
            self._next_batch.memos[self._numbers[uid]] = memo
            self._flush_soon()

    def recall(self, uid: str, then: Callable[[bytes | PenstockError], None]) -> None:
        self._loop.call_soon(self._recall, uid, then)

    def claim(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        granted()  # nobody else delivers from this log

    def release(self, uid: str) -> None:
        return

    def seek(self, broker: str, at: float, then: Callable[[int | PenstockError], None]) -> None:
        self._loop.call_soon(self._seek, broker, at, then)

    async def retain(self, now: float) -> int:
        removed = 0
        while count := await self._sweep_once(now):
            removed += count
            self._checkpoints.swept(count)
        return removed

    async def flush(self) -> None:
        if self._next_batch.empty and not self._busy:
            return
        done: asyncio.Future[None] = self._loop.create_future()
        self._flushed.append(done)
        if not self._busy:
            self._write()
        await done

    # ---- Ledger

    def note(self, attempt: Attempt) -> None:
        notes = self._next_batch.notes
        if len(notes) >= MAX_PENDING_NOTES:
            notes.popleft()
        notes.append(schema.encode_attempt(attempt, self._numbers.get(attempt.uid, 0)))
        if self._timer is None:
            self._flush_soon()

    # ---- writing, on the loop's thread

    def _changed(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.uid) is not subscription:
            return  # dropped meanwhile: what is still in flight for it brings nothing back
        self._next_batch.dirty[subscription.uid] = subscription
        if self._timer is None:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if self._timer is None and not self._closed:
            delay = FLUSH_INTERVAL_S if self._failed is None else RETRY_INTERVAL_S
            self._timer = self._loop.call_later(delay, self._write)

    def _broker_number(self, broker: str) -> int:
        number = self._brokers.get(broker)
        if number is None:
            number = self._brokers[broker] = self._next_batch.brokers[broker] = len(self._brokers) + 1
        return number

    def _write(self) -> None:
        """Insert all that waits and have it committed."""
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy or self._next_batch.empty:
            return
        self._busy = True
        batch = self._take()
        try:
            self._insert(batch)
        except sqlite3.Error as error:
            self._written(batch, unavailable(error, self._path))
            return
        index = self._last - self._indexed >= INDEX_EVERY
        self._jobs.put(lambda: self._commit(batch, index))

    def _take(self) -> _Batch:
        """The batch for this commit. After a failure positions go alone once: they need no new room where the log is
        full, and let retention make some."""
        batch = self._next_batch
        self._next_batch = _Batch()
        if self._positions_alone and (batch.dirty or batch.dropped):
            self._next_batch.events, batch.events = batch.events, []
            self._next_batch.notes, batch.notes = batch.notes, deque()
            self._next_batch.memos, batch.memos = batch.memos, {}
        else:
            batch.data_bytes, self._pending_bytes = self._pending_bytes, 0
        self._positions_alone = False
        return batch

    def _insert(self, batch: _Batch) -> None:
        connection = self._writer
        connection.execute("BEGIN IMMEDIATE")
        if batch.events:
            number, via = self._broker_number, self._numbers.get
            rows = [
                schema.encode_event(record, number(record.entry.broker), via(record.entry.via or ""))
                for record, _ in batch.events
            ]
            connection.executemany(schema.ADD_EVENT, rows)
        if batch.notes:
            connection.executemany(schema.ADD_ATTEMPT, batch.notes)
        if batch.dropped:  # before what is kept: that was subscribed anew since
            connection.executemany(schema.DROP_POSITION, [(number,) for number in batch.dropped])
            connection.executemany(schema.DROP_MEMO, [(number,) for number in batch.dropped])
        for subscription in batch.dirty.values():
            position = subscription.snapshot()
            number_of = self._numbers[subscription.uid]
            broker = self._broker_number(subscription.broker)
            opened = schema.pack_open(subscription.uid, subscription.broker, position)
            batch.data_bytes += schema.POSITION_BYTES + len(opened)
            row = (number_of, subscription.uid, broker, subscription.name, position.through, opened)
            connection.execute(schema.KEEP_POSITION, row)
        if batch.memos:
            batch.data_bytes += sum(map(len, batch.memos.values()))
            connection.executemany(schema.KEEP_MEMO, batch.memos.items())
        # Encoding the rows above may have numbered Brokers that were not seen before.
        batch.brokers.update(self._next_batch.brokers)
        self._next_batch.brokers.clear()
        if batch.brokers:
            connection.executemany(schema.ADD_BROKER, [(n, name) for name, n in batch.brokers.items()])

    def _written(self, batch: _Batch, error: Unavailable | None) -> None:
        """The commit ended: tell everybody, and begin the next."""
        self._busy = False
        if error is None:
            if batch.events or batch.notes:
                self._failed = None
            self._tell(batch)
            self._checkpoints.committed(batch.data_bytes)
        else:
            self._rolled_back(batch, error)
        self._go_on()

    def _tell(self, batch: _Batch) -> None:
        for record, then in batch.events:
            self._last = record.seq
            announce(record, self._listeners)
            answer(then, record)

    def _rolled_back(self, batch: _Batch, error: Unavailable) -> None:
        facts = {"error": str(error)}
        if self._failed is None:
            logger.error("the event log cannot be written; new events are refused", extra={"facts": facts})
        self._failed = error
        self._positions_alone = bool(batch.events or batch.notes or batch.memos)
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error as again:
            logger.error("a failed commit was not rolled back", extra={"facts": {"error": str(again)}})
        for number in self._next_batch.dropped:  # meanwhile: what was to be kept of it brings nothing back
            batch.dirty.pop(self._uids[number], None)
            batch.memos.pop(number, None)
        self._next_batch.put_back(batch)
        for _, then in batch.events:
            then(error)

    def _go_on(self) -> None:
        """After a commit or a maintenance job: the next of whichever waits."""
        waits = self._next_batch
        if self._maintenance:
            self._busy = True
            self._jobs.put(self._maintenance.popleft())
        elif waits.events:
            if self._scheduled is None and not self._closed:
                self._scheduled = self._loop.call_soon(self._write)
        elif not waits.empty and not self._closed:
            if self._flushed and self._failed is None:
                self._scheduled = self._loop.call_soon(self._write)
            else:
                self._flush_soon()
        if self._flushed and (self._failed is not None or (waits.empty and not self._busy)):
            self._settle()

    def _settle(self) -> None:
        waiting, self._flushed = self._flushed, []
        for future in waiting:
            if not future.done():
                if self._failed is not None:
                    future.set_exception(self._failed)
                else:
                    future.set_result(None)

    # ---- reading, on the loop's thread

    def _read(self, broker: str, after: int, limit: int, then: Callable[[Page | PenstockError], None]) -> None:
        then(self._pages.page(broker, self._brokers.get(broker, 0), after, limit, self._last))

    def _pick(self, broker: str, seqs: tuple[int, ...], then: Callable[[Page | PenstockError], None]) -> None:
        then(self._pages.pick(broker, self._brokers.get(broker, 0), seqs))

    def _seek(self, broker: str, at: float, then: Callable[[int | PenstockError], None]) -> None:
        then(self._pages.seek(self._brokers.get(broker, 0), at))

    def _recall(self, uid: str, then: Callable[[bytes | PenstockError], None]) -> None:
        then(self._pages.memo(self._numbers.get(uid, 0)))

    # ---- the writer thread

    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except Exception:  # boundary: the thread's own; without it nothing may be accepted
            logger.critical("the event log's thread ended", exc_info=True)
            self._closed = True
            self._loop.call_soon_threadsafe(self._broken.set)

    def _commit(self, batch: _Batch, index: bool) -> None:
        error: Unavailable | None = None
        try:
            if index:
                for sql in schema.INDEX_IDS:
                    self._writer.execute(sql)
            self._writer.execute("COMMIT")
        except sqlite3.Error as failed:
            error = unavailable(failed, self._path)
        if index and error is None:
            self._indexed = batch.events[-1][0].seq if batch.events else self._last
        self._loop.call_soon_threadsafe(self._written, batch, error)

    async def _sweep_once(self, now: float) -> int:
        marks = dict.fromkeys(self._brokers.values(), self._last)
        for held in self._subscriptions.values():
            number = self._brokers[held.broker]
            marks[number] = min(marks[number], held.position().low_water)
        last = self._last
        return await self._job(lambda: sweeping.sweep(self._writer, marks, self._retention, now, last))

    def _between_commits(self, work: Callable[[], None]) -> None:
        """Run `work`, which raises nothing, on the writer thread when no commit runs there."""
        if self._closed:
            return

        def run() -> None:
            work()
            self._loop.call_soon_threadsafe(self._freed)

        self._maintenance.append(run)
        if not self._busy:
            self._go_on()

    def _freed(self) -> None:
        self._busy = False
        self._go_on()

    async def _job(self, work: Callable[[], T]) -> T:
        """Run `work` on the writer thread, between commits. Raises Unavailable."""
        done: asyncio.Future[T] = self._loop.create_future()

        def finish(result: T | None, error: Exception | None) -> None:
            self._busy = False
            if not done.done():
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(result)  # type: ignore[arg-type]  # None only where T allows it
            self._go_on()

        def run() -> None:
            try:
                result = work()
            except (sqlite3.Error, OSError, PenstockError) as error:
                self._loop.call_soon_threadsafe(finish, None, unavailable(error, self._path))
            except Exception as error:  # boundary: who waits must hear of it; it ends the thread
                self._loop.call_soon_threadsafe(finish, None, error)
                raise
            else:
                self._loop.call_soon_threadsafe(finish, result, None)

        self._maintenance.append(run)
        if not self._busy:
            self._go_on()
        return await done

    def _stop_thread(self) -> None:
        self._jobs.put(None)
        self._thread.join()
