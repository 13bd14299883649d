"""The command line against a cluster: what Kubernetes knows nothing of is asked of the control Service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hello import FUNCTION
from tests.support.kubelet.cluster import Cluster
from tests.support.release import Release, function_image, knative_service, trigger

BROKER = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}


def penstock(*words: str) -> str:
    """What a command prints. Raises AssertionError with what it said where it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    command = [sys.executable, "-m", "penstock", *words]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def hello(release: Release, cluster: Cluster, namespace: str, tmp_path: Path) -> str:
    """A function that answers events, its Broker and its Trigger; their namespace."""
    (tmp_path / "function.py").write_text(FUNCTION)
    cluster.use(function_image("hello", tmp_path))
    for each in (BROKER, knative_service("hello", "dev.local/hello:1"), trigger("hello", "hello", type_="hello")):
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=each)
    for kind, name in (("broker", "default"), ("ksvc", "hello"), ("trigger", "hello")):
        release.until_ready(kind, name, namespace)
    cluster.until(
        lambda: release.publish(namespace, "first", type_="other") == 202, what="the ingresses know the Broker"
    )
    return namespace


def test_events_are_sent_shown_and_explained(release: Release, cluster: Cluster, hello: str):
    broker = f"http://{release.address('broker-ingress')}"
    control = f"http://{release.address('control')}:8082"
    penstock("send", "--type", "hello", "--id", "c1", "--data", "{}", "-n", hello, "--broker-url", broker)
    cluster.until(lambda: release.explained("re-c1"), what="the function has answered")

    listed = [
        json.loads(line) for line in penstock("events", "-n", hello, "-o", "json", "--server", control).splitlines()
    ]
    assert {"c1", "re-c1"} <= {event["id"] for event in listed}
    story = penstock("explain", "c1", "--server", control)
    assert "hello" in story
    assert "re-c1" in story
    assert "got c1" in penstock("logs", "hello", "-n", hello, "--server", control)

    # Through the control pod and an ingress, to the Trigger's subscriber and to a Revision by a host of its own.
    for target in ((), ("--revision", "hello-00001")):
        words = ("--trigger", "hello", "-n", hello, "--id", "c1", "--wait", *target, "--server", control)
        assert "1 delivered" in penstock("replay", *words)
    assert penstock("dlq", "list", "-n", hello, "--server", control) == ""
