"""EventTypes: defaults, rules, reasons, and how they come from what flows."""

import asyncio

import pytest

from broker import learning
from broker.event_types import EVENT_TYPE, KINDS, event_type_name, make_event_type
from broker.learning import FORGET_S, EventTypeLearner
from broker.log.port import Entry, Record
from broker.messaging import CHANNEL, IN_MEMORY_CHANNEL
from broker.reconcile import ADDRESSABLES
from broker.reconcile_event_types import EventTypeReconciler
from broker.resources import BROKER
from core.control.memory import MemoryStore
from core.control.port import Listing
from core.errors import Unavailable
from core.resources import Key, KindRef, ObjectMeta, Resource
from tests.support.flows import in_world
from tests.support.virtual_time import run_virtual

(KIND,) = KINDS
ATTRIBUTES = [{"name": name} for name in ("type", "source", "specversion", "id")]
TO_BROKER = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}
BROKER_HERE = """
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
"""


def admitted(**spec) -> Resource:
    return KIND.default(Resource(ref=EVENT_TYPE, meta=ObjectMeta(name="et", namespace="ns"), body={"spec": spec}))


# ---- the kind


def test_a_reference_gets_the_own_namespace():
    made = admitted(attributes=ATTRIBUTES, reference=TO_BROKER)
    assert made.spec["reference"]["namespace"] == "ns"
    assert list(KIND.validate(made, None)) == []


@pytest.mark.parametrize("missing", ["type", "source", "specversion", "id"])
def test_the_attributes_of_every_event_must_be_there(missing):
    given = [entry for entry in ATTRIBUTES if entry["name"] != missing]
    (error,) = KIND.validate(admitted(attributes=given), None)
    assert str(error) == f"spec.attributes: must have an entry of the name {missing}"


def test_the_name_is_knatives():
    # `printf 'a.b/snsdefault' | md5sum`
    assert event_type_name("ns", "default", "a.b", "/s") == "et-default-fbf6abefb7e03b656ba505af0d06552b"
    name = event_type_name("ns", "n" * 253, "t", "/s")
    assert len(name) == 243
    assert not name.endswith("-")


def test_event_types_of_a_broker_with_the_longest_name_differ():
    assert len({event_type_name("ns", "n" * 253, kind, "/s") for kind in ("a", "b", "c")}) == 3


def held(*resources: Resource):
    by_key = {resource.key: resource for resource in resources}

    class Held:
        def get(self, key):
            return by_key.get(key)

        def list(self, kind, namespace=None):
            return [resource for key, resource in by_key.items() if key.kind == kind]

        def owned(self, owner, kind):
            return []

    return Held()


HERE = Resource(ref=BROKER, meta=ObjectMeta(name="default", namespace="ns", uid="u"), body={})


@pytest.mark.parametrize(
    ("reference", "resources", "expected"),
    [
        pytest.param(None, [], ("True", "ReferenceNotSet"), id="no reference"),
        pytest.param({}, [], ("True", "ReferenceNotSet"), id="an empty one"),
        pytest.param(TO_BROKER, [HERE], ("True", None), id="it exists"),
        pytest.param(TO_BROKER, [], ("False", "ResourceDoesNotExist"), id="it does not"),
        pytest.param({**TO_BROKER, "kind": "Else"}, [HERE], ("Unknown", "ReferenceGetFailed"), id="of another kind"),
    ],
)
def test_an_event_type_says_whether_what_it_refers_to_is_there(reference, resources, expected):
    spec = {"attributes": ATTRIBUTES, **({"reference": reference} if reference is not None else {})}
    event_type = admitted(**spec)
    reconciler = EventTypeReconciler(addressables=ADDRESSABLES)
    status = reconciler.decide(event_type, held(*resources), 0).status
    assert status is not None
    told = {entry["type"]: (entry["status"], entry.get("reason")) for entry in status["conditions"]}
    assert told["ReferenceExists"] == expected
    assert told["Ready"][0] == expected[0]
    if reference == TO_BROKER:
        odd = Resource(ref=EVENT_TYPE, meta=ObjectMeta(name="a", namespace="ns"), body={"spec": {"variables": []}})
        assert list(reconciler.related[BROKER](HERE, held(odd, event_type))) == [event_type.key]


# ---- from what flows


@in_world
async def test_the_first_event_of_a_type_and_source_makes_an_event_type_of_the_broker(world):
    await world.apply(BROKER_HERE)
    await world.send("/default/default", "e1", "order.created", dataschema="http://schema.test/order")
    await world.send("/default/default", "e2", "order.created")
    await world.send("/default/default", "e3", "order.paid")
    made = (await world.store.list(EVENT_TYPE)).items
    by_type = {each.spec["attributes"][0]["value"]: each for each in made}
    assert sorted(by_type) == ["order.created", "order.paid"]
    created = by_type["order.created"]
    assert created.meta.name == event_type_name("default", "default", "order.created", "/test")
    assert created.spec["reference"] == {**TO_BROKER, "namespace": "default"}
    assert created.spec["attributes"][1:] == [
        {"name": "source", "required": True, "value": "/test"},
        {"name": "specversion", "required": True, "value": "1.0"},
        {"name": "id", "required": True},
        {"name": "schemadata", "required": True, "value": "http://schema.test/order"},
    ]
    assert list(KIND.validate(created, None)) == []
    assert (await world.conditions(EVENT_TYPE, created.meta.name))["Ready"] == ("True", "")
    await world.delete(BROKER, "default")
    assert (await world.store.list(EVENT_TYPE)).items == ()


@in_world
async def test_a_channels_events_make_event_types_of_the_channel_and_those_of_people_are_left_alone(world):
    await world.apply("""
apiVersion: messaging.knative.dev/v1
kind: Channel
metadata: {name: orders}
---
apiVersion: eventing.knative.dev/v1beta3
kind: EventType
metadata: {name: mine}
spec: {attributes: [{name: type, value: order.created}, {name: source}, {name: specversion}, {name: id}]}
""")
    mine = await world.get(EVENT_TYPE, "mine")
    await world.send("/default/channels/orders", "e1", "order.created")
    made, kept = sorted((await world.store.list(EVENT_TYPE)).items, key=lambda each: each.meta.name)
    assert made.spec["reference"]["kind"] == "InMemoryChannel"
    assert made.meta.name.startswith("et-orders-")
    assert kept == await world.get(EVENT_TYPE, "mine")
    assert kept.spec == mine.spec


@in_world
async def test_it_can_be_switched_off_and_one_that_was_deleted_comes_back_later(world):
    off = "{name: default, annotations: {penstock.dev/eventtype-auto-create: disabled}}"
    await world.apply(BROKER_HERE.replace("{name: default}", off))
    await world.send("/default/default")
    assert await world.names(EVENT_TYPE) == []
    await world.apply(BROKER_HERE.replace("{name: default}", off.replace("disabled", "enabled")))
    await world.settle(FORGET_S)
    await world.send("/default/default")
    (name,) = await world.names(EVENT_TYPE)
    await world.delete(EVENT_TYPE, name)
    await world.send("/default/default")
    assert await world.names(EVENT_TYPE) == []
    await world.settle(FORGET_S)
    await world.send("/default/default")
    assert await world.names(EVENT_TYPE) == [name]


@in_world
async def test_a_flow_passes_on_whether_event_types_are_made(world):
    off = "{name: orders, annotations: {penstock.dev/eventtype-auto-create: disabled}}"
    await world.apply(f"apiVersion: messaging.knative.dev/v1\nkind: Channel\nmetadata: {off}\n")
    await world.send("/default/channels/orders")
    assert await world.names(EVENT_TYPE) == []
    for kind in (CHANNEL, IN_MEMORY_CHANNEL):
        assert (await world.get(kind, "orders")).meta.annotations["penstock.dev/eventtype-auto-create"] == "disabled"


class Failing(MemoryStore):
    """A store that is away for as long as it is told."""

    away = True

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        if self.away:
            raise Unavailable("The store is away.")
        return await super().list(kind, namespace)


def record(seq: int, event_type: str) -> Record:
    attributes = {"specversion": "1.0", "id": str(seq), "source": "/test", "type": event_type}
    return Record(seq, Entry("default/default", attributes, b"", b"", 0.0, 255))


def test_what_was_heard_while_the_store_is_away_is_learned_later_and_never_more_than_the_bound(monkeypatch):
    monkeypatch.setattr(learning, "MAX_TYPES", 3)

    async def main() -> None:
        store = Failing()
        await store.create(
            Resource(ref=BROKER, meta=ObjectMeta(name="default", namespace="default"), body={"spec": {}})
        )
        learner = EventTypeLearner(store)
        running = asyncio.create_task(learner.run())
        for seq in range(10):
            learner.hear(record(seq, f"type-{seq}"))
        await asyncio.sleep(60)
        store.away = False
        await asyncio.sleep(60)
        assert len((await store.list(EVENT_TYPE)).items) == 3
        await asyncio.sleep(FORGET_S)
        for seq in range(10, 20):
            learner.hear(record(seq, f"type-{seq}"))
        await asyncio.sleep(60)
        assert len((await store.list(EVENT_TYPE)).items) == 3
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


def test_an_event_type_that_cannot_be_read_keeps_nobody_from_learning():
    async def main() -> None:
        store = MemoryStore()
        meta = ObjectMeta(name="default", namespace="default")
        await store.create(Resource(ref=BROKER, meta=meta, body={"spec": {}}))
        odd = ObjectMeta(name="odd", namespace="default")
        await store.create(Resource(ref=EVENT_TYPE, meta=odd, body={"spec": {"variables": []}}))
        learner = EventTypeLearner(store)
        running = asyncio.create_task(learner.run())
        learner.hear(record(1, "t"))
        await asyncio.sleep(1)
        assert len((await store.list(EVENT_TYPE)).items) == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


def test_an_event_of_a_broker_that_is_gone_makes_nothing():
    async def main() -> None:
        store = MemoryStore()
        learner = EventTypeLearner(store)
        running = asyncio.create_task(learner.run())
        learner.hear(record(1, "t"))
        await asyncio.sleep(1)
        assert (await store.list(EVENT_TYPE)).items == ()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


def test_an_event_type_is_made_for_whoever_took_the_event():
    made = make_event_type(HERE, "t", "/s", None)
    (owner,) = made.meta.owner_references
    assert (owner.kind, owner.name, owner.uid) == ("Broker", "default", "u")
    assert made.key == Key(EVENT_TYPE, "ns", event_type_name("ns", "default", "t", "/s"))
