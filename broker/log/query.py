"""Reads event logs for people: what arrived, and what became of it. Here what is asked, and SQLite's answers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from broker.ledger import Attempt
from broker.log import schema
from broker.log.port import Position, Record
from broker.log.refusals import damaged, unavailable
from core.errors import Corrupt

__all__ = ["MAX_SCANNED", "Delivery", "Found", "LogQuery", "LogReader", "Slice", "Wanted", "wanted_brokers"]

#: Events looked at for one answer where what is wanted leaves most of them out.
MAX_SCANNED: Final = 20_000
#: Events whose deliveries are read in one statement.
_TOGETHER: Final = 500


class Delivery(msgspec.Struct, frozen=True):
    """The attempts to deliver one event for one subscription, oldest first. `name` is the Trigger's."""

    uid: str
    name: str
    attempts: tuple[Attempt, ...]


class Found(msgspec.Struct, frozen=True):
    """A stored event; `record` None where its bytes are not what was written."""

    seq: int
    broker: str
    at: float
    size: int
    record: Record | None


#: Whether an event is among those that are asked for. Called for one Broker's after the other's, from its
#: newest back where the newest are asked for.
Wanted = Callable[[Found], bool]


class Slice(msgspec.Struct, frozen=True):
    """Events in order, and the position to ask on from."""

    events: tuple[Found, ...]
    next: int


class LogQuery(Protocol):
    """What is asked of a log for people, whatever keeps it. Each adapter has a reader that any process may use beside
    the log's own processes; each call blocks, and raises Unavailable where the log cannot be read."""

    def newest(
        self,
        limit: int,
        *,
        namespace: str | None = None,
        broker: str | None = None,
        wanted: Wanted | None = None,
    ) -> Slice:
        """The last `limit` events that match."""
        ...

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
        ...

    def by_id(self, event_id: str) -> tuple[Found, ...]:
        """Every event of that id: an id is unique only together with its source, and an event can be sent twice."""
        ...

    def replies(self, seq: int) -> tuple[Found, ...]:
        """The events that subscribers answered this one with."""
        ...

    def at(self, seqs: Sequence[int]) -> tuple[Found, ...]:
        """The events at these positions, in order; those that are no longer kept are left out."""
        ...

    def undelivered(self, after: int, limit: int, *, dead_lettered: bool = False) -> tuple[int, ...]:
        """The first `limit` positions after one, in order, of events that could not be delivered for some subscription
        (`broker.ledger.UNDELIVERED`) and that people did not settle for all; or, with `dead_lettered`, of events that a
        dead-letter sink took instead. The events need not be kept any more."""
        ...

    def deliveries(self, seqs: Sequence[int]) -> dict[int, tuple[Delivery, ...]]:
        """What became of these events, by position."""
        ...

    def positions(self) -> dict[str, Position]:
        """How far each subscription is, by uid, as it was last kept."""
        ...


class LogReader:
    """The log in the SQLite file at `path`, which need not exist yet: then it is empty. Each call is one consistent
    reading.

    All methods raise Unavailable where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def newest(
        self,
        limit: int,
        *,
        namespace: str | None = None,
        broker: str | None = None,
        wanted: Wanted | None = None,
    ) -> Slice:
        """The last `limit` events that match."""
        return self._slice("ORDER BY seq DESC", (), limit, wanted_brokers(namespace, broker), wanted)

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
        return self._slice("ORDER BY seq", (seq,), limit, wanted_brokers(namespace, broker), wanted)

    def by_id(self, event_id: str) -> tuple[Found, ...]:
        """Every event of that id: an id is unique only together with its source, and an event can be sent twice."""
        indexed = "SELECT seq FROM ids WHERE hash = ?"
        newer = "SELECT seq FROM events WHERE seq > (SELECT value FROM meta WHERE name = 'indexed') AND id_hash = ?"
        sql = f"{_SELECT} WHERE seq IN ({indexed} UNION ALL {newer}) ORDER BY seq"
        hashed = schema.id_hash(event_id)
        with self._open() as connection:
            if connection is None:
                return ()
            found = list(_rows(connection, sql, (hashed, hashed)))
        return tuple(each for each in found if each.record and each.record.entry.attributes["id"] == event_id)

    def replies(self, seq: int) -> tuple[Found, ...]:
        """The events that subscribers answered this one with."""
        with self._open() as connection:
            if connection is None:
                return ()
            return tuple(_rows(connection, f"{_SELECT} WHERE cause = ? ORDER BY seq", (seq,)))

    def at(self, seqs: Sequence[int]) -> tuple[Found, ...]:
        """The events at these positions, in order; those that are no longer kept are left out."""
        found: list[Found] = []
        wanted = sorted(set(seqs))
        with self._open() as connection:
            if connection is None:
                return ()
            for start in range(0, len(wanted), _TOGETHER):
                part = tuple(wanted[start : start + _TOGETHER])
                marks = ", ".join("?" * len(part))
                found += _rows(connection, f"{_SELECT} WHERE seq IN ({marks}) ORDER BY seq", part)
        return tuple(found)

    def undelivered(self, after: int, limit: int, *, dead_lettered: bool = False) -> tuple[int, ...]:
        """The first `limit` positions after one of events that could not be delivered, or that a sink took instead."""
        which = schema.DEAD_LETTERED_SEQS if dead_lettered else schema.UNDELIVERED_SEQS
        with self._open() as connection:
            if connection is None:
                return ()
            sql = f"SELECT DISTINCT seq FROM ({which}) WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - constants
            return tuple(row[0] for row in connection.execute(sql, (after, limit)))

    def deliveries(self, seqs: Sequence[int]) -> dict[int, tuple[Delivery, ...]]:
        """What became of these events, by position."""
        found: dict[int, dict[int, list[Attempt]]] = {}
        with self._open() as connection:
            if connection is None:
                return {}
            names = {row[0]: (row[1], row[2]) for row in connection.execute("SELECT id, uid, name FROM subscriptions")}
            for start in range(0, len(seqs), _TOGETHER):
                part = tuple(seqs[start : start + _TOGETHER])
                marks = ", ".join("?" * len(part))
                sql = f"SELECT * FROM attempts WHERE seq IN ({marks}) ORDER BY seq, subscription, at, number"  # noqa: S608 - question marks
                for row in connection.execute(sql, part):
                    seq, subscription = row[:2]
                    attempt = schema.attempt_of(row, names.get(subscription, ("", ""))[0])
                    found.setdefault(seq, {}).setdefault(subscription, []).append(attempt)
        return {
            seq: tuple(Delivery(*names.get(number, ("", "")), tuple(attempts)) for number, attempts in held.items())
            for seq, held in found.items()
        }

    def positions(self) -> dict[str, Position]:
        """How far each subscription is, by uid, as it was last kept."""
        with self._open() as connection:
            if connection is None:
                return {}
            found = {}
            names = dict(connection.execute("SELECT id, name FROM brokers"))
            rows = connection.execute("SELECT uid, broker, through, open FROM subscriptions WHERE kept = 1")
            for uid, number, through, opened in rows:
                with suppress(Corrupt):  # the log's own process says it
                    found[uid] = Position(through, schema.unpack_open(uid, names.get(number, ""), through, opened))
            return found

    def _slice(
        self,
        order: str,
        after: tuple[int, ...],
        limit: int,
        of: Callable[[str], bool] | None,
        wanted: Wanted | None,
    ) -> Slice:
        with self._open() as connection:
            if connection is None:
                return Slice((), after[0] if after else 0)
            conditions = ["seq > ?"] if after else []
            if of is not None:
                rows = connection.execute("SELECT id, name FROM brokers")
                numbers = ", ".join(str(number) for number, name in rows if of(name))
                conditions.append(f"broker IN ({numbers})")
            where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
            scanned = limit if wanted is None else MAX_SCANNED
            sql = f"{_SELECT} {where} {order} LIMIT {scanned}"
            events, last = [], after[0] if after else 0
            for found in _rows(connection, sql, after):
                last = max(last, found.seq)
                if wanted is None or wanted(found):
                    events.append(found)
                    if len(events) == limit:
                        break
        return Slice(tuple(sorted(events, key=lambda found: found.seq)), last)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """A connection in one read transaction; None where there is no log yet."""
        if not self._path.exists():
            yield None
            return
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)) as connection:
                connection.execute("BEGIN")
                (held,) = connection.execute("PRAGMA user_version").fetchone()
                # A file of an older format is read as it is, until the broker that writes it brings it to this one.
                yield connection if held == schema.FORMAT or held in schema.MIGRATIONS else None
        except sqlite3.Error as error:
            raise unavailable(error, self._path) from error
        except (LookupError, TypeError, ValueError) as error:
            raise damaged(self._path, f"a row is not what was written ({error!r})") from error


_SELECT: Final = f"{schema.SELECT_EVENT[: -len(' FROM events')]}, broker FROM events"


def _rows(connection: sqlite3.Connection, sql: str, values: tuple[int, ...]) -> Iterator[Found]:
    brokers = dict(connection.execute("SELECT id, name FROM brokers"))
    uids = dict(connection.execute("SELECT id, uid FROM subscriptions"))
    row: tuple[Any, ...]
    for row in connection.execute(sql, values):
        name = brokers.get(row[8], "")
        record: Record | None
        try:
            record = schema.record_of(row[:8], name, uids.get(row[5]))
        except Corrupt:
            record = None
        at, size = (row[1], len(row[7])) if record is not None or _is_whole(row) else (0, 0)
        yield Found(row[0], name, at / 1e6, size, record)


def _is_whole(row: tuple[Any, ...]) -> bool:
    """Whether a corrupt event's row is of the right types at least."""
    return isinstance(row[1], int) and isinstance(row[7], bytes)


def wanted_brokers(namespace: str | None, broker: str | None) -> Callable[[str], bool] | None:
    """Which Brokers are asked for; None for all."""
    if namespace is None and broker is None:
        return None

    def wanted(name: str) -> bool:
        held_namespace, _, held_name = name.partition("/")
        return namespace in (None, held_namespace) and broker in (None, held_name)

    return wanted
