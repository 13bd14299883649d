"""Channels, a Sequence and a Parallel on a running platform, with functions for their steps and filters."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.testing import Platform, wait_until

pytestmark = pytest.mark.e2e

STEP = """
import os
from cloudevents.core.v1.event import CloudEvent

def handle(event):
    passed = [*event.get_data()["passed"], os.environ["STEP"]]
    made = {"id": f"{event.get_id()}.{os.environ['STEP']}", "source": "/step", "type": "order.done"}
    return CloudEvent({**made, "subject": event.get_subject()}, {**event.get_data(), "passed": passed})
"""

LARGE = """
def handle(event):
    return event if event.get_data()["amount"] >= 10 else None
"""


def function(name: str, source: str) -> str:
    return f"""
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: {name}}}
spec:
  template:
    metadata: {{annotations: {{penstock.dev/source: {source}, autoscaling.knative.dev/initial-scale: "0"}}}}
    spec: {{containers: [{{image: dev.local/{name}, env: [{{name: STEP, value: {name}}}]}}]}}
"""


def to(name: str) -> str:
    return f"{{ref: {{apiVersion: serving.knative.dev/v1, kind: Service, name: {name}}}}}"


STEPS = ("look", "weigh", "write")
TO_BROKER = "{ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}}"


def everything(sink: str) -> str:
    """Events enter at the Broker, go through the Sequence, and come out at the Broker again; what comes out goes to the
    Parallel. Beside them stands a Channel with a Subscription that replies and one whose subscriber fails."""
    return f"""
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {{name: default}}
---
apiVersion: flows.knative.dev/v1
kind: Sequence
metadata: {{name: handle}}
spec:
  steps: [{", ".join(map(to, STEPS))}]
  reply: {TO_BROKER}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {{name: into}}
spec:
  broker: default
  filter: {{attributes: {{type: order.created}}}}
  subscriber: {{ref: {{apiVersion: flows.knative.dev/v1, kind: Sequence, name: handle}}}}
---
apiVersion: flows.knative.dev/v1
kind: Parallel
metadata: {{name: sort}}
spec:
  branches:
    - filter: {to("large")}
      subscriber: {{uri: "{sink}/large"}}
    - subscriber: {{uri: "{sink}/all"}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {{name: out}}
spec:
  broker: default
  filter: {{attributes: {{type: order.done}}}}
  subscriber: {{ref: {{apiVersion: flows.knative.dev/v1, kind: Parallel, name: sort}}}}
---
apiVersion: messaging.knative.dev/v1
kind: Channel
metadata: {{name: orders}}
spec: {{delivery: {{retry: 1, backoffDelay: PT0.05S, deadLetterSink: {{uri: "{sink}/dead"}}}}}}
---
apiVersion: messaging.knative.dev/v1
kind: Subscription
metadata: {{name: answers}}
spec:
  channel: {{apiVersion: messaging.knative.dev/v1, kind: Channel, name: orders}}
  subscriber: {to("look")}
  reply: {{uri: "{sink}/reply"}}
---
apiVersion: messaging.knative.dev/v1
kind: Subscription
metadata: {{name: fails}}
spec:
  channel: {{apiVersion: messaging.knative.dev/v1, kind: InMemoryChannel, name: orders}}
  subscriber: {{uri: "{sink}/fails"}}
{"".join(function(name, "step") for name in STEPS)}{function("large", "large")}"""


class Sink:
    """Takes events at every path but ``/fails``, and keeps what it got."""

    def __init__(self) -> None:
        #: By path: the headers, and the data.
        self.got: dict[str, list[tuple[dict[str, str], Any]]] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): text for name, text in self.headers.items()}
                outer.got.setdefault(self.path, []).append((headers, json.loads(body)))
                self.send_response(500 if self.path == "/fails" else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def at(self, path: str, count: int = 1) -> list[tuple[dict[str, str], Any]]:
        """The first events at a path, once there are so many."""
        return wait_until(lambda: len(found := self.got.get(path, [])) >= count and found, what=f"{count} at {path}")


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    made = Sink()
    serving = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    yield made
    made.server.shutdown()
    serving.join()
    made.server.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("channels")
    for name, text in (("step", STEP), ("large", LARGE)):
        (root / name).mkdir()
        (root / name / "function.py").write_text(text)
    with Platform.start(data=root / "data", root=root) as platform:
        platform.penstock("apply", "-f", "-", text=everything(sink.url))
        for group, plural, name in (
            ("flows.knative.dev", "sequences", "handle"),
            ("flows.knative.dev", "parallels", "sort"),
            ("messaging.knative.dev", "subscriptions", "answers"),
            ("messaging.knative.dev", "subscriptions", "fails"),
            ("eventing.knative.dev", "triggers", "into"),
            ("eventing.knative.dev", "triggers", "out"),
        ):
            path = f"/apis/{group}/v1/namespaces/default/{plural}/{name}"
            wait_until(lambda path=path: is_ready(platform.api.request("GET", path)), what=f"{plural} {name} is ready")
        yield platform


def is_ready(resource: dict[str, Any]) -> bool:
    entries = resource.get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in entries)


def send(platform: Platform, place: str, event_id: str, amount: int) -> None:
    data = json.dumps({"amount": amount, "passed": []})
    options = ("--type", "order.created", "--id", event_id, "--subject", event_id, "--data", data)
    platform.penstock("send", "--broker", place, *options)


def test_events_go_through_a_sequence_of_functions_and_on_to_the_branches_of_a_parallel(running, sink):
    send(running, "default", "small", 3)
    send(running, "default", "big", 30)
    both = sink.at("/all", 2)
    assert sorted(headers["ce-subject"] for headers, _ in both) == ["big", "small"]
    assert {headers["ce-id"] for headers, _ in both} == {f"{name}.look.weigh.write" for name in ("big", "small")}
    assert all(data["passed"] == ["look", "weigh", "write"] for _, data in both)
    ((headers, data),) = sink.at("/large")
    assert (headers["ce-subject"], data["amount"]) == ("big", 30)
    assert "ce-knativebrokerttl" not in headers


def test_every_subscription_of_a_channel_gets_each_event_and_what_it_answers_goes_where_it_says(running, sink):
    send(running, "channels/orders", "order", 1)
    ((headers, data),) = sink.at("/reply")
    assert (headers["ce-id"], data["passed"]) == ("order.look", ["look"])
    ((headers, data),) = sink.at("/dead")
    assert (headers["ce-id"], headers["ce-knativeerrordest"]) == ("order", f"{sink.url}/fails")
    assert len(sink.at("/fails")) == 2


def test_the_flow_shows_in_kubectls_columns_and_its_events_have_types(running):
    table = running.penstock("get", "sequences,parallels,channels").stdout
    assert [line.split()[2] for line in table.splitlines() if line.startswith(("seq", "par", "chan"))] == ["True"] * 3
    path = "/apis/eventing.knative.dev/v1beta3/namespaces/default/eventtypes"

    def types() -> set[tuple[str, str]]:
        found = running.api.request("GET", path)["items"]
        return {(each["spec"]["reference"]["name"], each["spec"]["attributes"][0]["value"]) for each in found}

    expected = {("default", "order.created"), ("default", "order.done"), ("handle-kn-sequence-1", "order.done")}
    wait_until(lambda: expected <= types(), what="the types of what flowed are known")


def test_a_channel_is_described_with_its_subscriptions_and_a_subscription_with_its_destinations(running, sink):
    told = running.penstock("describe", "channel", "orders").stdout
    assert f"fails    True           {sink.url}/fails" in told
    told = running.penstock("describe", "sub", "answers").stdout
    assert re.search(
        rf"^Channel: +orders\nSubscriber: +http://look\..*\nReplies: +{sink.url}/reply$", told, re.MULTILINE
    )
