"""The platform's own pods are replaced under load: no request is refused, no event has to be sent twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kubelet.cluster import Cluster
from tests.support.release import Release, function_image, knative_service, trigger
from tests.support.traffic import Calls, Events

BROKER = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}
PAGE = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})
"""
#: Every pod of a role leaves with a notice of five seconds, one after the other.
ROLLOUT_TIMEOUT_S = 300


@pytest.fixture
def page(release: Release, cluster: Cluster, namespace: str, tmp_path: Path) -> str:
    """A function that always runs, and a Broker that sends it every event; its namespace."""
    (tmp_path / "function.py").write_text(PAGE)
    cluster.use(function_image("page", tmp_path))
    made = (BROKER, knative_service("page", "dev.local/page:1", scaling={"min-scale": "1"}), trigger("page", "page"))
    for each in made:
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=each)
    for kind, name in (("broker", "default"), ("ksvc", "page"), ("trigger", "page")):
        release.until_ready(kind, name, namespace)
    cluster.until(lambda: release.publish(namespace, "first") == 202, what="the ingresses know the Broker")
    return namespace


def replace_pods(cluster: Cluster, release: Release, *roles: str) -> None:
    """As an upgrade does: new pods of each role beside the old ones, then the old ones end."""
    for role in roles:
        cluster.kubectl("rollout", "restart", f"deployment/penstock-{role}", "-n", release.namespace)
    for role in roles:
        words = ("rollout", "status", f"deployment/penstock-{role}", "-n", release.namespace)
        cluster.kubectl(*words, f"--timeout={ROLLOUT_TIMEOUT_S}s")


def test_gateways_are_replaced_without_a_refused_request(release: Release, cluster: Cluster, page: str):
    old = set(release.pods("gateway"))
    where = [(release.address("gateway"), 80)]
    with Calls(f"page.{page}.svc.cluster.local", where) as calls:
        replace_pods(cluster, release, "gateway")
        cluster.until(lambda: not old & set(release.pods("gateway")), what="the old gateways are gone")
        served = sum(calls.answers.values())
        cluster.until(lambda: sum(calls.answers.values()) > served + 20, what="requests are answered by the new ones")
    assert calls.failures == []


def test_the_brokers_pods_are_replaced_without_an_event_sent_twice_or_lost(
    release: Release, cluster: Cluster, page: str
):
    with Events(lambda event_id: release.publish(page, event_id)) as events:
        replace_pods(cluster, release, "broker-ingress", "dispatcher")
    assert (events.failures, events.repeats) == ([], 0)
    assert len(events.accepted) > 50
    until_delivered(release, events)


def test_a_redis_that_is_killed_loses_no_accepted_event(release: Release, cluster: Cluster, page: str):
    with Events(lambda event_id: release.publish(page, event_id)) as events:
        cluster.until(lambda: len(events.accepted) > 20, what="events flow")
        (redis,) = release.pods("redis").values()
        cluster.kill(redis)
        before = len(events.accepted)
        cluster.until(lambda: len(events.accepted) > before + 20, what="events flow again")
    assert events.failures == []
    until_delivered(release, events)


def until_delivered(release: Release, events: Events) -> None:
    """Every tenth of the accepted events, by its story."""

    def delivered() -> bool:
        told = [story["event"] for event_id in looked_at for story in release.explained(event_id)]
        states = [delivery["state"] for event in told for delivery in event["deliveries"]]
        return len(told) >= len(looked_at) and set(states) == {"delivered"}

    looked_at = sorted(events.accepted)[::10]
    release.cluster.until(delivered, what=f"{len(looked_at)} of {len(events.accepted)} accepted events are delivered")
