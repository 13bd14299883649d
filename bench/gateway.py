"""What a request costs in the gateway, and what latency the gateway adds.

A (ours): client -> gateway -> instance. B: client -> nginx as reverse proxy -> far end. Instance and far end are the
same nginx configuration answering 13 bytes, so that the function costs next to nothing; its CPU is not counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from bench import manifests
from bench.cpu import memory
from bench.latency import RATE_PER_S, Latency, latency
from bench.load import Load
from bench.messages import Connect, Open, OpenResult, Request
from bench.nginx import Nginx, function_command
from bench.pairs import Pairs, Subject, interleave
from bench.platform import address, apply, await_ready, running
from bench.report import Figures, Measured, Options, say_failures
from bench.stats import paired_ratio
from bench.yardstick import CONNECTIONS, get, yardstick
from penstock.testing import Platform
from serving.resources import SERVICE

__all__ = ["GatewayFigures", "run"]

TARGET: Final = {"ratio_to_nginx": 4.0}
_SERVICE: Final = "bench-gateway"


class GatewayFigures(Figures, frozen=True, kw_only=True):
    """`cpu_us` is the gateway process's CPU per request, `nginx_cpu_us` the proxy's. Latencies are at `rate_per_s`;
    what is added is the median over the turns, each turn's direct requests taken off."""

    cpu_us: float
    nginx_cpu_us: float
    ratio_to_nginx: float
    interval: tuple[float, float]
    pairs: int
    requests: int
    requests_per_s: float
    errors: int
    rate_per_s: int
    p50_ms: float
    p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    nginx_added_p99_ms: float
    late_p99_ms: float
    rss_mb: float


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        load = stack.enter_context(Load())
        nginx, far = stack.enter_context(yardstick(folder, load))
        platform, _ = stack.enter_context(running(folder / "data"))
        ours = _gateway(platform, folder, load)
        rounds, count = options.size(15, 5), options.size(8_000, 2_000)
        pairs = interleave(
            lambda: ours.round(count), lambda: nginx.round(count), rounds=rounds, progress=options.progress
        )
        rss_mb = memory(ours.pids[0]).rss_kib / 1024
        options.progress(f"open loop at {RATE_PER_S}/s: direct, through nginx, through the gateway")
        opened = _open_loops(stack.enter_context(Load(precise=True)), options, far, nginx, platform, ours.request)
    return _measured(pairs, opened, options, requests=rounds * count, rss_mb=rss_mb)


def _gateway(platform: Platform, folder: Path, load: Load) -> Subject:
    """A Service with one instance, and connections to it through the gateway."""
    source = function_command(folder)
    scaling = {"min-scale": "1", "max-scale": "1"}
    apply(platform, manifests.documents(manifests.service(_SERVICE, source, scaling)))
    url = await_ready(platform, SERVICE, _SERVICE)["status"]["url"]
    host, port = address(platform.places.gateway)
    load.connect(Connect(target="gateway", host=host, port=port, connections=CONNECTIONS))
    pid = platform.pids()["gateway"]
    return Subject(load=load, target="gateway", pids=(pid,), request=get(urlsplit(url).netloc))


def _open_loops(
    load: Load, options: Options, far: Nginx, nginx: Subject, platform: Platform, request: Request
) -> dict[str, list[OpenResult]]:
    """The same rate to the far end directly, through nginx, and through the gateway, a second each in turns, so that
    each turn compares what ran within three seconds."""
    proxy = ("127.0.0.1", int(nginx.target.rpartition(" ")[2]))
    servers = {"direct": ("127.0.0.1", far.port), "nginx": proxy, "gateway": address(platform.places.gateway)}
    turns: dict[str, list[OpenResult]] = {name: [] for name in servers}
    for name, (host, port) in servers.items():
        load.connect(Connect(target=name, host=host, port=port, connections=CONNECTIONS))
    for _ in range(options.size(8, 2)):
        for name, results in turns.items():
            results.append(
                load.open(Open(target=name, count=1_000, rate_per_s=RATE_PER_S, request=request, expect=200))
            )
    return turns


def _measured(
    pairs: Pairs, turns: dict[str, list[OpenResult]], options: Options, *, requests: int, rss_mb: float
) -> Measured:
    ratio = paired_ratio([each.cpu_us for each in pairs.ours], [each.cpu_us for each in pairs.theirs], options.rng())
    failures = pairs.failures
    for name, results in turns.items():
        for result in results:
            failures.update({f"{name}, open loop: {what}": count for what, count in result.failures.items()})
    seen = {
        name: [latency(result.latencies_s, f"request ({name})") for result in results]
        for name, results in turns.items()
    }
    through = latency([value for result in turns["gateway"] for value in result.latencies_s], "request")
    cpu_us, nginx_cpu_us = pairs.cpu_us
    figures = GatewayFigures(
        cpu_us=cpu_us,
        nginx_cpu_us=nginx_cpu_us,
        ratio_to_nginx=ratio.median,
        interval=(ratio.low, ratio.high),
        pairs=len(pairs.ours),
        requests=requests,
        requests_per_s=pairs.per_s,
        errors=failures.total(),
        rate_per_s=RATE_PER_S,
        p50_ms=through.p50_ms,
        p99_ms=through.p99_ms,
        added_p50_ms=_added(seen["gateway"], seen["direct"], lambda each: each.p50_ms),
        added_p99_ms=_added(seen["gateway"], seen["direct"], lambda each: each.p99_ms),
        nginx_added_p99_ms=_added(seen["nginx"], seen["direct"], lambda each: each.p99_ms),
        late_p99_ms=latency([value for result in turns["gateway"] for value in result.late_s], "request").p99_ms,
        rss_mb=rss_mb,
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))


def _added(through: list[Latency], direct: list[Latency], of: Callable[[Latency], float]) -> float:
    """The median over the turns of what the way through a proxy takes longer than the direct one."""
    return median(of(one) - of(other) for one, other in zip(through, direct, strict=True))
