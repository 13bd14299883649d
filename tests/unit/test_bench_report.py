"""What a benchmark's last line says."""

from __future__ import annotations

import pytest

from bench.pairs import Round, interleave
from bench.report import Figures, Machine, Measured, Options, missed, report, say_failures

MACHINE = Machine(cores=2, cpu="x", kernel="6", python="3.11", nginx="1.22.1", load_1m=0.0)
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
    answer = report("x", measured, OPTIONS, MACHINE)
    assert (answer["met"], answer["missed"], answer.get("broken")) == (met, above, broken)
    assert (answer["benchmark"], answer["seed"], answer["quick"]) == ("x", 3, True)
    assert answer["interval"] == [1.235, 2.0]
    assert answer["machine"]["nginx"] == "1.22.1"


def test_failures_are_said_by_kind_and_none_is_nothing() -> None:
    assert say_failures({"status 503": 3, "no answer": 1}) == "1 x no answer, 3 x status 503"
    assert say_failures({}) is None


def test_pairs_warm_up_alternate_and_keep_both_sides_failures() -> None:
    order: list[str] = []

    def side(name: str, cpu_us: float) -> Round:
        order.append(name)
        return Round(cpu_us=cpu_us, per_s=1.0, failures={"no answer": 1})

    pairs = interleave(lambda: side("a", 30), lambda: side("b", 10), rounds=3, progress=lambda line: None)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert pairs.cpu_us == (30, 10)
    assert pairs.failures == {"no answer": 3, "nginx: no answer": 3}
