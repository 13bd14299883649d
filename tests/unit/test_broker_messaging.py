"""Channel, InMemoryChannel and Subscription: defaults, rules, and one row for each reason that a person can meet."""

from typing import Any

import pytest

from broker.messaging import CHANNEL, IN_MEMORY_CHANNEL, KINDS, SUBSCRIPTION
from broker.reconcile import ADDRESSABLES, INGRESS_URL, BrokerReconciler, TriggerReconciler
from broker.reconcile_messaging import ChannelReconciler, InMemoryChannelReconciler, SubscriptionReconciler
from broker.resources import BROKER, TRIGGER
from core.control.reconcile import Apply
from core.resources import Key, KindRef, ObjectMeta, Resource

BY_REF = {kind.ref: kind for kind in KINDS}
SERVICE = KindRef("serving.knative.dev", "v1", "Service")
READY = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}
TEMPLATE = {"apiVersion": "messaging.knative.dev/v1", "kind": "InMemoryChannel"}
TO_SCAN = {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "scan"}}
TO_NOBODY = {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "nobody"}}
TO_CHANNEL = {"apiVersion": "messaging.knative.dev/v1", "kind": "Channel", "name": "c"}
TO_MEMORY = {**TO_CHANNEL, "kind": "InMemoryChannel"}
URI = {"uri": "http://x.test/"}
SCAN = Resource(
    ref=SERVICE,
    meta=ObjectMeta(name="scan", namespace="ns", uid="scan", generation=1),
    body={"status": {"address": {"url": "http://scan.ns.svc.cluster.local"}}},
)


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


def make(kind: KindRef, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None) -> Resource:
    meta = ObjectMeta(name=name, namespace="ns", generation=1, uid=name)
    return Resource(ref=kind, meta=meta, body={"spec": spec, "status": status or {}})


def admitted(kind: KindRef, spec: dict[str, Any]) -> Resource:
    meta = ObjectMeta(name="c", namespace="ns")
    return BY_REF[kind].default(Resource(ref=kind, meta=meta, body={"spec": spec}))


def rules(resource: Resource, old: Resource | None = None) -> list[str]:
    return [error.path for error in BY_REF[resource.ref].validate(resource, old)]


def conditions(outcome) -> dict[str, tuple[str, str]]:
    return {entry["type"]: (entry["status"], entry.get("reason", "")) for entry in outcome.status["conditions"]}


# ---- defaults and rules


def test_a_channel_is_backed_by_an_in_memory_channel_where_it_says_nothing():
    made = admitted(CHANNEL, {})
    assert made.spec["channelTemplate"] == TEMPLATE
    assert made.meta.annotations == {"messaging.knative.dev/subscribable": "v1"}
    assert rules(made) == []
    assert rules(made, made) == []


def test_references_of_a_subscription_and_of_a_channels_sink_get_their_own_namespace():
    subscription = admitted(
        SUBSCRIPTION,
        {"channel": TO_CHANNEL, "subscriber": TO_SCAN, "reply": TO_SCAN, "delivery": {"deadLetterSink": TO_SCAN}},
    )
    placed = {"ref": {**TO_SCAN["ref"], "namespace": "ns"}}
    assert subscription.spec["subscriber"] == subscription.spec["reply"] == placed
    assert subscription.spec["delivery"]["deadLetterSink"] == placed
    assert "namespace" not in TO_SCAN["ref"], "a default must not change what it was given"
    assert admitted(IN_MEMORY_CHANNEL, {"delivery": {"deadLetterSink": TO_SCAN}}).spec["delivery"] == {
        "deadLetterSink": placed
    }
    assert rules(subscription) == []


@pytest.mark.parametrize(
    ("kind", "spec", "broken"),
    [
        pytest.param(CHANNEL, {"channelTemplate": {"kind": "X"}}, "spec.channelTemplate.apiVersion", id="no version"),
        pytest.param(CHANNEL, {"channelTemplate": {"apiVersion": "x/v1"}}, "spec.channelTemplate.kind", id="no kind"),
        pytest.param(CHANNEL, {"subscribers": [{}]}, "spec.subscribers", id="a Channel's subscribers"),
        pytest.param(CHANNEL, {"delivery": {"retry": -1}}, "spec.delivery.retry", id="a Channel's delivery"),
        pytest.param(
            CHANNEL,
            {"channelTemplate": {**TEMPLATE, "spec": {"color": "red"}}},
            "spec.channelTemplate.spec",
            id="a template that is no channel's",
        ),
        pytest.param(
            CHANNEL,
            {"channelTemplate": {**TEMPLATE, "spec": {"subscribers": [{}]}}},
            "spec.channelTemplate.spec.subscribers",
            id="a template with subscribers",
        ),
        pytest.param(
            CHANNEL,
            {"channelTemplate": {**TEMPLATE, "spec": {"delivery": {"retry": -1}}}},
            "spec.channelTemplate.spec.delivery.retry",
            id="a template's delivery",
        ),
        pytest.param(IN_MEMORY_CHANNEL, {"subscribers": [{}]}, "spec.subscribers", id="subscribers"),
        pytest.param(IN_MEMORY_CHANNEL, {"delivery": {"retry": -1}}, "spec.delivery.retry", id="delivery"),
        pytest.param(SUBSCRIPTION, {"subscriber": URI}, "spec.channel", id="no channel"),
        pytest.param(
            SUBSCRIPTION,
            {"channel": {"apiVersion": "messaging.knative.dev/v1", "kind": "Channel"}, "subscriber": URI},
            "spec.channel.name",
            id="a channel without name",
        ),
        pytest.param(
            SUBSCRIPTION,
            {"channel": {**TO_CHANNEL, "kind": "KafkaChannel"}, "subscriber": URI},
            "spec.channel.kind",
            id="a channel of a kind that there is not",
        ),
        pytest.param(
            SUBSCRIPTION,
            {"channel": {**TO_CHANNEL, "namespace": "other"}, "subscriber": URI},
            "spec.channel.namespace",
            id="a channel of another namespace",
        ),
        pytest.param(SUBSCRIPTION, {"channel": TO_CHANNEL}, "spec.subscriber", id="no subscriber"),
        pytest.param(
            SUBSCRIPTION, {"channel": TO_CHANNEL, "subscriber": {"uri": "/x"}}, "spec.subscriber.uri", id="relative"
        ),
        pytest.param(
            SUBSCRIPTION,
            {"channel": TO_CHANNEL, "subscriber": URI, "reply": {"uri": "/x"}},
            "spec.reply.uri",
            id="a relative reply",
        ),
        pytest.param(
            SUBSCRIPTION,
            {"channel": TO_CHANNEL, "subscriber": URI, "delivery": {"timeout": "soon"}},
            "spec.delivery.timeout",
            id="a Subscription's delivery",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_field(kind, spec, broken):
    assert rules(admitted(kind, spec)) == [broken]


def test_an_empty_reply_is_none():
    assert rules(admitted(SUBSCRIPTION, {"channel": TO_CHANNEL, "subscriber": URI, "reply": {}})) == []


def test_a_channel_never_changes_and_of_a_subscription_all_but_its_channel_can():
    before = admitted(CHANNEL, {})
    assert rules(admitted(CHANNEL, {"delivery": {"retry": 1}}), before) == ["spec"]
    subscription = admitted(SUBSCRIPTION, {"channel": TO_CHANNEL, "subscriber": URI})
    changed = {"channel": TO_CHANNEL, "subscriber": TO_SCAN, "reply": URI, "delivery": {"retry": 1}}
    assert rules(admitted(SUBSCRIPTION, changed), subscription) == []
    moved = admitted(SUBSCRIPTION, {"channel": {**TO_CHANNEL, "name": "other"}, "subscriber": URI})
    assert rules(moved, subscription) == ["spec.channel"]
    memory = admitted(IN_MEMORY_CHANNEL, {})
    assert rules(admitted(IN_MEMORY_CHANNEL, {"delivery": {"retry": 1}}), memory) == []


# ---- InMemoryChannel


def in_memory(**spec: Any) -> Resource:
    return make(IN_MEMORY_CHANNEL, "c", spec)


IN_MEMORY = InMemoryChannelReconciler(ingress_url=INGRESS_URL, addressables=ADDRESSABLES)


@pytest.mark.parametrize(
    ("delivery", "held", "expected"),
    [
        pytest.param({}, [], ("True", "DeadLetterSinkNotConfigured"), id="none configured"),
        pytest.param({"deadLetterSink": TO_SCAN}, [SCAN], ("True", ""), id="resolved"),
        pytest.param({"deadLetterSink": TO_SCAN}, [], ("False", "NotFound"), id="it does not exist"),
        pytest.param(
            {"deadLetterSink": TO_SCAN}, [make(SERVICE, "scan", {})], ("False", "AddressNotReady"), id="no address yet"
        ),
    ],
)
def test_an_in_memory_channels_dead_letter_sink_resolves_or_says_why_not(delivery, held, expected):
    outcome = IN_MEMORY.decide(in_memory(delivery=delivery), Held(*held), 0)
    assert conditions(outcome)["DeadLetterSinkResolved"] == expected
    assert conditions(outcome)["Addressable"] == ("True", "")
    assert conditions(outcome)["Ready"] == (expected if expected[0] == "False" else ("True", ""))
    assert outcome.status.get("deadLetterSinkUri") == ("http://scan.ns.svc.cluster.local" if held == [SCAN] else None)


def test_a_change_of_its_sink_or_of_a_subscription_has_a_channel_looked_at_again():
    channel = in_memory(delivery={"deadLetterSink": TO_SCAN})
    assert list(IN_MEMORY.related[SERVICE](SCAN, Held(channel))) == [channel.key]
    held = make(SUBSCRIPTION, "s", {"channel": TO_CHANNEL, "subscriber": URI})
    assert list(IN_MEMORY.related[SUBSCRIPTION](held, Held())) == [channel.key]


# ---- Channel


BACKED = {**READY, "address": {"name": "http", "url": "http://here/ns/channels/c"}}


def backing(status: dict[str, Any]) -> Resource:
    return make(IN_MEMORY_CHANNEL, "c", {}, status)


@pytest.mark.parametrize(
    ("spec", "held", "broken", "expected"),
    [
        pytest.param({}, [backing(BACKED)], "Ready", ("True", ""), id="ready"),
        pytest.param({}, [], "BackingChannelReady", ("Unknown", "BackingChannelNotConfigured"), id="just being made"),
        pytest.param(
            {"channelTemplate": None},
            [],
            "BackingChannelReady",
            ("Unknown", "BackingChannelNotConfigured"),
            id="it never passed admission",
        ),
        pytest.param(
            {}, [backing({})], "BackingChannelReady", ("Unknown", "BackingChannelNotConfigured"), id="not looked at yet"
        ),
        pytest.param({}, [backing(READY)], "Addressable", ("False", "EmptyHostname"), id="without an address"),
        pytest.param(
            {},
            [backing({**BACKED, "conditions": [{"type": "Ready", "status": "False", "reason": "NotFound"}]})],
            "BackingChannelReady",
            ("False", "NotFound"),
            id="not ready, for its own reason",
        ),
        pytest.param(
            {},
            [backing({**BACKED, "conditions": [{"type": "Ready", "status": "Unknown"}]})],
            "BackingChannelReady",
            ("Unknown", ""),
            id="unknown",
        ),
        pytest.param(
            {"channelTemplate": {"apiVersion": "messaging.knative.dev/v1beta1", "kind": "KafkaChannel"}},
            [],
            "BackingChannelReady",
            ("False", "ChannelFailure"),
            id="a kind of channel that there is not",
        ),
        pytest.param(
            {},
            [backing(BACKED)],
            "DeadLetterSinkResolved",
            ("True", "DeadLetterSinkNotConfigured"),
            id="no dead-letter sink",
        ),
        pytest.param(
            {"delivery": {"deadLetterSink": TO_SCAN}},
            [backing({**BACKED, "deadLetterSinkUri": "http://sink/"})],
            "DeadLetterSinkResolved",
            ("True", ""),
            id="a dead-letter sink",
        ),
        pytest.param(
            {"delivery": {"deadLetterSink": TO_SCAN}},
            [backing(BACKED)],
            "DeadLetterSinkResolved",
            ("False", "BackingChannelDeadLetterSinkNotResolved"),
            id="a dead-letter sink without an address",
        ),
    ],
)
def test_a_channel_says_what_the_channel_behind_it_says(spec, held, broken, expected):
    channel = make(CHANNEL, "c", {"channelTemplate": TEMPLATE, **spec})
    assert conditions(ChannelReconciler().decide(channel, Held(*held), 0))[broken] == expected


def test_a_channel_makes_the_channel_behind_it_once_and_leaves_one_that_is_there_as_it_is():
    delivery = {"retry": 3}
    template = {**TEMPLATE, "spec": {"delivery": {"retry": 1}}}
    channel = make(CHANNEL, "c", {"channelTemplate": template, "delivery": delivery})
    (action,) = ChannelReconciler().decide(channel, Held(), 0).actions
    assert isinstance(action, Apply)
    assert action.resource.key == Key(IN_MEMORY_CHANNEL, "ns", "c")
    assert action.resource.spec == {"delivery": delivery}
    assert rules(action.resource) == []
    assert ChannelReconciler().decide(channel, Held(backing({})), 0).actions == ()
    assert list(ChannelReconciler().related[IN_MEMORY_CHANNEL](action.resource, Held())) == [channel.key]


# ---- Subscription


SUBSCRIPTIONS = SubscriptionReconciler(addressables=ADDRESSABLES)
FRONT = make(CHANNEL, "c", {}, READY)
KNOWS_S = {**BACKED, "subscribers": [{"uid": "s", "observedGeneration": 1, "ready": "True"}]}
WITH_SINK = {"delivery": {"deadLetterSink": TO_SCAN}}


@pytest.mark.parametrize(
    ("spec", "held", "broken", "expected"),
    [
        pytest.param({}, [FRONT, backing(KNOWS_S)], "Ready", ("True", ""), id="ready"),
        pytest.param({"channel": TO_MEMORY}, [backing(KNOWS_S)], "Ready", ("True", ""), id="to an InMemoryChannel"),
        pytest.param(
            {}, [], "ReferencesResolved", ("Unknown", "ChannelReferenceFailed"), id="its channel does not exist"
        ),
        pytest.param(
            {},
            [make(CHANNEL, "c", {}, {}), backing(KNOWS_S)],
            "ReferencesResolved",
            ("Unknown", "ChannelReferenceFailed"),
            id="its Channel is not ready",
        ),
        pytest.param(
            {}, [FRONT], "ReferencesResolved", ("Unknown", "ChannelReferenceFailed"), id="nothing behind its Channel"
        ),
        pytest.param(
            {"subscriber": TO_NOBODY},
            [FRONT, backing(KNOWS_S)],
            "ReferencesResolved",
            ("False", "SubscriberResolveFailed"),
            id="no subscriber of that name",
        ),
        pytest.param(
            {"reply": TO_NOBODY},
            [FRONT, backing(KNOWS_S)],
            "ReferencesResolved",
            ("False", "ReplyResolveFailed"),
            id="nobody to reply to",
        ),
        pytest.param(
            {"delivery": {"deadLetterSink": TO_NOBODY}},
            [FRONT, backing(KNOWS_S)],
            "ReferencesResolved",
            ("False", "DeadLetterSinkResolveFailed"),
            id="no dead-letter sink of that name",
        ),
        pytest.param(
            {},
            [FRONT, make(IN_MEMORY_CHANNEL, "c", WITH_SINK, KNOWS_S)],
            "ReferencesResolved",
            ("False", "DeadLetterSinkResolveFailed"),
            id="its channel's dead-letter sink has no address",
        ),
        pytest.param(
            {},
            [FRONT, backing(BACKED)],
            "ChannelReady",
            ("Unknown", "SubscriptionNotMarkedReadyByChannel"),
            id="its channel does not know it yet",
        ),
        pytest.param(
            {"subscriber": TO_NOBODY}, [FRONT, backing(KNOWS_S)], "AddedToChannel", ("Unknown", ""), id="wait"
        ),
    ],
)
def test_a_subscription_is_ready_when_everything_it_names_is_and_its_channel_has_it(spec, held, broken, expected):
    subscription = make(SUBSCRIPTION, "s", {"channel": TO_CHANNEL, "subscriber": URI, **spec})
    outcome = SUBSCRIPTIONS.decide(subscription, Held(SCAN, *held), 0)
    assert conditions(outcome)[broken] == expected
    assert conditions(outcome)["Ready"] == (expected if expected != ("Unknown", "") else conditions(outcome)["Ready"])
    nobody = spec.get("subscriber") == TO_NOBODY
    assert outcome.status["physicalSubscription"].get("subscriberUri") == (None if nobody else "http://x.test/")


def test_a_subscription_without_a_dead_letter_sink_has_its_channels():
    subscription = make(SUBSCRIPTION, "s", {"channel": TO_MEMORY, "subscriber": URI})
    channel = make(IN_MEMORY_CHANNEL, "c", WITH_SINK, {**KNOWS_S, "deadLetterSinkUri": "http://sink/"})
    outcome = SUBSCRIPTIONS.decide(subscription, Held(channel), 0)
    assert outcome.status["physicalSubscription"]["deadLetterSinkUri"] == "http://sink/"
    assert conditions(outcome)["Ready"] == ("True", "")


def test_a_channel_counts_as_subscribers_only_whose_references_are_resolved_as_they_are_now():
    resolved = {"observedGeneration": 1, "conditions": [{"type": "ReferencesResolved", "status": "True"}]}
    to_c = {"channel": TO_CHANNEL, "subscriber": URI}
    held = [
        make(SUBSCRIPTION, "s", to_c, resolved),
        make(SUBSCRIPTION, "older", to_c, {**resolved, "observedGeneration": 0}),
        make(SUBSCRIPTION, "not-yet", to_c, {"observedGeneration": 1}),
        make(SUBSCRIPTION, "elsewhere", {**to_c, "channel": {**TO_CHANNEL, "name": "d"}}, resolved),
    ]
    outcome = IN_MEMORY.decide(in_memory(), Held(*held), 0)
    assert outcome.status["subscribers"] == [{"uid": "s", "observedGeneration": 1, "ready": "True"}]


def test_a_change_of_what_a_subscription_names_has_it_looked_at_again():
    one = make(SUBSCRIPTION, "one", {"channel": TO_CHANNEL, "subscriber": TO_SCAN})
    two = make(
        SUBSCRIPTION, "two", {"channel": {**TO_CHANNEL, "name": "d"}, "subscriber": URI, "reply": {"ref": TO_MEMORY}}
    )
    view = Held(one, two)
    assert list(SUBSCRIPTIONS.related[SERVICE](SCAN, view)) == [one.key]
    assert list(SUBSCRIPTIONS.related[IN_MEMORY_CHANNEL](in_memory(), view)) == [one.key, two.key]
    assert list(SUBSCRIPTIONS.related[CHANNEL](FRONT, view)) == [one.key]


@pytest.mark.parametrize(
    ("reconciler", "kind", "spec"),
    [
        pytest.param(IN_MEMORY, IN_MEMORY_CHANNEL, {"delivery": {"deadLetterSink": TO_SCAN}}, id="channels"),
        pytest.param(SUBSCRIPTIONS, SUBSCRIPTION, {"channel": TO_CHANNEL, "subscriber": TO_SCAN}, id="Subscriptions"),
        pytest.param(BrokerReconciler(), BROKER, {"delivery": {"deadLetterSink": TO_SCAN}}, id="Brokers"),
        pytest.param(TriggerReconciler(), TRIGGER, {"broker": "b", "subscriber": TO_SCAN}, id="Triggers"),
    ],
)
def test_one_that_cannot_be_read_keeps_no_other_from_being_looked_at_again(reconciler, kind, spec):
    odd, other = make(kind, "a", {"color": "red"}), make(kind, "b", spec)
    assert list(reconciler.related[SERVICE](SCAN, Held(odd, other))) == [other.key]
