"""A Kafka beside the Redis of a release: Brokers that ask for it by their class keep their events there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chart import CHART
from tests.support.hello import FUNCTION
from tests.support.kafka.server import KafkaServer
from tests.support.kubelet.cluster import Cluster
from tests.support.netns import BRIDGE_ADDRESS
from tests.support.release import Release, function_image, knative_service, trigger

pytestmark = pytest.mark.service("kafka", own=True)

#: Control, ingresses and dispatchers are replaced, one pod after the other.
UPGRADE_TIMEOUT_S = 180
BROKER = {
    "apiVersion": "eventing.knative.dev/v1",
    "kind": "Broker",
    "metadata": {"name": "default", "annotations": {"eventing.knative.dev/broker.class": "Kafka"}},
}


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), host=BRIDGE_ADDRESS)
    server.start()
    yield server
    server.stop()


def upgrade(release: Release, values: str) -> None:
    """Change these values of the release, and wait until its pods have been replaced."""
    words = ["upgrade", release.name, str(CHART), "--namespace", release.namespace, "--reuse-values", "--set", values]
    command = [str(release.cluster.plane.helm), *words, "--wait", f"--timeout={UPGRADE_TIMEOUT_S}s"]
    environment = release.cluster.plane.access.environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broker_of_the_class_kafka_is_served_once_the_release_has_one(
    release: Release, cluster: Cluster, kafka: KafkaServer, namespace: str, tmp_path: Path
):
    (tmp_path / "function.py").write_text(FUNCTION)
    cluster.use(function_image("hello", tmp_path))
    for each in (BROKER, knative_service("hello", "dev.local/hello:1"), trigger("hello", "hello", type_="hello")):
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=each)

    def reason() -> str:
        conditions = cluster.get("broker", "default", "-n", namespace).get("status", {}).get("conditions", [])
        return str({one["type"]: one.get("reason") for one in conditions}.get("Ready"))

    cluster.until(lambda: reason() == "BrokerClassNotServed", what="the Broker says that nothing serves its class")
    # For the rest of the run: to take it away again would cost a minute, and this file's name is the last.
    upgrade(release, f"eventLog.kind=redis,eventLog.kafka.servers={kafka.servers}")
    for kind, name in (("broker", "default"), ("ksvc", "hello"), ("trigger", "hello")):
        release.until_ready(kind, name, namespace)
    cluster.until(lambda: release.publish(namespace, "k1") == 202, what="the ingresses know the Broker")
    cluster.until(lambda: release.explained("re-k1"), what="the function's answer is in the Broker")
