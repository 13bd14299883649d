"""The statistics of the benchmarks: ratios of interleaved pairs, their interval, and percentiles.

Machines drift (clock speed, neighbours, caches), so no figure of one run is compared with a figure of another: each
round of ours is divided by the round of nginx next to it, and the median of those ratios is the result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

import msgspec

__all__ = ["Ratio", "bootstrap_interval", "paired_ratio", "percentile"]

#: Resamples behind one interval: its ends then move by less than a percent from seed to seed.
RESAMPLES = 4_000


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """The median of the pairs' ratios, with the interval that holds it with 95 % confidence."""

    median: float
    low: float
    high: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of `values` do not exceed (nearest rank: always one that occurred).

    Raises ValueError where there are no values or `percent` is not in 0..100.
    """
    if not values:
        raise ValueError("a percentile of no values was asked for")
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile is between 0 and 100 (got {percent})")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], rng: random.Random) -> Ratio:
    """The ratio ours / theirs over interleaved pairs. Raises ValueError where the pairs do not match up."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, high = bootstrap_interval(ratios, rng)
    return Ratio(median=median(ratios), low=low, high=high)


def bootstrap_interval(values: Sequence[float], rng: random.Random, *, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap of the median: resample, take the middle `confidence` of the resamples' medians."""
    if not values:
        raise ValueError("an interval over no values was asked for")
    medians = [median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    tail = 100 * (1 - confidence) / 2
    return percentile(medians, tail), percentile(medians, 100 - tail)
