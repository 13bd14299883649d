"""Order by key: of the events of one key, one is on its way at a time, and the others stand behind it as they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

__all__ = ["Lanes", "key_of"]

T = TypeVar("T")


def key_of(attributes: Mapping[str, str], order_by: Sequence[str]) -> str | None:
    """The value of the first of these attributes that the event has; None where it has none, and no order."""
    for name in order_by:
        value = attributes.get(name)
        if value is not None:
            return value
    return None


class Lanes(Generic[T]):
    """A lane for each key of which something is on its way. Pure."""

    __slots__ = ("_ahead", "_behind")

    def __init__(self) -> None:
        #: How many of a key are on their way: one, but where several were when the order began to matter.
        self._ahead: dict[str, int] = {}
        self._behind: dict[str, deque[T]] = {}

    def enter(self, key: str, item: T) -> bool:
        """Whether the item may go; else it stands behind those of its key until `leave` gives it out."""
        if key in self._ahead:
            self._behind.setdefault(key, deque()).append(item)
            return False
        self._ahead[key] = 1
        return True

    def join(self, key: str) -> None:
        """Something of this key is on its way already."""
        self._ahead[key] = self._ahead.get(key, 0) + 1

    def leave(self, key: str) -> T | None:
        """What was on its way is done with for good: the next of its key, which now is on its way."""
        left = self._ahead[key] - 1
        if left:
            self._ahead[key] = left
            return None
        behind = self._behind.get(key)
        if behind is None:
            del self._ahead[key]
            return None
        following = behind.popleft()
        if not behind:
            del self._behind[key]
        return following

    def held(self) -> list[T]:
        """All that stands behind something."""
        return [item for behind in self._behind.values() for item in behind]
