"""How a write wakes the watches that wait for it, within one process and without queues.

A watch keeps its own position and reads on from the kept changes. It waits here only when it has read everything, so
the first change of its kind after that wakes it; no change can be missed, doubled or reordered.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from core.errors import Unavailable
from core.resources import KindRef

__all__ = ["BOOKMARK_EVERY", "Wake", "Wakeups"]

#: A watch of a quiet kind is told the current version once in so many changes of other kinds, so that what it would
#: resume from stays well within what is kept (10,000 changes).
BOOKMARK_EVERY: Final = 1_000


class Wake(msgspec.Struct, frozen=True):
    """Nothing of the kind happened up to `position`. `bookmark`: nothing happened at all; tell the version."""

    position: int
    bookmark: bool


class Wakeups:
    """Waiting watches by kind."""

    __slots__ = ("_closed", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[KindRef, set[asyncio.Future[Wake]]] = {}
        self._closed = False

    async def wait(self, kind: KindRef) -> Wake:
        """Until a change of `kind`, or a bookmark is due. Raises Unavailable where the store is closed meanwhile."""
        if self._closed:
            raise _closed()
        future: asyncio.Future[Wake] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(kind, set())
        waiting.add(future)
        try:
            return await future
        finally:
            waiting.discard(future)

    def tell(self, kind: KindRef, version: int) -> None:
        """The change `version`, of this kind, is stored."""
        self._wake(kind, Wake(version - 1, bookmark=False))
        if version % BOOKMARK_EVERY == 0:
            for other in self._waiting:
                self._wake(other, Wake(version, bookmark=True))

    def close(self) -> None:
        """End every watch with Unavailable."""
        self._closed = True
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(_closed())

    def _wake(self, kind: KindRef, wake: Wake) -> None:
        for future in self._waiting.get(kind, ()):
            if not future.done():
                future.set_result(wake)


def _closed() -> Unavailable:
    return Unavailable("The store was closed. Watch again once it is open.")
