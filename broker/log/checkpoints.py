"""Brings what SQLite's write-ahead log holds into the database file, beside the commits and not inside one.

SQLite does this by itself inside the commit that makes its log long enough; the events of that commit, and all that
arrive meanwhile, then wait for the database file's pages to be written and synced. Here a thread with a connection of
its own does the work while commits go on (a passive checkpoint waits for nobody), and what was committed meanwhile,
which is little, is done between two commits: only a log that is in the file to its last page is begun anew, and not
made longer.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)

#: Pages in the log from which on it is brought in: 4 MiB, as SQLite does it by itself.
PAGES: Final = 1024
#: Pages that a commit writes beside its events' data: the last page of each table and index, and the positions.
PAGES_PER_COMMIT: Final = 6
#: Pages that removing an event writes: its entry in the index by id lies anywhere.
PAGES_PER_REMOVED: Final = 2
_PAGE_BYTES: Final = 4096


class Checkpoints:
    """Used on the loop's thread, but for `rest`, which runs where commits do. `close` ends it."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        writer: sqlite3.Connection,
        *,
        held_bytes: int,
        soon: Callable[[Callable[[], None]], object],
        between_commits: Callable[[Callable[[], None]], None],
    ) -> None:
        """`connection` is for this alone, and its owner closes it; `held_bytes` is how long the log is, which a process
        that was killed may have left; `soon` has the loop call something from another thread, `between_commits`
        the thread that commits."""
        self._connection = connection
        self._writer = writer
        self._soon = soon
        self._between_commits = between_commits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="event-log-checkpoint")
        self._pages = held_bytes // _PAGE_BYTES
        self._running = False

    def committed(self, data_bytes: int) -> None:
        """A commit with so many bytes of events' data ended."""
        self._wrote(PAGES_PER_COMMIT + data_bytes // _PAGE_BYTES)

    def swept(self, events: int) -> None:
        """So many events were removed."""
        self._wrote(PAGES_PER_COMMIT + events * PAGES_PER_REMOVED)

    def _wrote(self, pages: int) -> None:
        self._pages += pages
        if self._pages >= PAGES and not self._running:
            self._pages = 0
            self._running = True
            self._thread.submit(checkpoint, self._connection).add_done_callback(self._done)

    def close(self) -> None:
        """After the last commit; waits for a checkpoint under way."""
        self._thread.shutdown()

    def _done(self, done: Future[None]) -> None:
        self._soon(lambda: self._ended(done))

    def _ended(self, done: Future[None]) -> None:
        """On the loop's thread again."""
        self._running = False
        error = done.exception()
        if error is not None:
            self._failed(error)
        else:
            self._between_commits(self._rest)

    def _rest(self) -> None:
        """On the thread that commits."""
        try:
            checkpoint(self._writer)
        except sqlite3.Error as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Nothing is lost: what is not brought in is read from the log, and the next one tries again."""
        logger.error("the write-ahead log could not be brought in", extra={"facts": {"error": repr(error)}})


def checkpoint(connection: sqlite3.Connection) -> None:
    """Bring in what the log holds now, as far as no reader still needs the file as it is. Raises sqlite3.Error."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
