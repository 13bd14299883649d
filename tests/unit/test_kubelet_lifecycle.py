"""The test kubelet's pure decisions about a pod: what starts next, what phase it is in, what its status says."""

from typing import Any

import pytest

from tests.support.kubelet.lifecycle import MAX_BACKOFF_S, Ended, Life, State, backoff_s, plan
from tests.support.kubelet.probes import Verdict
from tests.support.kubelet.spec import Container, Metadata, Pod, PodSpec, PodStatus, Probe
from tests.support.kubelet.status import pod_status

NOW = 1000.0
NEW = State()
RUNS = State(life=Life.RUNNING, started=True, ready=True)
STARTING = State(life=Life.RUNNING)


def ended(code: int, **fields: Any) -> State:
    return State(life=Life.EXITED, ended=Ended(code=code, started_at=900.0, finished_at=990.0), **fields)


def spec(*, policy: str = "Always", init: tuple[str, ...] = (), sidecars: tuple[str, ...] = ()) -> PodSpec:
    """A pod of two containers, a and b; the init containers first, then the sidecars."""
    inits = (Container(name=name) for name in init)
    beside = (Container(name=name, restart_policy="Always") for name in sidecars)
    mains = (Container(name="a"), Container(name="b"))
    return PodSpec(containers=mains, init_containers=(*inits, *beside), restart_policy=policy)


@pytest.mark.parametrize(
    ("policy", "states", "phase", "start"),
    [
        pytest.param("Always", {"a": NEW, "b": NEW}, "Pending", ("a", "b"), id="new containers start"),
        pytest.param("Always", {"a": RUNS, "b": NEW}, "Pending", ("b",), id="pending until all have run"),
        pytest.param("Always", {"a": RUNS, "b": RUNS}, "Running", (), id="all run"),
        pytest.param("Always", {"a": RUNS, "b": ended(0)}, "Running", ("b",), id="always restarts success"),
        pytest.param("Always", {"a": RUNS, "b": ended(1)}, "Running", ("b",), id="always restarts failure"),
        pytest.param("OnFailure", {"a": RUNS, "b": ended(1)}, "Running", ("b",), id="on-failure restarts failure"),
        pytest.param("OnFailure", {"a": RUNS, "b": ended(0)}, "Running", (), id="on-failure leaves success"),
        pytest.param("OnFailure", {"a": ended(0), "b": ended(0)}, "Succeeded", (), id="all succeeded"),
        pytest.param("Never", {"a": RUNS, "b": ended(1)}, "Running", (), id="never restarts nothing"),
        pytest.param("Never", {"a": ended(0), "b": ended(-9)}, "Failed", (), id="one failed for good"),
        pytest.param(
            "Always", {"a": RUNS, "b": ended(1, may_start_at=NOW + 5)}, "Running", (), id="back-off holds it back"
        ),
    ],
)
def test_containers_start_and_end_by_the_pods_restart_policy(
    policy: str, states: dict[str, State], phase: str, start: tuple[str, ...]
):
    found = plan(spec(policy=policy), states, NOW)

    assert (found.phase, found.start) == (phase, start)


@pytest.mark.parametrize(
    ("policy", "states", "start"),
    [
        pytest.param("Always", {"i": NEW, "j": NEW}, ("i",), id="one at a time"),
        pytest.param("Always", {"i": RUNS, "j": NEW}, (), id="the next waits"),
        pytest.param("Always", {"i": ended(0), "j": NEW}, ("j",), id="in order"),
        pytest.param("Always", {"i": ended(1), "j": NEW}, ("i",), id="a failed one again"),
        pytest.param("Always", {"i": ended(0), "j": ended(0)}, ("a", "b"), id="then the pod's own"),
        pytest.param("OnFailure", {"i": ended(0), "j": ended(0)}, ("a", "b"), id="success is not repeated"),
    ],
)
def test_init_containers_run_in_order_to_their_end(policy: str, states: dict[str, State], start: tuple[str, ...]):
    found = plan(spec(policy=policy, init=("i", "j")), states | {"a": NEW, "b": NEW}, NOW)

    assert (found.phase, found.start) == ("Pending", start)
    assert found.initialized == (start == ("a", "b"))


def test_a_failed_init_container_fails_a_pod_that_restarts_nothing():
    found = plan(spec(policy="Never", init=("i",)), {"i": ended(3), "a": NEW, "b": NEW}, NOW)

    assert (found.phase, found.start) == ("Failed", ())


@pytest.mark.parametrize(
    ("sidecar", "main", "start"),
    [
        pytest.param(NEW, NEW, ("s",), id="it starts first"),
        pytest.param(STARTING, NEW, (), id="its startup probe is waited for"),
        pytest.param(RUNS, NEW, ("a", "b"), id="it is not waited for to end"),
        pytest.param(ended(0), RUNS, ("s",), id="it starts again while the pod runs"),
    ],
)
def test_a_sidecar_starts_before_the_rest_and_stays(sidecar: State, main: State, start: tuple[str, ...]):
    assert plan(spec(sidecars=("s",)), {"s": sidecar, "a": main, "b": main}, NOW).start == start


def test_a_pod_is_over_when_its_own_containers_are_though_a_sidecar_runs():
    found = plan(spec(policy="Never", sidecars=("s",)), {"s": RUNS, "a": ended(0), "b": ended(0)}, NOW)

    assert (found.phase, found.finished) == ("Succeeded", True)


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        pytest.param({"s": RUNS, "a": RUNS, "b": RUNS}, True, id="all are"),
        pytest.param({"s": RUNS, "a": RUNS, "b": STARTING}, False, id="one has not started"),
        pytest.param({"s": State(life=Life.RUNNING, started=True), "a": RUNS, "b": RUNS}, False, id="a sidecar is not"),
    ],
)
def test_a_pod_is_ready_when_all_that_lasts_is(states: dict[str, State], ready: bool):
    assert plan(spec(sidecars=("s",)), states, NOW).ready is ready


def test_a_pod_that_backs_off_is_looked_at_again_when_the_first_wait_is_over():
    states = {"a": ended(1, may_start_at=NOW + 8), "b": ended(1, may_start_at=NOW + 2)}

    assert plan(spec(), states, NOW).wake_at == NOW + 2
    assert plan(spec(), states, NOW + 2).start == ("b",)


def test_the_back_off_doubles_up_to_its_limit():
    assert [backoff_s(restarts, 10.0) for restarts in range(5)] == [0.0, 10.0, 20.0, 40.0, 80.0]
    assert backoff_s(30, 10.0) == MAX_BACKOFF_S


def test_a_probes_verdict_changes_after_as_many_results_as_its_thresholds_say():
    probe = Probe(success_threshold=2, failure_threshold=3)
    verdict, seen = Verdict(passing=False), []
    for success in (True, False, True, True, False, False, True, False, False, False):
        verdict = verdict.after(probe, success)
        seen.append(verdict.passing)

    assert seen == [False, False, False, True, True, True, True, True, True, False]


def test_a_status_keeps_the_conditions_of_others_and_the_time_of_what_did_not_change():
    pod = Pod(metadata=Metadata(name="p", namespace="n"), spec=spec())
    first = status(pod, {"a": RUNS, "b": STARTING}, at=NOW)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    before = PodStatus(conditions=(scheduled, *first["conditions"]))
    known = Pod(metadata=pod.metadata, spec=pod.spec, status=before)
    later = status(known, {"a": RUNS, "b": RUNS}, at=NOW + 60)

    times = {one["type"]: one["lastTransitionTime"] for one in later["conditions"]}
    assert later["conditions"][0] == scheduled
    assert times["Initialized"] == "1970-01-01T00:16:40Z"
    assert times["Ready"] == "1970-01-01T00:17:40Z"


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        pytest.param(NEW, {"waiting": {"reason": "ContainerCreating"}}, id="new"),
        pytest.param(
            State(reason="ErrImagePull", message="no such image"),
            {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
            id="cannot start",
        ),
        pytest.param(
            ended(1, reason="CrashLoopBackOff"), {"waiting": {"reason": "CrashLoopBackOff"}}, id="backing off"
        ),
        pytest.param(
            State(life=Life.RUNNING, started_at=0.0), {"running": {"startedAt": "1970-01-01T00:00:00Z"}}, id="runs"
        ),
    ],
)
def test_a_containers_state_says_why_it_waits(state: State, shown: dict[str, Any]):
    pod = Pod(metadata=Metadata(name="p", namespace="n"), spec=spec())

    assert status(pod, {"a": state, "b": RUNS}, at=NOW)["containerStatuses"][0]["state"] == shown


def test_a_killed_container_exits_with_128_and_the_signals_number():
    pod = Pod(metadata=Metadata(name="p", namespace="n"), spec=spec(policy="Never"))
    shown = status(pod, {"a": ended(-9), "b": RUNS}, at=NOW)["containerStatuses"][0]["state"]["terminated"]

    assert (shown["exitCode"], shown["reason"]) == (137, "Error")


def status(pod: Pod, states: dict[str, State], *, at: float) -> dict[str, Any]:
    return pod_status(
        pod, plan(pod.spec, states, at), states, node_address="1.1.1.1", address="2.2.2.2", started_at=NOW, now=at
    )
