"""At a rate, and from times that people write."""

import time

import click
import pytest

from penstock.cli.pace import Pace, moment

OPTION = click.Option(["--since"])
CONTEXT = click.Context(click.Command("list"))


class Slept:
    """A clock that moves only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_pace_lets_no_more_through_than_its_rate():
    slept = Slept()
    pace = Pace(10.0, slept.clock, slept.sleep)
    for _ in range(21):
        pace.wait(1)
    assert slept.now == pytest.approx(102.0)
    pace.wait(50)
    pace.wait(1)
    assert slept.now == pytest.approx(107.1), "many at once are paid for by those that follow"


def test_a_pause_is_not_made_up_for_and_no_rate_waits_for_nothing():
    slept = Slept()
    pace = Pace(10.0, slept.clock, slept.sleep)
    slept.now += 60
    pace.wait(1)
    pace.wait(1)
    assert slept.now == pytest.approx(160.1)
    free = Pace(0.0, slept.clock, slept.sleep)
    for _ in range(1000):
        free.wait(1000)
    assert slept.now == pytest.approx(160.1)


@pytest.mark.parametrize(
    ("text", "ago_s"), [("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0), ("7d", 604_800.0), (None, None)]
)
def test_a_time_is_how_long_ago(text: str | None, ago_s: float | None):
    found = moment(CONTEXT, OPTION, text)
    assert found == (None if ago_s is None else pytest.approx(time.time() - ago_s, abs=5.0))


def test_a_time_is_rfc_3339_and_anything_else_is_refused_with_what_to_write():
    assert moment(CONTEXT, OPTION, "2023-11-14T22:13:20Z") == 1_700_000_000.0
    assert moment(CONTEXT, OPTION, "2023-11-14T23:13:20+01:00") == 1_700_000_000.0
    with pytest.raises(click.BadParameter, match="'yesterday' is no time: write 2h"):
        moment(CONTEXT, OPTION, "yesterday")
