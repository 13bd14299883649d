"""What a delivery costs where an event goes to a hundred subscribers, each on a port of its own.

A (ours): a closed loop publishes 1,000-byte events to a Broker with a hundred Triggers that all want them; the round
ends when each event has come to each subscriber. Its CPU, publishing and storing included, is divided by the
deliveries.
B: the yardstick's proxied requests. When the platform has stopped, the log's file must hold each event once.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from bench import manifests
from bench.broker import Publisher
from bench.cpu import memory
from bench.ingest import stored
from bench.load import Load
from bench.messages import Connect
from bench.nginx import Nginx, NginxLog, free_ports, sinks_site
from bench.pairs import Pairs, Round, interleave
from bench.platform import address, apply, await_ready, running
from bench.report import Figures, Measured, Options, say_failures
from bench.stats import paired_ratio
from bench.yardstick import CONNECTIONS, yardstick
from broker.resources import BROKER, TRIGGER

__all__ = ["FanoutFigures", "run"]

TARGET: Final = {"ratio_to_nginx": 1.5, "stored_per_event": 1.0}
SUBSCRIBERS: Final = 100
_BROKER: Final = "fanout"


class FanoutFigures(Figures, frozen=True, kw_only=True):
    """`cpu_us` is the broker process's CPU per delivery. `stored_per_event` is how many events the log's file holds for
    each one published; None where the log is on a server."""

    cpu_us: float
    nginx_cpu_us: float
    ratio_to_nginx: float
    interval: tuple[float, float]
    pairs: int
    subscribers: int
    events: int
    deliveries_per_s: float
    stored_per_event: float | None
    lost: int
    duplicates: int
    errors: int
    rss_mb: float


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        load = stack.enter_context(Load())
        nginx, _ = stack.enter_context(yardstick(folder, load))
        sink = stack.enter_context(Nginx(folder / "sink"))
        ports = [sink.port, *free_ports(SUBSCRIBERS - 1)]
        log = folder / "sink" / "ids.log"
        sink.start(sinks_site(ports, log))
        with running(folder / "data") as (platform, _):
            triggers = [
                manifests.trigger(f"to-{port}", _BROKER, "bench.cpu", f"http://127.0.0.1:{port}/") for port in ports
            ]
            apply(platform, manifests.documents(manifests.broker(_BROKER), *triggers))
            await_ready(platform, BROKER, _BROKER)
            for trigger in triggers:
                await_ready(platform, TRIGGER, trigger["metadata"]["name"])
            host, port = address(platform.places.broker)
            load.connect(Connect(target="broker", host=host, port=port, connections=CONNECTIONS))
            pid = platform.pids()["broker"]
            publisher = Publisher(load, pid, NginxLog(log), f"{host}:{port}", broker=_BROKER, deliveries=SUBSCRIBERS)
            rounds, count = options.size(15, 5), options.size(200, 50)
            pairs = interleave(
                lambda: _per_delivery(publisher.round(count)),
                lambda: nginx.round(8_000),
                rounds=rounds,
                progress=options.progress,
            )
            rss_mb = memory(pid).rss_kib / 1024
        published = count * (len(pairs.ours) + 1)
        held = stored(folder / "data")
    return _measured(pairs, publisher, options, published=published, held=held, rss_mb=rss_mb)


def _per_delivery(measured: Round) -> Round:
    return Round(cpu_us=measured.cpu_us / SUBSCRIBERS, per_s=measured.per_s * SUBSCRIBERS, failures=measured.failures)


def _measured(
    pairs: Pairs, publisher: Publisher, options: Options, *, published: int, held: int | None, rss_mb: float
) -> Measured:
    ratio = paired_ratio([each.cpu_us for each in pairs.ours], [each.cpu_us for each in pairs.theirs], options.rng())
    failures = pairs.failures
    errors = failures.total()
    if publisher.lost:
        failures["deliveries that never came"] = publisher.lost
    if held is not None and held < published:
        failures["accepted events that the log does not hold"] = published - held
    cpu_us, nginx_cpu_us = pairs.cpu_us
    figures = FanoutFigures(
        cpu_us=cpu_us,
        nginx_cpu_us=nginx_cpu_us,
        ratio_to_nginx=ratio.median,
        interval=(ratio.low, ratio.high),
        pairs=len(pairs.ours),
        subscribers=SUBSCRIBERS,
        events=published,
        deliveries_per_s=median(each.per_s for each in pairs.ours),
        stored_per_event=None if held is None else held / published,
        lost=publisher.lost,
        duplicates=publisher.duplicates,
        errors=errors,
        rss_mb=rss_mb,
    )
    target = {name: limit for name, limit in TARGET.items() if getattr(figures, name) is not None}
    return Measured(figures=figures, target=target, broken=say_failures(failures))
