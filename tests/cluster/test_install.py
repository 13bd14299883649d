"""The chart on a cluster: every pod becomes ready, a function wakes from zero, and events go through it and back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.hello import FUNCTION
from tests.support.kafka.server import KafkaServer
from tests.support.kubelet.cluster import Cluster
from tests.support.netns import BRIDGE_ADDRESS
from tests.support.release import ROLES, Release, function_image, knative_service, trigger

#: Says which Revision answers.
APPLICATION = """
import os

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"hello from {os.environ['K_REVISION']}".encode()})
"""
BROKER = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}


@pytest.fixture(scope="module", autouse=True)
def functions(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("functions")
    for name, text in (("page", APPLICATION), ("hello", FUNCTION)):
        (folder / name).mkdir()
        (folder / name / "function.py").write_text(text)
        cluster.use(function_image(name, folder / name))


def apply(release: Release, namespace: str, *objects: object) -> None:
    for each in objects:
        release.cluster.kubectl("apply", "-n", namespace, "-f", "-", given=each)


def test_every_pod_becomes_ready(release: Release):
    found = {each["metadata"]["name"]: each["status"] for each in release.cluster.get("deployments", "-n", "penstock")}
    assert found.keys() == {f"penstock-{role}" for role in ROLES}
    for name, status in found.items():
        assert status.get("readyReplicas") == status["replicas"], name


def test_one_control_pod_leads_and_its_service_leads_to_it_alone(release: Release):
    lease = release.cluster.get("lease", "penstock-control", "-n", "penstock")
    slices = release.cluster.get(
        "endpointslices", "-n", "penstock", "-l", "kubernetes.io/service-name=penstock-control"
    )
    listed = [endpoint["targetRef"]["name"] for each in slices for endpoint in each["endpoints"] or ()]
    assert listed == [lease["spec"]["holderIdentity"]]
    assert len(release.pods("control")) == 2


def test_a_function_answers_from_zero(release: Release, namespace: str):
    apply(release, namespace, knative_service("page", "dev.local/page:1", scaling={"window": "6s"}))
    release.until_ready("ksvc", "page", namespace)
    answer = (200, b"hello from page-00001")
    # The gateways hear that the Route is ready a moment after the API has it.
    release.cluster.until(lambda: release.call("page", namespace) == answer, what="the gateways know the Route")
    release.cluster.until(lambda: not release.cluster.get("pods", "-n", namespace), what="page is at zero")
    assert release.call("page", namespace) == answer


def test_an_event_wakes_a_function_and_its_reply_comes_back(release: Release, namespace: str):
    hello = knative_service("hello", "dev.local/hello:1", scaling={"initial-scale": "0"})
    apply(release, namespace, BROKER, hello, trigger("hello", "hello", type_="hello"))
    for kind, name in (("broker", "default"), ("ksvc", "hello"), ("trigger", "hello")):
        release.until_ready(kind, name, namespace)
    release.cluster.until(lambda: release.publish(namespace, "e1") == 202, what="the ingresses know the Broker")
    release.cluster.until(lambda: release.explained("re-e1"), what="the reply is in the Broker")
    # What became of an attempt is written a moment after the answer is.
    release.cluster.until(lambda: delivered(release, "e1"), what="the event is delivered")


def test_a_name_in_the_cluster_leads_to_the_function(release: Release, namespace: str):
    apply(release, namespace, knative_service("page", "dev.local/page:1"))
    release.until_ready("ksvc", "page", namespace)
    made = release.cluster.get("service", "page", "-n", namespace)["spec"]
    assert (made["type"], made["externalName"]) == ("ExternalName", "penstock-gateway.penstock.svc.cluster.local")


def test_a_change_that_breaks_a_rule_is_refused_before_it_is_stored(release: Release, namespace: str):
    broken = trigger("broken", "hello")
    broken["spec"]["delivery"] = {"retry": -1, "backoffDelay": "soon"}
    words = ("apply", "-n", namespace, "-f", "-")
    said = release.cluster.kubectl(*words, given=broken, check=False)
    assert "spec.delivery.retry" in said
    assert "spec.delivery.backoffDelay" in said
    apply(release, namespace, BROKER)
    made = release.cluster.get("broker", "default", "-n", namespace)
    assert made["metadata"]["annotations"]["eventing.knative.dev/broker.class"] == "Penstock", "its default is stored"


def test_a_kafka_source_reads_its_secret_and_says_what_is_wrong(release: Release, namespace: str):
    sink = {"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}}
    login = {"enable": True}
    login |= {name: {"secretKeyRef": {"name": "kafka", "key": name}} for name in ("user", "password")}
    spec = {"bootstrapServers": ["127.0.0.1:1"], "topics": ["orders"], "sink": sink, "net": {"sasl": login}}
    source = {"apiVersion": "sources.knative.dev/v1", "kind": "KafkaSource", "metadata": {"name": "orders"}}

    def reason() -> str | None:
        found = release.cluster.get("kafkasource", "orders", "-n", namespace).get("status") or {}
        return {each["type"]: each.get("reason") for each in found.get("conditions") or ()}.get("Ready")

    apply(release, namespace, BROKER, source | {"spec": spec})
    release.cluster.until(lambda: reason() == "SecretMissing", what="the Secret is missed")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kafka"}}
    apply(release, namespace, secret | {"stringData": {"user": "me", "password": "of-nobody"}})
    release.cluster.until(lambda: reason() == "ConnectionFailed", what="Kafka is looked for")
    made = release.cluster.get("kafkasource", "orders", "-n", namespace)
    assert made["spec"]["consumerGroup"].startswith("knative-kafka-source-")


@pytest.mark.service("kafka", "kcat", own=True)
def test_kafkas_records_wake_a_function_though_the_sources_pods_are_killed_in_between(
    release: Release, namespace: str, tmp_path: Path
):
    kafka = KafkaServer(tmp_path / "kafka", host=BRIDGE_ADDRESS)
    kafka.start()
    try:
        hello = knative_service("hello", "dev.local/hello:1", scaling={"initial-scale": "0"})
        sink = {"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}}
        spec = {"bootstrapServers": [kafka.servers], "topics": ["orders"], "sink": sink}
        source = {"apiVersion": "sources.knative.dev/v1", "kind": "KafkaSource", "metadata": {"name": "orders"}}
        write(kafka, "before")
        apply(release, namespace, BROKER, hello, trigger("hello", "hello"), source | {"spec": spec})
        for kind, name in (("ksvc", "hello"), ("trigger", "hello"), ("kafkasource", "orders")):
            release.cluster.until(
                lambda kind=kind, name=name: release.is_ready(kind, name, namespace), what=f"{kind} {name} is ready"
            )
        write(kafka, "one")
        release.cluster.until(lambda: delivered(release, "partition:0/offset:1"), what="the first record is delivered")
        for pod in release.pods("sources"):
            release.cluster.kubectl("delete", "pod", pod, "-n", "penstock", "--force", "--grace-period=0")
        write(kafka, "two")
        release.cluster.until(lambda: delivered(release, "partition:0/offset:2"), what="the second record is delivered")
        assert not release.explained("partition:0/offset:0")
    finally:
        kafka.kill()


def write(kafka: KafkaServer, text: str) -> None:
    command = ["kcat", "-P", "-b", kafka.servers, "-t", "orders", "-X", "acks=all"]
    subprocess.run(command, input=f"{text}\n".encode(), check=True, timeout=60, capture_output=True)


def delivered(release: Release, event_id: str) -> bool:
    """Whether a function has taken this event."""
    stories = release.explained(event_id)
    return any(each["state"] == "delivered" for story in stories for each in story["event"]["deliveries"])
