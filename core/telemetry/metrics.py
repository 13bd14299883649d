"""Counters, gauges and histograms that cost an attribute write on the hot path, in Prometheus' text format.

A metric's children (one per set of label values) are looked up once and held by the code that counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

__all__ = ["LATENCY_BUCKETS_S", "Counter", "Gauge", "Histogram", "Metrics"]

LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only grows: add to `value`."""

    __slots__ = ("value",)
    kind = "counter"

    def __init__(self) -> None:
        self.value = 0.0

    def samples(self, name: str, labels: Labels) -> Iterator[str]:
        yield _line(name, labels, self.value)


class Gauge:
    """A number as it is now: set `value`, or give `read` and it is asked when scraped."""

    __slots__ = ("read", "value")
    kind = "gauge"

    def __init__(self) -> None:
        self.value = 0.0
        self.read: Callable[[], float] | None = None

    def samples(self, name: str, labels: Labels) -> Iterator[str]:
        yield _line(name, labels, self.read() if self.read else self.value)


class Histogram:
    """Observations counted into fixed buckets of latency (seconds)."""

    __slots__ = ("counts", "total")
    kind = "histogram"

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.total += seconds

    def samples(self, name: str, labels: Labels) -> Iterator[str]:
        running = 0
        for bound, count in zip((*LATENCY_BUCKETS_S, "+Inf"), self.counts, strict=True):
            running += count
            yield _line(f"{name}_bucket", (*labels, ("le", str(bound))), running)
        yield _line(f"{name}_sum", labels, self.total)
        yield _line(f"{name}_count", labels, running)


Metric = Counter | Gauge | Histogram
M = TypeVar("M", Counter, Gauge, Histogram)


class Metrics:
    """All metrics of a process. Names end in the unit, as Prometheus asks (``_total``, ``_seconds``, ``_bytes``)."""

    def __init__(self) -> None:
        self._helps: dict[str, tuple[str, str]] = {}
        self._children: dict[str, dict[Labels, Metric]] = {}

    def counter(self, name: str, help_text: str, /, **labels: str) -> Counter:
        return self._child(Counter, name, help_text, labels)

    def gauge(self, name: str, help_text: str, /, **labels: str) -> Gauge:
        return self._child(Gauge, name, help_text, labels)

    def histogram(self, name: str, help_text: str, /, **labels: str) -> Histogram:
        return self._child(Histogram, name, help_text, labels)

    def forget(self, name: str, /, **labels: str) -> None:
        """Drop one child, so that a deleted resource's series end."""
        self._children.get(name, {}).pop(tuple(labels.items()), None)

    def names(self) -> list[str]:
        return sorted(self._helps)

    def expose(self) -> str:
        """Everything in Prometheus' text exposition format 0.0.4."""
        lines = []
        for name, (kind, help_text) in sorted(self._helps.items()):
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
            for labels, child in self._children[name].items():
                lines += child.samples(name, labels)
        return "\n".join(lines) + "\n"

    def _child(self, make: type[M], name: str, help_text: str, labels: dict[str, str]) -> M:
        kind, _ = self._helps.setdefault(name, (make.kind, help_text))
        if kind != make.kind:
            raise ValueError(f"metric {name} is a {kind}, not a {make.kind}")
        found = self._children.setdefault(name, {}).setdefault(tuple(labels.items()), make())
        assert isinstance(found, make)  # noqa: S101 - the kind check above; tells the type checker
        return found


def _line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:.15g}" if shown else f"{name} {value:.15g}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
