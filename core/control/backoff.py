"""How long to wait before trying again: doubling from a first delay to a cap, with jitter."""

from __future__ import annotations

import random
from typing import Final

import msgspec

__all__ = ["Backoff"]

#: Doublings after which any delay is at its cap; keeps the power small however long an outage lasts.
_MAX_DOUBLINGS: Final = 32


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Delays that double from `first_s` to `cap_s`."""

    first_s: float
    cap_s: float

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """The wait after that many failures in a row (1 is the first): between half the full delay and all of it,
        so that those who failed together do not come back together."""
        full = min(self.cap_s, self.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        return full * (0.5 + 0.5 * rng.random())
