"""How far a partition is done: records may finish in any order, but a group has one offset for a partition."""

from __future__ import annotations

from collections import deque

__all__ = ["Progress"]


class Progress:
    """The records of one partition from the first that is not done yet.

    Offsets need not be consecutive: compacted topics and transactions leave gaps.
    """

    __slots__ = ("_done", "_low", "_saved", "_started")

    def __init__(self) -> None:
        self._started: deque[int] = deque()
        self._done: set[int] = set()
        self._low: int | None = None
        self._saved: int | None = None

    def start(self, offset: int) -> None:
        """Work on this record begins. Raises ValueError where it does not come after the last one."""
        if (self._started and offset <= self._started[-1]) or (self._low is not None and offset < self._low):
            raise ValueError(f"offset {offset} does not come after those that were started")
        self._started.append(offset)

    def is_past(self, offset: int) -> bool:
        """Whether this record, or a later one, was started before."""
        if self._started:
            return offset <= self._started[-1]
        return self._low is not None and offset < self._low

    def finish(self, offset: int) -> None:
        """This record is done. Raises ValueError where it was not started, or is done already."""
        if offset in self._done or offset not in self._started:
            raise ValueError(f"offset {offset} is not under way")
        self._done.add(offset)
        while self._started and self._started[0] in self._done:
            first = self._started.popleft()
            self._done.remove(first)
            self._low = first + 1

    @property
    def ahead(self) -> int:
        """Records from the first that is not done: what a crash may repeat."""
        return len(self._started)

    def first_undone(self, position: int) -> int:
        """The offset before which everything is done; `position` is what comes next where nothing was started yet."""
        if self._started:
            return self._started[0]
        return position if self._low is None else self._low

    @property
    def unsaved(self) -> int | None:
        """The offset to commit: all records before it are done. None where that was saved already."""
        return self._low if self._low != self._saved else None

    def saved(self, offset: int) -> None:
        """This offset is committed."""
        self._saved = offset
