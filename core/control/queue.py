"""Which keys to work on next: each key by one worker at a time, several keys side by side, and no change lost.

The lifecycle of a key; everything that moves it is in this file::

    IDLE ----touch or timer----> QUEUED ----room----> RUNNING --done--> PARKED --cache is current--> IDLE or QUEUED
                                                                   \\---------nothing written----------^

A touch in RUNNING or PARKED makes the key QUEUED again afterwards. PARKED means that the last run wrote something that
the cache has not seen yet: deciding again on the old state would repeat it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from core.resources import Key, KindRef

__all__ = ["PARK_LIMIT_S", "WorkQueue"]

#: A cache that has not caught up with our own write after this long follows a store that was set back; optimistic
#: concurrency then keeps old state from doing harm.
PARK_LIMIT_S: Final = 10.0


class _State(Enum):
    IDLE = "idle"
    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"


class _Entry:
    __slots__ = ("behind", "dirty", "due_at", "park_limit", "state", "timer")

    def __init__(self) -> None:
        self.state = _State.IDLE
        self.dirty = False
        #: Loop time of the next look that was asked for, or None.
        self.due_at: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.behind: Mapping[KindRef, int] = {}
        self.park_limit: asyncio.TimerHandle | None = None


class WorkQueue:
    """Keys waiting for `start`, of which at most `parallel` are at work. `seen` is the cache's version of a kind.

    Bounded by the number of resources: a key is in it once.
    """

    def __init__(self, start: Callable[[Key], None], *, parallel: int, seen: Callable[[KindRef], int]) -> None:
        self._start = start
        self._parallel = parallel
        self._seen = seen
        self._entries: dict[Key, _Entry] = {}
        self._ready: deque[Key] = deque()
        self._parked: set[Key] = set()
        self._running = 0

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    def touch(self, key: Key) -> None:
        """Something that matters to the key changed: work on it soon, at least once after now."""
        entry = self._entries.setdefault(key, _Entry())
        if entry.state in (_State.RUNNING, _State.PARKED):
            entry.dirty = True
        elif entry.state is _State.IDLE:
            self._queue(key, entry)
            self._pump()

    def done(self, key: Key, *, again_in_s: float | None, written: Mapping[KindRef, int]) -> None:
        """The work that `start` began is over. Look again in `again_in_s` even if nothing changes; not before the cache
        has seen the versions `written`."""
        entry = self._entries[key]
        self._running -= 1
        loop = asyncio.get_running_loop()
        entry.due_at = None if again_in_s is None else loop.time() + again_in_s
        entry.behind = written
        if self._is_current(entry):
            self._settle(key, entry)
        else:
            entry.state = _State.PARKED
            entry.park_limit = loop.call_later(PARK_LIMIT_S, self._unpark, key)
            self._parked.add(key)
        self._pump()

    def advance(self) -> None:
        """The cache moved on: keys whose own writes it has seen go on."""
        for key in [key for key in self._parked if self._is_current(self._entries[key])]:
            self._unpark(key)

    def close(self) -> None:
        """Drop everything that waits."""
        for entry in self._entries.values():
            for handle in (entry.timer, entry.park_limit):
                if handle is not None:
                    handle.cancel()
        self._entries.clear()
        self._ready.clear()
        self._parked.clear()

    def _is_current(self, entry: _Entry) -> bool:
        return all(self._seen(kind) >= version for kind, version in entry.behind.items())

    def _unpark(self, key: Key) -> None:
        entry = self._entries[key]
        self._parked.discard(key)
        if entry.park_limit is not None:
            entry.park_limit.cancel()
            entry.park_limit = None
        self._settle(key, entry)
        self._pump()

    def _settle(self, key: Key, entry: _Entry) -> None:
        """After the work, with a current cache: again at once, at a time, or not before something changes."""
        entry.state = _State.IDLE
        entry.behind = {}
        if entry.dirty:
            self._queue(key, entry)
        elif entry.due_at is None:
            del self._entries[key]
        else:
            entry.timer = asyncio.get_running_loop().call_at(entry.due_at, self.touch, key)

    def _queue(self, key: Key, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        entry.state = _State.QUEUED
        entry.dirty = False
        self._ready.append(key)

    def _pump(self) -> None:
        while self._ready and self._running < self._parallel:
            key = self._ready.popleft()
            self._entries[key].state = _State.RUNNING
            self._running += 1
            self._start(key)
