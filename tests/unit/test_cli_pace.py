"""At a rate, and from times that people write."""

import time

import click
import pytest

from penstock.cli.api import Refused
from penstock.cli.failure import UNREACHABLE, Failure
from penstock.cli.pace import Pace, Patient, Rate, moment

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


class Answers:
    """A session whose platform answers so, one after the other."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.forgotten = 0
        self.api = self

    def request(self, method: str, path: str, **_: object) -> object:
        answer = self._answers.pop(0)
        if isinstance(answer, Failure):
            raise answer
        return answer

    def forget(self) -> None:
        self.forgotten += 1


AWAY = Failure("No platform answers.", code=UNREACHABLE)


def test_a_platform_that_has_answered_is_waited_for_and_one_that_has_not_is_told_at_once(monkeypatch):
    monkeypatch.setattr("penstock.cli.pace.RETRY_S", 0.0)
    with pytest.raises(Failure, match="No platform answers"):
        Patient(Answers(AWAY)).request("GET", "/")
    session = Answers(1, AWAY, AWAY, Refused("The log is away.", 503, {}), 2)
    patient = Patient(session)
    assert [patient.request("GET", "/"), patient.request("GET", "/")] == [1, 2]
    assert session.forgotten == 2
    assert patient.repeated, "so what was asked may have been done twice"
    with pytest.raises(Refused, match="no such"):
        Patient(Answers(Refused("There is no such thing.", 404, {}))).request("GET", "/")


@pytest.mark.parametrize("text", ["nan", "1e-300", "-1", "inf", "fast"])
def test_a_rate_that_nobody_can_keep_to_is_refused(text: str):
    with pytest.raises(click.BadParameter):
        Rate().convert(text, OPTION, CONTEXT)


@pytest.mark.parametrize(("text", "rate"), [("0", 0.0), ("0.001", 0.001), ("100000", 100_000.0)])
def test_a_rate_is_none_or_within_its_bounds(text: str, rate: float):
    assert Rate().convert(text, OPTION, CONTEXT) == rate


def test_a_time_before_the_first_year_here_is_refused():
    with pytest.raises(click.BadParameter, match="is no time"):
        moment(CONTEXT, OPTION, "0001-01-01")
