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
from broker.messaging import IN_MEMORY_CHANNEL, SUBSCRIPTION, InMemoryChannelShape, SubscriptionShape, channel_name
from broker.resources import BROKER, DEFAULT_CLASS, TRIGGER, BrokerShape, TriggerShape, class_of, compile_filter
from core.clock import parse_rfc3339
from core.control.cache import Observed
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
    ``channels/<name>``), `log_class` says which log keeps its events, `address` where others send to it."""

    namespace: str
    name: str
    log_class: str = DEFAULT_CLASS
    delivery: DeliveryShape | None = None
    dead_letter_uri: str | None = None
    address: str | None = None

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
    """Everything as of one moment. `paths` finds a Broker by its ingress path; `unread` are the uids of Triggers that
    exist and cannot be read."""

    brokers: Mapping[str, BrokerSpec] = {}
    triggers: Mapping[str, TriggerSpec] = {}
    paths: Mapping[bytes, BrokerSpec] = {}
    unread: frozenset[str] = frozenset()

    def served(self, uid: str, classes: Collection[str]) -> TriggerSpec | None:
        """The Trigger, if its Broker is there and of one of these classes: of a log that keeps their events."""
        trigger = self.triggers.get(uid)
        broker = None if trigger is None else self.brokers.get(trigger.broker)
        return trigger if broker is not None and broker.log_class in classes else None

    def waits(self, uid: str) -> bool:
        """Whether the Trigger exists and nobody can say which log it has to do with, because it is not readable or its
        Broker is not there: it keeps its position, in whichever log that is."""
        trigger = self.triggers.get(uid)
        return uid in self.unread if trigger is None else trigger.broker not in self.brokers


EMPTY: Final = Table()


def broker_spec(resource: Resource) -> BrokerSpec:
    """Raises ValueError where the stored resource cannot be read."""
    shape = msgspec.convert(resource.spec, BrokerShape)
    policy_of(shape.delivery)  # read now, so that this Broker is left out and not the whole table lost
    uri = resource.status.get("deadLetterSinkUri") or None
    return BrokerSpec(
        namespace=resource.meta.namespace,
        name=resource.meta.name,
        log_class=class_of(resource),
        delivery=shape.delivery,
        dead_letter_uri=uri,
        address=_address(resource),
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
    delivery = msgspec.convert(resource.spec, InMemoryChannelShape).delivery
    policy_of(delivery)  # as with a Broker
    return BrokerSpec(
        namespace=namespace,
        name=channel_name(namespace, resource.meta.name).removeprefix(f"{namespace}/"),
        delivery=delivery,
        dead_letter_uri=resource.status.get("deadLetterSinkUri") or None,
        address=_address(resource),
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


def _address(resource: Resource) -> str | None:
    return (resource.status.get("address") or {}).get("url") or None


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


class TableBuilder:
    """Keeps `table`: the Brokers of these `classes` (of all, where none are named) and all Triggers, each read once for
    each of its states. One that cannot be read is logged and left out: a Trigger whose filter is not understood gets
    nothing."""

    def __init__(self, classes: Collection[str] | None = None) -> None:
        self.table: Table = EMPTY
        self._classes = classes
        #: By uid, a Trigger's version and what it says, before its Broker's settings; None where it is not readable.
        self._read: dict[str, tuple[str, TriggerSpec | None]] = {}
        #: The uids of a Broker's Triggers, by its key, in the order in which they came.
        self._of: dict[str, dict[str, None]] = {}

    def build(self, brokers: Iterable[Resource], triggers: Iterable[Resource]) -> Table:
        """The table of these resources, of the kinds `GIVERS` and `TAKERS`, and of no others."""
        known = {spec.key: spec for resource in brokers if (spec := self._broker(resource)) is not None}
        held, self._read, self._of = self._read, {}, {}
        found: dict[str, TriggerSpec] = {}
        for resource in triggers:
            trigger = self._take(resource, held.get(resource.meta.uid))
            if trigger is not None:
                found[trigger.uid] = _merged(trigger, known.get(trigger.broker))
        unread = frozenset(uid for uid, (_, trigger) in self._read.items() if trigger is None)
        self.table = Table(brokers=known, triggers=found, unread=unread, paths=_paths(known))
        return self.table

    def update(self, changes: Iterable[Observed]) -> Collection[str]:
        """Take in what became of single resources: the uids of the Triggers that `table` does not have as it had them,
        or whose Broker is not the same. Nothing else is looked at, so that ten thousand Triggers may come one by one.
        """
        brokers = dict(self.table.brokers)
        given: dict[str, None] = {}
        told: dict[str, None] = {}
        moved: dict[str, None] = {}
        for change in changes:
            if change.key.kind in GIVERS:
                given[self._give(change, brokers)] = None
            elif change.key.kind in TAKERS:
                told |= self._told(change)
        for key in given:  # only now: a Trigger that left a Broker and came back among these changes is its own again
            if brokers.get(key) != self.table.brokers.get(key):
                moved |= self._of.get(key, {})
        triggers, unread = dict(self.table.triggers), set(self.table.unread)
        changed: list[str] = []
        for uid in told | moved:
            version, trigger = self._read.get(uid, (None, None))
            before = triggers.pop(uid, None)
            if trigger is not None:
                triggers[uid] = _merged(trigger, brokers.get(trigger.broker))
            if trigger is None and version is not None:
                unread.add(uid)
            else:
                unread.discard(uid)
            if uid in moved or triggers.get(uid) != before or (uid in unread) != (uid in self.table.unread):
                changed.append(uid)
        if brokers != self.table.brokers:
            self.table = msgspec.structs.replace(self.table, brokers=brokers, paths=_paths(brokers))
        if changed:
            self.table = msgspec.structs.replace(self.table, triggers=triggers, unread=frozenset(unread))
        return changed

    def _broker(self, resource: Resource) -> BrokerSpec | None:
        served = self._classes is None or class_of(resource) in self._classes
        return _read_broker(resource) if served else None

    def _give(self, change: Observed, brokers: dict[str, BrokerSpec]) -> str:
        """Take in what became of a Broker or channel; its key."""
        namespace, name = change.key.namespace, change.key.name
        key = channel_name(namespace, name) if change.key.kind == IN_MEMORY_CHANNEL else f"{namespace}/{name}"
        spec = None if change.after is None else self._broker(change.after)
        if spec is None:
            brokers.pop(key, None)
        else:
            brokers[key] = spec
        return key

    def _told(self, change: Observed) -> dict[str, None]:
        """Take in what became of a Trigger; the uids that it is about: two where it was deleted and created again."""
        before, after = change.before, change.after
        uids = {each.meta.uid: None for each in (before, after) if each is not None}
        held = {uid: self._drop(uid) for uid in uids}
        if after is not None:
            self._take(after, held[after.meta.uid])
        return uids

    def _take(self, resource: Resource, held: tuple[str, TriggerSpec | None] | None) -> TriggerSpec | None:
        """Read a Trigger, unless this state of it was read before."""
        uid, version = resource.meta.uid, resource.meta.resource_version
        trigger = held[1] if held is not None and held[0] == version else _read_trigger(resource)
        self._read[uid] = (version, trigger)
        if trigger is not None:
            self._of.setdefault(trigger.broker, {})[uid] = None
        return trigger

    def _drop(self, uid: str) -> tuple[str, TriggerSpec | None] | None:
        held = self._read.pop(uid, None)
        if held is not None and held[1] is not None:
            of = self._of[held[1].broker]
            del of[uid]
            if not of:
                del self._of[held[1].broker]
        return held


def _paths(brokers: Mapping[str, BrokerSpec]) -> dict[bytes, BrokerSpec]:
    return {f"/{key}".encode(): spec for key, spec in brokers.items()}


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
