"""Observations in one-second buckets, averaged over a window as Knative's autoscaler averages them.

Behaviour: knative/serving `pkg/autoscaler/aggregation/bucketing.go` (linear average). While a window is not full, the
average is over the seconds since the first observation; a second in between without one counts as zero; seconds after
the last one are left out of the divisor; a window's length of silence starts afresh. Time is an argument everywhere.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["AverageWindow", "Windows"]

#: Averages are rounded, so that sums of fractions do not leave 1e-17 of demand behind and keep an instance alive.
_DIGITS: Final = 6


class AverageWindow:
    """A ring of buckets of one second each that together cover `length_s` seconds (rounded up)."""

    __slots__ = ("_buckets", "_first", "_last")

    def __init__(self, length_s: float) -> None:
        self._buckets = [0.0] * max(1, math.ceil(length_s))
        #: The seconds of the first and the last observation that count; None before any.
        self._first: int | None = None
        self._last: int | None = None

    @property
    def length_s(self) -> int:
        return len(self._buckets)

    def record(self, second: int, value: float) -> None:
        """The value observed in that whole second. A later value for the same second replaces it where it is larger;
        seconds that are older than the last observation are ignored."""
        size = len(self._buckets)
        if self._last is None or self._first is None or second - self._last >= size:
            self._buckets = [0.0] * size
            self._first = self._last = second
            self._buckets[second % size] = value
            return
        if second < self._last:
            return
        if second == self._last:
            self._buckets[second % size] = max(value, self._buckets[second % size])
            return
        for skipped in range(self._last + 1, second):
            self._buckets[skipped % size] = 0.0
        self._buckets[second % size] = value
        self._last = second

    def average(self, second: int) -> float | None:
        """The average as of that second; None where nothing was ever observed, 0 after a window of silence."""
        if self._first is None or self._last is None:
            return None
        size = len(self._buckets)
        silent = max(0, second - self._last)
        if silent >= size:
            return 0.0
        oldest = max(self._first, self._last + silent - size + 1)
        counted = range(oldest, self._last + 1)
        total = math.fsum(self._buckets[index % size] for index in counted)
        return round(total / len(counted), _DIGITS)


class Windows:
    """The stable and the panic window of one metric of one revision."""

    __slots__ = ("panic", "stable")

    def __init__(self, *, stable_s: float, panic_s: float) -> None:
        self.stable = AverageWindow(stable_s)
        self.panic = AverageWindow(panic_s)

    def record(self, second: int, value: float) -> None:
        self.stable.record(second, value)
        self.panic.record(second, value)

    def averages(self, second: int) -> tuple[float | None, float | None]:
        """(stable, panic) as of that second; None for both before any observation."""
        return self.stable.average(second), self.panic.average(second)
