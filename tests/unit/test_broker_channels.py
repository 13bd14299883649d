"""Channels and Subscriptions from manifest to delivery: store, reconcilers and broker process, on virtual time."""

import base64

from broker.messaging import CHANNEL, IN_MEMORY_CHANNEL, SUBSCRIPTION
from broker.resources import BROKER
from core.net.types import ConnectFailed
from tests.support.broker import Answer, binary
from tests.support.flows import in_world, replies

PATH = "/default/channels/orders"
ORDERS = """
apiVersion: messaging.knative.dev/v1
kind: Channel
metadata: {name: orders}
"""
BROKER_HERE = """
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
"""


def subscription(name: str, host: str, *, kind: str = "Channel", more: str = "") -> str:
    return f"""
---
apiVersion: messaging.knative.dev/v1
kind: Subscription
metadata: {{name: {name}}}
spec:
  channel: {{apiVersion: messaging.knative.dev/v1, kind: {kind}, name: orders}}
  subscriber: {{uri: "http://{host}/"}}
{more}"""


@in_world
async def test_every_subscription_of_a_channel_gets_every_event(world):
    await world.apply(ORDERS + subscription("one", "one.test") + subscription("two", "two.test"))
    assert (await world.send(PATH)).status == 202
    assert world.ids("one.test") == world.ids("two.test") == ["e1"]
    assert world.outcomes() == [(1, 202, "delivered")] * 2


@in_world
async def test_a_channel_has_its_own_events_and_no_brokers(world):
    await world.apply(ORDERS + BROKER_HERE + subscription("one", "one.test"))
    await world.send("/default/default", "to-the-broker")
    await world.send(PATH, "to-the-channel")
    assert world.ids("one.test") == ["to-the-channel"]
    assert (await world.send("/default/channels/else")).status == 404


@in_world
async def test_a_channel_is_backed_by_an_in_memory_channel_of_its_name_and_has_its_address(world):
    await world.apply(ORDERS + subscription("one", "one.test"))
    channel, backing = await world.get(CHANNEL, "orders"), await world.get(IN_MEMORY_CHANNEL, "orders")
    url = "http://broker-ingress.knative-eventing.svc.cluster.local/default/channels/orders"
    assert channel.status["address"] == backing.status["address"] == {"name": "http", "url": url}
    assert channel.status["channel"] == {
        "apiVersion": "messaging.knative.dev/v1",
        "kind": "InMemoryChannel",
        "name": "orders",
        "namespace": "default",
    }
    (owner,) = backing.meta.owner_references
    assert (owner.kind, owner.name, owner.controller) == ("Channel", "orders", True)
    held = await world.get(SUBSCRIPTION, "one")
    assert channel.status["subscribers"] == [{"uid": held.meta.uid, "observedGeneration": 1, "ready": "True"}]
    for kind, name in ((CHANNEL, "orders"), (IN_MEMORY_CHANNEL, "orders"), (SUBSCRIPTION, "one")):
        assert (await world.conditions(kind, name))["Ready"] == ("True", "")
    await world.delete(CHANNEL, "orders")
    assert await world.names(IN_MEMORY_CHANNEL) == []
    assert (await world.send(PATH)).status == 404


@in_world
async def test_events_wait_for_a_subscription_whose_references_do_not_resolve_yet(world):
    reply = "  reply: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}}"
    await world.apply(ORDERS + subscription("one", "one.test", more=reply))
    assert (await world.conditions(SUBSCRIPTION, "one"))["ReferencesResolved"] == ("False", "ReplyResolveFailed")
    await world.send(PATH)
    assert world.ids("one.test") == []
    await world.apply(BROKER_HERE.replace("---", ""))
    assert world.ids("one.test") == ["e1"]


@in_world
async def test_a_subscription_to_a_channel_that_comes_later_gets_what_arrives_then(world):
    await world.apply(subscription("one", "one.test", kind="InMemoryChannel").replace("---", ""))
    assert (await world.conditions(SUBSCRIPTION, "one"))["Ready"] == ("Unknown", "ChannelReferenceFailed")
    await world.apply(ORDERS.replace("Channel", "InMemoryChannel"))
    await world.send(PATH)
    assert world.ids("one.test") == ["e1"]


# ---- replies


@in_world
async def test_a_reply_goes_to_the_reply_destination_and_not_back_into_the_channel(world):
    reply = '  reply: {uri: "http://reply.test/in"}'
    await world.apply(ORDERS + subscription("one", "one.test", more=reply) + subscription("two", "two.test"))
    world.script("one.test", replies("-answered"))
    await world.send(PATH)
    (sent,) = world.subscribers.at("reply.test")
    assert sent.url == "http://reply.test/in"
    assert (sent.event.id, sent.event.type, sent.event.data) == ("e1-answered", "test.answered", b'{"r": 1}')
    assert world.ids("one.test") == world.ids("two.test") == ["e1"]


@in_world
async def test_a_reply_to_a_broker_goes_through_its_triggers(world):
    reply = "  reply: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: default}}"
    listens = """
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: listens}
spec: {broker: default, subscriber: {uri: "http://listens.test/"}}
"""
    await world.apply(ORDERS + BROKER_HERE + listens + subscription("one", "one.test", more=reply))
    world.script("one.test", replies("-answered"))
    await world.send(PATH)
    assert world.ids("listens.test") == ["e1-answered"]
    assert "knativebrokerttl" not in world.subscribers.at("listens.test")[0].event.attributes
    reply = world.records[-1].entry
    assert (reply.broker, reply.cause, reply.ttl) == ("default/default", 1, 254)
    assert reply.via == (await world.get(SUBSCRIPTION, "one")).meta.uid


@in_world
async def test_without_a_reply_destination_a_reply_goes_nowhere(world):
    await world.apply(ORDERS + subscription("one", "one.test") + subscription("two", "two.test"))
    world.script("one.test", Answer(200, [(b"content-type", b"application/cloudevents+json")], b"not an event"))
    await world.send(PATH)
    assert world.ids("one.test") == world.ids("two.test") == ["e1"]
    assert world.outcomes() == [(1, 200, "delivered"), (1, 202, "delivered")]


@in_world
async def test_a_reply_is_tried_again_by_itself_and_the_event_is_done_only_then(world):
    more = '  reply: {uri: "http://reply.test/"}\n  delivery: {retry: 3, backoffPolicy: linear, backoffDelay: PT1S}'
    await world.apply(ORDERS + subscription("one", "one.test", more=more))
    world.script("one.test", replies("-answered"))
    world.script("reply.test", Answer(503), Answer(error=ConnectFailed("refused")), Answer(202))
    await world.send(PATH)
    assert world.ids("one.test") == ["e1"]
    assert world.ids("reply.test") == ["e1-answered"] * 3
    assert world.outcomes() == [
        (1, 200, "retrying"),
        (2, 503, "retrying"),
        (3, 0, "retrying"),
        (4, 202, "delivered"),
    ]
    assert world.log.attempts[0].reason == "Its reply goes to http://reply.test/."


@in_world
async def test_an_event_whose_reply_cannot_be_delivered_goes_to_the_dead_letter_sink_with_the_replys_destination(world):
    more = '  reply: {uri: "http://reply.test/"}\n  delivery: {deadLetterSink: {uri: "http://sink.test/"}}'
    await world.apply(ORDERS + subscription("one", "one.test", more=more))
    world.script("one.test", replies("-answered"))
    world.script("reply.test", Answer(400, body=b"no room"))
    await world.send(PATH)
    (letter,) = world.subscribers.at("sink.test")
    assert letter.event.id == "e1"
    assert letter.event.attributes["knativeerrordest"] == "http://reply.test/"
    assert letter.event.attributes["knativeerrorcode"] == "400"
    assert base64.b64decode(letter.event.attributes["knativeerrordata"]) == b"no room"


@in_world
async def test_a_reply_that_waits_is_given_up_where_the_reply_destination_goes(world):
    more = '  reply: {uri: "http://reply.test/"}\n  delivery: {backoffDelay: PT60S}'
    await world.apply(ORDERS + subscription("one", "one.test", more=more))
    world.script("one.test", replies("-answered"))
    world.script("reply.test", Answer(503))
    await world.send(PATH)
    await world.apply(subscription("one", "one.test").replace("---", ""))
    await world.settle(120)
    assert world.ids("reply.test") == ["e1-answered"]
    assert world.ids("one.test") == ["e1", "e1"]
    assert world.outcomes()[-1] == (3, 200, "delivered")


@in_world
async def test_channels_that_reply_to_each_other_in_a_circle_come_to_an_end(world):
    more = "  reply: {ref: {apiVersion: messaging.knative.dev/v1, kind: Channel, name: orders}}"
    await world.apply(ORDERS + subscription("one", "one.test", more=more))
    world.script("one.test", lambda request: Answer(200, binary(f"n{len(world.ids('one.test'))}"), b"{}"))
    await world.send(PATH)
    await world.settle(100)
    assert len(world.ids("one.test")) == 255
    assert (world.log.attempts[-1].status, world.log.attempts[-1].outcome) == (400, "dropped")


# ---- dead letters


@in_world
async def test_a_subscription_without_a_dead_letter_sink_has_its_channels(world):
    channel = ORDERS + 'spec: {delivery: {retry: 0, deadLetterSink: {uri: "http://sink.test/"}}}\n'
    await world.apply(channel + subscription("one", "one.test") + subscription("fine", "fine.test"))
    world.script("one.test", Answer(500))
    await world.send(PATH)
    assert world.ids("sink.test") == world.ids("fine.test") == ["e1"]
    assert len(world.ids("one.test")) == 1
    held = await world.get(SUBSCRIPTION, "one")
    assert held.status["physicalSubscription"] == {
        "subscriberUri": "http://one.test/",
        "deadLetterSinkUri": "http://sink.test/",
    }


@in_world
async def test_a_broker_can_have_a_channel_for_its_dead_letters_and_a_trigger_one_for_its_events(world):
    broker = """
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
spec:
  delivery: {retry: 0, deadLetterSink: {ref: {apiVersion: messaging.knative.dev/v1, kind: Channel, name: orders}}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: fails}
spec: {broker: default, subscriber: {uri: "http://fails.test/"}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: passes-on}
spec:
  broker: default
  subscriber: {ref: {apiVersion: messaging.knative.dev/v1, kind: InMemoryChannel, name: orders}}
"""
    await world.apply(ORDERS + broker + subscription("one", "one.test"))
    assert (await world.conditions(BROKER, "default"))["Ready"] == ("True", "")
    world.script("fails.test", Answer(400))
    await world.send("/default/default")
    codes = sorted(request.event.attributes.get("knativeerrorcode", "") for request in world.subscribers.at("one.test"))
    assert codes == ["", "400"]
