import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.windows import AverageWindow, Windows


@pytest.mark.parametrize(
    ("recorded", "at", "expected"),
    [
        pytest.param({}, 100, None, id="nothing observed"),
        pytest.param({100: 6.0}, 100, 6.0, id="a first second counts alone"),
        pytest.param({100: 6.0, 101: 3.0}, 101, 4.5, id="a window that is not full averages what it has"),
        pytest.param({100: 6.0, 102: 3.0}, 102, 3.0, id="a second without an observation is zero"),
        pytest.param({100: 5.0, 101: 5.0}, 103, 5.0, id="seconds since the last observation do not dilute"),
        pytest.param({100: 5.0}, 105, 0.0, id="a window of silence is zero"),
        pytest.param({100: 5.0, 110: 2.0}, 110, 2.0, id="after a window of silence it starts afresh"),
        pytest.param({s: float(s) for s in range(100, 110)}, 109, 107.0, id="a full window forgets what is older"),
        pytest.param(dict.fromkeys(range(100, 105), 10.0), 107, 10.0, id="only seconds within the window are counted"),
        pytest.param({100: 1.0, 101: 9.0, 102: 1.0, 103: 1.0, 104: 1.0}, 106, 1.0, id="what is older scrolls out"),
    ],
)
def test_the_average_over_five_seconds(recorded, at, expected):
    window = AverageWindow(5)
    for second, value in recorded.items():
        window.record(second, value)
    assert window.average(at) == expected


def test_a_larger_value_for_the_same_second_replaces_and_a_smaller_does_not():
    window = AverageWindow(5)
    window.record(100, 2.0)
    window.record(100, 8.0)
    window.record(100, 1.0)
    assert window.average(100) == 8.0


def test_an_observation_from_the_past_is_ignored():
    window = AverageWindow(5)
    window.record(100, 2.0)
    window.record(99, 50.0)
    assert window.average(100) == 2.0


def test_a_length_that_is_no_whole_number_of_seconds_is_rounded_up():
    assert AverageWindow(0.6).length_s == 1
    assert AverageWindow(6.5).length_s == 7


def test_the_panic_window_sees_a_surge_that_the_stable_window_spreads():
    windows = Windows(stable_s=60, panic_s=6)
    for second in range(60):
        windows.record(second, 600.0 if second >= 54 else 0.0)
    assert windows.averages(59) == (60.0, 600.0)


@given(
    length=st.integers(1, 20),
    values=st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1000)), min_size=1, max_size=60),
    later=st.integers(0, 30),
)
def test_the_average_equals_the_one_computed_from_the_whole_history(length, values, later):
    window, second, history = AverageWindow(length), 1000, {}
    for index, (gap, value) in enumerate(values):
        if gap >= length or index == 0:
            history, first = {}, second + gap
        second += gap
        history[second] = max(value, history.get(second, 0.0)) if gap == 0 else value
        window.record(second, value)
    now = second + later
    counted = [history.get(at, 0.0) for at in range(max(first, now - length + 1), second + 1)]
    expected = sum(counted) / len(counted) if counted else 0.0
    assert window.average(now) == pytest.approx(expected, abs=1e-5)
