"""A pod's status as the API shows it, from its containers' states. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tests.support.kubelet.lifecycle import Ended, Life, Plan, State
from tests.support.kubelet.spec import Container, Pod

__all__ = ["condition", "pod_status", "timestamp"]

#: The rest of the conditions are others' (the scheduler's, a disruption's), and stay.
_OURS: Final = {"PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"}


def timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, holds: bool, now: float, reason: str = "", message: str = "") -> dict[str, Any]:
    result = {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": timestamp(now)}
    return result | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


def pod_status(
    pod: Pod, plan: Plan, states: Mapping[str, State], *, node_address: str, address: str, started_at: float, now: float
) -> dict[str, Any]:
    """The whole status; a condition that did not change keeps its time."""
    not_ready = "" if plan.ready else ("PodCompleted" if plan.phase == "Succeeded" else "ContainersNotReady")
    fresh = [
        condition("PodReadyToStartContainers", bool(address), now),
        condition("Initialized", plan.initialized, now, "" if plan.initialized else "ContainersNotInitialized"),
        condition("ContainersReady", plan.ready, now, not_ready),
        condition("Ready", plan.ready, now, not_ready),
    ]
    result: dict[str, Any] = {
        "phase": plan.phase,
        "conditions": _merged(pod.status.conditions, fresh),
        "hostIP": node_address,
        "startTime": timestamp(started_at),
        "containerStatuses": [_container(one, states[one.name], plan) for one in pod.spec.containers],
        "initContainerStatuses": [_container(one, states[one.name], plan) for one in pod.spec.init_containers],
    }
    if address:
        result |= {"podIP": address, "podIPs": [{"ip": address}]}
    return result


def _merged(before: Sequence[dict[str, Any]], fresh: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {one["type"]: one for one in before}
    for one in fresh:
        old = known.get(one["type"])
        if old is not None and old["status"] == one["status"]:
            one["lastTransitionTime"] = old.get("lastTransitionTime") or one["lastTransitionTime"]
    return [one for one in before if one["type"] not in _OURS] + fresh


def _container(container: Container, state: State, plan: Plan) -> dict[str, Any]:
    running = state.life is Life.RUNNING
    # An init container that is done is "ready", as is one that serves.
    done = not running and container.name not in plan.start and state.ended is not None and state.ended.code == 0
    result: dict[str, Any] = {
        "name": container.name,
        "image": container.image,
        "imageID": state.image_id,
        "ready": state.ready if running else done,
        "started": running and state.started,
        "restartCount": state.restarts,
        "state": _state(state, plan),
    }
    if state.container_id:
        result["containerID"] = state.container_id
    if state.ended is not None and (running or "waiting" in result["state"]):
        result["lastState"] = {"terminated": _ended(state.ended)}
    return result


def _state(state: State, plan: Plan) -> dict[str, Any]:
    if state.life is Life.RUNNING:
        return {"running": {"startedAt": timestamp(state.started_at)}}
    if state.life is Life.EXITED and state.ended is not None and not state.reason:
        return {"terminated": _ended(state.ended)}
    reason = state.reason or ("ContainerCreating" if plan.initialized else "PodInitializing")
    return {"waiting": {"reason": reason} | ({"message": state.message} if state.message else {})}


def _ended(ended: Ended) -> dict[str, Any]:
    code = ended.code if ended.code >= 0 else 128 - ended.code
    return {
        "exitCode": code,
        "reason": ended.reason or ("Completed" if code == 0 else "Error"),
        "startedAt": timestamp(ended.started_at),
        "finishedAt": timestamp(ended.finished_at),
        "containerID": ended.container_id,
    }
