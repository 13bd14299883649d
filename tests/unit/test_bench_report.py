"""What a benchmark's last line says."""

from __future__ import annotations

import pytest

from bench.broken import Broken
from bench.pairs import Pairs, Round, interleave
from bench.report import Figures, Machine, Measured, Options, missed, report, say_failures

MACHINE = Machine(cores=2, cpu="x", kernel="6", python="3.11", nginx="1.22.1")
OPTIONS = Options(seed=3, quick=True, progress=lambda line: None)


class Some(Figures, frozen=True, kw_only=True):
    p50_ms: float
    interval: tuple[float, float] = (1.23456, 2.0)


def test_a_figure_at_its_limit_is_met_and_one_above_is_missed() -> None:
    assert missed({"a": 4, "b": 4}, {"a": 4.0, "b": 4.001, "c": 9}) == ["b"]


def test_a_target_without_its_figure_is_a_mistake_of_the_benchmark() -> None:
    with pytest.raises(KeyError):
        missed({"a": 4}, {})


@pytest.mark.parametrize(
    ("p50_ms", "broken", "met", "above"),
    [
        pytest.param(499.0, None, True, [], id="met"),
        pytest.param(501.0, None, False, ["p50_ms"], id="missed is reported, not hidden"),
        pytest.param(1.0, "3 x status 503", False, [], id="a broken measurement meets nothing"),
    ],
)
def test_the_last_line_says_whether_the_target_is_met(
    p50_ms: float, broken: str | None, met: bool, above: list[str]
) -> None:
    measured = Measured(figures=Some(p50_ms=p50_ms), target={"p50_ms": 500}, broken=broken)
    answer = report("x", measured, OPTIONS, MACHINE, 0.12345)
    assert (answer["met"], answer["missed"], answer.get("broken")) == (met, above, broken)
    assert (answer["benchmark"], answer["seed"], answer["quick"]) == ("x", 3, True)
    assert answer["others_cpu"] == 0.123
    assert answer["interval"] == [1.235, 2.0]
    assert answer["machine"]["nginx"] == "1.22.1"


def test_failures_are_said_by_kind_and_none_is_nothing() -> None:
    assert say_failures({"status 503": 3, "no answer": 1}) == "1 x no answer, 3 x status 503"
    assert say_failures({}) is None


class Side:
    """One side's rounds: notes its turn, and fails in the rounds named (0 is the warm-up)."""

    def __init__(self, name: str, cpu_us: float, order: list[str], failing: frozenset[int] = frozenset()) -> None:
        self._name = name
        self._cpu_us = cpu_us
        self._order = order
        self._failing = failing

    def __call__(self) -> Round:
        number = self._order.count(self._name)
        self._order.append(self._name)
        failures = {"no answer": 2} if number in self._failing else {}
        return Round(cpu_us=self._cpu_us, per_s=1.0, failures=failures)


def run_pairs(ours: Side, theirs: Side) -> Pairs:
    return interleave(ours, theirs, rounds=3, progress=lambda line: None)


def test_pairs_warm_up_once_and_then_alternate_who_goes_first() -> None:
    order: list[str] = []
    pairs = run_pairs(Side("a", 30, order), Side("b", 10, order))
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert pairs.cpu_us == (30, 10)
    assert len(pairs.ours) == len(pairs.theirs) == 3
    assert not pairs.failures


@pytest.mark.parametrize(
    ("failing", "expected"),
    [pytest.param("a", {"no answer": 2}, id="ours"), pytest.param("b", {"nginx: no answer": 2}, id="nginx")],
)
def test_a_pair_with_failures_is_the_last_whichever_side_fails(failing: str, expected: dict[str, int]) -> None:
    order: list[str] = []
    sides = [Side(name, 1, order, frozenset({2}) if name == failing else frozenset()) for name in ("a", "b")]
    pairs = run_pairs(*sides)
    assert len(pairs.ours) == 2
    assert pairs.failures == expected


def test_a_failing_warm_up_breaks_the_measurement_at_once() -> None:
    order: list[str] = []
    with pytest.raises(Broken, match="2 x no answer"):
        run_pairs(Side("a", 1, order, frozenset({0})), Side("b", 1, order))
    assert order == ["a", "b"]
