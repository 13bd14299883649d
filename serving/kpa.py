"""The Knative Pod Autoscaler as a pure function: how many instances a revision should have.

``decide(spec, observed, state, now)`` has two steps, which Knative keeps in two places. `_recommend` follows demand
(knative/serving `pkg/autoscaler/scaling/autoscaler.go`): averages over a stable and a panic window, limits to the speed
of change, panic mode, and a delay for scaling down. `_apply` keeps to the revision's bounds and walks the way to zero
(`pkg/reconciler/autoscaling/kpa/scaler.go` and `kpa.go`). Nothing here reads a clock or keeps anything: the state that
the next decision needs is part of the decision.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

__all__ = ["Decision", "KpaSpec", "KpaState", "Observed", "Phase", "decide"]

#: What the PodAutoscaler's Active condition says: Unknown, True, False.
Phase = Literal["activating", "active", "inactive"]


class KpaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A revision's scaling settings, resolved from annotations and defaults. Times in seconds.

    `target_value` is the demand to aim for per instance, `total_value` what one can take at most. `max_scale` 0 means
    no bound. `panic_threshold` is a factor (2.0 for 200 %). `target_burst_capacity` -1 means without limit.
    """

    metric: Literal["concurrency", "rps"] = "concurrency"
    target_value: float = 70.0
    total_value: float = 100.0
    target_burst_capacity: float = 211.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    scale_down_delay_s: float = 0.0
    min_scale: int = 0
    max_scale: int = 0
    initial_scale: int = 1
    activation_scale: int = 1
    reachable: bool = True
    enable_scale_to_zero: bool = True
    grace_s: float = 0.0
    retention_s: float = 0.0
    progress_deadline_s: float = 600.0
    #: The grain of the scale-down delay.
    tick_s: float = 2.0


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at one moment. `stable` and `panic` are the windows' averages, None before any observation."""

    stable: float | None
    panic: float | None
    ready: int


class KpaState(msgspec.Struct, frozen=True, kw_only=True):
    """What one decision leaves for the next. Times are seconds since the epoch."""

    phase: Phase = "activating"
    phase_since: float
    #: The initial scale was reached once (the condition ScaleTargetInitialized).
    initialized: bool = False
    panic_since: float | None = None
    #: The most that panic mode asked for: nothing is scaled down before it ends.
    panic_peak: int = 0
    #: Recommendations within the scale-down delay, oldest first, as (tick number, count), counts falling.
    delayed: tuple[tuple[int, int], ...] = ()
    #: Why an inactive revision is inactive: no demand, or it could not be started in time.
    timed_out: bool = False
    #: The last decision, kept while nothing is known yet.
    desired: int = -1

    @classmethod
    def start(cls, ready: int, now: float) -> KpaState:
        """The state for a revision that is new to this process. With several instances running, demand is unknown, so
        it starts in panic mode: nothing is taken away before a stable window has been seen."""
        if ready <= 1:
            return cls(phase_since=now)
        return cls(phase_since=now, panic_since=now, panic_peak=ready)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How many instances there should be, why, and what to remember."""

    desired: int
    mode: Literal["stable", "panic"]
    #: Spare capacity over the target burst; negative where a burst would have to wait.
    excess_burst_capacity: int
    state: KpaState
    explanation: str


class _Recommendation(msgspec.Struct, frozen=True):
    """Demand alone, before the revision's bounds; -1 where nothing is known."""

    count: int
    excess: int
    state: KpaState
    explanation: str


def decide(spec: KpaSpec, observed: Observed, state: KpaState, now: float) -> Decision:
    """How many instances the revision should have at `now`."""
    recommended = _recommend(spec, observed, state, now)
    desired, following, reason = _apply(spec, observed, recommended, now)
    following = msgspec.structs.replace(following, desired=desired)
    explanation = recommended.explanation if not reason else f"{recommended.explanation}; {reason}"
    return Decision(
        desired=desired,
        mode="stable" if following.panic_since is None else "panic",
        excess_burst_capacity=recommended.excess,
        state=following,
        explanation=explanation,
    )


def _recommend(spec: KpaSpec, observed: Observed, state: KpaState, now: float) -> _Recommendation:
    if observed.stable is None or observed.panic is None:
        return _Recommendation(-1, _excess(spec, observed.ready, 0.0), state, "no demand was reported yet")
    ready = max(1, observed.ready)
    # Rounded so that a small rate can still grow by one, and shrink by one.
    most = math.ceil(spec.max_scale_up_rate * ready)
    least = math.floor(ready / spec.max_scale_down_rate) if spec.reachable else 0
    for_stable = math.ceil(observed.stable / spec.target_value)
    for_panic = math.ceil(observed.panic / spec.target_value)
    stable_count = _activated(spec, for_stable, min(max(for_stable, least), most))
    panic_count = _activated(spec, for_panic, min(max(for_panic, least), most))

    since, peak = _panic(spec, for_panic / ready, state, now)
    count = stable_count
    if since is not None:
        peak = count = max(stable_count, panic_count, peak)
    held, delayed = _delay(spec, count, state.delayed, now)
    explanation = (
        f"{spec.metric} {observed.stable:g} (stable), {observed.panic:g} (panic) at {spec.target_value:g} an instance: "
        f"{for_stable} and {for_panic}, {observed.ready} ready"
    )
    if since is not None:
        explanation += f"; panic mode, not below {peak}"
    if held != count:
        explanation += f"; {count} delayed, still {held}"
    following = msgspec.structs.replace(state, panic_since=since, panic_peak=peak, delayed=delayed)
    return _Recommendation(held, _excess(spec, observed.ready, observed.panic), following, explanation)


def _activated(spec: KpaSpec, asked: int, count: int) -> int:
    """At least the activation scale wherever there is any demand."""
    return max(count, spec.activation_scale) if asked > 0 and spec.activation_scale > 1 else count


def _panic(spec: KpaSpec, load: float, state: KpaState, now: float) -> tuple[float | None, int]:
    """(since when in panic mode, the peak kept): entered and prolonged over the threshold, left a window later."""
    if load >= spec.panic_threshold:
        return now, state.panic_peak
    if state.panic_since is not None and state.panic_since + spec.stable_window_s < now:
        return None, 0
    return state.panic_since, state.panic_peak


def _delay(
    spec: KpaSpec, count: int, delayed: tuple[tuple[int, int], ...], now: float
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The largest count of the scale-down delay's time, this one included, and what to remember of it."""
    if not spec.scale_down_delay_s:
        return count, ()
    tick = int(now // spec.tick_s)
    ticks = math.ceil(spec.scale_down_delay_s / spec.tick_s)
    kept = [(at, value) for at, value in delayed if tick - at < ticks and value > count]
    if spec.reachable:
        held = kept[0][1] if kept else count
        return held, (*kept, (tick, count))
    # A revision that no route leads to is not kept waiting.
    return count, delayed


def _excess(spec: KpaSpec, ready: int, panic: float) -> int:
    if spec.target_burst_capacity == 0:
        return 0
    if spec.target_burst_capacity < 0:
        return -1
    return math.floor(ready * spec.total_value - spec.target_burst_capacity - panic)


def _apply(spec: KpaSpec, observed: Observed, recommended: _Recommendation, now: float) -> tuple[int, KpaState, str]:
    """(count to have, state, reason where it differs from the recommendation)."""
    state = recommended.state
    count, reason = _bounded(spec, recommended.count, state, now)
    idle = count == 0
    if idle:
        count, state, reason = _towards_zero(spec, observed, state, now)
    return count, _next_phase(spec, observed, state, now, count=count, idle=idle), reason


def _initial(spec: KpaSpec) -> int:
    """What a new revision must reach once, to prove that it works."""
    wanted = max(spec.min_scale, spec.initial_scale)
    return min(wanted, spec.max_scale) if spec.max_scale else wanted


def _bounded(spec: KpaSpec, count: int, state: KpaState, now: float) -> tuple[int, str]:
    low = _initial(spec) if _proving(spec, state, now) else spec.min_scale
    if count < 0:
        # Nothing is known: stay where it is, within the bounds.
        count = max(state.desired, 0)
    if count < low:
        return low, f"not below the initial scale {low}" if low > spec.min_scale else f"not below min-scale {low}"
    if spec.max_scale and count > spec.max_scale:
        return spec.max_scale, f"not above max-scale {spec.max_scale}"
    return count, ""


def _proving(spec: KpaSpec, state: KpaState, now: float) -> bool:
    """A new revision is started without demand, unless no route leads to it or its time for that is over."""
    if state.initialized or state.timed_out or not spec.reachable:
        return False
    return state.phase != "activating" or now - state.phase_since <= spec.progress_deadline_s


def _towards_zero(spec: KpaSpec, observed: Observed, state: KpaState, now: float) -> tuple[int, KpaState, str]:
    """The last step down, taken only after the revision was active for a stable window and then idle for a while."""
    if not spec.enable_scale_to_zero:
        return 1, state, "scale to zero is off"
    held = max(1, min(state.desired, spec.max_scale) if spec.max_scale else state.desired)
    spent_s = now - state.phase_since
    if state.phase == "activating":
        if not state.initialized and not spec.reachable:
            return 0, state, "no route leads to it"
        if not state.initialized and not spec.initial_scale:
            return 0, state, "starts at zero"
        if spent_s > spec.progress_deadline_s:
            return 0, msgspec.structs.replace(state, timed_out=True), "it did not start in time"
        return held, state, "waiting for it to start"
    if state.phase == "active":
        if spent_s < spec.stable_window_s:
            return 1, state, f"active for only {spent_s:.1f} s"
        state = msgspec.structs.replace(state, phase="inactive", phase_since=now)
        spent_s = 0.0
    wait_s = max(spec.grace_s, spec.retention_s)
    if observed.ready and spent_s < wait_s:
        return min(held, observed.ready), state, f"the last instance stays for {wait_s - spent_s:.0f} s"
    return 0, state, "no demand for a stable window"


def _next_phase(spec: KpaSpec, observed: Observed, state: KpaState, now: float, *, count: int, idle: bool) -> KpaState:
    """The Active condition, from what is wanted, what is ready and what is the least to be active:

    ===========================  ==========
    none wanted, or kept idle    inactive
    fewer ready than the least   activating
    otherwise                    active
    ===========================  ==========
    """
    initialized = state.initialized or observed.ready >= _initial(spec)
    least = max(1, spec.min_scale) if initialized else max(1, _initial(spec))
    phase: Phase
    if count == 0 or (idle and state.phase == "inactive"):
        phase = "inactive"
    elif observed.ready < least:
        phase = "activating"
    else:
        phase = "active"
    return msgspec.structs.replace(
        state,
        phase=phase,
        phase_since=state.phase_since if phase == state.phase else now,
        initialized=initialized,
        timed_out=state.timed_out and phase == "inactive",
    )
