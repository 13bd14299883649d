"""The hand-computed cases restate what knative/serving's autoscaler_test.go and scaler_test.go establish."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from serving.kpa import KpaSpec, KpaState, Observed, decide

# Limits of 10 in both directions, panic at 200 %, a target of 10 of 10/0.7 per instance: numbers easy to follow.
SPEC = KpaSpec(
    target_value=10,
    total_value=10 / 0.7,
    target_burst_capacity=100,
    max_scale_up_rate=10,
    max_scale_down_rate=10,
    panic_threshold=2,
)
RUNNING = KpaState(phase="active", phase_since=-1000, initialized=True, desired=1)


def seen(stable, panic=None, ready=1):
    return Observed(stable=stable, panic=stable if panic is None else panic, ready=ready)


@pytest.mark.parametrize(
    ("spec", "observed", "desired", "mode"),
    [
        pytest.param(SPEC, seen(50, 10), 5, "stable", id="follows the stable window"),
        pytest.param(SPEC, seen(100, 10), 10, "stable", id="follows it further up"),
        pytest.param(SPEC, seen(50, 100), 10, "panic", id="a surge of twice the capacity is panic"),
        pytest.param(SPEC, seen(50, ready=5), 5, "stable", id="stays where it is right"),
        pytest.param(SPEC, seen(1000, 1001), 10, "panic", id="grows at most tenfold"),
        pytest.param(SPEC, seen(1000, 888, ready=0), 10, "panic", id="none ready counts as one"),
        pytest.param(SPEC, seen(1, ready=100), 10, "stable", id="shrinks at most to a tenth"),
        pytest.param(
            replace(SPEC, target_value=1, max_scale_up_rate=1.1), seen(3, 3.1, 2), 3, "panic", id="can grow by one"
        ),
        pytest.param(replace(SPEC, max_scale_down_rate=1.1), seen(1, ready=100), 90, "stable", id="shrinks slowly"),
        pytest.param(
            replace(SPEC, max_scale_down_rate=1.1, reachable=False), seen(1, ready=100), 1, "stable", id="unreachable"
        ),
        pytest.param(replace(SPEC, min_scale=3), seen(1), 3, "stable", id="not below min-scale"),
        pytest.param(replace(SPEC, max_scale=4), seen(90), 4, "panic", id="not above max-scale"),
        pytest.param(replace(SPEC, activation_scale=3), seen(1), 3, "stable", id="activation-scale where there is any"),
        pytest.param(replace(SPEC, activation_scale=3), seen(90), 9, "panic", id="activation-scale is only a floor"),
    ],
)
def test_the_count_for_some_demand(spec, observed, desired, mode):
    decision = decide(spec, observed, RUNNING, now=0)
    assert (decision.desired, decision.mode) == (desired, mode)


@pytest.mark.parametrize(
    ("burst", "observed", "excess"),
    [
        pytest.param(100, seen(50, 50), math.floor(100 / 7 - 100 - 50), id="one instance cannot take the burst"),
        pytest.param(0, seen(50, 49), 0, id="no burst to provide for"),
        pytest.param(-1, seen(21, 26), -1, id="without limit"),
        pytest.param(84, seen(50, 100), math.floor(100 / 7 - 84 - 100), id="the panic window counts"),
    ],
)
def test_the_spare_capacity_over_the_target_burst(burst, observed, excess):
    decision = decide(replace(SPEC, target_burst_capacity=burst), observed, RUNNING, now=0)
    assert decision.excess_burst_capacity == excess


def test_a_surge_starts_panic_mode_and_a_stable_window_without_one_ends_it():
    spec = replace(SPEC, stable_window_s=60)
    first = decide(spec, seen(100, 1000, ready=10), RUNNING, now=100)
    assert (first.desired, first.mode) == (100, "panic")
    kept = decide(spec, seen(1, ready=10), first.state, now=130)
    assert (kept.desired, kept.mode) == (100, "panic")
    at_the_end = decide(spec, seen(1, ready=10), kept.state, now=160)
    assert (at_the_end.desired, at_the_end.mode) == (100, "panic")
    over = decide(spec, seen(1, ready=10), kept.state, now=161)
    assert (over.desired, over.mode) == (1, "stable")


def test_a_surge_that_goes_on_prolongs_panic_mode():
    spec = replace(SPEC, target_value=1)
    first = decide(spec, seen(11, 25, ready=10), RUNNING, now=0)
    again = decide(spec, seen(30, 80, ready=40), first.state, now=30)
    assert (again.desired, again.state.panic_since) == (80, 30)
    slower = decide(spec, seen(30, 41, ready=40), first.state, now=30)
    assert (slower.desired, slower.state.panic_since) == (41, 0)


@pytest.mark.parametrize(("stable", "desired"), [(50, 50), (20, 30)], ids=["stable larger", "panic larger"])
def test_panic_mode_provides_for_the_larger_window(stable, desired):
    state = replace(RUNNING, panic_since=-5, panic_peak=5)
    decision = decide(replace(SPEC, target_value=1), seen(stable, 30, ready=5), state, now=0)
    assert decision.desired == desired


def test_a_process_that_starts_anew_takes_nothing_away_for_a_stable_window():
    state = replace(KpaState.start(ready=5, now=0), initialized=True)
    assert decide(SPEC, seen(1, ready=5), state, now=30).desired == 5
    assert decide(SPEC, seen(1, ready=5), state, now=61).desired == 1
    assert KpaState.start(ready=1, now=0).panic_since is None


def test_scaling_down_waits_for_the_delay():
    spec = replace(SPEC, panic_threshold=100, scale_down_delay_s=300, tick_s=2, stable_window_s=6)
    up = decide(spec, seen(40), RUNNING, now=2)
    before = decide(spec, seen(0), up.state, now=300)
    after = decide(spec, seen(0), before.state, now=302)
    assert (up.desired, before.desired, after.desired) == (4, 4, 0)


def test_the_delay_keeps_the_largest_count_of_its_time():
    spec = replace(SPEC, panic_threshold=100, scale_down_delay_s=300, tick_s=2, stable_window_s=6)
    state, desired = RUNNING, []
    for minute, demand in ((9, 40), (10, 30), (11, 0), (14, 0), (15, 0)):
        decision = decide(spec, seen(demand), state, now=minute * 60)
        state = decision.state
        desired.append(decision.desired)
    assert desired == [4, 4, 4, 3, 0]


def test_an_unreachable_revision_is_not_delayed():
    spec = replace(SPEC, panic_threshold=100, scale_down_delay_s=300, stable_window_s=6)
    up = decide(spec, seen(40), RUNNING, now=2)
    assert decide(replace(spec, reachable=False), seen(0), up.state, now=60).desired == 0


def walk(spec, steps, state):
    """The decisions of a sequence of (time, demand, ready)."""
    decisions = []
    for now, demand, ready in steps:
        observed = Observed(stable=demand, panic=demand, ready=ready)
        decisions.append(decide(spec, observed, state, now))
        state = decisions[-1].state
    return decisions


def told(decisions):
    return [(decision.desired, decision.state.phase) for decision in decisions]


def test_a_new_revision_starts_one_instance_and_goes_to_zero_after_a_stable_window():
    steps = [(0, None, 0), (2, 0, 0), (4, 0, 1), (63, 0, 1), (64, 0, 1), (66, 0, 0)]
    assert told(walk(SPEC, steps, KpaState.start(0, 0))) == [
        (1, "activating"),
        (1, "activating"),
        (1, "active"),
        (1, "active"),
        (0, "inactive"),
        (0, "inactive"),
    ]


def test_a_revision_with_initial_scale_zero_waits_for_demand():
    spec = replace(SPEC, initial_scale=0)
    decisions = walk(spec, [(0, None, 0), (2, 0, 0), (100, 1, 0), (102, 1, 1)], KpaState.start(0, 0))
    assert told(decisions) == [(0, "inactive"), (0, "inactive"), (1, "activating"), (1, "active")]
    assert decisions[0].state.initialized


def test_an_initial_scale_is_held_until_it_was_reached_once():
    spec = replace(SPEC, initial_scale=3)
    decisions = walk(spec, [(0, None, 0), (2, 0, 2), (4, 0, 3), (6, 10, 3)], KpaState.start(0, 0))
    assert told(decisions) == [(3, "activating"), (3, "activating"), (3, "active"), (1, "active")]


def test_demand_that_goes_away_while_starting_does_not_stop_the_start():
    state = replace(RUNNING, phase="inactive", desired=0)
    decisions = walk(SPEC, [(0, 5, 0), (2, 0, 0), (4, 0, 1)], state)
    assert told(decisions) == [(1, "activating"), (1, "activating"), (1, "active")]


def test_a_revision_that_never_starts_is_given_up_after_its_deadline_and_tried_again_on_demand():
    spec = replace(SPEC, progress_deadline_s=600)
    decisions = walk(spec, [(0, None, 0), (600, 0, 0), (601, 0, 0), (700, 0, 0)], KpaState.start(0, 0))
    # The initial scale keeps asking for one until the deadline has passed.
    assert told(decisions)[:2] == [(1, "activating"), (1, "activating")]
    assert told(decisions)[2:] == [(0, "inactive"), (0, "inactive")]
    assert decisions[-1].state.timed_out
    again = walk(spec, [(800, 1, 0)], decisions[-1].state)[0]
    assert told([again]) == [(1, "activating")]
    assert not again.state.timed_out


def test_a_revision_that_no_route_leads_to_is_not_started():
    spec = replace(SPEC, reachable=False)
    assert told(walk(spec, [(0, None, 0)], KpaState.start(0, 0))) == [(0, "inactive")]
    assert told(walk(SPEC, [(10, 0, 0)], walk(spec, [(0, None, 0)], KpaState.start(0, 0))[0].state)) == [
        (1, "activating")
    ]


def test_the_last_instance_is_kept_for_the_retention_period_and_serves_again_at_once():
    spec = replace(SPEC, stable_window_s=6, retention_s=30)
    steps = [(0, 0, 1), (29, 0, 1), (30, 0, 1), (32, 0, 0)]
    assert told(walk(spec, steps, RUNNING)) == [(1, "inactive"), (1, "inactive"), (0, "inactive"), (0, "inactive")]
    assert told(walk(spec, [(0, 0, 1), (10, 5, 1)], RUNNING))[-1] == (1, "active")


def test_scale_to_zero_can_be_switched_off():
    assert decide(replace(SPEC, enable_scale_to_zero=False), seen(0), RUNNING, now=0).desired == 1


def test_a_decision_tells_its_inputs_and_its_reason():
    text = decide(replace(SPEC, max_scale=2), seen(90), RUNNING, now=0).explanation
    assert "concurrency 90 (stable), 90 (panic) at 10 an instance: 9 and 9, 1 ready" in text
    assert "not above max-scale 2" in text


bounds = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (min(pair), max(pair)))
demand = st.floats(0, 5000, allow_nan=False)
states = st.builds(
    KpaState,
    phase=st.sampled_from(["activating", "active", "inactive"]),
    phase_since=st.floats(-1000, 0),
    initialized=st.booleans(),
    panic_since=st.none() | st.floats(-100, 0),
    panic_peak=st.integers(0, 40),
    desired=st.integers(-1, 40),
)
specs = st.builds(
    lambda limits, up, down, activation, initial, reachable: KpaSpec(
        min_scale=limits[0],
        max_scale=limits[1],
        max_scale_up_rate=up,
        max_scale_down_rate=down,
        activation_scale=activation,
        initial_scale=initial,
        reachable=reachable,
    ),
    bounds,
    st.floats(1.1, 1000),
    st.floats(1.1, 10),
    st.integers(1, 5),
    st.integers(0, 30),
    st.booleans(),
)


@given(spec=specs, stable=st.none() | demand, panic=demand, ready=st.integers(0, 40), state=states)
def test_the_count_is_always_within_the_bounds(spec, stable, panic, ready, state):
    observed = Observed(stable=stable, panic=None if stable is None else panic, ready=ready)
    desired = decide(spec, observed, state, now=0).desired
    assert desired >= spec.min_scale
    assert desired <= spec.max_scale or spec.max_scale == 0


@given(spec=specs, lower=demand, more=demand, ready=st.integers(0, 40), state=states)
def test_more_demand_never_means_fewer_instances(spec, lower, more, ready, state):
    few = decide(spec, seen(lower, ready=ready), state, now=0).desired
    many = decide(spec, seen(lower + more, ready=ready), state, now=0).desired
    # Idle and starting, what was asked for before is kept; otherwise the count follows demand.
    assert many >= few or (state.phase == "activating" and lower == 0) or (state.phase == "inactive" and lower == 0)


@given(spec=specs, observed=st.builds(seen, demand, demand, st.integers(0, 40)), state=states)
def test_the_same_inputs_decide_the_same(spec, observed, state):
    assert decide(spec, observed, state, now=0) == decide(spec, observed, state, now=0)
