"""Cron schedules: the syntax that Knative takes, time zones, and daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from core.clock import parse_rfc3339, rfc3339
from sources.cron import CronError, Schedule, local_zone


def ticks(schedule: Schedule, after: str, count: int) -> list[str]:
    found, moment = [], parse_rfc3339(after)
    for _ in range(count):
        tick = schedule.next_after(moment)
        assert tick is not None
        found.append(rfc3339(tick))
        moment = tick
    return found


@pytest.mark.parametrize(
    ("text", "timezone", "after", "expected"),
    [
        ("* * * * *", "", "2026-11-23T10:00:00Z", ["2026-11-23T10:01:00Z", "2026-11-23T10:02:00Z"]),
        ("*/20 * * * * *", "", "2026-11-23T10:00:50Z", ["2026-11-23T10:01:00Z", "2026-11-23T10:01:20Z"]),
        ("@hourly", "", "2026-11-23T10:00:00Z", ["2026-11-23T11:00:00Z"]),
        ("@weekly", "", "2026-11-23T10:00:00Z", ["2026-11-29T00:00:00Z"]),
        ("0 12 ? * MON-FRI", "", "2026-11-27T13:00:00Z", ["2026-11-30T12:00:00Z"]),
        ("0 9 * * *", "Asia/Shanghai", "2026-11-23T00:00:00Z", ["2026-11-23T01:00:00Z"]),
        ("CRON_TZ=Asia/Shanghai 0 9 * * *", "", "2026-11-23T00:00:00Z", ["2026-11-23T01:00:00Z"]),
        ("0 0 29 2 *", "", "2026-01-01T00:00:00Z", ["2028-02-29T00:00:00Z"]),
    ],
    ids=["every minute", "seconds", "a word", "weekly", "names and ?", "a zone", "a zone in front", "leap days"],
)
def test_ticks_come_when_the_schedule_says(text: str, timezone: str, after: str, expected: list[str]) -> None:
    assert ticks(Schedule.parse(text, timezone), after, len(expected)) == expected


def test_a_tick_that_the_clocks_jump_over_comes_right_after_the_jump() -> None:
    berlin = Schedule.parse("30 2 * * *", "Europe/Berlin")
    assert ticks(berlin, "2026-03-28T12:00:00Z", 2) == ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]


def test_a_tick_at_a_time_that_happens_twice_comes_once() -> None:
    berlin = Schedule.parse("30 2 * * *", "Europe/Berlin")
    assert ticks(berlin, "2026-10-24T12:00:00Z", 2) == ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]


def test_a_tick_is_always_later_than_the_moment_asked_for() -> None:
    every_minute = Schedule.parse("* * * * *")
    moment = parse_rfc3339("2026-11-23T10:00:00Z")
    assert every_minute.next_after(moment) == moment + 60
    assert every_minute.next_after(moment - 0.001) == moment


@pytest.mark.parametrize(
    ("text", "timezone", "field", "says"),
    [
        ("* * * *", "", "schedule", "five fields"),
        ("61 * * * *", "", "schedule", "minute"),
        ("@every 1h", "", "schedule", "@every"),
        ("@fortnightly", "", "schedule", "@hourly"),
        ("0 0 30 2 *", "", "schedule", "day-of-month"),
        ("", "", "schedule", "five fields"),
        ("* * * * *", "Nowhere/Land", "timezone", "IANA"),
        ("CRON_TZ=Nowhere/Land * * * * *", "", "timezone", "IANA"),
        ("CRON_TZ=UTC * * * * *", "UTC", "schedule", "time zone"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused_with_the_field_and_the_rule(
    text: str, timezone: str, field: str, says: str
) -> None:
    with pytest.raises(CronError, match=says) as raised:
        Schedule.parse(text, timezone)
    assert raised.value.field == field


def test_without_a_zone_the_machines_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    assert local_zone() == ZoneInfo("Asia/Shanghai")
    assert ticks(Schedule.parse("0 9 * * *", "", local_zone()), "2026-11-23T00:00:00Z", 1) == ["2026-11-23T01:00:00Z"]
    monkeypatch.setenv("TZ", "not/a/zone")
    assert local_zone() is UTC
    assert datetime.now(local_zone()).utcoffset() is not None
