"""PingSource on virtual time: ticks in time, what its events look like, and what becomes of missed ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from core.clock import parse_rfc3339, rfc3339
from sources.checkpoints import MemoryCheckpoints
from sources.cron import Schedule
from sources.ping import LATE_LIMIT_S, MAX_WAITING, PingSource
from tests.support.sources import RecordingContext, Rig
from tests.support.sources import running as running_for
from tests.support.virtual_time import VirtualClock, run_virtual

#: Virtual seconds: more than any tick here is away.
running = partial(running_for, deadline_s=86_400.0)
START = parse_rfc3339("2026-11-23T10:00:30Z")


class MovableClock(VirtualClock):
    """A wall clock that can be set, as after a machine's sleep."""

    offset_s = 0.0

    def now(self) -> float:
        return super().now() + self.offset_s


def make(text: str = "* * * * *", data: bytes | None = None, content_type: str = "") -> Callable[..., PingSource]:
    def made(context: RecordingContext) -> PingSource:
        return PingSource(context=context, schedule=Schedule.parse(text), data=data, content_type=content_type)

    return made


def context(checkpoints: MemoryCheckpoints | None = None, at: float = START) -> tuple[RecordingContext, MovableClock]:
    clock = MovableClock(at)
    return RecordingContext(clock=clock, checkpoints=checkpoints), clock


def times(rig: Rig) -> list[str]:
    return [event.attributes["time"][11:19] for event in rig.outlet.events]


def test_a_tick_is_an_event_with_knatives_attributes_and_the_specs_payload() -> None:
    async def main() -> None:
        held, _ = context()
        async with running(make(data=b'{"hello": 1}', content_type="application/json"), held) as rig:
            await rig.until(lambda: len(rig.outlet.events) == 1)
        event = rig.outlet.events[0]
        assert event.type == "dev.knative.sources.ping"
        assert event.source == "/apis/v1/namespaces/default/pingsources/under-test"
        assert event.attributes["datacontenttype"] == "application/json"
        assert event.data == b'{"hello": 1}'
        assert event.attributes["time"].startswith("2026-11-23T10:01:00")

    run_virtual(main())


def test_a_ping_source_without_data_sends_events_without_data() -> None:
    async def main() -> None:
        held, _ = context()
        async with running(make(), held) as rig:
            await rig.until(lambda: len(rig.outlet.events) == 1)
        assert rig.outlet.events[0].data is None
        assert "datacontenttype" not in rig.outlet.events[0].attributes

    run_virtual(main())


def test_ticks_come_on_the_minute_each_with_its_own_id() -> None:
    async def main() -> None:
        held, clock = context()
        async with running(make(), held) as rig:
            for number in range(1, 4):
                await rig.until(lambda n=number: len(rig.outlet.events) == n)
                assert clock.now() % 60 < 0.001
        assert times(rig) == ["10:01:00", "10:02:00", "10:03:00"]
        assert len({event.id for event in rig.outlet.events}) == 3

    run_virtual(main())


def test_ticks_that_came_in_time_wait_in_order_for_a_sink_that_is_away() -> None:
    async def main() -> None:
        held, _ = context()
        async with running(make(), held) as rig:
            rig.outlet.open.clear()
            await asyncio.sleep(3 * 60)
            assert rig.outlet.events == []
            rig.outlet.open.set()
            await rig.until(lambda: len(rig.outlet.events) == 3)
        assert times(rig) == ["10:01:00", "10:02:00", "10:03:00"]
        assert held.counted["missed"] == 0

    run_virtual(main())


def test_more_ticks_than_may_wait_count_as_missed() -> None:
    async def main() -> None:
        held, _ = context()
        async with running(make(), held) as rig:
            rig.outlet.open.clear()
            await asyncio.sleep((MAX_WAITING + 1 + 5) * 60)  # one is under way, MAX_WAITING wait
            assert held.counted["missed"] == 5

    run_virtual(main())


def test_ticks_missed_while_the_platform_was_not_running_are_counted_and_not_sent() -> None:
    async def main() -> None:
        checkpoints = MemoryCheckpoints()
        held, _ = context(checkpoints)
        async with running(make(), held) as rig:
            await rig.until(lambda: len(rig.outlet.events) == 1)
            await asyncio.sleep(1)
        later, _ = context(checkpoints, at=START + 10 * 60)
        async with running(make(), later) as again:
            await again.until(lambda: len(again.outlet.events) == 1)
        assert times(rig) == ["10:01:00"]
        assert later.counted["missed"] == 9  # 10:02 to 10:10
        assert times(again) == ["10:11:00"]

    run_virtual(main())


def test_a_tick_during_a_quick_restart_is_still_sent_with_the_id_it_would_have_had() -> None:
    async def main() -> None:
        checkpoints = MemoryCheckpoints()
        held, _ = context(checkpoints)
        async with running(make(), held) as rig:
            await rig.until(lambda: len(rig.outlet.events) == 1)
            await asyncio.sleep(1)
            rig.outlet.open.clear()
            await rig.until(lambda: len(rig.outlet.offered) == 2)
            restarted_at = held.clock.now() + LATE_LIMIT_S / 2
        later, _ = context(checkpoints, at=restarted_at - asyncio.get_running_loop().time())
        async with running(make(), later) as again:
            await again.until(lambda: len(again.outlet.events) == 1)
        assert again.outlet.events == rig.outlet.offered[1:]
        assert later.counted["missed"] == 0

    run_virtual(main())


def test_ticks_missed_while_the_machine_slept_are_counted_and_the_next_one_comes_in_time() -> None:
    async def main() -> None:
        held, clock = context()
        async with running(make(), held) as rig:
            await asyncio.sleep(1)
            clock.offset_s = 3600.0  # the lid was closed for an hour; timers stood still
            await rig.until(lambda: len(rig.outlet.events) == 1)
        assert held.counted["missed"] == 60
        assert times(rig) == ["11:01:00"]

    run_virtual(main())


def test_a_wall_clock_that_is_set_back_repeats_no_tick() -> None:
    async def main() -> None:
        held, clock = context()
        async with running(make(), held) as rig:
            await rig.until(lambda: len(rig.outlet.events) == 1)
            clock.offset_s = -600.0
            await asyncio.sleep(600)
            assert times(rig) == ["10:01:00"]
            await rig.until(lambda: len(rig.outlet.events) == 2)
        assert times(rig) == ["10:01:00", "10:02:00"]

    run_virtual(main())


def test_a_long_absence_is_counted_only_so_far() -> None:
    async def main() -> None:
        checkpoints = MemoryCheckpoints()
        held, _ = context(checkpoints)
        async with running(make(), held) as rig:
            await rig.until(lambda: len(rig.outlet.events) == 1)
            await asyncio.sleep(1)
        later, _ = context(checkpoints, at=START + 365 * 86_400)
        async with running(make(), later) as again:
            await again.until(lambda: len(again.outlet.events) == 1)
        assert later.counted["missed"] == 10_000
        assert rfc3339(later.clock.now()).startswith("2027")

    run_virtual(main())
