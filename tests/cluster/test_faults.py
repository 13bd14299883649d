"""What may happen to a cluster while it works: nothing accepted is lost, no request refused that could be served."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.kubelet.cluster import Cluster
from tests.support.release import Release, function_image, knative_service, trigger
from tests.support.traffic import Calls, Events

BROKER = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}
#: Answers with its revision, and with the most requests that it has ever had at once.
PAGE = """
import asyncio, os

running = most = 0

async def app(scope, receive, send):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.02)
    # Before the answer: who has its last byte may send the next request.
    running -= 1
    body = f"{os.environ['K_REVISION']} {most}" if scope["path"] == "/most" else os.environ["K_REVISION"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})
"""
#: Keeps the id of every event that it got.
COLLECTOR = """
import os

kept = open(f"/collected/{os.environ['HOSTNAME']}", "a", buffering=1)

def handle(event):
    kept.write(event.get_id() + "\\n")
"""
#: How long the API server is away: several times what a watch, a Lease and a demand report may take.
OUTAGE_S = 60.0
#: From the death of a leader to the next one's first decision: a Lease runs out after 15 s, and the store is read anew.
TAKEOVER_TIMEOUT_S = 60.0


class World:
    """A function that is called, one that collects events, and the Broker in front of it, in a namespace."""

    def __init__(self, release: Release, namespace: str, collected: Path) -> None:
        self.release = release
        self.cluster = release.cluster
        self.namespace = namespace
        self.collected_in = collected

    def apply(self, *objects: object) -> None:
        for each in objects:
            self.cluster.kubectl("apply", "-n", self.namespace, "-f", "-", given=each)

    def until_ready(self, kind: str, name: str) -> None:
        self.release.until_ready(kind, name, self.namespace)

    def host(self, name: str) -> str:
        return f"{name}.{self.namespace}.svc.cluster.local"

    def gateways(self) -> dict[str, tuple[str, int]]:
        """Where each gateway's pod listens, by its name."""
        pods = self.release.pods("gateway")
        return {name: (pod["status"]["podIP"], 8080) for name, pod in pods.items() if "podIP" in pod["status"]}

    def collected(self) -> set[str]:
        return {line for file in self.collected_in.iterdir() for line in file.read_text().split()}

    def publish(self, event_id: str) -> int:
        return self.release.publish(self.namespace, event_id)

    def until_all_collected(self, events: Events) -> None:
        """Every accepted event was delivered."""
        assert events.failures == []
        self.cluster.until(
            lambda: events.accepted <= self.collected(),
            what=f"all {len(events.accepted)} accepted events are delivered",
            timeout_s=180,
        )

    def until_whole(self) -> None:
        """Every pod of the release is ready again."""

        def ready() -> bool:
            found = self.cluster.get("deployments", "-n", self.release.namespace)
            return all(each["status"].get("readyReplicas") == each["spec"]["replicas"] for each in found)

        self.cluster.until(ready, what="every pod of the release is ready", timeout_s=120)

    def leader(self) -> str:
        lease = self.cluster.get("lease", "penstock-control", "-n", self.release.namespace)
        found: str = lease["spec"].get("holderIdentity", "")
        return found


@pytest.fixture(scope="module", autouse=True)
def functions(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("functions")
    for name, text in (("page", PAGE), ("collector", COLLECTOR)):
        (folder / name).mkdir()
        (folder / name / "function.py").write_text(text)
        cluster.use(function_image(name, folder / name))


def collector(collected: Path, namespace: str) -> Iterator[dict[str, Any]]:
    """The collecting function, and the volume that it writes to."""
    name, size = f"collected-{namespace}", {"storage": "1Mi"}
    yield {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteMany"],
            "storageClassName": name,
            "hostPath": {"path": str(collected)},
        },
    }
    claim = {"accessModes": ["ReadWriteMany"], "storageClassName": name, "resources": {"requests": size}}
    yield {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "collected"}, "spec": claim}
    service = knative_service("collector", "dev.local/collector:1", scaling={"min-scale": "1"})
    spec = service["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "collected", "persistentVolumeClaim": {"claimName": "collected"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "collected", "mountPath": "/collected"}]
    yield service


@pytest.fixture
def world(release: Release, namespace: str, tmp_path: Path) -> Iterator[World]:
    collected = tmp_path / "collected"
    collected.mkdir()
    world = World(release, namespace, collected)
    world.until_whole()
    world.apply(
        BROKER,
        *collector(collected, namespace),
        knative_service("page", "dev.local/page:1", scaling={"min-scale": "2"}),
        trigger("collector", "collector"),
    )
    for kind, name in (("broker", "default"), ("ksvc", "collector"), ("ksvc", "page"), ("trigger", "collector")):
        world.until_ready(kind, name)
    world.cluster.until(lambda: world.publish("first") == 202, what="the ingresses know the Broker")
    yield world
    world.cluster.kubectl("delete", "pv", f"collected-{namespace}", "--wait=false")


def test_a_rollout_with_a_split_refuses_no_request_and_each_revision_gets_its_share(world: World):
    split = [
        {"revisionName": "page-00001", "percent": 50},
        {"latestRevision": True, "percent": 50},
    ]
    with Calls(world.host("page"), list(world.gateways().values())) as calls:
        second = knative_service("page", "dev.local/page:2", scaling={"min-scale": "1"}, traffic=split)
        world.apply(second)
        world.until_ready("ksvc", "page")
        # What is ready here is known at each gateway a moment later.
        world.cluster.until(lambda: "page-00002" in calls.answers, what="the second Revision answers")
        calls.answers.clear()
        world.cluster.until(lambda: sum(calls.answers.values()) >= 200, what="200 requests are answered")
        shares = dict(calls.answers)
        third = knative_service("page", "dev.local/page:2", scaling={"min-scale": "1"})
        world.apply(third)
        world.until_ready("ksvc", "page")

        def latest_alone() -> bool:
            calls.answers.clear()
            world.cluster.until(lambda: sum(calls.answers.values()) >= 50, what="50 requests are answered")
            return set(calls.answers) == {"page-00002"}

        world.cluster.until(latest_alone, what="the latest Revision alone answers")
    assert calls.failures == []
    # 200 fair coins: beyond these bounds less than once in a hundred million runs.
    assert set(shares) == {"page-00001", "page-00002"}
    assert min(shares.values()) >= 60, shares
    # The first Revision is no longer reached, and its min-scale counts no more.
    labels = "serving.knative.dev/revision=page-00001"
    world.cluster.until(
        lambda: not world.cluster.get("pods", "-n", world.namespace, "-l", labels),
        what="the first Revision is at zero",
        timeout_s=180,
    )


def test_when_the_leader_is_lost_another_takes_over_and_traffic_goes_on(world: World):
    before = world.leader()
    world.apply(knative_service("cold", "dev.local/page:1", scaling={"initial-scale": "0"}))
    world.until_ready("ksvc", "cold")
    with (
        Calls(world.host("page"), list(world.gateways().values())) as calls,
        Events(world.publish) as events,
    ):
        world.cluster.kubectl(
            "delete", "pod", before, "-n", world.release.namespace, "--grace-period=0", "--force", "--wait=false"
        )
        world.cluster.until(
            lambda: world.leader() not in ("", before), what="another pod leads", timeout_s=TAKEOVER_TIMEOUT_S
        )
        # What needs a leader works again: a function wakes from zero.
        assert world.release.call("cold", world.namespace) == (200, b"cold-00001")
    assert calls.failures == []
    world.until_all_collected(events)
    world.until_whole()


def test_when_a_gateway_is_killed_the_others_refuse_nothing_and_every_event_arrives(world: World):
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    gateways = world.gateways()
    victim = random.Random(seed).choice(sorted(gateways))
    survivors = [address for name, address in gateways.items() if name != victim]
    with Calls(world.host("page"), survivors) as calls, Events(world.publish) as events:
        for _ in range(3):
            pod = world.release.pods("gateway")[victim]
            restarts = pod["status"]["containerStatuses"][0]["restartCount"]
            world.cluster.kill(pod)
            world.cluster.until(
                lambda restarts=restarts: (
                    world.release.pods("gateway")[victim]["status"]["containerStatuses"][0]["restartCount"] > restarts
                ),
                what="the gateway is started again",
            )
            world.until_whole()
    assert calls.failures == []
    assert sum(calls.answers.values()) > 0
    world.until_all_collected(events)


def test_when_the_gateway_that_has_an_instance_is_killed_the_limit_holds_and_the_others_refuse_nothing(world: World):
    scaling = {"min-scale": "1", "max-scale": "1"}
    world.apply(knative_service("one", "dev.local/page:1", scaling=scaling, containerConcurrency=1))
    world.until_ready("ksvc", "one")
    (instance,) = world.cluster.get("endpointslices", "-n", world.namespace, "-l", "serving.knative.dev/service=one")
    owner = instance["metadata"]["annotations"]["penstock.dev/gateway"]
    others = [address for name, address in world.gateways().items() if name != owner]
    with Calls(world.host("one"), others, path="/most") as calls:
        world.cluster.until(lambda: sum(calls.answers.values()) >= 50, what="50 requests are handed over and answered")
        world.cluster.kill(world.release.pods("gateway")[owner])
        before = sum(calls.answers.values())
        world.cluster.until(lambda: sum(calls.answers.values()) >= before + 50, what="50 more are answered")
    assert calls.failures == []
    assert set(calls.answers) == {"one-00001 1"}
    world.until_whole()


def test_when_a_pod_of_every_part_of_the_broker_is_killed_every_accepted_event_arrives(world: World):
    with Events(world.publish) as events:
        for role in ("broker-ingress", "dispatcher"):
            for pod in world.release.pods(role).values():
                world.cluster.kill(pod)
                world.until_whole()
    world.until_all_collected(events)


def test_while_the_api_server_is_away_requests_are_served_and_events_delivered(world: World):
    apiserver = world.cluster.plane.apiserver
    gateways = list(world.gateways().values())
    with Calls(world.host("page"), gateways) as calls, Events(world.publish) as events:
        apiserver.stop()
        try:
            answered, accepted = sum(calls.answers.values()), len(events.accepted)
            time.sleep(OUTAGE_S)
            # Both went on all the time: a tenth of what an idle machine does in it is enough to tell.
            assert sum(calls.answers.values()) > answered + OUTAGE_S
            assert len(events.accepted) > accepted + OUTAGE_S
        finally:
            apiserver.start()
            # It could not renew its Lease, and ends; on a cluster a kubelet starts it again.
            world.cluster.plane.manager.kill()
            world.cluster.plane.manager.start()
        # What needs the API works again, as soon as the gateways' watches do.
        world.apply(knative_service("later", "dev.local/page:1", scaling={"initial-scale": "0"}))
        world.until_ready("ksvc", "later")
        world.cluster.until(
            lambda: world.release.call("later", world.namespace) == (200, b"later-00001"), what="a function wakes"
        )
    assert calls.failures == []
    assert events.repeats == 0
    world.until_all_collected(events)
    world.until_whole()


def test_the_hard_limit_of_concurrency_holds_across_gateways(world: World):
    world.cluster.kubectl("scale", "deployment", "penstock-gateway", "-n", world.release.namespace, "--replicas=3")
    try:
        world.until_whole()
        one = knative_service("one", "dev.local/page:1", scaling={"max-scale": "2"}, containerConcurrency=1)
        world.apply(one)
        world.until_ready("ksvc", "one")
        gateways = list(world.gateways().values())
        assert len(gateways) == 3
        with Calls(world.host("one"), gateways, clients=9, path="/most") as calls:
            world.cluster.until(lambda: sum(calls.answers.values()) >= 300, what="300 requests are answered")
        assert calls.failures == []
        assert set(calls.answers) == {"one-00001 1"}
    finally:
        world.cluster.kubectl("scale", "deployment", "penstock-gateway", "-n", world.release.namespace, "--replicas=2")
        world.until_whole()
