"""Reads the Kafka event log for people. For any process, beside those that write it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from broker.log.kafka.connection import CONNECTION_ERRORS, Connection, reason
from broker.log.kafka.layout import Topics
from broker.log.kafka.mirror import Mirror
from broker.log.port import Position
from broker.log.query import Delivery, Found, LogReader, Slice, Wanted
from core.errors import Unavailable

__all__ = ["KafkaReader"]

logger = logging.getLogger(__name__)

#: How long a question waits until the copy has what Kafka has. The copying goes on after that, and the question may be
#: asked again.
PATIENCE_S: Final = 10.0


class KafkaReader:
    """The log of this name in Kafka, by a copy of it in `directory` that is brought up to date for each question.

    Each call blocks; all raise Unavailable where the log cannot be read.
    """

    def __init__(self, servers: str, *, name: str, directory: Path) -> None:
        """Raises ValueError where the servers cannot be read."""
        path = directory / f"{name}.db"
        self._connection = Connection(servers)
        self._mirror = Mirror(path, self._connection, Topics.of(name))
        self._reader = LogReader(path)
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._copying: asyncio.Task[None] | None = None

    def close(self) -> None:
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def newest(
        self,
        limit: int,
        *,
        namespace: str | None = None,
        broker: str | None = None,
        wanted: Wanted | None = None,
    ) -> Slice:
        """The last `limit` events that match."""
        self._catch_up()
        return self._reader.newest(limit, namespace=namespace, broker=broker, wanted=wanted)

    def after(
        self,
        seq: int,
        limit: int,
        *,
        namespace: str | None = None,
        broker: str | None = None,
        wanted: Wanted | None = None,
    ) -> Slice:
        """The first `limit` events after a position that match."""
        self._catch_up()
        return self._reader.after(seq, limit, namespace=namespace, broker=broker, wanted=wanted)

    def by_id(self, event_id: str) -> tuple[Found, ...]:
        """Every event of that id: an id is unique only together with its source, and an event can be sent twice."""
        self._catch_up()
        return self._reader.by_id(event_id)

    def replies(self, seq: int) -> tuple[Found, ...]:
        """The events that subscribers answered this one with."""
        self._catch_up()
        return self._reader.replies(seq)

    def at(self, seqs: Sequence[int]) -> tuple[Found, ...]:
        """The events at these positions, in order; those that are no longer kept are left out."""
        self._catch_up()
        return self._reader.at(seqs)

    def undelivered(self, after: int, limit: int, *, dead_lettered: bool = False) -> tuple[int, ...]:
        """The first `limit` positions after one of events that could not be delivered, or that a sink took instead."""
        self._catch_up()
        return self._reader.undelivered(after, limit, dead_lettered=dead_lettered)

    def deliveries(self, seqs: Sequence[int]) -> dict[int, tuple[Delivery, ...]]:
        """What became of these events, by position."""
        self._catch_up()
        return self._reader.deliveries(seqs)

    def positions(self) -> dict[str, Position]:
        """How far each subscription is, by uid, as it was last kept."""
        self._catch_up()
        return self._reader.positions()

    # ---- inside

    def _catch_up(self) -> None:
        waiting: Future[None] = asyncio.run_coroutine_threadsafe(self._copied(), self._running())
        try:
            waiting.result(PATIENCE_S)
        except TimeoutError as error:
            mirror = self._mirror
            raise Unavailable(
                f"The event log in Kafka is being read, {mirror.next} of {mirror.end} events so far. "
                "Ask again in some seconds."
            ) from error
        except (*CONNECTION_ERRORS, sqlite3.Error) as error:
            raise Unavailable(f"The event log cannot be read now: {reason(error)}.") from error

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="kafka-log-reader", daemon=True)
                self._thread.start()
            return self._loop

    async def _copied(self) -> None:
        """Until the copy has what Kafka has now. Who gives up waiting does not stop it."""
        running = copying = self._copying
        if running is not None and not running.done():  # it may have begun before what is asked for was there
            await asyncio.wait({running})
            copying = self._copying
        if copying is running or copying is None:  # nobody else who waited began the next one
            copying = asyncio.create_task(self._mirror.catch_up(), name="event log copied for people")
            self._copying = copying
        await asyncio.shield(copying)

    async def _end(self) -> None:
        if self._copying is not None:
            self._copying.cancel()
            await asyncio.wait({self._copying})
        self._mirror.close()
        await self._connection.close()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
