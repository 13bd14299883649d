"""What a PodAutoscaler's status says, and what a new process reads from it. Its decisions are `serving.kpa`'s.

Behaviour: knative/serving `pkg/apis/autoscaling/v1alpha1/pa_lifecycle.go` and `pkg/reconciler/autoscaling/kpa/kpa.go`.
The condition ContainerHealthy is ours: it carries why instances fail to the Revision, where Knative's controller looks
at pods. It does not count towards Ready.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from core.clock import parse_rfc3339
from core.resources import Condition, Resource, summarize
from serving.kpa import KpaState, Phase
from serving.reconcile.status import condition_of, status_of, unknown

__all__ = ["CONTAINER_HEALTHY", "TIMED_OUT", "Failure", "read_failure", "read_state", "scaling_status"]

CONTAINER_HEALTHY: Final = "ContainerHealthy"
TIMED_OUT: Final = "TimedOut"

_STARTED: Final = "ScaleTargetInitialized"


class Failure(msgspec.Struct, frozen=True):
    """Why no instance serves: a CamelCase word and a sentence for a person."""

    reason: str
    message: str


def scaling_status(
    scaler: Resource, *, state: KpaState, ready: int, failure: Failure | None, now: float
) -> dict[str, Any]:
    """The status for what was decided (`state`) and what is there (`ready` instances)."""
    started = Condition(type=_STARTED, status="True") if state.initialized else unknown(_STARTED)
    # Knative's ServerlessService switches requests between activator and pods; the gateway does both, always.
    conditions = [*summarize("Ready", (_active(state), started, Condition(type="SKSReady", status="True")))]
    if failure is not None:
        message = failure.message
        conditions.append(
            Condition(type=CONTAINER_HEALTHY, status="False", reason=failure.reason, message=message, severity="Info")
        )
    return status_of(
        scaler,
        conditions,
        now,
        # Knative's own definition, which may be the one in a cluster, requires both.
        serviceName=scaler.meta.name,
        metricsServiceName=scaler.meta.name,
        desiredScale=state.desired if state.desired >= 0 else None,
        actualScale=ready,
    )


def read_state(scaler: Resource, *, ready: int, now: float) -> KpaState:
    """The state to go on from in a new process. An active revision counts as active from `now`, because nobody knows of
    its demand of the last window."""
    state = KpaState.start(ready, now)
    started, active = condition_of(scaler, _STARTED), condition_of(scaler, "Active")
    if active is None:
        return state
    phases: dict[str, Phase] = {"True": "active", "False": "inactive", "Unknown": "activating"}
    phase = phases[active.status]
    desired = scaler.status.get("desiredScale")
    return msgspec.structs.replace(
        state,
        phase=phase,
        phase_since=now if phase == "active" else _since(scaler, now),
        initialized=started is not None and started.status == "True",
        timed_out=phase == "inactive" and active.reason == TIMED_OUT,
        desired=desired if isinstance(desired, int) else -1,
    )


def read_failure(scaler: Resource) -> Failure | None:
    """Why nothing served when the last process looked; it holds until an instance is ready."""
    health = condition_of(scaler, CONTAINER_HEALTHY)
    return Failure(health.reason, health.message) if health is not None and health.status == "False" else None


def _active(state: KpaState) -> Condition:
    if state.phase == "active":
        return Condition(type="Active", status="True")
    if state.phase == "activating":
        return unknown("Active", "Queued", "Instances are starting; requests wait for them at the gateway.")
    if state.timed_out:
        return Condition(type="Active", status="False", reason=TIMED_OUT, message="It could not be started in time.")
    return Condition(type="Active", status="False", reason="NoTraffic", message="There are no requests for it.")


def _since(scaler: Resource, now: float) -> float:
    for entry in scaler.status.get("conditions") or ():
        if entry.get("type") == "Active" and entry.get("lastTransitionTime"):
            return min(now, parse_rfc3339(entry["lastTransitionTime"]))
    return now
