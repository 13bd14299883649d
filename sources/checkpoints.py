"""What each source has told already, durable before it tells more. Keyed by the source's uid, so that a source that is
deleted and made again starts anew.

`SqliteCheckpoints` keeps all sources of a platform in one file. Its statements run in a thread of their own, because a
commit waits for the disk; writes that arrive while one commit is under way share the next one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TypeVar

from core.errors import Corrupt, Unavailable

__all__ = ["Checkpoints", "MemoryCheckpoints", "SourceMarks", "SqliteCheckpoints"]

T = TypeVar("T")

#: Keys in one SELECT; SQLite's own default limit of parameters was 999 for most of its life.
_KEYS_A_QUERY: Final = 500
#: Another process holds the file only while it opens it; longer means that somebody else uses our data directory.
_BUSY_TIMEOUT_S: Final = 5.0


class Checkpoints(Protocol):
    """The checkpoints of all sources. All methods may raise Unavailable; then nothing was changed."""

    async def read(self, source: str, keys: Iterable[str]) -> dict[str, str]:
        """The marks of these keys that exist."""
        ...

    async def write(self, source: str, marks: Mapping[str, str | None]) -> None:
        """Set marks, or remove those given as None, all or none; durable when it returns."""
        ...

    async def page(self, source: str, after: str, limit: int) -> list[str]:
        """Up to `limit` keys that sort after `after` (by code point), in order."""
        ...

    async def sources(self) -> list[str]:
        """The uids of all sources that have marks."""
        ...

    async def drop(self, source: str) -> None:
        """Forget everything of a source that exists no more."""
        ...


class SourceMarks:
    """One source's share of the checkpoints: `sources.port.Marks`."""

    __slots__ = ("_checkpoints", "_source")

    def __init__(self, checkpoints: Checkpoints, source: str) -> None:
        self._checkpoints = checkpoints
        self._source = source

    async def read(self, keys: Iterable[str]) -> dict[str, str]:
        return await self._checkpoints.read(self._source, keys)

    async def write(self, marks: Mapping[str, str | None]) -> None:
        await self._checkpoints.write(self._source, marks)

    async def page(self, after: str, limit: int) -> list[str]:
        return await self._checkpoints.page(self._source, after, limit)


class MemoryCheckpoints:
    """The fake: as durable as the process."""

    def __init__(self) -> None:
        self._marks: dict[str, dict[str, str]] = {}

    async def read(self, source: str, keys: Iterable[str]) -> dict[str, str]:
        held = self._marks.get(source, {})
        return {key: held[key] for key in keys if key in held}

    async def write(self, source: str, marks: Mapping[str, str | None]) -> None:
        held = self._marks.setdefault(source, {})
        for key, value in marks.items():
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value

    async def page(self, source: str, after: str, limit: int) -> list[str]:
        return sorted(key for key in self._marks.get(source, {}) if key > after)[:limit]

    async def sources(self) -> list[str]:
        return sorted(source for source, marks in self._marks.items() if marks)

    async def drop(self, source: str) -> None:
        self._marks.pop(source, None)


class SqliteCheckpoints:
    """Checkpoints in one SQLite file (write-ahead log, synchronous=FULL). Open it once a process, and close it."""

    def __init__(self, path: Path) -> None:
        """Raises Corrupt where the file is not a database of ours, Unavailable where it cannot be opened."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._waiting: list[tuple[str, Mapping[str, str | None], asyncio.Future[None]]] = []
        self._committing: asyncio.Future[None] | None = None
        try:
            self._database = self._thread.submit(_open, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def read(self, source: str, keys: Iterable[str]) -> dict[str, str]:
        wanted = list(keys)
        return await self._call(lambda: _read(self._database, source, wanted)) if wanted else {}

    async def write(self, source: str, marks: Mapping[str, str | None]) -> None:
        if not marks:
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((source, marks, done))
        if self._committing is None:
            self._commit_waiting()
        await done

    async def page(self, source: str, after: str, limit: int) -> list[str]:
        query = "SELECT key FROM marks WHERE source = ? AND key > ? ORDER BY key LIMIT ?"
        rows = await self._call(lambda: self._database.execute(query, (source, after, limit)).fetchall())
        return [key for (key,) in rows]

    async def sources(self) -> list[str]:
        query = "SELECT DISTINCT source FROM marks ORDER BY source"
        return [source for (source,) in await self._call(lambda: self._database.execute(query).fetchall())]

    async def drop(self, source: str) -> None:
        def delete() -> None:
            with self._database:
                self._database.execute("DELETE FROM marks WHERE source = ?", (source,))

        await self._call(delete)

    async def close(self) -> None:
        """Finish the writes under way and close the file. Nothing may be called afterwards."""
        while self._committing is not None:
            await asyncio.wait([self._committing])
        await self._call(self._database.close)
        self._thread.shutdown()

    def _commit_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        self._committing = loop.run_in_executor(self._thread, _write, self._database, [entry[:2] for entry in batch])
        self._committing.add_done_callback(lambda committed: self._committed(committed, [done for *_, done in batch]))

    def _committed(self, committed: asyncio.Future[None], waiters: list[asyncio.Future[None]]) -> None:
        self._committing = None
        error = committed.exception()
        for done in waiters:
            if done.done():
                continue  # its writer was cancelled; the mark is written all the same
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(_unavailable(error))
        if self._waiting:
            self._commit_waiting()

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise _unavailable(error) from error


def _unavailable(error: BaseException) -> Unavailable:
    unavailable = Unavailable(f"The sources' checkpoints cannot be used: {error}.")
    unavailable.__cause__ = error
    return unavailable


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"The sources' checkpoints at {path} cannot be opened: {error}.") from error
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS marks"
            " (source TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (source, key)) WITHOUT ROWID"
        )
    except sqlite3.OperationalError as error:
        database.close()
        raise Unavailable(f"The sources' checkpoints at {path} cannot be opened: {error}.") from error
    except sqlite3.DatabaseError as error:
        database.close()
        raise Corrupt(f"{path} is not the sources' checkpoints: {error}. Move it away to start without.") from error
    return database


def _read(database: sqlite3.Connection, source: str, keys: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in _parts(keys):
        holes = ",".join("?" * len(part))
        query = f"SELECT key, value FROM marks WHERE source = ? AND key IN ({holes})"  # noqa: S608 - only holes
        found.update(database.execute(query, (source, *part)).fetchall())
    return found


def _write(database: sqlite3.Connection, batch: list[tuple[str, Mapping[str, str | None]]]) -> None:
    with database:
        for source, marks in batch:
            for key, value in marks.items():
                if value is None:
                    database.execute("DELETE FROM marks WHERE source = ? AND key = ?", (source, key))
                else:
                    statement = "INSERT INTO marks VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
                    database.execute(statement, (source, key, value))


def _parts(keys: list[str]) -> Iterator[list[str]]:
    iterator = iter(keys)
    while part := list(islice(iterator, _KEYS_A_QUERY)):
        yield part
