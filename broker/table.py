"""The data plane's table: Brokers and Triggers as typed values, built from resources and swapped whole."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from broker import filters
from broker.delivery import Policy
from broker.filters import ANYTHING
from broker.flow.settings import PLAIN, Flow, flow_of
from broker.index import FilterIndex
from broker.messaging import IN_MEMORY_CHANNEL, SUBSCRIPTION, InMemoryChannelShape, SubscriptionShape, channel_name
from broker.resources import BROKER, DEFAULT_CLASS, TRIGGER, BrokerShape, TriggerShape, class_of, compile_filter
from core.clock import parse_rfc3339
from core.resources import DeliveryShape, Destination, Resource, parse_iso_duration

__all__ = [
    "EMPTY",
    "GIVERS",
    "TAKERS",
    "BrokerSpec",
    "Replies",
    "Table",
    "TableBuilder",
    "TriggerSpec",
    "broker_spec",
    "channel_spec",
    "part_of",
    "subscription_spec",
    "trigger_spec",
]

logger = logging.getLogger(__name__)

#: The kinds that a table is built from: those that events are sent to, and those that take events from them.
GIVERS: Final = (BROKER, IN_MEMORY_CHANNEL)
TAKERS: Final = (TRIGGER, SUBSCRIPTION)

#: What becomes of an event that a subscriber answers with: stored in the Broker that the event came from, sent to the
#: reply destination, or nothing.
Replies = Literal["stored", "sent", "dropped"]


class BrokerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Broker or channel as the data plane needs it. `key` is ``namespace/name`` (a channel's name here is
    ``channels/<name>``), `log_class` says which log keeps its events."""

    namespace: str
    name: str
    log_class: str = DEFAULT_CLASS
    delivery: DeliveryShape | None = None
    dead_letter_uri: str | None = None

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


class TriggerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Trigger or Subscription as the data plane needs it (a Subscription's name here is ``subscriptions/<name>``).

    `broker` is the Broker's ``namespace/name``. `subscriber_uri` is None until the reference resolves; the Trigger's
    events wait in the log until then. `wants_sink` tells that a dead-letter sink is configured, resolved or not.
    `created_at` is in seconds since the epoch, cut to a whole one.

    `delivery` is its own delivery spec, `policy` what follows from that, its Broker's and the platform's defaults,
    field by field: Knative takes a Trigger's delivery spec whole, so a Trigger that only names a dead-letter sink is
    not retried there. The specification calls `retry` a minimum, and who asks for a dead-letter sink does not ask for
    fewer attempts.

    `reply_uri` is where replies are sent to, where `replies` says that they are. `flow` is what the annotations say.
    """

    uid: str
    namespace: str
    name: str
    broker: str
    filter: filters.Filter
    subscriber_uri: str | None
    dead_letter_uri: str | None
    created_at: float | None
    wants_sink: bool = False
    delivery: DeliveryShape | None = None
    policy: Policy = Policy()
    replies: Replies = "stored"
    reply_uri: str | None = None
    flow: Flow = PLAIN

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Everything as of one moment. `paths` finds a Broker by its ingress path, `takers` its Triggers' uids by event.

    `unread` are the uids of Triggers that exist and get nothing here, and keep their position: they cannot be read, or
    (in a `part_of` a table) their Broker is not there."""

    brokers: Mapping[str, BrokerSpec] = {}
    triggers: Mapping[str, TriggerSpec] = {}
    paths: Mapping[bytes, BrokerSpec] = {}
    takers: Mapping[str, FilterIndex[str]] = {}
    unread: frozenset[str] = frozenset()


EMPTY: Final = Table()


def broker_spec(resource: Resource) -> BrokerSpec:
    """Raises ValueError where the stored resource cannot be read."""
    shape = msgspec.convert(resource.spec, BrokerShape)
    uri = resource.status.get("deadLetterSinkUri") or None
    return BrokerSpec(
        namespace=resource.meta.namespace,
        name=resource.meta.name,
        log_class=class_of(resource),
        delivery=shape.delivery,
        dead_letter_uri=uri,
    )


def trigger_spec(resource: Resource) -> TriggerSpec:
    """The Trigger with the platform's defaults for what it leaves out. Raises ValueError where it cannot be read."""
    shape = msgspec.convert(resource.spec, TriggerShape)
    created = resource.meta.creation_timestamp
    return TriggerSpec(
        uid=resource.meta.uid,
        namespace=resource.meta.namespace,
        name=resource.meta.name,
        broker=f"{resource.meta.namespace}/{shape.broker or 'default'}",
        filter=compile_filter(shape),
        subscriber_uri=resource.status.get("subscriberUri") or None,
        dead_letter_uri=resource.status.get("deadLetterSinkUri") or None,
        created_at=parse_rfc3339(created) if created else None,
        wants_sink=_wants_sink(shape.delivery),
        delivery=shape.delivery,
        policy=policy_of(shape.delivery),
        flow=flow_of(resource.meta.annotations),
    )


def channel_spec(resource: Resource) -> BrokerSpec:
    """An InMemoryChannel, whose events the platform's default log keeps. Raises ValueError where it cannot be read."""
    namespace = resource.meta.namespace
    return BrokerSpec(
        namespace=namespace,
        name=channel_name(namespace, resource.meta.name).removeprefix(f"{namespace}/"),
        delivery=msgspec.convert(resource.spec, InMemoryChannelShape).delivery,
        dead_letter_uri=resource.status.get("deadLetterSinkUri") or None,
    )


def subscription_spec(resource: Resource) -> TriggerSpec:
    """A Subscription: it takes everything from its channel. A Channel's events are those of the channel behind it,
    which has its name. Its events wait until both subscriber and reply have an address. Raises ValueError where it
    cannot be read."""
    shape = msgspec.convert(resource.spec, SubscriptionShape)
    namespace, created = resource.meta.namespace, resource.meta.creation_timestamp
    held = resource.status.get("physicalSubscription") or {}
    wants_reply = shape.reply is not None and shape.reply != Destination()
    reply_uri = (held.get("replyUri") or None) if wants_reply else None
    return TriggerSpec(
        uid=resource.meta.uid,
        namespace=namespace,
        name=f"subscriptions/{resource.meta.name}",
        broker=channel_name(namespace, shape.channel.name),
        filter=ANYTHING,
        subscriber_uri=(held.get("subscriberUri") or None) if reply_uri or not wants_reply else None,
        dead_letter_uri=held.get("deadLetterSinkUri") or None,
        created_at=parse_rfc3339(created) if created else None,
        wants_sink=_wants_sink(shape.delivery),
        delivery=shape.delivery,
        policy=policy_of(shape.delivery),
        replies="sent" if wants_reply else "dropped",
        reply_uri=reply_uri,
        flow=flow_of(resource.meta.annotations),
    )


def policy_of(*layers: DeliveryShape | None) -> Policy:
    """Each setting from the first layer that has it, else the platform's default."""
    found: dict[str, Any] = {}
    for layer in reversed(layers):
        if layer is not None:
            found.update(_settings(layer))
    return Policy(**found)


def _settings(shape: DeliveryShape) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if shape.retry is not None:
        found["retries"] = shape.retry
    if shape.backoff_policy is not None:
        found["backoff"] = _backoff(shape.backoff_policy)
    for name, text in (
        ("delay_s", shape.backoff_delay),
        ("timeout_s", shape.timeout),
        ("retry_after_max_s", shape.retry_after_max),
    ):
        if text is not None:
            found[name] = parse_iso_duration(text)
    if shape.format is not None:
        found["structured"] = shape.format == "json"
    return found


def _backoff(text: str) -> Literal["linear", "exponential"]:
    return "linear" if text == "linear" else "exponential"


def part_of(table: Table, classes: Collection[str]) -> Table:
    """What a log has to do with that keeps the events of these classes. A Trigger whose Broker does not exist waits for
    it with its position, in whichever log that is; one of another log's Broker is not in this part at all."""
    brokers = {key: broker for key, broker in table.brokers.items() if broker.log_class in classes}
    waiting = (uid for uid, trigger in table.triggers.items() if trigger.broker not in table.brokers)
    return Table(
        brokers=brokers,
        triggers={uid: trigger for uid, trigger in table.triggers.items() if trigger.broker in brokers},
        unread=table.unread.union(waiting),
        paths={path: broker for path, broker in table.paths.items() if broker.log_class in classes},
        takers={broker: takers for broker, takers in table.takers.items() if broker in brokers},
    )


class TableBuilder:
    """Builds tables, reading only those resources anew that changed since the last one."""

    def __init__(self) -> None:
        self._triggers: dict[tuple[str, str], TriggerSpec | None] = {}

    def build(self, brokers: Iterable[Resource], triggers: Iterable[Resource]) -> Table:
        """The table of these resources, of the kinds `GIVERS` and `TAKERS`. One that cannot be read is logged and left
        out: a Trigger whose filter is not understood gets nothing."""
        known = {broker.key: broker for resource in brokers if (broker := _read_broker(resource)) is not None}
        found: dict[str, TriggerSpec] = {}
        held: dict[tuple[str, str], TriggerSpec | None] = {}
        for resource in triggers:
            identity = (resource.meta.uid, resource.meta.resource_version)
            trigger = self._triggers[identity] if identity in self._triggers else _read_trigger(resource)
            held[identity] = trigger
            if trigger is not None:
                found[trigger.uid] = _merged(trigger, known.get(trigger.broker))
        self._triggers = held
        takers: dict[str, FilterIndex[str]] = {}
        for spec in found.values():
            takers.setdefault(spec.broker, FilterIndex()).put(spec.uid, spec.filter)
        return Table(
            brokers=known,
            triggers=found,
            unread=frozenset(uid for (uid, _), trigger in held.items() if trigger is None),
            paths={f"/{key}".encode(): spec for key, spec in known.items()},
            takers=takers,
        )


def _read_broker(resource: Resource) -> BrokerSpec | None:
    try:
        return channel_spec(resource) if resource.ref == IN_MEMORY_CHANNEL else broker_spec(resource)
    except ValueError as error:
        facts = {"broker": str(resource.key), "error": str(error)}
        logger.error("a stored Broker or channel cannot be read and takes no events", extra={"facts": facts})
        return None


def _read_trigger(resource: Resource) -> TriggerSpec | None:
    try:
        return subscription_spec(resource) if resource.ref == SUBSCRIPTION else trigger_spec(resource)
    except ValueError as error:
        facts = {"trigger": str(resource.key), "error": str(error)}
        logger.error("a stored Trigger or Subscription cannot be read and gets no events", extra={"facts": facts})
        return None


def _merged(trigger: TriggerSpec, broker: BrokerSpec | None) -> TriggerSpec:
    if broker is None or (broker.delivery is None and broker.dead_letter_uri is None):
        return trigger
    return msgspec.structs.replace(
        trigger,
        policy=policy_of(trigger.delivery, broker.delivery),
        wants_sink=trigger.wants_sink or _wants_sink(broker.delivery),
        dead_letter_uri=trigger.dead_letter_uri or broker.dead_letter_uri,
    )


def _wants_sink(delivery: DeliveryShape | None) -> bool:
    return delivery is not None and delivery.dead_letter_sink is not None
