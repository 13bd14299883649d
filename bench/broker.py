"""What an event costs in the broker: published in binary mode, durable before the 202, filtered, delivered.

A (ours): a closed loop publishes 1,000-byte events, one Trigger with an exact type filter delivers them to an nginx
that answers 202 and logs each event's id; the round ends when every accepted event is in that log. B: the yardstick's
proxied requests (13-byte answers, as everywhere here: a cheaper request than proxying the event would be).
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from bench import manifests
from bench.broken import Broken
from bench.cpu import cpu_s, memory
from bench.latency import RATE_PER_S, latency
from bench.load import Load
from bench.messages import Closed, Connect, Deliveries, DeliveriesResult, Open, Request
from bench.nginx import Nginx, NginxLog, sink_site
from bench.pairs import Pairs, Round, interleave
from bench.platform import NAMESPACE, address, apply, await_ready, running
from bench.report import Figures, Measured, Options, say_failures
from bench.stats import paired_ratio
from bench.yardstick import CONNECTIONS, yardstick
from broker.resources import BROKER, TRIGGER
from penstock.testing import Platform

__all__ = ["BrokerFigures", "run"]

#: Of 4 as the aim, what must hold; and the p99 from publishing to delivery.
TARGET: Final = {"ratio_to_nginx": 6.0, "p99_ms": 10.0}
#: The event's data.
DATA_BYTES: Final = 1_000
_BROKER: Final = "bench"
_ACCEPTED: Final = 202
#: An accepted event that has not come by then is lost; without failures a delivery takes milliseconds.
DELIVERY_TIMEOUT_S: Final = 30.0
#: How often the sink's log is looked at (nginx writes it every 50 ms).
_POLL_S: Final = 0.02


class BrokerFigures(Figures, frozen=True, kw_only=True):
    """`cpu_us` is the broker process's CPU per event from publish to acknowledged delivery. `p50_ms` and `p99_ms` run
    from when an event was due to be published to its arrival, `accepted_p99_ms` to the broker's 202."""

    cpu_us: float
    nginx_cpu_us: float
    ratio_to_nginx: float
    interval: tuple[float, float]
    pairs: int
    events: int
    events_per_s: float
    lost: int
    duplicates: int
    errors: int
    rate_per_s: int
    p50_ms: float
    p99_ms: float
    accepted_p50_ms: float
    accepted_p99_ms: float
    late_p99_ms: float
    rss_mb: float


class Publisher:
    """Rounds of events that are published to one Broker and delivered, each `deliveries` times, each event with an id
    of its own."""

    def __init__(
        self, load: Load, pid: int, log: NginxLog, host: str, *, broker: str = _BROKER, deliveries: int = 1
    ) -> None:
        self._load = load
        self._pid = pid
        self._log = log
        self._request = event(host, "cpu", broker)
        self._deliveries = deliveries
        self._published = 0
        self.lost = 0
        self.duplicates = 0

    def round(self, count: int) -> Round:
        """Publish `count` events and wait until all have been delivered."""
        first, self._published = self._published, self._published + count
        self._log.clear()
        began_s, before_s = time.time(), cpu_s([self._pid])
        result = self._load.closed(
            Closed(target="broker", count=count, request=self._request, expect=_ACCEPTED, first=first)
        )
        accepted = count - sum(result.failures.values())
        self._await(accepted * self._deliveries)
        used_s = cpu_s([self._pid]) - before_s
        delivered = len(self._log.counts)
        self.lost += accepted * self._deliveries - delivered
        self.duplicates += sum(self._log.counts.values()) - delivered
        return Round(
            cpu_us=used_s / count * 1e6, per_s=count / (self._log.last_at_s - began_s), failures=result.failures
        )

    def _await(self, expected: int) -> None:
        deadline_s = time.monotonic() + DELIVERY_TIMEOUT_S
        self._log.read()
        while len(self._log.counts) < expected and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
            self._log.read()
        if not self._log.counts:
            raise Broken(f"Of {expected} deliveries none came within {DELIVERY_TIMEOUT_S:g} s.")


def event(host: str, kind: str, broker: str = _BROKER) -> Request:
    """An event of type ``bench.<kind>`` in binary mode; its id ends in its number."""
    before = (
        f"POST /{NAMESPACE}/{broker} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {DATA_BYTES}\r\nce-specversion: 1.0\r\nce-source: /penstock/bench\r\n"
        f"ce-type: bench.{kind}\r\nce-time: 2026-01-01T00:00:00Z\r\nce-id: {kind}-"
    )
    data = msgspec.json.encode({"data": "x" * (DATA_BYTES - len('{"data":""}'))})
    return Request(before=before.encode(), after=b"\r\n\r\n" + data, numbered=True)


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        load = stack.enter_context(Load())
        nginx, _ = stack.enter_context(yardstick(folder, load))
        sink = stack.enter_context(Nginx(folder / "sink"))
        log = folder / "sink" / "ids.log"
        sink.start(sink_site(str(sink.port), log))
        platform, _ = stack.enter_context(running(folder / "data"))
        _subscribe(platform, "cpu", f"http://127.0.0.1:{sink.port}/")
        host, port = address(platform.places.broker)
        load.connect(Connect(target="broker", host=host, port=port, connections=CONNECTIONS))
        pid = platform.pids()["broker"]
        publisher = Publisher(load, pid, NginxLog(log), f"{host}:{port}")
        rounds, count = options.size(15, 5), options.size(4_000, 1_000)
        pairs = interleave(
            lambda: publisher.round(count), lambda: nginx.round(2 * count), rounds=rounds, progress=options.progress
        )
        rss_mb = memory(pid).rss_kib / 1024
        options.progress(f"open loop at {RATE_PER_S} events/s")
        opened = _open_loop(stack.enter_context(Load(precise=True)), platform, options.size(10_000, 1_000))
    return _measured(pairs, publisher, opened, options, events=rounds * count, rss_mb=rss_mb)


def _subscribe(platform: Platform, kind: str, uri: str) -> None:
    """One Trigger for events of type ``bench.<kind>``."""
    name = f"bench-{kind}"
    wanted = manifests.trigger(name, _BROKER, f"bench.{kind}", uri)
    apply(platform, manifests.documents(manifests.broker(_BROKER), wanted))
    await_ready(platform, BROKER, _BROKER)
    await_ready(platform, TRIGGER, name)


def _open_loop(load: Load, platform: Platform, count: int) -> DeliveriesResult:
    """Events at a fixed rate, delivered to the load process itself, which has both ends on one clock."""
    host, port = address(platform.places.broker)
    sink = load.connect(Connect(target="broker", host=host, port=port, connections=CONNECTIONS)).sink
    _subscribe(platform, "latency", f"http://127.0.0.1:{sink}/")
    publish = Open(
        target="broker",
        count=count,
        rate_per_s=RATE_PER_S,
        request=event(f"{host}:{port}", "latency"),
        expect=_ACCEPTED,
    )
    return load.deliveries(Deliveries(publish=publish))


def _measured(
    pairs: Pairs, publisher: Publisher, opened: DeliveriesResult, options: Options, *, events: int, rss_mb: float
) -> Measured:
    ratio = paired_ratio([each.cpu_us for each in pairs.ours], [each.cpu_us for each in pairs.theirs], options.rng())
    failures = pairs.failures
    failures.update({f"open loop: {what}": count for what, count in opened.publish.failures.items()})
    errors = failures.total()
    lost = publisher.lost + opened.lost
    if lost:
        failures["accepted, never delivered"] = lost
    delivered = latency(opened.latencies_s, "event's delivery")
    accepted = latency(opened.publish.latencies_s, "event's publishing")
    cpu_us, nginx_cpu_us = pairs.cpu_us
    figures = BrokerFigures(
        cpu_us=cpu_us,
        nginx_cpu_us=nginx_cpu_us,
        ratio_to_nginx=ratio.median,
        interval=(ratio.low, ratio.high),
        pairs=len(pairs.ours),
        events=events,
        events_per_s=median(each.per_s for each in pairs.ours),
        lost=lost,
        duplicates=publisher.duplicates + opened.duplicates,
        errors=errors,
        rate_per_s=RATE_PER_S,
        p50_ms=delivered.p50_ms,
        p99_ms=delivered.p99_ms,
        accepted_p50_ms=accepted.p50_ms,
        accepted_p99_ms=accepted.p99_ms,
        late_p99_ms=latency(opened.publish.late_s, "event").p99_ms,
        rss_mb=rss_mb,
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))
