"""What storing an event costs: published in binary mode and answered 202 when it is on disk; nobody wants it.

A (ours): a closed loop publishes 1,000-byte events to a Broker without Triggers. B: the yardstick's proxied requests.
Then the same events over fewer and more connections, ten to a request in batch mode, and in an open loop. When the
platform has stopped, the log's file must hold every event that was answered 202.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from bench import manifests
from bench.broken import Broken
from bench.broker import DATA_BYTES, event
from bench.cpu import cpu_s
from bench.latency import RATE_PER_S, latency
from bench.load import Load
from bench.messages import Closed, Connect, Open, OpenResult, Request
from bench.pairs import Pairs, Round, interleave
from bench.platform import NAMESPACE, address, apply, await_ready, running
from bench.report import Figures, Measured, Options, say_failures
from bench.stats import paired_ratio
from bench.yardstick import CONNECTIONS, yardstick
from broker.resources import BROKER
from core.net.types import Address

__all__ = ["IngestFigures", "batch", "run", "stored"]

#: Of the 6 that the whole way may cost, what the way in may.
TARGET: Final = {"ratio_to_nginx": 4.0, "p99_ms": 10.0}
#: Connections of the rounds that show how rate and cost depend on them.
WIDTHS: Final = (1, 8, 128)
#: Events in one request of batch mode.
BATCH: Final = 10
_BROKER: Final = "bench"
_ACCEPTED: Final = 202


class Width(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop over so many connections, of requests with so many events each; CPU and rate are per event."""

    connections: int
    batch: int
    cpu_us: float
    events_per_s: float


class IngestFigures(Figures, frozen=True, kw_only=True):
    """`cpu_us` is the broker process's CPU per event from its first byte to the 202, over 32 connections. `stored` is
    what the log's file holds; None where the log is on a server."""

    cpu_us: float
    nginx_cpu_us: float
    ratio_to_nginx: float
    interval: tuple[float, float]
    pairs: int
    events_per_s: float
    widths: list[Width]
    accepted: int
    stored: int | None
    errors: int
    rate_per_s: int
    p50_ms: float
    p99_ms: float
    late_p99_ms: float


class Ingest:
    """Publishes to one Broker, and counts what it accepted."""

    def __init__(self, load: Load, pid: int, at: Address) -> None:
        self._load = load
        self._pid = pid
        self._at = at
        self._host = f"{at[0]}:{at[1]}"
        self._published = 0
        self.accepted = 0
        self.failures: Counter[str] = Counter()

    def connect(self, width: int) -> None:
        host, port = self._at
        self._load.connect(Connect(target=_target(width), host=host, port=port, connections=width))

    def round(self, count: int, width: int = CONNECTIONS) -> Round:
        """`count` events over `width` connections."""
        return self._round(count, width, event(self._host, "ingest"), 1)

    def batches(self, count: int) -> Round:
        """`count` events, BATCH to a request; CPU and rate are per event."""
        return self._round(count // BATCH, CONNECTIONS, batch(self._host, BATCH, DATA_BYTES), BATCH)

    def open(self, load: Load, count: int) -> OpenResult:
        host, port = self._at
        load.connect(Connect(target="open", host=host, port=port, connections=CONNECTIONS))
        request = event(self._host, "open")
        result = load.open(Open(target="open", count=count, rate_per_s=RATE_PER_S, request=request, expect=_ACCEPTED))
        self.failures.update({f"open loop: {what}": times for what, times in result.failures.items()})
        self.accepted += len(result.latencies_s)
        return result

    def _round(self, count: int, width: int, request: Request, events: int) -> Round:
        first, self._published = self._published, self._published + count
        before_s = cpu_s([self._pid])
        result = self._load.closed(
            Closed(target=_target(width), count=count, request=request, expect=_ACCEPTED, first=first)
        )
        self.accepted += (count - sum(result.failures.values())) * events
        return Round(
            cpu_us=(cpu_s([self._pid]) - before_s) / (count * events) * 1e6,
            per_s=count * events / result.seconds,
            failures=result.failures,
        )


def batch(host: str, events: int, data_bytes: int, kind: str = "batch") -> Request:
    """`events` events of type ``bench.<kind>`` in one request; every request's are the same ones."""
    value = {"data": "x" * (data_bytes - len('{"data":""}'))}
    attributes = {"specversion": "1.0", "source": "/penstock/bench", "type": f"bench.{kind}"}
    body = msgspec.json.encode([{**attributes, "id": f"{kind}-{n}", "data": value} for n in range(events)])
    head = (
        f"POST /{NAMESPACE}/{_BROKER} HTTP/1.1\r\nhost: {host}\r\n"
        f"content-type: application/cloudevents-batch+json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return Request(before=head.encode() + body)


def run(options: Options) -> Measured:
    """Raises Broken where the measurement cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        load = stack.enter_context(Load())
        nginx, _ = stack.enter_context(yardstick(folder, load))
        with running(folder / "data") as (platform, _):
            apply(platform, manifests.documents(manifests.broker(_BROKER)))
            await_ready(platform, BROKER, _BROKER)
            ingest = Ingest(load, platform.pids()["broker"], address(platform.places.broker))
            for width in (CONNECTIONS, *WIDTHS):
                ingest.connect(width)
            count = options.size(4_000, 1_000)
            pairs = interleave(
                lambda: ingest.round(count),
                lambda: nginx.round(2 * count),
                rounds=options.size(15, 5),
                progress=options.progress,
            )
            widths = _widths(ingest, options)
            options.progress(f"open loop at {RATE_PER_S} events/s")
            opened = ingest.open(stack.enter_context(Load(precise=True)), options.size(10_000, 1_000))
        return _measured(pairs, widths, ingest, opened, stored(folder / "data"), options)


def _widths(ingest: Ingest, options: Options) -> list[Width]:
    """Medians of a few rounds each, in turns."""
    rounds = options.size(5, 2)
    found: dict[tuple[int, int], list[Round]] = {}
    for _ in range(rounds):
        for connections in WIDTHS:
            # One connection waits for the disk each time: fewer events take as long.
            count = options.size(4_000, 1_000) if connections > 1 else options.size(1_000, 200)
            found.setdefault((connections, 1), []).append(ingest.round(count, connections))
        found.setdefault((CONNECTIONS, BATCH), []).append(ingest.batches(options.size(10_000, 2_000)))
    for measured in found.values():
        for each in measured:
            ingest.failures.update(each.failures)
    widths = [
        Width(
            connections=connections,
            batch=events,
            cpu_us=median(each.cpu_us for each in measured),
            events_per_s=median(each.per_s for each in measured),
        )
        for (connections, events), measured in found.items()
    ]
    for width in widths:
        said = f"{width.connections} connections, {width.batch} to a request"
        options.progress(f"{said}: {width.cpu_us:.1f} us an event, {width.events_per_s:,.0f} events/s")
    return widths


def stored(data: Path) -> int | None:
    """How many events the log's file holds; None where the log is on a server."""
    if os.environ.get("PENSTOCK_BROKER_LOG", "sqlite") != "sqlite":
        return None
    with closing(sqlite3.connect(data / "broker" / "log.db")) as file:
        return int(file.execute("SELECT count(*) FROM events").fetchone()[0])


def _measured(
    pairs: Pairs, widths: list[Width], ingest: Ingest, opened: OpenResult, stored: int | None, options: Options
) -> Measured:
    ratio = paired_ratio([each.cpu_us for each in pairs.ours], [each.cpu_us for each in pairs.theirs], options.rng())
    failures = pairs.failures + ingest.failures
    if stored is not None and not failures and stored != ingest.accepted:
        raise Broken(f"{ingest.accepted} events were answered 202, and the log's file holds {stored}.")
    answered = latency(opened.latencies_s, "event's publishing")
    cpu_us, nginx_cpu_us = pairs.cpu_us
    figures = IngestFigures(
        cpu_us=cpu_us,
        nginx_cpu_us=nginx_cpu_us,
        ratio_to_nginx=ratio.median,
        interval=(ratio.low, ratio.high),
        pairs=len(pairs.ours),
        events_per_s=median(each.per_s for each in pairs.ours),
        widths=widths,
        accepted=ingest.accepted,
        stored=stored,
        errors=failures.total(),
        rate_per_s=RATE_PER_S,
        p50_ms=answered.p50_ms,
        p99_ms=answered.p99_ms,
        late_p99_ms=latency(opened.late_s, "event").p99_ms,
    )
    return Measured(figures=figures, target=TARGET, broken=say_failures(failures))


def _target(width: int) -> str:
    return f"broker over {width}"
