"""One revision's side of the autoscaler: its demand, its instances and its last decisions. No I/O; time is an argument.

The autoscaler owns one of these per PodAutoscaler, feeds it, and carries out its plans.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import msgspec

from core.resources import Resource
from serving.demand import Demand
from serving.instances.port import Instance
from serving.kpa import KpaState, Observed, decide
from serving.reconcile.podautoscaler import Failure, read_failure, read_state
from serving.resources import PodAutoscalerSpec, spec_of
from serving.scaling import ScalingSettings, kpa_spec
from serving.windows import Windows

__all__ = ["Plan", "Scaler", "ScalingDecision"]

#: A gateway that has not reported for this long has nothing to tell or is gone: several of its one-second reports.
FORGET_GATEWAY_S: Final = 5.0

#: Gateways that can report for one revision. More are ignored: they would be a mistake or an attack.
MAX_GATEWAYS: Final = 64

#: Decisions kept for explaining: some minutes of change.
KEPT_DECISIONS: Final = 50

#: Seconds without a sample that are filled in with the current demand: a busy loop's delay. After more (the machine
#: slept), nothing is known of the time between.
MAX_FILLED_S: Final = 5


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to change: `count` instances there are to be, of which `make` are missing, and these to end."""

    count: int
    make: int = 0
    stop: tuple[str, ...] = ()


class ScalingDecision(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A decision with what it was made from, for a person. `time` is seconds since the epoch."""

    time: float
    revision: str
    desired: int
    ready: int
    mode: Literal["stable", "panic"]
    phase: str
    demand: float
    stable: float | None
    panic: float | None
    excess_burst_capacity: int
    explanation: str


class Scaler:
    """A revision that is scaled."""

    def __init__(self, scaler: Resource, settings: ScalingSettings) -> None:
        self._settings = settings
        self._gateways: dict[str, tuple[float, Demand]] = {}
        self._sampled: int | None = None
        self._state: KpaState | None = None
        self.instances: dict[str, Instance] = {}
        #: Instances that are being ended: they do not count any more.
        self.retiring: set[str] = set()
        #: Why its instances cannot be made at all, or why none of them serves.
        self.refusal: Failure | None = None
        self._failure = read_failure(scaler)
        self.decisions: deque[ScalingDecision] = deque(maxlen=KEPT_DECISIONS)
        self._lengths = (0.0, 0.0)
        self.update(scaler)

    def update(self, scaler: Resource) -> None:
        """The PodAutoscaler as it is now. Windows of another length start empty."""
        self.resource = scaler
        asked = spec_of(scaler, PodAutoscalerSpec)
        self._spec = kpa_spec(
            scaler.meta.annotations,
            container_concurrency=asked.container_concurrency,
            reachable=asked.reachability != "Unreachable",
            settings=self._settings,
        )
        lengths = (self._spec.stable_window_s, self._spec.panic_window_s)
        if lengths != self._lengths:
            self._windows = Windows(stable_s=lengths[0], panic_s=lengths[1])
            self._lengths, self._sampled = lengths, None

    @property
    def ready(self) -> int:
        return sum(1 for one in self._counted() if one.phase == "ready")

    @property
    def state(self) -> KpaState | None:
        """What the last decision left, None before the first."""
        return self._state

    @property
    def failure(self) -> Failure | None:
        """Why nothing serves, as far as is known: the last failure stays until an instance is ready."""
        return self.refusal or self._failure

    @property
    def idle(self) -> bool:
        """At zero without demand: there is nothing to decide until something comes."""
        is_at_zero = self._state is not None and self._state.desired == 0 and not self.instances
        return is_at_zero and not self._gateways and self.refusal is None

    def note(self, instance: Instance) -> None:
        """What became of an instance."""
        if instance.phase == "gone":
            self.instances.pop(instance.name, None)
            self.retiring.discard(instance.name)
            if instance.reason and not self.ready:
                self._failure = Failure(instance.reason, instance.message)
            return
        self.instances[instance.name] = instance
        if instance.phase == "ready":
            self._failure = None
        elif instance.phase == "waiting" and not self.ready:
            self._failure = Failure(instance.reason, instance.message)

    def report(self, gateway: str, demand: Demand, now: float) -> bool:
        """What a gateway told. True where a request waits and nothing is ready: then decide at once."""
        if gateway in self._gateways or len(self._gateways) < MAX_GATEWAYS:
            self._gateways[gateway] = (now, demand)
        return demand.queued > 0 and self.ready == 0

    def need(self) -> dict[str, float]:
        """How many requests clients have brought to each gateway that are not done."""
        return {gateway: demand.brought for gateway, (_, demand) in self._gateways.items()}

    def sample(self, now: float) -> float:
        """Put the present demand into the windows, once for each second since the last time; the demand."""
        second = int(now)
        for gateway, (told, demand) in list(self._gateways.items()):
            is_quiet = not (demand.queued or demand.concurrency or demand.rps or demand.elsewhere)
            if now - told > FORGET_GATEWAY_S or is_quiet:
                # A gateway's last report says zero; it counts in this sample and is not waited for.
                del self._gateways[gateway]
        value = sum(self._value(demand) for _, demand in self._gateways.values())
        since = self._sampled
        if since is None or second - since > MAX_FILLED_S:
            since = second - 1
        for missed in range(since + 1, second):
            self._windows.record(missed, value)
        self._windows.record(second, value)
        self._sampled = second
        return value

    def plan(self, now: float) -> Plan:
        """Decide, and say what has to change."""
        counted = self._counted()
        if self._state is None:
            self._state = read_state(self.resource, ready=self.ready, now=now)
        demand = self.sample(now)
        stable, panic = self._windows.averages(int(now))
        ready = self.ready
        if ready == 0 and panic is not None:
            # Nothing serves, so what waits now is what is needed: averaged with the idle seconds before, it would take
            # several decisions to get there.
            panic = max(panic, demand)
        decision = decide(self._spec, Observed(stable=stable, panic=panic, ready=ready), self._state, now)
        self._state = decision.state
        self._keep(
            ScalingDecision(
                time=now,
                revision=self.resource.meta.name,
                desired=decision.desired,
                ready=ready,
                mode=decision.mode,
                phase=decision.state.phase,
                demand=demand,
                stable=stable,
                panic=panic,
                excess_burst_capacity=decision.excess_burst_capacity,
                explanation=decision.explanation,
            )
        )
        surplus = len(counted) - decision.desired
        if surplus <= 0:
            return Plan(count=decision.desired, make=-surplus)
        stop = tuple(one.name for one in sorted(counted, key=_worth)[:surplus])
        return Plan(count=decision.desired, stop=stop)

    def _counted(self) -> list[Instance]:
        """Instances that are here to stay, in the order they were made."""
        return [one for one in self.instances.values() if one.name not in self.retiring and one.phase != "draining"]

    def _value(self, demand: Demand) -> float:
        # A request that just came hardly shows in an average over a second, but it is there.
        average = demand.rps if self._spec.metric == "rps" else demand.concurrency
        return max(average, float(demand.queued))

    def _keep(self, decision: ScalingDecision) -> None:
        """Keep what changed; the same again only moves the last one's time and inputs."""
        last = self.decisions[-1] if self.decisions else None
        if last is not None and _gist(last) == _gist(decision):
            self.decisions.pop()
        self.decisions.append(decision)


def _worth(instance: Instance) -> int:
    """Whom to end first: those that wait, then those that start, then the ready ones made first (whose caches and
    leaks are oldest)."""
    return {"waiting": 0, "starting": 1}.get(instance.phase, 2)


def _gist(decision: ScalingDecision) -> tuple[object, ...]:
    return decision.desired, decision.ready, decision.mode, decision.phase
