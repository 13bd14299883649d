"""A limit to events a second: the token bucket, kept as the time at which it is full again.

Source of the form: the generic cell rate algorithm of ITU-T I.371, in the "virtual scheduling" variant.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BURST_S", "Bucket", "burst_of"]

#: What may come at once, in seconds' worth of the rate, and at least one: timers are not more exact than milliseconds,
#: so a high rate is only reached where some may go together.
BURST_S: Final = 0.1
#: Of the clock: a wait that ends so close to its time has ended.
_EXACT_S: Final = 1e-9


def burst_of(rate: float) -> float:
    """How many may come at once: in any time `t` there are never more than ``rate * t`` and this many."""
    return max(1.0, rate * BURST_S)


class Bucket:
    """Gives out `rate` a second. Times are any clock's that only goes forward. Pure."""

    __slots__ = ("_full_at", "_slack_s", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._slack_s = (burst_of(rate) - 1) / rate
        # One may go at once; the rest is earned, so that restarts add up to no more.
        self._full_at = now + self._slack_s

    def take(self, now: float, count: int = 1) -> float:
        """0 where `count` may go now, which they then have; else how long until they may. Those of a `count` go
        together, after which it takes as long as each alone would have."""
        wait_s = self._full_at - self._slack_s - now
        if wait_s > _EXACT_S:
            return wait_s
        self._full_at = max(self._full_at, now) + count / self.rate
        return 0.0
