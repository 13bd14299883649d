"""Reads the Redis event log for people. For any process, beside those that write it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.ledger import Attempt
from broker.log.encoding import arrival_of, decode_attempt, decode_record, id_hash
from broker.log.port import Position
from broker.log.query import MAX_SCANNED, Delivery, Found, Slice, Wanted, wanted_brokers
from broker.log.redis.connection import COMMAND_TIMEOUT_S, CONNECTION_ERRORS
from broker.log.redis.layout import Keys, decode_kept, seq_of, stream_id
from core.errors import Corrupt, Unavailable

__all__ = ["RedisReader"]

#: Events asked for at once.
TOGETHER: Final = 500
#: Events of one id, or replies to one event, in one answer.
MAX_SAME: Final = 1000


class RedisReader:
    """The log of this name in the Redis at `url`. Each call blocks; all raise Unavailable where it cannot be read."""

    def __init__(self, url: str, *, name: str) -> None:
        """Raises ValueError where the URL cannot be read."""
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis.from_pool(pool)
        self._redis.response_callbacks.clear()
        self._keys = Keys(name)

    def close(self) -> None:
        self._redis.close()

    def newest(
        self,
        limit: int,
        *,
        namespace: str | None = None,
        broker: str | None = None,
        wanted: Wanted | None = None,
    ) -> Slice:
        """The last `limit` events that match."""
        found: list[Found] = []
        newest = 0
        with self._errors():
            for name in self._brokers(namespace, broker):
                some, _, _ = _first(self._backwards(name), limit, wanted)
                found += some
                newest = max(newest, self._newest(name))
        found.sort(key=_seq)
        return Slice(tuple(found[-limit:]), newest)

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
        found: list[Found] = []
        newest, cut = seq, None
        with self._errors():
            for name in self._brokers(namespace, broker):
                some, through, ended = _first(self._forwards(name, seq), limit, wanted)
                found += some
                newest = max(newest, through)
                if not ended:
                    cut = through if cut is None else min(cut, through)
        # What lies beyond the point to which every Broker was looked through comes with the next answer.
        through = newest if cut is None else cut
        events = sorted((event for event in found if event.seq <= through), key=_seq)
        return Slice(tuple(events[:limit]), events[limit - 1].seq if len(events) > limit else through)

    def by_id(self, event_id: str) -> tuple[Found, ...]:
        """Every event of that id: an id is unique only together with its source, and an event can be sent twice."""
        hashed = id_hash(event_id)
        found = self._scored(self._keys.ids, hashed)
        return tuple(each for each in found if each.record and each.record.entry.attributes["id"] == event_id)

    def replies(self, seq: int) -> tuple[Found, ...]:
        """The events that subscribers answered this one with."""
        return self._scored(self._keys.causes, seq)

    def at(self, seqs: Sequence[int]) -> tuple[Found, ...]:
        """The events at these positions, in order; those that are no longer kept are left out."""
        with self._errors():
            return self._picked(seqs)

    def undelivered(self, after: int, limit: int, *, dead_lettered: bool = False) -> tuple[int, ...]:
        """The first `limit` positions after one of events that could not be delivered, or that a sink took instead."""
        with self._errors():
            if dead_lettered:
                return self._dead_lettered(after, limit)
            words = ("ZRANGEBYSCORE", self._keys.undelivered, f"({after}", "+inf", "LIMIT", 0, limit)
            return tuple(int(seq) for seq in self._run(*words))

    def deliveries(self, seqs: Sequence[int]) -> dict[int, tuple[Delivery, ...]]:
        """What became of these events, by position."""
        commands = [("ZRANGEBYSCORE", self._keys.attempts, seq, seq) for seq in seqs]
        found: dict[int, tuple[Delivery, ...]] = {}
        with self._errors():
            raw = self._run("HGETALL", self._keys.names)
            names = {uid.decode(): name.decode() for uid, name in zip(raw[::2], raw[1::2], strict=True)}
            for seq, stored in zip(seqs, self._run_all(commands), strict=True):
                by_uid: dict[str, list[Attempt]] = {}
                for attempt in sorted(map(decode_attempt, stored), key=lambda made: (made.at, made.number)):
                    by_uid.setdefault(attempt.uid, []).append(attempt)
                if by_uid:
                    found[seq] = tuple(
                        Delivery(uid, names.get(uid, ""), tuple(attempts)) for uid, attempts in sorted(by_uid.items())
                    )
        return found

    def positions(self) -> dict[str, Position]:
        """How far each subscription is, by uid, as it was last kept."""
        with self._errors():
            raw = self._run("HGETALL", self._keys.positions)
            return {uid.decode(): decode_kept(kept).position for uid, kept in zip(raw[::2], raw[1::2], strict=True)}

    # ---- inside

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except CONNECTION_ERRORS as error:
            raise Unavailable(f"The event log cannot be read now: {str(error).rstrip('.')}.") from error
        except Corrupt as error:
            raise Unavailable(str(error)) from error

    def _run(self, *words: str | int) -> Any:
        return self._redis.execute_command(*words)  # type: ignore[no-untyped-call]  # so in the client

    def _run_all(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)  # type: ignore[no-untyped-call]  # as above
        answers: list[Any] = pipeline.execute()
        return answers

    def _brokers(self, namespace: str | None, broker: str | None) -> list[str]:
        wanted = wanted_brokers(namespace, broker)
        names = sorted(name.decode() for name in self._run("SMEMBERS", self._keys.brokers))
        return [name for name in names if wanted is None or wanted(name)]

    def _scored(self, key: str, score: int) -> tuple[Found, ...]:
        """The events of an index's entries."""
        with self._errors():
            return self._picked([int(n) for n in self._run("ZRANGEBYSCORE", key, score, score, "LIMIT", 0, MAX_SAME)])

    def _picked(self, seqs: Sequence[int]) -> tuple[Found, ...]:
        """The events at these positions. Which Broker has a position is not known: each is asked."""
        asked = [(name, seq) for name in self._brokers(None, None) for seq in sorted(set(seqs))]
        commands = [("XRANGE", self._keys.events(name), stream_id(seq), stream_id(seq)) for name, seq in asked]
        answers = self._run_all(commands) if commands else []
        found = [_found(name, *entries[0]) for (name, _), entries in zip(asked, answers, strict=True) if entries]
        return tuple(sorted(found, key=_seq))

    def _dead_lettered(self, after: int, limit: int) -> tuple[int, ...]:
        """Looks through the whole ledger after a position, in parts: nothing else tells them apart."""
        found: dict[int, None] = {}
        begin, skip = f"({after}", 0
        while len(found) < limit:
            words = ("ZRANGEBYSCORE", self._keys.attempts, begin, "+inf", "LIMIT", skip, TOGETHER)
            rows = [decode_attempt(stored) for stored in self._run(*words)]
            found.update((row.seq, None) for row in rows if row.outcome == "dead-lettered")
            if len(rows) < TOGETHER:
                break
            # On from the last position, whose rows may go beyond this part.
            last = str(rows[-1].seq)
            skip = sum(row.seq == rows[-1].seq for row in rows) + (skip if begin == last else 0)
            begin = last
        return tuple(found)[:limit]

    def _newest(self, broker: str) -> int:
        entries = self._run("XREVRANGE", self._keys.events(broker), "+", "-", "COUNT", 1)
        return seq_of(entries[0][0]) if entries else 0

    def _forwards(self, broker: str, after: int) -> Iterator[Found]:
        stream = self._keys.events(broker)
        while entries := self._run("XRANGE", stream, f"({stream_id(after)}", "+", "COUNT", TOGETHER):
            yield from (_found(broker, *entry) for entry in entries)
            after = seq_of(entries[-1][0])

    def _backwards(self, broker: str) -> Iterator[Found]:
        stream, before = self._keys.events(broker), "+"
        while entries := self._run("XREVRANGE", stream, before, "-", "COUNT", TOGETHER):
            yield from (_found(broker, *entry) for entry in entries)
            before = f"({entries[-1][0].decode()}"


def _first(events: Iterator[Found], limit: int, wanted: Wanted | None) -> tuple[list[Found], int, bool]:
    """The first `limit` wanted ones, how far that looked, and whether it was to the end."""
    found: list[Found] = []
    through = 0
    for event in itertools.islice(events, MAX_SCANNED):
        through = event.seq
        if wanted is None or wanted(event):
            found.append(event)
            if len(found) == limit:
                return found, through, False
    return found, through, next(events, None) is None


def _found(broker: str, entry_id: bytes, fields: Sequence[bytes]) -> Found:
    seq, stored = seq_of(entry_id), fields[1]
    try:
        record = decode_record(seq, broker, stored)
    except Corrupt:
        return Found(seq, broker, arrival_of(stored), 0, None)
    return Found(seq, broker, record.entry.at, len(record.entry.data), record)


def _seq(found: Found) -> int:
    return found.seq
