"""The conditions of Broker and Trigger: one row for each reason that a person can meet."""

import json

import pytest

from broker.reconcile import BrokerReconciler, TriggerReconciler
from broker.resources import BROKER, CLASS_ANNOTATION, DEPENDENCY_ANNOTATION, TRIGGER
from core.resources import Key, KindRef, ObjectMeta, Resource

SERVICE = KindRef("serving.knative.dev", "v1", "Service")
READY = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}
TO_SCAN = {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "scan"}}


class Held:
    """A view of just these resources."""

    def __init__(self, *resources: Resource) -> None:
        self._held = {resource.key: resource for resource in resources}

    def get(self, key):
        return self._held.get(key)

    def list(self, kind, namespace=None):
        return [resource for key, resource in self._held.items() if key.kind == kind]

    def owned(self, owner, kind):
        return []


def make(kind: KindRef, name: str, spec: dict, status: dict | None = None, **annotations: str) -> Resource:
    meta = ObjectMeta(name=name, namespace="ns", generation=1, uid=name, annotations=annotations)
    return Resource(ref=kind, meta=meta, body={"spec": spec, "status": status or {}})


def conditions(outcome) -> dict[str, tuple[str, str]]:
    return {entry["type"]: (entry["status"], entry.get("reason", "")) for entry in outcome.status["conditions"]}


BROKEN = make(BROKER, "default", {}, {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "False"}]})
FINE = make(BROKER, "default", {}, READY)
SCAN = make(SERVICE, "scan", {}, {"address": {"url": "http://scan.ns.svc.cluster.local"}})


def test_a_broker_is_addressable_at_the_ingress_under_its_namespace_and_name():
    outcome = BrokerReconciler().decide(make(BROKER, "b", {}), Held(), 0)
    url = "http://broker-ingress.knative-eventing.svc.cluster.local/ns/b"
    assert outcome.status["address"] == {"name": "http", "url": url}
    assert outcome.status["observedGeneration"] == 1
    assert conditions(outcome)["Ready"] == ("True", "")


@pytest.mark.parametrize(
    ("held", "expected", "uri"),
    [
        pytest.param([], ("False", "NotFound"), None, id="the sink does not exist"),
        pytest.param([make(SERVICE, "scan", {})], ("False", "AddressNotReady"), None, id="it has no address yet"),
        pytest.param([SCAN], ("True", ""), "http://scan.ns.svc.cluster.local", id="resolved"),
    ],
)
def test_a_brokers_dead_letter_sink_resolves_or_says_why_not(held, expected, uri):
    broker = make(BROKER, "b", {"delivery": {"deadLetterSink": TO_SCAN}})
    outcome = BrokerReconciler().decide(broker, Held(*held), 0)
    assert conditions(outcome)["DeadLetterSinkResolved"] == expected
    assert conditions(outcome)["Ready"] == expected
    assert outcome.status.get("deadLetterSinkUri") == uri


@pytest.mark.parametrize(
    ("held", "broken", "expected"),
    [
        pytest.param([FINE, SCAN], None, ("True", ""), id="ready"),
        pytest.param([SCAN], "BrokerReady", ("False", "BrokerDoesNotExist"), id="no broker"),
        pytest.param([BROKEN, SCAN], "BrokerReady", ("False", "BrokerNotReady"), id="broker not ready"),
        pytest.param(
            [make(BROKER, "default", {}), SCAN], "BrokerReady", ("Unknown", "BrokerNotConfigured"), id="not yet"
        ),
        pytest.param([FINE], "SubscriberResolved", ("False", "NotFound"), id="no subscriber of that name"),
        pytest.param(
            [FINE, make(SERVICE, "scan", {})], "SubscriberResolved", ("False", "AddressNotReady"), id="no address"
        ),
    ],
)
def test_a_trigger_is_ready_when_everything_it_names_is(held, broken, expected):
    trigger = make(TRIGGER, "t", {"broker": "default", "subscriber": TO_SCAN})
    outcome = TriggerReconciler().decide(trigger, Held(*held), 0)
    assert conditions(outcome)["Ready"] == expected
    if broken:
        assert conditions(outcome)[broken] == expected
    resolved = broken != "SubscriberResolved"
    assert outcome.status.get("subscriberUri") == ("http://scan.ns.svc.cluster.local" if resolved else None)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([FINE], ("True", "")),
        ([], ("False", "DependencyDoesNotExist")),
        ([BROKEN], ("False", "DependencyNotReady")),
    ],
)
def test_a_trigger_follows_its_dependency(held, expected):
    reference = json.dumps({"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"})
    spec = {"broker": "default", "subscriber": {"uri": "http://x/"}}
    trigger = make(TRIGGER, "t", spec, **{DEPENDENCY_ANNOTATION: reference})
    assert conditions(TriggerReconciler().decide(trigger, Held(*held), 0))["DependencyReady"] == expected


def test_a_change_of_what_is_named_leads_to_another_look_and_of_anything_else_does_not():
    trigger = make(TRIGGER, "t", {"broker": "default", "subscriber": TO_SCAN})
    other = make(TRIGGER, "other", {"broker": "else", "subscriber": {"uri": "http://x/"}})
    broker = make(BROKER, "b", {"delivery": {"deadLetterSink": TO_SCAN}})
    view = Held(trigger, other, broker)
    assert list(TriggerReconciler().related[SERVICE](SCAN, view)) == [trigger.key]
    assert list(TriggerReconciler().related[BROKER](FINE, view)) == [trigger.key]
    assert list(BrokerReconciler().related[SERVICE](SCAN, view)) == [Key(BROKER, "ns", "b")]


WITH_SINK = {"delivery": {"deadLetterSink": TO_SCAN}}


@pytest.mark.parametrize(
    ("held", "expected", "uri"),
    [
        pytest.param([FINE], ("True", "DeadLetterSinkNotConfigured"), None, id="none configured"),
        pytest.param(
            [make(BROKER, "default", WITH_SINK, {**READY, "deadLetterSinkUri": "http://sink/"})],
            ("True", ""),
            "http://sink/",
            id="the Broker's",
        ),
        pytest.param(
            [make(BROKER, "default", WITH_SINK, READY)],
            ("False", "BrokerDeadLetterSinkNotResolved"),
            None,
            id="the Broker's, not resolved",
        ),
    ],
)
def test_a_trigger_without_a_dead_letter_sink_has_its_brokers(held, expected, uri):
    trigger = make(TRIGGER, "t", {"broker": "default", "subscriber": {"uri": "http://x/"}})
    outcome = TriggerReconciler().decide(trigger, Held(*held), 0)
    assert conditions(outcome)["DeadLetterSinkResolved"] == expected
    assert outcome.status.get("deadLetterSinkUri") == uri


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param({}, ("Unknown", "GenerationNotEqual"), id="of an older generation"),
        pytest.param({"observedGeneration": 1}, ("Unknown", "DependencyNotConfigured"), id="without conditions"),
        pytest.param(
            {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "False", "reason": "NoSink"}]},
            ("False", "NoSink"),
            id="not ready, for its own reason",
        ),
        pytest.param(
            {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "Unknown"}]},
            ("Unknown", "DependencyNotReady"),
            id="unknown",
        ),
        pytest.param(READY, ("True", ""), id="ready"),
    ],
)
def test_a_source_that_a_trigger_depends_on_is_told_as_it_is(status, expected):
    ping = make(KindRef("sources.knative.dev", "v1", "PingSource"), "ping", {}, status)
    reference = json.dumps({"apiVersion": "sources.knative.dev/v1", "kind": "PingSource", "name": "ping"})
    spec = {"broker": "default", "subscriber": {"uri": "http://x/"}}
    trigger = make(TRIGGER, "t", spec, **{DEPENDENCY_ANNOTATION: reference})
    view = Held(FINE, ping, trigger)
    assert conditions(TriggerReconciler().decide(trigger, view, 0))["DependencyReady"] == expected
    assert list(TriggerReconciler().related[ping.ref](ping, view)) == [trigger.key]


def test_a_dependency_that_cannot_be_read_is_told():
    trigger = make(
        TRIGGER, "t", {"broker": "default", "subscriber": {"uri": "http://x/"}}, **{DEPENDENCY_ANNOTATION: "{"}
    )
    found = conditions(TriggerReconciler().decide(trigger, Held(FINE), 0))
    assert found["DependencyReady"] == ("False", "ReferenceError")


def test_a_broker_of_a_class_whose_log_is_not_there_has_no_address_and_says_why():
    redis = make(BROKER, "b", {}, **{CLASS_ANNOTATION: "Redis"})
    outcome = BrokerReconciler().decide(redis, Held(), 0)
    assert "address" not in outcome.status
    assert conditions(outcome)["Ready"] == ("False", "BrokerClassNotServed")
    served = BrokerReconciler(classes=frozenset({"Penstock", "Redis"})).decide(redis, Held(), 0)
    assert conditions(served)["Ready"] == ("True", "")


def test_a_destination_that_names_nothing_is_told_as_such():
    trigger = make(TRIGGER, "t", {"broker": "default"})
    found = conditions(TriggerReconciler().decide(trigger, Held(FINE), 0))
    assert found["SubscriberResolved"] == ("False", "NoDestination")
    broker = make(BROKER, "b", {"delivery": {"deadLetterSink": {}}})
    assert conditions(BrokerReconciler().decide(broker, Held(), 0))["DeadLetterSinkResolved"] == (
        "False",
        "NoDestination",
    )


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        pytest.param([FINE, SCAN], ("True", ""), id="both are there"),
        pytest.param([FINE], ("Unknown", "SubscriptionNotConfigured"), id="no subscriber"),
        pytest.param([BROKEN, SCAN], ("Unknown", "SubscriptionNotConfigured"), id="the Broker is not ready"),
    ],
)
def test_a_trigger_is_subscribed_once_its_broker_is_ready_and_its_subscriber_has_an_address(held, expected):
    trigger = make(TRIGGER, "t", {"broker": "default", "subscriber": TO_SCAN})
    assert conditions(TriggerReconciler().decide(trigger, Held(*held), 0))["SubscriptionReady"] == expected


def test_a_broker_without_a_dead_letter_sink_says_so():
    found = conditions(BrokerReconciler().decide(make(BROKER, "b", {}), Held(), 0))
    assert found == {
        "Addressable": ("True", ""),
        "DeadLetterSinkResolved": ("True", "DeadLetterSinkNotConfigured"),
        "Ready": ("True", ""),
    }
