"""The benchmarks' statistics, against values that can be worked out by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import bootstrap_interval, paired_ratio, percentile

FIGURES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        pytest.param([5.0], 50, 5.0, id="one value is every percentile"),
        pytest.param([15, 20, 35, 40, 50], 30, 20, id="nearest rank rounds up: 1.5 is the second"),
        pytest.param([15, 20, 35, 40, 50], 40, 20, id="a whole rank is that value"),
        pytest.param([50, 15, 40, 20, 35], 50, 35, id="order does not matter"),
        pytest.param([15, 20, 35, 40, 50], 100, 50, id="100 is the largest"),
        pytest.param([15, 20, 35, 40, 50], 0, 15, id="0 is the smallest"),
        pytest.param(list(range(1, 101)), 99, 99, id="99 of 100 values do not exceed the 99th"),
        pytest.param(list(range(1, 1001)), 99.9, 999, id="parts of a percent"),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


@given(FIGURES, st.floats(0, 100))
def test_a_percentile_is_one_of_the_values_and_at_least_that_many_do_not_exceed_it(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9


@pytest.mark.parametrize("percent", [-1, 100.5])
def test_a_percentile_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], percent)


def test_statistics_of_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], random.Random(1))


def test_the_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_the_medians() -> None:
    ratio = paired_ratio([10, 40, 90], [10, 20, 30], random.Random(1))
    assert ratio.median == 2.0
    ratio = paired_ratio([10, 100, 1], [1, 50, 1], random.Random(1))
    assert ratio.median == 2.0


def test_drift_that_hits_both_sides_of_a_pair_leaves_the_ratio_alone() -> None:
    speeds = [1.0, 1.3, 0.7, 2.0, 1.1, 0.9, 1.6]
    ratio = paired_ratio([60 * speed for speed in speeds], [20 * speed for speed in speeds], random.Random(1))
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((3.0, 3.0, 3.0))


def test_pairs_that_do_not_match_up_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired_ratio([1.0], [1.0, 2.0], random.Random(1))


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    values = [3.0, 3.4, 2.9, 3.1, 3.3, 3.0, 3.8]
    assert bootstrap_interval(values, random.Random(7)) == bootstrap_interval(values, random.Random(7))


def test_the_interval_of_two_values_is_the_two_values() -> None:
    # A resample is (a,a), (a,b), (b,a) or (b,b): a quarter of the medians lie at each end, far more than 2.5 %.
    assert bootstrap_interval([1.0, 2.0], random.Random(1)) == (1.0, 2.0)


def test_the_interval_of_a_known_median_is_near_the_order_statistics_that_theory_names() -> None:
    # For n = 99 the distribution-free 95 % interval of the median is the 40th to the 60th value (binomial, p = 1/2).
    low, high = bootstrap_interval([float(n) for n in range(1, 100)], random.Random(1))
    assert 38 <= low <= 42
    assert 58 <= high <= 62


@given(FIGURES)
def test_the_interval_lies_within_the_values_and_is_ordered(values: list[float]) -> None:
    low, high = bootstrap_interval(values, random.Random(1))
    assert min(values) <= low <= high <= max(values)
