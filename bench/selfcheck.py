"""The harness measured by itself: one nginx against another of the same kind, which must come out as 1."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from bench.latency import RATE_PER_S, latency
from bench.load import Load
from bench.messages import Connect, Open
from bench.pairs import interleave
from bench.report import Figures, Measured, Options, say_failures
from bench.stats import paired_ratio
from bench.yardstick import CONNECTIONS, get, yardstick

__all__ = ["SelfCheck", "run"]

#: What the ratio of two equal servers is off 1 by is the harness's own error.
TARGET: Final = {"off_by": 0.1}


class SelfCheck(Figures, frozen=True, kw_only=True):
    """CPU per request of two equal proxies, and the latency that the open-loop generator sees without a proxy."""

    cpu_us: float
    nginx_cpu_us: float
    ratio_to_nginx: float
    interval: tuple[float, float]
    off_by: float
    requests_per_s: float
    requests: int
    p50_ms: float
    p99_ms: float
    late_p99_ms: float
    errors: int


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    count, rounds = options.size(8_000, 2_000), options.size(15, 5)
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as name,
        Load() as load,
        Load(precise=True) as precise,
        yardstick(Path(name) / "a", load) as (first, far),
        yardstick(Path(name) / "b", load) as (second, _),
    ):
        pairs = interleave(
            lambda: first.round(count), lambda: second.round(count), rounds=rounds, progress=options.progress
        )
        precise.connect(Connect(target="direct", host="127.0.0.1", port=far.port, connections=CONNECTIONS))
        opened = precise.open(
            Open(
                target="direct",
                count=options.size(5_000, 1_000),
                rate_per_s=RATE_PER_S,
                request=get("bench.localhost"),
                expect=200,
            )
        )
    ratio = paired_ratio([each.cpu_us for each in pairs.ours], [each.cpu_us for each in pairs.theirs], options.rng())
    failures = pairs.failures
    failures.update(opened.failures)
    direct = latency(opened.latencies_s, "request")
    cpu_us, nginx_cpu_us = pairs.cpu_us
    figures = SelfCheck(
        cpu_us=cpu_us,
        nginx_cpu_us=nginx_cpu_us,
        ratio_to_nginx=ratio.median,
        interval=(ratio.low, ratio.high),
        off_by=abs(ratio.median - 1),
        requests_per_s=pairs.per_s,
        requests=rounds * count,
        p50_ms=direct.p50_ms,
        p99_ms=direct.p99_ms,
        late_p99_ms=latency(opened.late_s, "request").p99_ms,
        errors=failures.total(),
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))
