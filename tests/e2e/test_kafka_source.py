"""Records by kcat wake functions at zero, straight and through a Broker, whoever is killed in between."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.testing import Platform, wait_until
from tests.support.kafka.server import KafkaServer

pytestmark = [pytest.mark.e2e, pytest.mark.service("kcat")]

#: Writes what it gets, one line an event, to the file that its environment names.
FUNCTION = """
import json, os
from pathlib import Path

def handle(event):
    line = {name: str(value) for name, value in event.get_attributes().items()}
    data = event.get_data()
    line["data"] = data.decode() if isinstance(data, bytes) else str(data)
    with Path(os.environ["GOT"]).open("a") as out:
        out.write(json.dumps(line) + "\\n")
"""

MANIFESTS = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: book}}
spec:
  template:
    metadata:
      annotations: {{penstock.dev/source: function, autoscaling.knative.dev/initial-scale: "0"}}
    spec:
      containers: [{{image: dev.local/book, env: [{{name: GOT, value: {root}/book.jsonl}}]}}]
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: audit}}
spec:
  template:
    metadata:
      annotations: {{penstock.dev/source: function, autoscaling.knative.dev/initial-scale: "0"}}
    spec:
      containers: [{{image: dev.local/audit, env: [{{name: GOT, value: {root}/audit.jsonl}}]}}]
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {{name: default}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {{name: audit}}
spec:
  broker: default
  subscriber: {{ref: {{apiVersion: serving.knative.dev/v1, kind: Service, name: audit}}}}
---
apiVersion: sources.knative.dev/v1
kind: KafkaSource
metadata: {{name: to-book}}
spec:
  bootstrapServers: ["{servers}"]
  topics: [orders]
  sink: {{ref: {{apiVersion: serving.knative.dev/v1, kind: Service, name: book}}}}
---
apiVersion: sources.knative.dev/v1
kind: KafkaSource
metadata: {{name: to-broker}}
spec:
  bootstrapServers: ["{servers}"]
  topics: [orders]
  ordering: unordered
  sink: {{ref: {{apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}}}}
"""

SOURCES = ("to-book", "to-broker")


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path / "kafka", num_partitions=2)
    server.start()
    yield server
    server.kill()


def kcat(kafka: KafkaServer, text: str, *options: str, topic: str = "orders") -> None:
    """Write one record a line, acknowledged by Kafka."""
    command = ["kcat", "-P", "-b", kafka.servers, "-t", topic, "-X", "acks=all", *options]
    subprocess.run(command, input=text.encode(), check=True, timeout=60, capture_output=True)


def got(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def data(root: Path, name: str) -> set[str]:
    return {event["data"] for event in got(root, name)}


def begin(platform: Platform, kafka: KafkaServer, root: Path) -> None:
    """A topic, two functions at zero, and the sources that lead to them, ready."""
    kcat(kafka, "before\n")
    (root / "function").mkdir()
    (root / "function/function.py").write_text(FUNCTION)
    (root / "all.yaml").write_text(MANIFESTS.format(root=root, servers=kafka.servers))
    platform.penstock("apply", "-f", str(root / "all.yaml"))
    for source in SOURCES:
        wait_until(lambda name=source: platform.is_ready("kafkasource", name), what=f"{source} is ready")


@pytest.mark.service("kafka", own=True)
def test_records_of_every_form_wake_functions_at_zero(tmp_path: Path, platform: Platform, kafka: KafkaServer):
    begin(platform, kafka, tmp_path)
    assert "unchanged" in platform.penstock("apply", "-f", str(tmp_path / "all.yaml")).stdout
    kcat(kafka, "plain\n")
    kcat(kafka, "customer-7:keyed\n", "-K", ":", "-H", "trace=t1")
    event = {"ce_specversion": "1.0", "ce_id": "o-1", "ce_source": "/shop", "ce_type": "order.placed"}
    kcat(kafka, "event\n", *(word for name, value in event.items() for word in ("-H", f"{name}={value}")))
    for name in ("book", "audit"):
        wait_until(lambda name=name: len(data(tmp_path, name)) == 3, what=f"{name} has got every record")
        found = {each["data"]: each for each in got(tmp_path, name)}
        assert found.keys() == {"plain", "keyed", "event"}
        assert found["plain"]["type"] == "dev.knative.kafka.event"
        assert found["keyed"]["key"] == "customer-7"
        assert found["keyed"]["kafkaheadertrace"] == "t1"
        assert (found["event"]["id"], found["event"]["type"]) == ("o-1", "order.placed")
    table = platform.penstock("get", "kafkasources").stdout
    assert "orders" in table
    assert "True" in table


@pytest.mark.service("kafka", own=True)
def test_nothing_is_lost_whoever_is_killed_in_between(tmp_path: Path, platform: Platform, kafka: KafkaServer):
    begin(platform, kafka, tmp_path)
    seed = random.randrange(2**32)
    print("seed", seed)
    written: list[str] = []

    def write(number: int) -> None:
        lines = [f"{random.Random(seed + len(written) + n).randrange(8)}:{len(written) + n}" for n in range(number)]
        written.extend(line.partition(":")[2] for line in lines)
        kcat(kafka, "".join(f"{line}\n" for line in lines), "-K", ":")

    write(40)
    wait_until(lambda: len(data(tmp_path, "book")) > 5, what="some records have come")
    os.kill(platform.pids()["control"], signal.SIGKILL)
    write(40)
    wait_until(lambda: len(data(tmp_path, "book")) > 45, what="records come again")
    kafka.kill()
    kafka.start()
    write(40)
    os.kill(platform.pids()["broker"], signal.SIGKILL)
    os.kill(platform.pids()["gateway"], signal.SIGKILL)
    write(40)
    for name in ("book", "audit"):
        what = f"{name} has got every record"
        wait_until(lambda name=name: data(tmp_path, name) == set(written), what=what)
    # Repeated events have the same id; what came first of each is in its partition's order.
    places = [each["subject"].removeprefix("partition:").split("#") for each in got(tmp_path, "book")]
    for partition in ("0", "1"):
        offsets = list(dict.fromkeys(int(offset) for where, offset in places if where == partition))
        assert offsets == sorted(offsets)
        assert len(offsets) > 20


def test_a_platform_without_kafka_sources_loads_no_client(platform: Platform):
    control = platform.pids()["control"]
    assert "aiokafka" not in Path(f"/proc/{control}/maps").read_text()
