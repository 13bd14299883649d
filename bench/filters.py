"""What it costs that there are ten thousand Triggers where an event matches ten, and how soon one more takes effect.

Three Brokers on one platform: `one` with one Trigger, `ten` with ten, and `many` with the same ten among ten thousand
whose filters are of every dialect (`bench.mixed`). `one` is measured before the ten thousand are there, in pairs with
nginx; `ten` and `many` after, in turns with nginx. What `many` costs more than `ten` is the filters' cost, with the
deliveries taken off.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from bench import manifests
from bench.added import Added
from bench.broker import Publisher
from bench.cpu import memory
from bench.load import Load
from bench.messages import Connect
from bench.mixed import MATCHING, create, matching, others
from bench.nginx import Nginx, NginxLog, free_ports, sinks_site
from bench.pairs import Pairs, Round, Subject, interleave
from bench.platform import address, apply, await_ready, running
from bench.report import Figures, Measured, Options, say_failures
from bench.yardstick import CONNECTIONS, yardstick
from broker.resources import BROKER, TRIGGER
from penstock.testing import Platform

__all__ = ["FiltersFigures", "run"]

#: At least 70 % of the one-Trigger rate; and an added Trigger takes effect within 50 ms of the API's answer.
TARGET: Final = {"cost_ratio": 1 / 0.7, "added_max_ms": 50.0}
_BROKERS: Final = ("one", "ten", "many")


class FiltersFigures(Figures, frozen=True, kw_only=True):
    """CPU of the broker process per published event with its deliveries, by Broker. `cost_ratio` is what publishing
    costs among `triggers` Triggers, less what the further deliveries cost, to what it costs with one; `kept` the share
    of the rate that this leaves. `added_p50_ms` and `added_max_ms` are from the API's answer to an added Trigger's
    first delivery. `trigger_kb` is what each Trigger adds to the broker process's memory."""

    triggers: int
    matching: int
    one_cpu_us: float
    ten_cpu_us: float
    many_cpu_us: float
    nginx_cpu_us: float
    cost_ratio: float
    kept: float
    one_per_s: float
    ten_per_s: float
    many_per_s: float
    added_p50_ms: float
    added_max_ms: float
    added: int
    created_s: float
    rss_before_mb: float
    rss_mb: float
    trigger_kb: float
    lost: int
    errors: int


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        load = stack.enter_context(Load())
        nginx, _ = stack.enter_context(yardstick(folder, load))
        sink = stack.enter_context(Nginx(folder / "sink"))
        ports = [sink.port, *free_ports(MATCHING - 1)]
        sink.start(sinks_site(ports, folder / "sink" / "ids.log"))
        uris = [f"http://127.0.0.1:{port}/" for port in ports]
        platform, _ = stack.enter_context(running(folder / "data"))
        _few(platform, uris)
        host, port = address(platform.places.broker)
        load.connect(Connect(target="broker", host=host, port=port, connections=CONNECTIONS))
        pid, log = platform.pids()["broker"], NginxLog(folder / "sink" / "ids.log")
        one, ten, many = (
            Publisher(load, pid, log, f"{host}:{port}", broker=name, deliveries=1 if name == "one" else MATCHING)
            for name in _BROKERS
        )
        rounds, count = options.size(15, 5), options.size(2_000, 500)
        alone = interleave(
            lambda: one.round(2 * count), lambda: nginx.round(4 * count), rounds=rounds, progress=options.progress
        )
        rss_before_mb = memory(pid).rss_kib / 1024
        total = options.size(10_000, 1_000)
        options.progress(f"creating {total} Triggers")
        began_s = time.monotonic()
        few = 1 + MATCHING
        create(platform, [*matching("many", uris), *others("many", total - MATCHING, uris[0])], beside=few)
        created_s = time.monotonic() - began_s
        rss_mb = memory(pid).rss_kib / 1024
        turns = _turns(many, ten, nginx, count, options)
        added_s = _added(platform, options)
    failures = alone.failures + turns.pairs.failures
    lost = one.lost + ten.lost + many.lost
    errors = failures.total()
    if lost:
        failures["deliveries that never came"] = lost
    one_cpu_us, _ = alone.cpu_us
    many_cpu_us, ten_cpu_us = turns.pairs.cpu_us
    cost_ratio = _cost_ratio(alone, turns)
    figures = FiltersFigures(
        triggers=total,
        matching=MATCHING,
        one_cpu_us=one_cpu_us,
        ten_cpu_us=ten_cpu_us,
        many_cpu_us=many_cpu_us,
        nginx_cpu_us=turns.nginx_cpu_us,
        cost_ratio=cost_ratio,
        kept=1 / cost_ratio,
        one_per_s=alone.per_s,
        ten_per_s=median(each.per_s for each in turns.pairs.theirs),
        many_per_s=turns.pairs.per_s,
        added_p50_ms=median(added_s) * 1000,
        added_max_ms=max(added_s) * 1000,
        added=len(added_s),
        created_s=created_s,
        rss_before_mb=rss_before_mb,
        rss_mb=rss_mb,
        trigger_kb=(rss_mb - rss_before_mb) * 1024 / total,
        lost=lost,
        errors=errors,
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))


def _few(platform: Platform, uris: list[str]) -> None:
    """The Brokers, and the Triggers of `one` and `ten`."""
    triggers = [manifests.trigger("one-wants", "one", "bench.cpu", uris[0]), *matching("ten", uris)]
    apply(platform, manifests.documents(*map(manifests.broker, _BROKERS), *triggers))
    for name in _BROKERS:
        await_ready(platform, BROKER, name)
    for trigger in triggers:
        await_ready(platform, TRIGGER, trigger["metadata"]["name"])


class _Turns:
    """Rounds of `many` and `ten` in pairs, and of nginx next to each pair."""

    def __init__(self, pairs: Pairs, nginx: list[Round]) -> None:
        self.pairs = pairs
        self.nginx = nginx

    @property
    def nginx_cpu_us(self) -> float:
        return median(each.cpu_us for each in self.nginx)


def _turns(many: Publisher, ten: Publisher, nginx: Subject, count: int, options: Options) -> _Turns:
    beside: list[Round] = []

    def ten_then_nginx() -> Round:
        measured = ten.round(count)
        beside.append(nginx.round(4 * count))
        return measured

    options.progress("many and ten, in turns")
    pairs = interleave(
        lambda: many.round(count),
        ten_then_nginx,
        rounds=options.size(15, 5),
        progress=options.progress,
        other_name="ten",
    )
    return _Turns(pairs, beside[1:])


def _cost_ratio(alone: Pairs, turns: _Turns) -> float:
    """Publishing among many to publishing with one, each next to nginx, so that the machine's drift between the two
    does not count."""
    one = median(mine.cpu_us / other.cpu_us for mine, other in zip(alone.ours, alone.theirs, strict=True))
    more = median(
        (many.cpu_us - ten.cpu_us) / nginx.cpu_us
        for many, ten, nginx in zip(turns.pairs.ours, turns.pairs.theirs, turns.nginx, strict=True)
    )
    return (one + more) / one


def _added(platform: Platform, options: Options) -> list[float]:
    with Added(platform, "many") as stream:
        found = []
        for number in range(options.size(50, 10)):
            found.append(stream.add(f"added-{number}"))
            options.progress(f"added Trigger {number + 1}: first delivery {found[-1] * 1000:.1f} ms after the answer")
    return found
