"""The life of a pod as a table: which container starts next, and what phase the pod is in. Pure.

Source of the rules: Kubernetes' documentation of pod lifecycle, init containers and sidecar containers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.support.kubelet.spec import Container, PodSpec

__all__ = ["Life", "Plan", "State", "backoff_s", "plan"]

#: The longest wait between two starts of a container that keeps failing.
MAX_BACKOFF_S: Final = 300.0


class Life(enum.Enum):
    NEW = "new"
    RUNNING = "running"
    EXITED = "exited"


class Step(enum.Enum):
    """What a container needs next."""

    START = "start"
    WAIT = "wait"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a container's process ended. Times are seconds since the epoch."""

    code: int
    started_at: float
    finished_at: float
    reason: str = ""
    container_id: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """A container as it is. `may_start_at` holds back one that failed; `reason` says why one does not start."""

    life: Life = Life.NEW
    started_at: float = 0.0
    started: bool = False
    ready: bool = False
    restarts: int = 0
    may_start_at: float = 0.0
    reason: str = ""
    message: str = ""
    ended: Ended | None = None
    container_id: str = ""
    image_id: str = ""


#: Whether a container starts again: by its policy, and by whether it ended well.
_AGAIN: Final = {
    ("Always", True): True,
    ("Always", False): True,
    ("OnFailure", True): False,
    ("OnFailure", False): True,
    ("Never", True): False,
    ("Never", False): False,
}
#: An init container that ended well is done, whatever the pod's policy says.
_INIT_POLICY: Final = {"Always": "OnFailure", "OnFailure": "OnFailure", "Never": "Never"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`wake_at` is when a container that waits may start; None where time alone changes nothing."""

    start: tuple[str, ...]
    phase: str
    initialized: bool
    ready: bool
    wake_at: float | None

    @property
    def finished(self) -> bool:
        return self.phase in {"Succeeded", "Failed"}


def plan(spec: PodSpec, states: Mapping[str, State], now: float) -> Plan:
    """What is next for the pod with its containers as they are."""
    begun = any(states[main.name].life is not Life.NEW for main in spec.containers)
    start: list[str] = []
    initialized = True
    for init in spec.init_containers:
        step = _step(states[init.name], "Always" if init.sidecar else _INIT_POLICY[spec.restart_policy], now)
        if step is Step.FAILED:
            return Plan(start=(), phase="Failed", initialized=False, ready=False, wake_at=None)
        if step is Step.START:
            start.append(init.name)
        passed = _up(states[init.name]) if init.sidecar else step is Step.DONE
        # A sidecar that restarts later does not hold up what runs already.
        if not passed and not begun:
            initialized = False
            break
    steps = [_step(states[main.name], spec.restart_policy, now) for main in spec.containers]
    if initialized:
        start += [main.name for main, step in zip(spec.containers, steps, strict=True) if step is Step.START]
    phase = _phase(spec, states, steps, initialized=initialized)
    if phase in {"Succeeded", "Failed"}:
        return Plan(start=(), phase=phase, initialized=initialized, ready=False, wake_at=None)
    lasting = [*spec.containers, *(init for init in spec.init_containers if init.sidecar)]
    ready = phase == "Running" and all(_up(states[one.name]) and states[one.name].ready for one in lasting)
    waits = [
        state.may_start_at for state in states.values() if state.life is not Life.RUNNING and state.may_start_at > now
    ]
    return Plan(start=tuple(start), phase=phase, initialized=initialized, ready=ready, wake_at=min(waits, default=None))


def backoff_s(restarts: int, base_s: float) -> float:
    """How long after its end a container starts again: at once the first time, then doubling from `base_s`."""
    return 0.0 if restarts == 0 else min(base_s * 2.0 ** (restarts - 1), MAX_BACKOFF_S)


def all_containers(spec: PodSpec) -> tuple[Container, ...]:
    return (*spec.init_containers, *spec.containers)


def _up(state: State) -> bool:
    return state.life is Life.RUNNING and state.started


def _step(state: State, policy: str, now: float) -> Step:
    if state.life is Life.RUNNING:
        return Step.WAIT
    if state.life is Life.EXITED and state.ended is not None:
        well = state.ended.code == 0
        if not _AGAIN[policy, well]:
            return Step.DONE if well else Step.FAILED
    return Step.START if now >= state.may_start_at else Step.WAIT


def _phase(spec: PodSpec, states: Mapping[str, State], steps: list[Step], *, initialized: bool) -> str:
    if all(step in {Step.DONE, Step.FAILED} for step in steps):
        return "Failed" if Step.FAILED in steps else "Succeeded"
    if not initialized or any(states[main.name].life is Life.NEW for main in spec.containers):
        return "Pending"
    return "Running"
