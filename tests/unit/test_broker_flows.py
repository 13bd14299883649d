"""Sequences and Parallels: defaults, rules, what they are made of, every reason, and events that flow through them."""

from typing import Any

import pytest

from broker.flows import KINDS, MAX_STEPS, PARALLEL, SEQUENCE, plan_parallel, plan_sequence
from broker.messaging import CHANNEL, IN_MEMORY_CHANNEL, SUBSCRIPTION
from broker.reconcile_flows import ParallelReconciler, SequenceReconciler
from core.control.reconcile import Apply, Delete
from core.resources import KindRef, ObjectMeta, Resource, owner_reference
from tests.support.broker import Answer, binary
from tests.support.flows import World, in_world, replies

BY_REF = {kind.ref: kind for kind in KINDS}
TEMPLATE = {"apiVersion": "messaging.knative.dev/v1", "kind": "InMemoryChannel"}
TO_SCAN = {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "scan"}}
PLACED = {"ref": {**TO_SCAN["ref"], "namespace": "ns"}}
A, B, C = ({"uri": f"http://{name}.test/"} for name in "abc")


def admitted(kind: KindRef, **spec: Any) -> Resource:
    meta = ObjectMeta(name="f", namespace="ns", uid="uid-f", generation=1)
    return BY_REF[kind].default(Resource(ref=kind, meta=meta, body={"spec": spec}))


def rules(resource: Resource) -> list[str]:
    return [error.path for error in BY_REF[resource.ref].validate(resource, None)]


# ---- defaults and rules


def test_a_flow_has_in_memory_channels_and_its_references_get_its_namespace():
    sequence = admitted(SEQUENCE, steps=[TO_SCAN, A], reply=TO_SCAN)
    assert sequence.spec == {"steps": [PLACED, A], "reply": PLACED, "channelTemplate": TEMPLATE}
    branch = {"filter": TO_SCAN, "subscriber": TO_SCAN, "reply": TO_SCAN}
    parallel = admitted(PARALLEL, branches=[branch, {"subscriber": A}])
    placed = {"filter": PLACED, "subscriber": PLACED, "reply": PLACED}
    assert parallel.spec == {"branches": [placed, {"subscriber": A}], "channelTemplate": TEMPLATE}
    assert rules(sequence) == rules(parallel) == []
    assert "namespace" not in TO_SCAN["ref"], "a default must not change what it was given"


@pytest.mark.parametrize(
    ("kind", "spec", "broken"),
    [
        pytest.param(SEQUENCE, {"steps": []}, "spec.steps", id="no steps"),
        pytest.param(SEQUENCE, {"steps": [A] * (MAX_STEPS + 1)}, "spec.steps", id="too many steps"),
        pytest.param(SEQUENCE, {"steps": [A, {}]}, "spec.steps[1]", id="an empty step"),
        pytest.param(SEQUENCE, {"steps": [{"uri": "/x"}]}, "spec.steps[0].uri", id="a relative step"),
        pytest.param(
            SEQUENCE, {"steps": [{**A, "delivery": {"retry": -1}}]}, "spec.steps[0].delivery.retry", id="delivery"
        ),
        pytest.param(SEQUENCE, {"steps": [A], "reply": {}}, "spec.reply", id="an empty reply"),
        pytest.param(
            SEQUENCE, {"steps": [A], "channelTemplate": {"kind": "X"}}, "spec.channelTemplate.apiVersion", id="template"
        ),
        pytest.param(PARALLEL, {"branches": []}, "spec.branches", id="no branches"),
        pytest.param(PARALLEL, {"branches": [{"filter": A}]}, "spec.branches[0].subscriber", id="no subscriber"),
        pytest.param(
            PARALLEL, {"branches": [{"filter": {}, "subscriber": A}]}, "spec.branches[0].filter", id="an empty filter"
        ),
        pytest.param(
            PARALLEL, {"branches": [{"subscriber": A, "reply": {}}]}, "spec.branches[0].reply", id="a branch's reply"
        ),
        pytest.param(
            PARALLEL,
            {"branches": [{"subscriber": A, "delivery": {"timeout": "x"}}]},
            "spec.branches[0].delivery.timeout",
            id="a branch's delivery",
        ),
        pytest.param(PARALLEL, {"branches": [{"subscriber": A}], "reply": {}}, "spec.reply", id="the reply"),
        pytest.param(
            PARALLEL,
            {"branches": [{"subscriber": A}], "channelTemplate": {"apiVersion": "x/v1"}},
            "spec.channelTemplate.kind",
            id="a template without kind",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_field(kind, spec, broken):
    assert rules(admitted(kind, **spec)) == [broken]


# ---- what they are made of


def wiring(subscription: Resource) -> tuple[str, str, Any, Any]:
    """Name, channel, subscriber and reply, each channel by its name."""

    def of(destination: dict[str, Any] | None) -> Any:
        if destination is None:
            return None
        return destination["uri"] if "uri" in destination else destination["ref"]["name"]

    spec = subscription.spec
    return subscription.meta.name, spec["channel"]["name"], of(spec["subscriber"]), of(spec.get("reply"))


def test_a_sequence_is_a_channel_and_a_subscription_for_each_step():
    delivery = {"retry": 1}
    plan = plan_sequence(admitted(SEQUENCE, steps=[A, {**B, "delivery": delivery}], reply=C))
    assert plan.channels == ("f-kn-sequence-0", "f-kn-sequence-1")
    assert [wiring(each) for each in plan.subscriptions] == [
        ("f-kn-sequence-0", "f-kn-sequence-0", "http://a.test/", "f-kn-sequence-1"),
        ("f-kn-sequence-1", "f-kn-sequence-1", "http://b.test/", "http://c.test/"),
    ]
    assert plan.subscriptions[1].spec["delivery"] == delivery
    assert plan.subscriptions[1].spec["subscriber"] == B
    (owner,) = plan.subscriptions[0].meta.owner_references
    assert (owner.kind, owner.uid, owner.controller) == ("Sequence", "uid-f", True)


def test_a_parallel_is_a_channel_in_front_and_one_behind_each_filter():
    branches = [{"filter": A, "subscriber": B, "reply": C}, {"subscriber": B, "delivery": {"retry": 1}}]
    plan = plan_parallel(admitted(PARALLEL, branches=branches, reply=A))
    assert plan.channels == ("f-kn-parallel", "f-kn-parallel-0", "f-kn-parallel-1")
    assert [wiring(each) for each in plan.subscriptions] == [
        ("f-kn-parallel-filter-0", "f-kn-parallel", "http://a.test/", "f-kn-parallel-0"),
        ("f-kn-parallel-filter-1", "f-kn-parallel", "f-kn-parallel-1", None),
        ("f-kn-parallel-0", "f-kn-parallel-0", "http://b.test/", "http://c.test/"),
        ("f-kn-parallel-1", "f-kn-parallel-1", "http://b.test/", "http://a.test/"),
    ]
    assert "delivery" not in plan.subscriptions[1].spec
    assert plan.subscriptions[3].spec["delivery"] == {"retry": 1}


# ---- conditions


class Held:
    """A view of just these resources."""

    def __init__(self, *resources: Resource) -> None:
        self._held = {resource.key: resource for resource in resources}

    def get(self, key):
        return self._held.get(key)

    def list(self, kind, namespace=None):
        return [resource for key, resource in self._held.items() if key.kind == kind]

    def owned(self, owner, kind):
        uid = owner.meta.uid
        return [held for held in self.list(kind) if any(ref.uid == uid for ref in held.meta.owner_references)]


READY = {"conditions": [{"type": "Ready", "status": "True"}]}
NOT_READY = {"conditions": [{"type": "Ready", "status": "False", "reason": "X"}]}
ADDRESSED = {**READY, "address": {"url": "http://here/"}}
SEQUENCE_HERE = admitted(SEQUENCE, steps=[A])
PARALLEL_HERE = admitted(PARALLEL, branches=[{"filter": A, "subscriber": B}])


def part(kind: KindRef, name: str, status: dict[str, Any], flow: Resource | None = None, **spec: Any) -> Resource:
    owners = (owner_reference(flow),) if flow else ()
    meta = ObjectMeta(name=name, namespace="ns", uid=f"uid-{name}", generation=1, owner_references=owners)
    return Resource(ref=kind, meta=meta, body={"spec": spec, "status": status})


def all_parts(flow: Resource, channel: dict[str, Any], subscription: dict[str, Any]) -> list[Resource]:
    plan = plan_sequence(flow) if flow.ref == SEQUENCE else plan_parallel(flow)
    return [
        *(part(IN_MEMORY_CHANNEL, name, channel, flow) for name in plan.channels),
        *(each.with_status(subscription).with_meta(uid=f"uid-{each.meta.name}") for each in plan.subscriptions),
    ]


def decide(flow: Resource, *held: Resource):
    reconciler = SequenceReconciler() if flow.ref == SEQUENCE else ParallelReconciler()
    return reconciler.decide(flow, Held(*held), 0)


def conditions(outcome) -> dict[str, tuple[str, str]]:
    return {entry["type"]: (entry["status"], entry.get("reason", "")) for entry in outcome.status["conditions"]}


@pytest.mark.parametrize(("flow", "broken"), [(SEQUENCE_HERE, "Unknown"), (PARALLEL_HERE, "False")])
@pytest.mark.parametrize(
    ("channel", "subscription", "kind", "reason"),
    [
        pytest.param(ADDRESSED, READY, "Ready", None, id="ready"),
        pytest.param({}, READY, "ChannelsReady", "ChannelsNotReady", id="a channel is not ready"),
        pytest.param(ADDRESSED, NOT_READY, "SubscriptionsReady", "SubscriptionsNotReady", id="a Subscription is not"),
        pytest.param(ADDRESSED, {}, "SubscriptionsReady", "SubscriptionsNotReady", id="was not looked at yet"),
        pytest.param(READY, READY, "Addressable", "emptyAddress", id="no address"),
    ],
)
def test_a_flow_is_ready_when_all_its_parts_are(flow, broken, channel, subscription, kind, reason):
    outcome = decide(flow, *all_parts(flow, channel, subscription))
    assert conditions(outcome)[kind] == (("True", "") if reason is None else (broken, reason))
    assert conditions(outcome)["Ready"][0] == ("True" if reason is None else broken)
    assert outcome.status.get("address") == ({"url": "http://here/"} if "address" in channel else None)


@pytest.mark.parametrize(("flow", "broken"), [(SEQUENCE_HERE, "Unknown"), (PARALLEL_HERE, "False")])
def test_a_subscription_of_somebody_else_is_left_alone_and_said(flow, broken):
    name = f"f-kn-{flow.ref.kind.lower()}-0"
    stranger = part(SUBSCRIPTION, name, READY)
    outcome = decide(flow, *all_parts(flow, ADDRESSED, READY), stranger)
    assert conditions(outcome)["SubscriptionsReady"] == (broken, "SubscriptionsNotReady")
    assert not [action for action in outcome.actions if isinstance(action, Apply) and action.resource.meta.name == name]
    reconciler = SequenceReconciler() if flow.ref == SEQUENCE else ParallelReconciler()
    assert list(reconciler.related[SUBSCRIPTION](stranger, Held())) == [flow.key]


@pytest.mark.parametrize(("kind", "broken"), [(SEQUENCE, "Unknown"), (PARALLEL, "False")])
def test_a_flow_of_channels_that_there_are_not_says_so_and_makes_nothing(kind, broken):
    template = {"apiVersion": "messaging.knative.dev/v1beta1", "kind": "KafkaChannel"}
    flow = admitted(kind, steps=[A], branches=[{"subscriber": A}], channelTemplate=template)
    outcome = decide(flow)
    assert conditions(outcome)["ChannelsReady"] == (broken, "ChannelsNotReady")
    assert outcome.actions == ()


@pytest.mark.parametrize(("kind", "count"), [(SEQUENCE, 2), (PARALLEL, 4)])
def test_a_flow_that_never_passed_admission_is_made_as_if_it_had(kind, count):
    spec = {"steps": [A]} if kind == SEQUENCE else {"branches": [{"subscriber": A}]}
    meta = ObjectMeta(name="f", namespace="ns", uid="uid-f", generation=1)
    outcome = decide(Resource(ref=kind, meta=meta, body={"spec": spec}))
    assert len(outcome.actions) == count


def test_the_status_names_every_part_with_how_it_is():
    outcome = decide(SEQUENCE_HERE, *all_parts(SEQUENCE_HERE, ADDRESSED, READY))
    reference = {"apiVersion": "messaging.knative.dev/v1", "name": "f-kn-sequence-0", "namespace": "ns"}
    ready = {"type": "Ready", "status": "True"}
    assert outcome.status["channelStatuses"] == [{"channel": {**reference, "kind": "InMemoryChannel"}, "ready": ready}]
    assert outcome.status["subscriptionStatuses"] == [
        {"subscription": {**reference, "kind": "Subscription"}, "ready": ready}
    ]
    missing = decide(PARALLEL_HERE).status
    assert missing["ingressChannelStatus"]["ready"]["reason"] == "NotAddressable"
    (branch,) = missing["branchStatuses"]
    assert branch["filterSubscriptionStatus"]["subscription"]["name"] == "f-kn-parallel-filter-0"
    assert branch["filterSubscriptionStatus"]["ready"]["reason"] == "NoReady"
    assert branch["filterChannelStatus"]["channel"]["name"] == "f-kn-parallel-0"
    assert branch["subscriberSubscriptionStatus"]["subscription"]["name"] == "f-kn-parallel-0"


def test_parts_that_are_not_wanted_any_more_go_and_a_subscription_that_moves_is_made_anew():
    old = admitted(SEQUENCE, steps=[A, B])
    held = all_parts(old, ADDRESSED, READY)
    deleted = [action.key for action in decide(SEQUENCE_HERE, *held).actions if isinstance(action, Delete)]
    assert [(key.kind, key.name) for key in deleted] == [
        (SUBSCRIPTION, "f-kn-sequence-1"),
        (IN_MEMORY_CHANNEL, "f-kn-sequence-1"),
    ]
    template = {"apiVersion": "messaging.knative.dev/v1", "kind": "Channel"}
    moved = admitted(SEQUENCE, steps=[A], channelTemplate=template)
    actions = decide(moved, *all_parts(SEQUENCE_HERE, ADDRESSED, READY)).actions
    done = [
        (type(each).__name__, (each.key if isinstance(each, Delete) else each.resource.key).kind) for each in actions
    ]
    assert done == [
        ("Apply", CHANNEL),
        ("Delete", SUBSCRIPTION),
        ("Apply", SUBSCRIPTION),
        ("Delete", IN_MEMORY_CHANNEL),
    ]


# ---- events


SEQUENCE_OF_THREE = """
apiVersion: flows.knative.dev/v1
kind: Sequence
metadata: {name: s}
spec:
  steps:
    - uri: http://one.test/
    - uri: http://two.test/
      delivery: {retry: 0, deadLetterSink: {uri: "http://sink.test/"}}
    - uri: http://three.test/
  reply: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: into}
spec:
  broker: default
  filter: {attributes: {type: test.made}}
  subscriber: {ref: {apiVersion: flows.knative.dev/v1, kind: Sequence, name: s}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: out}
spec:
  broker: default
  filter: {attributes: {type: test.answered}}
  subscriber: {uri: "http://out.test/"}
"""


def answer_in_turn(world: World) -> None:
    for host, suffix in (("one.test", "-1"), ("two.test", "-2"), ("three.test", "-3")):
        world.script(host, replies(suffix))


@in_world
async def test_an_event_goes_through_the_steps_of_a_sequence_and_out_to_its_reply(world):
    await world.apply(SEQUENCE_OF_THREE)
    answer_in_turn(world)
    assert (await world.conditions(SEQUENCE, "s"))["Ready"] == ("True", "")
    await world.send("/default/default")
    assert world.ids("one.test") == ["e1"]
    assert world.ids("two.test") == ["e1-1"]
    assert world.ids("three.test") == ["e1-1-2"]
    assert world.ids("out.test") == ["e1-1-2-3"]


@in_world
async def test_a_step_that_answers_nothing_ends_the_sequence_and_one_that_fails_has_its_own_dead_letters(world):
    await world.apply(SEQUENCE_OF_THREE)
    answer_in_turn(world)
    world.script("two.test", Answer(204), Answer(500))
    await world.send("/default/default", "ends")
    assert world.ids("three.test") == []
    await world.send("/default/default", "fails")
    (letter,) = world.subscribers.at("sink.test")
    assert (letter.event.id, letter.event.attributes["knativeerrordest"]) == ("fails-1", "http://two.test/")
    assert world.ids("three.test") == []


@in_world
async def test_a_sequence_that_changes_keeps_what_is_on_its_way(world):
    await world.apply(SEQUENCE_OF_THREE)
    answer_in_turn(world)
    world.script("one.test", *[Answer(503)] * 7, replies("-1"))  # some 25 s of back-off
    await world.send("/default/default")
    shorter = SEQUENCE_OF_THREE.replace("    - uri: http://three.test/\n", "")
    await world.apply(shorter)
    await world.settle(60)
    assert world.ids("out.test") == ["e1-1-2"]
    assert (
        await world.names(SUBSCRIPTION)
        == await world.names(IN_MEMORY_CHANNEL)
        == [
            "s-kn-sequence-0",
            "s-kn-sequence-1",
        ]
    )
    assert (await world.conditions(SEQUENCE, "s"))["Ready"] == ("True", "")


@in_world
async def test_a_deleted_flow_takes_its_parts_with_it(world):
    await world.apply(SEQUENCE_OF_THREE)
    await world.delete(SEQUENCE, "s")
    assert await world.names(SUBSCRIPTION) == await world.names(IN_MEMORY_CHANNEL) == []


@in_world
async def test_a_sequence_can_be_made_of_channels(world):
    template = "  channelTemplate: {apiVersion: messaging.knative.dev/v1, kind: Channel}\n  reply:"
    await world.apply(SEQUENCE_OF_THREE)
    await world.apply(SEQUENCE_OF_THREE.replace("  reply:", template))
    assert await world.names(CHANNEL) == ["s-kn-sequence-0", "s-kn-sequence-1", "s-kn-sequence-2"]
    assert (await world.conditions(SEQUENCE, "s"))["Ready"] == ("True", "")
    answer_in_turn(world)
    await world.send("/default/default")
    assert world.ids("out.test") == ["e1-1-2-3"]


PARALLEL_OF_TWO = """
apiVersion: flows.knative.dev/v1
kind: Parallel
metadata: {name: p}
spec:
  branches:
    - filter: {uri: "http://even.test/"}
      subscriber: {uri: "http://one.test/"}
    - subscriber: {uri: "http://two.test/"}
      reply: {uri: "http://its-own.test/"}
  reply: {uri: "http://everybody.test/"}
"""


@in_world
async def test_every_branch_of_a_parallel_gets_what_its_filter_answers_and_replies_to_its_own_or_the_common_one(world):
    await world.apply(PARALLEL_OF_TWO)
    assert (await world.conditions(PARALLEL, "p"))["Ready"] == ("True", "")
    world.script(
        "even.test",
        lambda request: Answer(200, request.headers, request.body) if int(request.event.id) % 2 == 0 else Answer(204),
    )
    world.script("one.test", replies("-1"))
    world.script("two.test", lambda request: Answer(200, binary(request.event.id + "-2"), b"{}"))
    for number in (1, 2):
        await world.send("/default/channels/p-kn-parallel", str(number))
    assert world.ids("even.test") == ["1", "2"]
    assert world.ids("one.test") == ["2"]
    assert world.ids("two.test") == ["1", "2"]
    assert world.ids("everybody.test") == ["2-1"]
    assert world.ids("its-own.test") == ["1-2", "2-2"]
    address = (await world.get(PARALLEL, "p")).status["address"]["url"]
    assert address.endswith("/default/channels/p-kn-parallel")
