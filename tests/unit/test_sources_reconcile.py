"""A source's status: where its sink is, whether it runs, and what its events look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from core.resources import Condition, Key, KindRef, ObjectMeta, Resource, is_ready
from sources.kafka.resources import KAFKA_SOURCE
from sources.reconcile import DEPLOYED, SourceReconciler, deployed_of, reconcilers, with_deployed
from sources.resources import OBJECT_STORE_SOURCE, PING_SOURCE

BROKER = KindRef("eventing.knative.dev", "v1", "Broker")
PINGS, STORES, KAFKAS = reconcilers()
NOW = 1_700_000_000.0


class Held:
    """A `View` of a few resources."""

    def __init__(self, *resources: Resource) -> None:
        self._held = {resource.key: resource for resource in resources}

    def get(self, key: Key) -> Resource | None:
        return self._held.get(key)

    def list(self, kind: KindRef, namespace: str | None = None) -> Sequence[Resource]:
        return [r for r in self._held.values() if r.ref == kind and namespace in (None, r.meta.namespace)]

    def owned(self, owner: Resource, kind: KindRef) -> Sequence[Resource]:
        return []


def broker(name: str = "default", namespace: str = "team", url: str | None = "http://b/team/default") -> Resource:
    body = {"status": {"address": {"url": url}}} if url else {}
    return Resource(ref=BROKER, meta=ObjectMeta(name=name, namespace=namespace), body=body)


def ping(status: dict[str, Any] | None = None, **sink: object) -> Resource:
    ref = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}
    spec = {"schedule": "* * * * *", "sink": sink or {"ref": ref}}
    meta = ObjectMeta(name="minute", namespace="team", generation=3)
    return Resource(ref=PING_SOURCE, meta=meta, body={"spec": spec, "status": status or {}})


def decided(resource: Resource, *others: Resource, by: SourceReconciler = PINGS) -> Resource:
    status = by.decide(resource, Held(*others), NOW).status
    assert status is not None
    return resource.with_status(status)


def reasons(resource: Resource) -> dict[str, str]:
    return {c["type"]: f"{c['status']} {c.get('reason', '')}".strip() for c in resource.status["conditions"]}


def test_a_source_whose_sink_is_known_waits_for_the_harness_to_start_it() -> None:
    found = decided(ping(), broker())
    assert found.status["sinkUri"] == "http://b/team/default"
    assert found.status["observedGeneration"] == 3
    assert reasons(found) == {
        "Deployed": "Unknown Starting",
        "Ready": "Unknown Starting",
        "SinkProvided": "True",
    }


def test_a_source_that_runs_is_ready() -> None:
    started = with_deployed(decided(ping(), broker()), Condition(type=DEPLOYED, status="True"), NOW)
    found = decided(started, broker())
    assert reasons(found) == {"Deployed": "True", "Ready": "True", "SinkProvided": "True"}
    assert is_ready(found.status, 3) == "True"


def test_a_source_in_trouble_is_not_ready_and_says_why() -> None:
    condition = Condition(type=DEPLOYED, status="False", reason="FolderMissing", message="Create it.")
    found = decided(with_deployed(decided(ping(), broker()), condition, NOW), broker())
    assert reasons(found)["Ready"] == "False FolderMissing"
    assert deployed_of(found) == condition


@pytest.mark.parametrize(
    ("others", "reason"),
    [((), "NotFound"), ((broker(url=None),), "AddressNotReady"), ((broker(namespace="other"),), "NotFound")],
    ids=["no such broker", "a broker without address", "a broker elsewhere"],
)
def test_a_sink_that_cannot_be_resolved_makes_the_source_not_ready(others: tuple[Resource, ...], reason: str) -> None:
    running = with_deployed(decided(ping(), broker()), Condition(type=DEPLOYED, status="True"), NOW)
    found = decided(running, *others)
    assert "sinkUri" not in found.status
    assert reasons(found) == {
        "Deployed": "Unknown WaitingForSink",
        "Ready": f"False {reason}",
        "SinkProvided": f"False {reason}",
    }
    assert deployed_of(found) is None, "a source that waited is reported anew"


def test_a_sink_may_be_an_address() -> None:
    assert decided(ping(uri="http://example.com/x")).status["sinkUri"] == "http://example.com/x"


def test_the_status_says_what_events_to_expect() -> None:
    assert decided(ping(), broker()).status["ceAttributes"] == [
        {"type": "dev.knative.sources.ping", "source": "/apis/v1/namespaces/team/pingsources/minute"}
    ]
    spec = {"bucket": "uploads", "store": {"folder": {"path": "x"}}, "sink": {"uri": "http://example.com"}}
    meta = ObjectMeta(name="o", namespace="team")
    store = Resource(ref=OBJECT_STORE_SOURCE, meta=meta, body={"spec": spec})
    assert decided(store, by=STORES).status["ceAttributes"] == [
        {"type": "com.amazonaws.s3.ObjectCreated:Put", "source": "penstock:folder.local.uploads"}
    ]


def test_deciding_again_changes_nothing() -> None:
    first = decided(ping(), broker())
    assert PINGS.decide(first, Held(broker()), NOW + 100).status == first.status


def test_a_change_of_a_broker_concerns_the_sources_that_name_it() -> None:
    source = ping()
    other = source.with_meta(name="other").with_spec({"sink": {"uri": "http://example.com"}})
    view = Held(source, other)
    assert list(PINGS.related[BROKER](broker(), view)) == [source.key]
    assert list(PINGS.related[BROKER](broker(name="another"), view)) == []
    assert list(PINGS.related[BROKER](broker(namespace="elsewhere"), view)) == []


@pytest.mark.parametrize(
    "status", [{"conditions": "all fine"}, {"conditions": [1, None]}, {"conditions": [{}], "sinkUri": 5}], ids=str
)
def test_a_status_that_somebody_has_spoilt_is_put_right(status: dict[str, Any]) -> None:
    assert reasons(decided(ping(status), broker()))["SinkProvided"] == "True"
    with_deployed(ping(status), Condition(type=DEPLOYED, status="True"), NOW)


# ---- KafkaSource


def kafka(status: dict[str, Any] | None = None, **spec: object) -> Resource:
    ref = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}
    held = {"bootstrapServers": ["kafka:9092"], "topics": ["a", "b"], "sink": {"ref": ref}, **spec}
    meta = ObjectMeta(name="reader", namespace="team", generation=3)
    return Resource(ref=KAFKA_SOURCE, meta=meta, body={"spec": held, "status": status or {}})


def letters_to(name: str) -> dict[str, Any]:
    return {"deadLetterSink": {"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": name}}}


def test_a_kafka_source_says_what_its_plain_records_look_like_for_each_topic() -> None:
    found = decided(kafka(), broker(), by=KAFKAS)
    source = "/apis/v1/namespaces/team/kafkasources/reader"
    assert found.status["ceAttributes"] == [
        {"type": "dev.knative.kafka.event", "source": f"{source}#{topic}"} for topic in ("a", "b")
    ]


def test_a_dead_letter_sink_is_resolved_into_the_status() -> None:
    found = decided(kafka(delivery=letters_to("dead")), broker(), broker("dead", url="http://b/team/dead"), by=KAFKAS)
    assert found.status["deadLetterSinkUri"] == "http://b/team/dead"
    assert reasons(found)["DeadLetterSinkResolved"] == "True"


def test_a_source_waits_for_its_dead_letter_sink() -> None:
    found = decided(kafka(delivery=letters_to("dead")), broker(), by=KAFKAS)
    assert reasons(found) == {
        "DeadLetterSinkResolved": "False NotFound",
        "Deployed": "Unknown WaitingForSink",
        "Ready": "False NotFound",
        "SinkProvided": "True",
    }
    assert "sinkUri" not in found.status


def test_a_source_is_looked_at_again_when_its_dead_letter_sink_changes() -> None:
    source, dead = kafka(delivery=letters_to("dead")), broker("dead")
    assert list(KAFKAS.related[BROKER](dead, Held(source))) == [source.key]
