"""Interleaved pairs: a round of ours, a round of nginx, over and over, each with its CPU time per request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median

import msgspec

from bench.broken import Broken
from bench.cpu import cpu_s
from bench.load import Load
from bench.messages import Closed, Request
from bench.report import say_failures

__all__ = ["Pairs", "Round", "Subject", "interleave"]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One measured round: CPU per request (or event), and how many went through each second."""

    cpu_us: float
    per_s: float
    failures: Mapping[str, int]


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A server under closed-loop load: the processes whose CPU counts, and what is sent to it."""

    load: Load
    target: str
    pids: tuple[int, ...]
    request: Request
    expect: int = 200

    def round(self, count: int) -> Round:
        before_s = cpu_s(self.pids)
        result = self.load.closed(Closed(target=self.target, count=count, request=self.request, expect=self.expect))
        return Round(
            cpu_us=(cpu_s(self.pids) - before_s) / count * 1e6,
            per_s=count / result.seconds,
            failures=result.failures,
        )


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """The measured rounds, pair by pair."""

    ours: tuple[Round, ...]
    theirs: tuple[Round, ...]

    @property
    def failures(self) -> Counter[str]:
        """Of both sides: an answer that nginx failed to give spoils the ratio as well."""
        total: Counter[str] = Counter()
        for name, rounds in (("", self.ours), ("nginx: ", self.theirs)):
            for each in rounds:
                total.update({name + what: count for what, count in each.failures.items()})
        return total

    @property
    def per_s(self) -> float:
        """Our median rate. In a closed loop it says as much of the load generator as of the server."""
        return median(each.per_s for each in self.ours)

    @property
    def cpu_us(self) -> tuple[float, float]:
        """The median of each side."""
        return median(each.cpu_us for each in self.ours), median(each.cpu_us for each in self.theirs)


def interleave(
    ours: Callable[[], Round],
    theirs: Callable[[], Round],
    *,
    rounds: int,
    progress: Callable[[str], None],
    other_name: str = "nginx",
) -> Pairs:
    """Run `rounds` pairs after one that warms up. Which side goes first alternates, so that drift favours neither.

    A pair with failures is the last: the measurement is broken, and each failure may have taken until its time-out.
    Raises Broken where the warm-up already fails.
    """
    for warm_up in (ours(), theirs()):
        if warm_up.failures:
            raise Broken(f"The warm-up failed: {say_failures(warm_up.failures)}")
    mine: list[Round] = []
    other: list[Round] = []
    for number in range(rounds):
        if number % 2:
            other.append(theirs())
            mine.append(ours())
        else:
            mine.append(ours())
            other.append(theirs())
        progress(
            f"pair {number + 1}/{rounds}: {mine[-1].cpu_us:.1f} us ({mine[-1].per_s:,.0f}/s), "
            f"{other_name} {other[-1].cpu_us:.1f} us ({other[-1].per_s:,.0f}/s), "
            f"ratio {mine[-1].cpu_us / other[-1].cpu_us:.2f}"
        )
        if mine[-1].failures or other[-1].failures:
            break
    return Pairs(ours=tuple(mine), theirs=tuple(other))
