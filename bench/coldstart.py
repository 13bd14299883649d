"""How long a function at zero takes to answer, how long the platform takes to start, and what it weighs idle.

Many Services with the same Python function are applied, each starts once (Knative's initial scale is 1) and goes back
to zero on its own; then one request wakes each, one after the other, measured from sending to the last byte.
"""

from __future__ import annotations

import http.client
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bench import manifests
from bench.broken import Broken
from bench.platform import NAMESPACE, address, apply, await_ready, instance_pids, memory_by_process, running
from bench.report import Figures, Measured, Options, say_failures
from bench.stats import percentile
from core.net.types import Address
from penstock.testing import Platform, wait_until
from serving.resources import SERVICE

__all__ = ["ColdStartFigures", "run"]

TARGET: Final = {"p50_ms": 500.0, "up_to_ready_ms": 1_500.0, "idle_rss_mb": 150.0}
#: The shortest stable window that Knative allows.
_WINDOW: Final = "6s"
#: From ready to zero: the window, Knative's 30 s of grace at most, and time to stop many instances.
ZERO_TIMEOUT_S: Final = 90.0
#: A cold start that takes longer is a failure.
REQUEST_TIMEOUT_S: Final = 30.0
#: What the platform is left alone for before its memory is read.
IDLE_S: Final = 5.0

_FUNCTION: Final = '''\
"""The function that the cold-start benchmark wakes."""

from cloudevents.core.v1.event import CloudEvent


def handle(event: CloudEvent) -> None:
    """Accept the event."""
'''


class ProcessMemory(msgspec.Struct, frozen=True, kw_only=True):
    """One process's resident memory; `pss_mb` counts shared pages as shares."""

    rss_mb: float
    pss_mb: float


class ColdStartFigures(Figures, frozen=True, kw_only=True):
    """Request times in ms from sending to the last byte: at zero (`p50_ms`...) and once more, warm. `idle_*` is the sum
    over the platform's own processes right after a start, `after_rss_mb` after the cold starts, back at zero."""

    p50_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    warm_p50_ms: float
    cold_starts: int
    errors: int
    up_to_ready_ms: float
    up_to_ready_each_ms: tuple[float, ...]
    idle_rss_mb: float
    idle_pss_mb: float
    idle: Mapping[str, ProcessMemory]
    after_rss_mb: float


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer."""

    status: int
    ms: float


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    count = options.size(24, 4)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        ups_ms = [_up_ms(folder / f"up-{number}") for number in range(options.size(5, 2))]
        options.progress("up to ready: " + ", ".join(f"{each:.0f} ms" for each in ups_ms))
        (folder / "function").mkdir()
        (folder / "function" / "function.py").write_text(_FUNCTION)
        with running(folder / "data") as (platform, _):
            time.sleep(options.size(int(IDLE_S), 2))
            idle = _memory(platform)
            hosts = _services(platform, folder / "function", count, options)
            gateway = address(platform.places.gateway)
            cold, warm = [], []
            for host in hosts:
                cold.append(_visit(gateway, host))
                warm.append(_visit(gateway, host))
            options.progress("cold: " + ", ".join(f"{each.ms:.0f}" for each in cold) + " ms")
            _await_zero(platform)
            after = _memory(platform)
    return _measured(ups_ms, idle, cold, warm, after)


def _up_ms(data: Path) -> float:
    with running(data) as (_, ready_s):
        return ready_s * 1e3


def _services(platform: Platform, source: Path, count: int, options: Options) -> list[str]:
    """Apply `count` Services, wait until all have been ready and are at zero; their hosts."""
    names = [f"bench-cold-{number}" for number in range(count)]
    began_s = time.monotonic()
    scaling = {"window": _WINDOW, "scale-to-zero-pod-retention-period": "0s"}
    apply(platform, manifests.documents(*(manifests.service(name, str(source), scaling) for name in names)))
    hosts = [urlsplit(await_ready(platform, SERVICE, name)["status"]["url"]).netloc for name in names]
    options.progress(
        f"{count} services are ready after {time.monotonic() - began_s:.1f} s; waiting until all are at zero"
    )
    _await_zero(platform)
    options.progress(f"all at zero after {time.monotonic() - began_s:.1f} s")
    return hosts


def _await_zero(platform: Platform) -> None:
    """Until no process runs but the platform's own, and the gateway has been told so."""
    try:
        wait_until(lambda: not instance_pids(platform), what="all functions are at zero", timeout_s=ZERO_TIMEOUT_S)
    except TimeoutError as error:
        raise Broken(str(error)) from error
    slices = platform.api.request("GET", f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")["items"]
    if slices:
        raise Broken(f"No instance runs, but {len(slices)} EndpointSlices still name some.")


def _visit(gateway: Address, host: str) -> Visit:
    """Send one event to a function, on a new connection."""
    headers = {
        "host": host,
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/penstock/bench",
        "ce-type": "bench.cold",
    }
    connection = http.client.HTTPConnection(*gateway, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.connect()
        began_s = time.perf_counter()
        connection.request("POST", "/", b"{}", headers)
        answer = connection.getresponse()
        answer.read()
        return Visit(status=answer.status, ms=(time.perf_counter() - began_s) * 1e3)
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"The function at {host} gave no answer: {error!r}") from error
    finally:
        connection.close()


def _memory(platform: Platform) -> dict[str, ProcessMemory]:
    return {
        name: ProcessMemory(rss_mb=held.rss_kib / 1024, pss_mb=held.pss_kib / 1024)
        for name, held in memory_by_process(platform).items()
    }


def _measured(
    ups_ms: list[float],
    idle: Mapping[str, ProcessMemory],
    cold: list[Visit],
    warm: list[Visit],
    after: Mapping[str, ProcessMemory],
) -> Measured:
    failures: dict[str, int] = {}
    for visit in (*cold, *warm):
        if not 200 <= visit.status < 300:
            failures[f"status {visit.status}"] = failures.get(f"status {visit.status}", 0) + 1
    cold_ms = [visit.ms for visit in cold]
    figures = ColdStartFigures(
        p50_ms=percentile(cold_ms, 50),
        p99_ms=percentile(cold_ms, 99),
        min_ms=min(cold_ms),
        max_ms=max(cold_ms),
        warm_p50_ms=percentile([visit.ms for visit in warm], 50),
        cold_starts=len(cold),
        errors=sum(failures.values()),
        up_to_ready_ms=median(ups_ms),
        up_to_ready_each_ms=tuple(ups_ms),
        idle_rss_mb=sum(each.rss_mb for each in idle.values()),
        idle_pss_mb=sum(each.pss_mb for each in idle.values()),
        idle=idle,
        after_rss_mb=sum(each.rss_mb for each in after.values()),
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))
