"""What a pod is as an instance, and the steps from one look at it to the next.

Behaviour: knative/serving `pkg/reconciler/revision/reconcile_resources.go` (what of a pod's status a Revision repeats).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec.structs import replace

from core.net.types import Address
from core.resources import Resource
from serving.instances.kubernetes.template import DEFAULT_PORT, REVISION_LABEL
from serving.instances.port import FOLLOWS, Instance, Phase

__all__ = ["instance_of", "serving_container_name", "steps", "why_ended"]

#: What a container waits for in good order; anything else is a reason to tell.
_IN_ORDER: Final = frozenset({"", "ContainerCreating", "PodInitializing"})

#: Of a pod that was ready, is not, and whose containers go on.
_NOT_READY: Final = ("NotReady", "It answered before, and its readiness probe fails now.")

#: The way from one phase to another that cannot follow it at once: what was not seen must have happened in between.
_BETWEEN: Final[dict[tuple[Phase, Phase], Phase]] = {("ready", "starting"): "waiting", ("waiting", "ready"): "starting"}


def instance_of(pod: Resource, *, is_leaving: bool) -> Instance | None:
    """The pod as an instance; None where it has ended (was evicted) and is no instance any more."""
    status = pod.status
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    initial = status.get("initContainerStatuses") or ()
    containers = [*(one for one in initial if not _is_done(one)), *(status.get("containerStatuses") or ())]
    phase, reason, message = _phase(pod, containers, is_leaving=is_leaving)
    return Instance(
        name=pod.meta.name,
        namespace=pod.meta.namespace,
        revision=pod.meta.labels.get(REVISION_LABEL, ""),
        phase=phase,
        address=_address(pod) if phase in ("ready", "draining") else None,
        restarts=sum(int(one.get("restartCount") or 0) for one in containers),
        reason=reason,
        message=message,
    )


def why_ended(pod: Resource) -> tuple[str, str]:
    """(reason, message) of a pod that has ended as a whole: its node refused it, or evicted it."""
    reason = str(pod.status.get("reason") or "")
    return reason, str(pod.status.get("message") or "It ended, and its node does not say why.") if reason else ""


def steps(before: Instance | None, now: Instance) -> Iterator[Instance]:
    """What to tell after `before` was told last: nothing, `now`, or the steps between that were missed and `now`."""
    if before is None:
        yield now
        return
    if before.phase == "draining" and now.phase != "draining":
        return  # Whoever leaves does not come back.
    if now.restarts > before.restarts and now.phase in ("starting", "ready") and before.phase != "waiting":
        before = _between(now, "waiting")
        yield before
    while now.phase != before.phase and now.phase not in FOLLOWS[before.phase]:
        before = _between(now, _BETWEEN[before.phase, now.phase])
        yield before
    if now != before:
        yield now


def _between(now: Instance, phase: Phase) -> Instance:
    reason, message = (now.reason, now.message) if now.reason or phase != "waiting" else _NOT_READY
    return replace(now, phase=phase, address=None, reason=reason, message=message)


def serving_container_name(pod: Resource) -> str:
    """The container that takes requests: the one with a port."""
    return str(_serving(pod).get("name", ""))


def _serving(pod: Resource) -> dict[str, Any]:
    containers: list[dict[str, Any]] = pod.spec.get("containers") or [{}]
    found: dict[str, Any] = next((one for one in containers if one.get("ports")), containers[0])
    return found


def _address(pod: Resource) -> Address | None:
    host = pod.status.get("podIP")
    ports: list[dict[str, Any]] = _serving(pod).get("ports") or [{}]
    return (host, int(ports[0].get("containerPort") or DEFAULT_PORT)) if host else None


def _phase(pod: Resource, containers: list[dict[str, Any]], *, is_leaving: bool) -> tuple[Phase, str, str]:
    """(phase, reason, message)."""
    if is_leaving or pod.meta.deletion_timestamp is not None:
        return "draining", "", ""
    if _condition(pod, "Ready").get("status") == "True" and _address(pod) is not None:
        return "ready", "", ""
    for container in containers:
        trouble = _trouble(container)
        if trouble is not None:
            return "waiting", *trouble
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return "waiting", "Unschedulable", scheduled.get("message") or "No node has room for it."
    for container in containers:
        # It runs again; why it had ended is told until it is ready.
        ended = _ended(container.get("lastState") or {})
        if ended is not None:
            return "starting", *ended
    return "starting", "", ""


def _trouble(container: dict[str, Any]) -> tuple[str, str] | None:
    """Why a container does not run."""
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if reason == "CrashLoopBackOff":
        ended = _ended(container.get("lastState") or {})
        return ended or (reason, waiting.get("message") or "It ends again and again.")
    if reason not in _IN_ORDER:
        return reason, waiting.get("message") or f"Its container {container.get('name')} waits: {reason}."
    return _ended(state)


def _is_done(container: dict[str, Any]) -> bool:
    """Whether an init container has done its work."""
    terminated = (container.get("state") or {}).get("terminated")
    return terminated is not None and terminated.get("exitCode") == 0


def _ended(state: dict[str, Any]) -> tuple[str, str] | None:
    """Why a container ended, in Knative's words: its exit code, and the last that it wrote."""
    terminated = state.get("terminated")
    if not terminated:
        return None
    code, why = int(terminated.get("exitCode") or 0), str(terminated.get("reason") or "")
    said = str(terminated.get("message") or "").strip()
    if why == "OOMKilled":
        return why, said or "It was killed because it used more memory than its limit."
    return f"ExitCode{code}", said or f"It ended with exit code {code}, and wrote nothing."


def _condition(pod: Resource, kind: str) -> dict[str, Any]:
    conditions = pod.status.get("conditions") or ()
    found: dict[str, Any] = next((one for one in conditions if one.get("type") == kind), {})
    return found
