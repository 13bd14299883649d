"""An open-loop run's latencies, as a report has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from bench.broken import Broken
from bench.stats import percentile

__all__ = ["RATE_PER_S", "Latency", "latency"]

#: The rate of every open-loop run: what one laptop's worth of users asks for, far from saturation.
RATE_PER_S: Final = 1_000


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in milliseconds, from the time each request was due."""

    p50_ms: float
    p99_ms: float
    max_ms: float


def latency(values_s: Sequence[float], what: str) -> Latency:
    """The percentiles of latencies in seconds. Raises Broken naming `what` where there are none."""
    if not values_s:
        raise Broken(f"Not one {what} succeeded.")
    return Latency(
        p50_ms=percentile(values_s, 50) * 1e3, p99_ms=percentile(values_s, 99) * 1e3, max_ms=max(values_s) * 1e3
    )
