"""The reconcilers of Channel, InMemoryChannel and Subscription.

Sources: knative/specs `eventing/control-plane.md` ("Channel Lifecycle", "Subscription Lifecycle"); condition types and
reasons of knative/eventing `pkg/apis/messaging/v1/*_lifecycle.go`, `pkg/reconciler/channel` and `/subscription`. What
Knative hands on through ``spec.subscribers`` of a channel is read from the Subscriptions themselves. Conditions of
Knative's own parts that do not exist here (a channel's Service and dispatcher, event policies, identities) are left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from broker.conditions import condition_of, conditions_of, readable, ready_of, refers, sink_condition, sink_of
from broker.messaging import (
    CHANNEL,
    IN_MEMORY_CHANNEL,
    SUBSCRIPTION,
    ChannelShape,
    InMemoryChannelShape,
    SubscriptionShape,
    channel_name,
    make_channel,
    template_of,
)
from core.control.reconcile import Action, Apply, Outcome, View
from core.resources import (
    Condition,
    Destination,
    Key,
    KindRef,
    Resource,
    Unresolved,
    is_ready,
    merge_conditions,
    resolve,
    summarize,
)

__all__ = ["ChannelReconciler", "InMemoryChannelReconciler", "SubscriptionReconciler"]

Related = Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]

_SINK: Final = "DeadLetterSinkResolved"


class InMemoryChannelReconciler:
    """Gives a channel its address at the ingress, resolves its dead-letter sink, and says who its subscribers are."""

    kind = IN_MEMORY_CHANNEL

    def __init__(self, *, ingress_url: str, addressables: Iterable[KindRef]) -> None:
        self._ingress_url = ingress_url.rstrip("/")
        self._related: Related = {**dict.fromkeys(addressables, _with_sink), SUBSCRIPTION: _channel_of}

    @property
    def related(self) -> Related:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        meta = resource.meta
        url = f"{self._ingress_url}/{channel_name(meta.namespace, meta.name)}"
        status: dict[str, Any] = {
            "observedGeneration": meta.generation,
            "address": {"name": "http", "url": url},
        }
        delivery = msgspec.convert(resource.spec, InMemoryChannelShape).delivery
        sink = sink_condition(sink_of(delivery), meta.namespace, view, status)
        subscribers = [_subscriber(each) for each in view.list(SUBSCRIPTION, meta.namespace) if _takes(each, meta.name)]
        if subscribers:
            status["subscribers"] = subscribers
        found = summarize("Ready", (Condition(type="Addressable", status="True"), sink))
        status["conditions"] = merge_conditions(conditions_of(resource), found, now)
        return Outcome(status=status)


class ChannelReconciler:
    """Keeps the channel behind a Channel, and passes on what that one's status says."""

    kind = CHANNEL

    @property
    def related(self) -> Related:
        return {IN_MEMORY_CHANNEL: _fronting}

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        meta = resource.meta
        shape = msgspec.convert(resource.spec, ChannelShape)
        template, asked = shape.channel_template, template_of(resource)
        status: dict[str, Any] = {"observedGeneration": meta.generation}
        actions: tuple[Action, ...] = ()
        backing: Resource | None = None
        if asked != IN_MEMORY_CHANNEL:
            message = f"spec.channelTemplate asks for {asked}; what there is here is {IN_MEMORY_CHANNEL.kind}."
            backed = Condition(type="BackingChannelReady", status="False", reason="ChannelFailure", message=message)
        else:
            backing = view.get(Key(IN_MEMORY_CHANNEL, meta.namespace, meta.name))
            if backing is None and meta.deletion_timestamp is None:
                delivery = resource.spec.get("delivery")
                spec = {
                    **((template and template.spec) or {}),
                    **({"delivery": delivery} if delivery is not None else {}),
                }
                actions = (Apply(make_channel(meta.name, resource, IN_MEMORY_CHANNEL, spec)),)
            status["channel"] = {
                "apiVersion": IN_MEMORY_CHANNEL.api_version,
                "kind": IN_MEMORY_CHANNEL.kind,
                "name": meta.name,
                "namespace": meta.namespace,
            }
            backed = _backing_condition(backing)
        status |= _passed_on(backing)
        conditions = (backed, _address_condition(status), _backing_sink_condition(shape, meta.name, status))
        status["conditions"] = merge_conditions(conditions_of(resource), summarize("Ready", conditions), now)
        return Outcome(status=status, actions=actions)


class SubscriptionReconciler:
    """Resolves a Subscription's destinations, and says whether its channel has it."""

    kind = SUBSCRIPTION

    def __init__(self, *, addressables: Iterable[KindRef]) -> None:
        own: Related = {CHANNEL: _subscriptions_of, IN_MEMORY_CHANNEL: _subscriptions_of}
        self._related: Related = {**dict.fromkeys(addressables, _sending_to), **own}

    @property
    def related(self) -> Related:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        meta = resource.meta
        shape = msgspec.convert(resource.spec, SubscriptionShape)
        physical: dict[str, Any] = {}
        resolved = Condition(type="ReferencesResolved", status="True")
        channel: Resource | None = None
        try:
            channel = _channel(shape, meta.namespace, view)
        except Unresolved as error:
            reason = "ChannelReferenceFailed"
            resolved = Condition(type="ReferencesResolved", status="Unknown", reason=reason, message=str(error))
        for failed in _resolved(shape, channel, meta.namespace, view, physical):
            if resolved.status == "True":
                resolved = failed
        added = Condition(type="AddedToChannel", status=resolved.status if resolved.status == "True" else "Unknown")
        conditions = (resolved, added, _channel_condition(resource, channel, added))
        status: dict[str, Any] = {"observedGeneration": meta.generation, "physicalSubscription": physical}
        status["conditions"] = merge_conditions(conditions_of(resource), summarize("Ready", conditions), now)
        return Outcome(status=status)


# ---- Channel


def _backing_condition(backing: Resource | None) -> Condition:
    kind = "BackingChannelReady"
    ready = ready_of(backing) if backing is not None else {}
    if not ready:
        message = "The channel behind it has not yet been reconciled."
        return Condition(type=kind, status="Unknown", reason="BackingChannelNotConfigured", message=message)
    if ready.get("status") == "True":
        return Condition(type=kind, status="True")
    status: Any = "False" if ready.get("status") == "False" else "Unknown"
    message = ready.get("message") or "The channel behind it is not ready."
    return Condition(type=kind, status=status, reason=ready.get("reason") or "", message=message)


def _passed_on(backing: Resource | None) -> dict[str, Any]:
    """What of the channel behind it is a Channel's own status, too."""
    held = backing.status if backing is not None else {}
    return {name: held[name] for name in ("address", "subscribers", "deadLetterSinkUri") if held.get(name)}


def _address_condition(status: Mapping[str, Any]) -> Condition:
    if (status.get("address") or {}).get("url"):
        return Condition(type="Addressable", status="True")
    message = "The channel behind it has no address yet."
    return Condition(type="Addressable", status="False", reason="EmptyHostname", message=message)


def _backing_sink_condition(shape: ChannelShape, name: str, status: Mapping[str, Any]) -> Condition:
    if sink_of(shape.delivery) is None:
        reason, message = "DeadLetterSinkNotConfigured", "No dead letter sink is configured."
        return Condition(type=_SINK, status="True", reason=reason, message=message)
    if status.get("deadLetterSinkUri"):
        return Condition(type=_SINK, status="True")
    message = f'{IN_MEMORY_CHANNEL.kind} "{name}" has not resolved its dead-letter sink; see its conditions.'
    return Condition(type=_SINK, status="False", reason="BackingChannelDeadLetterSinkNotResolved", message=message)


# ---- Subscription


def _channel(shape: SubscriptionShape, namespace: str, view: View) -> Resource:
    """The channel that has the events. Raises Unresolved where there is none, or none yet."""
    ref = shape.channel
    key = Key(KindRef.parse(ref.api_version, ref.kind), namespace, ref.name)
    found = view.get(key)
    if found is None:
        raise Unresolved("NotFound", f"{key} does not exist. Create it, or correct spec.channel.")
    if found.ref == CHANNEL:
        if is_ready(found.status, found.meta.generation) != "True":
            raise Unresolved("NotReady", f"{key} is not ready; see its conditions.")
        key = Key(IN_MEMORY_CHANNEL, namespace, ref.name)
        found = view.get(key)
        if found is None:
            raise Unresolved("NotFound", f"{key}, which backs the Channel, does not exist.")
    return found


def _resolved(
    shape: SubscriptionShape, channel: Resource | None, namespace: str, view: View, physical: dict[str, Any]
) -> Iterable[Condition]:
    """Fills in the addresses that there are, and gives the condition for each that there is not."""

    def failed(reason: str, path: str, error: Unresolved) -> Condition:
        message = f"spec.{path}: {error}"
        return Condition(type="ReferencesResolved", status="False", reason=reason, message=message)

    for member, path, destination, reason in (
        ("subscriberUri", "subscriber", shape.subscriber, "SubscriberResolveFailed"),
        ("replyUri", "reply", shape.reply, "ReplyResolveFailed"),
        ("deadLetterSinkUri", "delivery.deadLetterSink", sink_of(shape.delivery), "DeadLetterSinkResolveFailed"),
    ):
        if destination is None or destination == Destination():
            continue
        try:
            physical[member] = resolve(destination, namespace, view.get)
        except Unresolved as error:
            yield failed(reason, path, error)
    if channel is None or sink_of(shape.delivery) is not None:
        return
    if sink_of(msgspec.convert(channel.spec, InMemoryChannelShape).delivery) is not None:
        uri = channel.status.get("deadLetterSinkUri")
        if uri:
            physical["deadLetterSinkUri"] = uri
            return
        missing = Unresolved("AddressNotReady", f"{channel.key} has not resolved its own; see its conditions.")
        yield failed("DeadLetterSinkResolveFailed", "delivery.deadLetterSink", missing)


def _channel_condition(resource: Resource, channel: Resource | None, added: Condition) -> Condition:
    if added.status != "True" or channel is None:
        return Condition(type="ChannelReady", status="Unknown")
    for held in channel.status.get("subscribers") or ():
        if held == _subscriber(resource):
            return Condition(type="ChannelReady", status="True")
    reason, message = (
        "SubscriptionNotMarkedReadyByChannel",
        f"{channel.key} does not have it among its subscribers yet.",
    )
    return Condition(type="ChannelReady", status="Unknown", reason=reason, message=message)


def _subscriber(subscription: Resource) -> dict[str, Any]:
    """How a channel names a subscriber that it serves."""
    meta = subscription.meta
    return {"uid": meta.uid, "observedGeneration": meta.generation, "ready": "True"}


def _takes(subscription: Resource, channel: str) -> bool:
    """Whether it takes events from the channel of that name in its namespace, as it is now."""
    if subscription.status.get("observedGeneration") != subscription.meta.generation:
        return False
    resolved = condition_of(subscription, "ReferencesResolved").get("status") == "True"
    return resolved and (subscription.spec.get("channel") or {}).get("name") == channel


# ---- who has to be looked at again


def _with_sink(changed: Resource, view: View) -> Iterable[Key]:
    """The channels whose dead letters go to `changed`."""
    for channel, shape in readable(view.list(IN_MEMORY_CHANNEL), InMemoryChannelShape):
        if refers(sink_of(shape.delivery), changed, channel.meta.namespace):
            yield channel.key


def _channel_of(subscription: Resource, view: View) -> Iterable[Key]:
    """A Subscription's channel: of two kinds, but of one name."""
    name = (subscription.spec.get("channel") or {}).get("name")
    if name:
        yield Key(IN_MEMORY_CHANNEL, subscription.meta.namespace, name)


def _fronting(channel: Resource, view: View) -> Iterable[Key]:
    """The Channel that an InMemoryChannel may be behind."""
    return (Key(CHANNEL, channel.meta.namespace, channel.meta.name),)


def _sending_to(changed: Resource, view: View) -> Iterable[Key]:
    """The Subscriptions whose events, replies or dead letters go to `changed`."""
    for subscription, shape in readable(view.list(SUBSCRIPTION), SubscriptionShape):
        namespace = subscription.meta.namespace
        destinations = (shape.subscriber, shape.reply, sink_of(shape.delivery))
        if any(refers(destination, changed, namespace) for destination in destinations):
            yield subscription.key


def _subscriptions_of(channel: Resource, view: View) -> Iterable[Key]:
    """A channel's own Subscriptions, and those that send to it."""
    for subscription in view.list(SUBSCRIPTION, channel.meta.namespace):
        if (subscription.spec.get("channel") or {}).get("name") == channel.meta.name:
            yield subscription.key
    yield from _sending_to(channel, view)
