"""Demand is averaged over time exactly, reported while there is any, and at once for a wake-up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.net.types import Address, ConnectFailed, Headers, NetError, Response
from serving.demand import MAX_REPORTS_UNDER_WAY, DemandMeter, DemandReporter
from serving.routing import RevisionKey
from tests.support.virtual_time import run_virtual


@given(st.lists(st.tuples(st.integers(1, 1000), st.booleans()), max_size=40))
def test_the_average_is_the_area_under_the_concurrency(steps: list[tuple[int, bool]]) -> None:
    meter = DemandMeter()
    now, running, area, arrivals = 0, 0, Fraction(0), 0
    for gap, arrives in steps:
        area += running * Fraction(gap)
        now += gap
        if arrives or not running:
            meter.arrive(float(now))
            running, arrivals = running + 1, arrivals + 1
        else:
            meter.leave(float(now))
            running -= 1
    end = now + 7
    area += running * Fraction(7)
    assert meter.concurrency == running
    concurrency, rps = meter.close(float(end), float(end))
    assert concurrency == pytest.approx(float(area / end))
    assert rps == pytest.approx(arrivals / end)


def test_a_window_begins_with_what_was_under_way_before() -> None:
    meter = DemandMeter()
    meter.arrive(0.0)
    assert meter.close(1.0, 1.0) == (1.0, 1.0)
    meter.leave(1.5)
    assert meter.close(2.0, 1.0) == (0.5, 0.0)
    assert not meter.quiet
    assert meter.close(3.0, 1.0) == (0.0, 0.0)
    assert meter.quiet


class Revision:
    """What the reporter asks about one revision."""

    def __init__(self, name: str) -> None:
        self.key = RevisionKey("shop", name)
        self.meter = DemandMeter()
        self.queued = 0
        self.away = 0
        self.elsewhere = 0


class Control:
    """Takes reports as `Client.fetch` does; answers when told to."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, dict[str, Any]]] = []
        self.waiting: list[Callable[[Response | NetError], None]] = []
        self.answers = True
        self.cancelled = 0

    def fetch(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        then: Callable[[Response | NetError], None],
    ) -> Callable[[], None]:
        assert (address, method, target) == (("127.0.0.1", 8082), b"POST", b"/penstock/v1/demand")
        assert dict(headers)[b"host"] == b"127.0.0.1:8082"
        self.reports.append((asyncio.get_running_loop().time(), msgspec.json.decode(body)))
        if self.answers:
            asyncio.get_running_loop().call_soon(then, Response(202, [], b""))
        else:
            self.waiting.append(then)

        def cancel() -> None:
            self.cancelled += 1

        return cancel


def reporter(control: Control) -> DemandReporter:
    return DemandReporter(
        gateway_id="g1",
        address=("127.0.0.1", 8082),
        fetch=control.fetch,
        monotonic=asyncio.get_running_loop().time,
    )


def test_a_busy_revision_is_reported_each_second_and_ends_with_one_zero() -> None:
    async def main() -> None:
        control, app = Control(), Revision("app-1")
        reports = reporter(control)
        now = asyncio.get_running_loop().time
        app.meter.arrive(now())
        reports.watch(app)
        await asyncio.sleep(1.5)
        app.meter.leave(now())
        await asyncio.sleep(10)
        told = [(at, r["revisions"][0]["concurrency"], r["revisions"][0]["rps"]) for at, r in control.reports]
        assert told == [(1.0, 1.0, 1.0), (2.0, 0.5, 0.0), (3.0, 0.0, 0.0)]
        assert control.reports[0][1] == {
            "gateway": "g1",
            "revisions": [{"namespace": "shop", "name": "app-1", "concurrency": 1.0, "rps": 1.0, "queued": 0}],
        }
        reports.close()

    run_virtual(main())


def test_a_short_visit_in_an_old_window_counts_as_little_as_it_was() -> None:
    async def main() -> None:
        control, busy, visitor = Control(), Revision("busy"), Revision("visitor")
        reports = reporter(control)
        now = asyncio.get_running_loop().time
        busy.meter.arrive(now())
        reports.watch(busy)
        await asyncio.sleep(0.9)
        visitor.meter.arrive(now())
        reports.watch(visitor)
        await asyncio.sleep(0.05)
        visitor.meter.leave(now())
        await asyncio.sleep(0.1)
        told = {r["name"]: r["concurrency"] for r in control.reports[0][1]["revisions"]}
        assert told == {"busy": 1.0, "visitor": 0.05}
        reports.close()

    run_virtual(main())


def test_a_wake_up_is_told_at_once_and_once_a_second() -> None:
    async def main() -> None:
        control, app, other = Control(), Revision("app-1"), Revision("other-1")
        reports = reporter(control)
        now = asyncio.get_running_loop().time
        for revision in (app, other):
            revision.queued = 1
            revision.meter.arrive(now())
            reports.watch(revision)
            reports.wake(revision)
        reports.wake(app)
        await asyncio.sleep(0.5)
        reports.wake(app)
        await asyncio.sleep(0.1)
        assert [at for at, _ in control.reports] == [0.0]
        revisions = control.reports[0][1]["revisions"]
        assert [(r["name"], r["concurrency"], r["queued"]) for r in revisions] == [
            ("app-1", 1.0, 1),
            ("other-1", 1.0, 1),
        ]
        await asyncio.sleep(1.0)
        reports.wake(app)
        await asyncio.sleep(0)
        assert [at for at, _ in control.reports] == [0.0, 1.0, pytest.approx(1.6)]
        reports.close()

    run_virtual(main())


def test_a_wake_up_does_not_cut_the_second_that_it_falls_into() -> None:
    async def main() -> None:
        control, app = Control(), Revision("app-1")
        reports = reporter(control)
        app.meter.arrive(asyncio.get_running_loop().time())
        reports.watch(app)
        await asyncio.sleep(0.4)
        reports.wake(app)
        await asyncio.sleep(0.7)
        assert [(at, r["revisions"][0]["rps"]) for at, r in control.reports] == [(0.4, 0.0), (1.0, 1.0)]
        reports.close()

    run_virtual(main())


def test_reports_do_not_pile_up_while_the_autoscaler_hangs() -> None:
    async def main() -> None:
        control, app = Control(), Revision("app-1")
        control.answers = False
        reports = reporter(control)
        app.meter.arrive(0.0)
        reports.watch(app)
        await asyncio.sleep(60)
        assert len(control.reports) == MAX_REPORTS_UNDER_WAY
        for then in control.waiting:
            then(ConnectFailed("nobody listens"))
        control.answers = True
        await asyncio.sleep(1)
        assert len(control.reports) == MAX_REPORTS_UNDER_WAY + 1
        reports.close()

    run_virtual(main())


def test_closing_gives_up_what_is_under_way_and_reports_nothing_more() -> None:
    async def main() -> None:
        control, app = Control(), Revision("app-1")
        control.answers = False
        reports = reporter(control)
        app.meter.arrive(0.0)
        reports.watch(app)
        await asyncio.sleep(1)
        reports.close()
        reports.wake(app)
        reports.watch(app)
        await asyncio.sleep(5)
        assert (len(control.reports), control.cancelled) == (1, 1)

    run_virtual(main())


def test_an_absent_autoscaler_is_logged_when_it_goes_and_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        control, app = Control(), Revision("app-1")
        control.answers = False
        reports = reporter(control)
        app.meter.arrive(0.0)
        reports.watch(app)
        for answer in (ConnectFailed("no"), Response(503, [], b""), Response(202, [], b""), Response(202, [], b"")):
            await asyncio.sleep(1)
            control.waiting.pop()(answer)
        reports.close()

    caplog.set_level("INFO", logger="serving.demand")
    run_virtual(main())
    assert [record.getMessage() for record in caplog.records] == [
        "The autoscaler does not take demand reports",
        "The autoscaler takes demand reports again",
    ]
