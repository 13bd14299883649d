"""Whether a subscriber that is dead or slow costs the others anything; how a backlog drains; what memory it costs.

Latency: two platforms side by side, on each a Broker with three Triggers that want every event. On the one all three
subscribers answer; on the other one of them is dead and one takes ten seconds. Turns of a second each go to the one and
to the other; what is compared is the third subscriber's p99 in a turn with that in the turn next to it.

Drain: a Trigger's subscriber is down while events are published, and comes. Its peak is what it takes of a closed loop
of publishing and delivering, measured before. Memory: events that a subscriber which is down never takes.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from bench import manifests
from bench.broken import Broken
from bench.broker import event
from bench.cpu import memory
from bench.ingest import batch
from bench.latency import RATE_PER_S, latency
from bench.load import Load
from bench.messages import Closed, Connect, Deliveries, DeliveriesResult, Open
from bench.nginx import Nginx, NginxLog, sink_site
from bench.platform import address, apply, await_ready, running
from bench.report import Figures, Measured, Options, say_failures
from bench.slow import Slow
from bench.stats import paired_ratio
from bench.yardstick import CONNECTIONS
from broker.resources import BROKER, TRIGGER
from core.net.types import Address
from penstock.testing import Platform

__all__ = ["IsolationFigures", "run"]

#: The p99 beside a dead and a slow subscriber, as a share of that without; what a drain takes, as a share of what the
#: peak rate would take (1 / 0.8); the broker process with a backlog of any size, in MiB.
TARGET: Final = {"p99_ratio": 1.1, "drain_ratio": 1.25, "rss_mb": 200.0}
_BROKER: Final = "bench"
_ACCEPTED: Final = 202
#: Events of a turn: a second's.
TURN: Final = RATE_PER_S
#: Events in one request while a backlog is made, and their size: what is measured is their number.
BATCH: Final = 50
SMALL_BYTES: Final = 200
#: For a backlog to be published, and to be delivered.
PUBLISH_TIMEOUT_S: Final = 600.0
DRAIN_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.05
#: The drained subscriber's Trigger keeps on trying, and is never far from its next attempt.
_PATIENT: Final = {"retry": 1000, "backoffPolicy": "linear", "backoffDelay": "PT0.05S"}


class IsolationFigures(Figures, frozen=True, kw_only=True):
    """`calm_p99_ms` and `rough_p99_ms` are medians over the turns, from due to delivered, without and with a dead and a
    slow subscriber beside. `rss_mb` is the broker process with `stored` events that wait for a subscriber that is down,
    `rss_before_mb` the same process before those."""

    p99_ratio: float
    interval: tuple[float, float]
    turns: int
    rate_per_s: int
    calm_p99_ms: float
    rough_p99_ms: float
    calm_p50_ms: float
    rough_p50_ms: float
    lost: int
    errors: int
    backlog: int
    peak_per_s: float
    drain_per_s: float
    drain_ratio: float
    duplicates: int
    stored: int
    rss_before_mb: float
    rss_mb: float
    rss_most_mb: float


class Side:
    """One platform, and the turns that were measured on it."""

    def __init__(self, load: Load, platform: Platform, name: str, others: list[str]) -> None:
        """`others` are the subscribers beside the one that is measured."""
        self._load = load
        self._name = name
        self._at = address(platform.places.broker)
        sink = load.connect(_connect(name, self._at)).sink
        wanted = [f"http://127.0.0.1:{sink}/", *others]
        triggers = [manifests.trigger(f"t{n}", _BROKER, "bench.turn", uri) for n, uri in enumerate(wanted)]
        apply(platform, manifests.documents(manifests.broker(_BROKER), *triggers))
        await_ready(platform, BROKER, _BROKER)
        for n in range(len(wanted)):
            await_ready(platform, TRIGGER, f"t{n}")
        self.p50_ms: list[float] = []
        self.p99_ms: list[float] = []
        self.lost = 0
        self.failures: Counter[str] = Counter()

    def turn(self, *, warm: bool = False) -> None:
        publish = Open(
            target=self._name,
            count=TURN,
            rate_per_s=RATE_PER_S,
            request=event(_host(self._at), "turn"),
            expect=_ACCEPTED,
        )
        found: DeliveriesResult = self._load.deliveries(Deliveries(publish=publish))
        self.failures.update(found.publish.failures)
        self.lost += found.lost
        if not warm:
            delivered = latency(found.latencies_s, "event's delivery")
            self.p50_ms.append(delivered.p50_ms)
            self.p99_ms.append(delivered.p99_ms)


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        calm, rough = _latency(folder, options)
        platform, _ = stack.enter_context(running(folder / "backlog"))
        load = stack.enter_context(Load())
        drain = _Drain(load, platform, folder)
        drain.run(options)
        stored, before_mb, after_mb, most_mb = _memory(load, platform, options)
    ratio = paired_ratio(rough.p99_ms, calm.p99_ms, options.rng())
    failures = calm.failures + rough.failures
    errors = failures.total()
    lost = calm.lost + rough.lost
    if lost:
        failures["accepted, never delivered"] = lost
    figures = IsolationFigures(
        p99_ratio=ratio.median,
        interval=(ratio.low, ratio.high),
        turns=len(calm.p99_ms),
        rate_per_s=RATE_PER_S,
        calm_p99_ms=median(calm.p99_ms),
        rough_p99_ms=median(rough.p99_ms),
        calm_p50_ms=median(calm.p50_ms),
        rough_p50_ms=median(rough.p50_ms),
        lost=lost,
        errors=errors,
        backlog=drain.count,
        peak_per_s=drain.peak_per_s,
        drain_per_s=drain.drain_per_s,
        drain_ratio=drain.peak_per_s / drain.drain_per_s,
        duplicates=drain.duplicates,
        stored=stored,
        rss_before_mb=before_mb,
        rss_mb=after_mb,
        rss_most_mb=most_mb,
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))


def _latency(folder: Path, options: Options) -> tuple[Side, Side]:
    """The turns without and with a dead and a slow subscriber."""
    with ExitStack() as stack:
        slow = stack.enter_context(Slow())
        load = stack.enter_context(Load(precise=True))
        nginx = stack.enter_context(Nginx(folder / "others"))
        nginx.start(sink_site(str(nginx.port), folder / "others" / "ids.log"))
        well = f"http://127.0.0.1:{nginx.port}/"
        platforms = [stack.enter_context(running(folder / name))[0] for name in ("calm", "rough")]
        dead = f"http://127.0.0.1:{_closed_port()}/"
        calm = Side(load, platforms[0], "calm", [well, well])
        rough = Side(load, platforms[1], "rough", [dead, f"http://127.0.0.1:{slow.port}/"])
        for side in (calm, rough):
            side.turn(warm=True)
        turns = options.size(30, 4)
        for number in range(turns):
            for side in (calm, rough) if number % 2 else (rough, calm):
                side.turn()
            options.progress(
                f"turn {number + 1}/{turns}: p99 {calm.p99_ms[-1]:.2f} ms, "
                f"beside a dead and a slow subscriber {rough.p99_ms[-1]:.2f} ms"
            )
    return calm, rough


class _Drain:
    """A backlog that waits for a subscriber, and how fast it goes once that is there."""

    def __init__(self, load: Load, platform: Platform, folder: Path) -> None:
        self._load = load
        self._platform = platform
        self._folder = folder
        self._at = address(platform.places.broker)
        load.connect(_connect("backlog", self._at))
        self.count = 0
        self.peak_per_s = 0.0
        self.drain_per_s = 0.0
        self.duplicates = 0

    def run(self, options: Options) -> None:
        with Nginx(self._folder / "drained") as sink:
            log = self._folder / "drained" / "ids.log"
            trigger = manifests.trigger("drained", _BROKER, "bench.drain", f"http://127.0.0.1:{sink.port}/")
            trigger["spec"]["delivery"] = _PATIENT
            apply(self._platform, manifests.documents(manifests.broker(_BROKER), trigger))
            await_ready(self._platform, BROKER, _BROKER)
            await_ready(self._platform, TRIGGER, "drained")
            sink.start(sink_site(str(sink.port), log))
            seen = NginxLog(log)
            peaks = [self._peak(number, options.size(10_000, 2_000), seen) for number in range(options.size(5, 2))]
            self.peak_per_s = median(peaks[1:])
            options.progress(f"peak: {self.peak_per_s:,.0f} events/s published and delivered")
            sink.stop()
            self._backlog(sink, log, seen, options)

    def _peak(self, number: int, count: int, seen: NginxLog) -> float:
        """Events a second, from the first publish to the last delivery."""
        seen.clear()
        began_s = time.time()
        self._publish(count, count * number)
        _await(seen, count)
        return count / (seen.last_at_s - began_s)

    def _backlog(self, sink: Nginx, log: Path, seen: NginxLog, options: Options) -> None:
        self.count = options.size(100_000, 5_000)
        self._publish(self.count, 1_000_000)
        options.progress(f"{self.count:,} events wait; their subscriber comes")
        seen.clear()
        began_s = time.time()
        sink.start(sink_site(str(sink.port), log))
        _await(seen, self.count)
        self.drain_per_s = self.count / (seen.last_at_s - began_s)
        self.duplicates = sum(seen.counts.values()) - len(seen.counts)
        options.progress(f"drained at {self.drain_per_s:,.0f} events/s")

    def _publish(self, count: int, first: int) -> None:
        request = event(_host(self._at), "drain")
        closed = Closed(
            target="backlog", count=count, request=request, expect=_ACCEPTED, first=first, timeout_s=PUBLISH_TIMEOUT_S
        )
        failures = self._load.closed(closed).failures
        if failures:
            raise Broken(f"Publishing a backlog failed: {say_failures(failures)}")


def _memory(load: Load, platform: Platform, options: Options) -> tuple[int, float, float, float]:
    """Events stored for a subscriber that is down; the broker process's memory before, after, and the most between."""
    trigger = manifests.trigger("down", _BROKER, "bench.held", f"http://127.0.0.1:{_closed_port()}/")
    trigger["spec"]["delivery"] = _PATIENT
    apply(platform, manifests.documents(trigger))
    await_ready(platform, TRIGGER, "down")
    pid = platform.pids()["broker"]
    before_mb = most_mb = _rss_mb(pid)
    stored, step = 0, options.size(100_000, 10_000)
    request = batch(_host(address(platform.places.broker)), BATCH, SMALL_BYTES, "held")
    for _ in range(options.size(10, 5)):
        closed = Closed(
            target="backlog", count=step // BATCH, request=request, expect=_ACCEPTED, timeout_s=PUBLISH_TIMEOUT_S
        )
        failures = load.closed(closed).failures
        if failures:
            raise Broken(f"Publishing events to be held failed: {say_failures(failures)}")
        stored += step
        most_mb = max(most_mb, _rss_mb(pid))
        options.progress(f"{stored:,} events held: the broker process has {_rss_mb(pid):.0f} MiB")
    return stored, before_mb, _rss_mb(pid), most_mb


def _await(seen: NginxLog, count: int) -> None:
    """Until the subscriber has `count` different events. Raises Broken where they do not come."""
    deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
    while len(seen.counts) < count:
        if time.monotonic() > deadline_s:
            raise Broken(f"Of {count} accepted events {len(seen.counts)} were delivered in {DRAIN_TIMEOUT_S:g} s.")
        time.sleep(_POLL_S)
        seen.read()


def _rss_mb(pid: int) -> float:
    return memory(pid).rss_kib / 1024


def _connect(name: str, at: Address) -> Connect:
    return Connect(target=name, host=at[0], port=at[1], connections=CONNECTIONS)


def _host(at: Address) -> str:
    return f"{at[0]}:{at[1]}"


def _closed_port() -> int:
    """One where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
