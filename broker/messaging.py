"""The kinds Channel, InMemoryChannel and Subscription: their shape, defaults and rules.

Sources: knative/specs `eventing/control-plane.md` ("Channel Lifecycle", "Subscription Lifecycle"); knative/eventing
`pkg/apis/messaging/v1` (defaults, validation, immutability), `config-br-default-channel` and the printed columns of the
CRDs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from broker.flow.settings import validate_flow
from broker.resources import AUTO_CREATE_ANNOTATION, auto_create_errors, place
from core.errors import FieldError
from core.resources import (
    Column,
    DeliveryShape,
    Destination,
    Kind,
    KindRef,
    KReference,
    ObjectMeta,
    Resource,
    owner_reference,
    validate_delivery,
    validate_destination,
)

__all__ = [
    "CHANNEL",
    "CHANNELS",
    "DEFAULT_TEMPLATE",
    "IN_MEMORY_CHANNEL",
    "KINDS",
    "SUBSCRIPTION",
    "ChannelShape",
    "ChannelTemplateShape",
    "InMemoryChannelShape",
    "SubscriptionShape",
    "channel_name",
    "default_subscription",
    "default_template",
    "make_channel",
    "template_of",
    "validate_template",
]

GROUP: Final = "messaging.knative.dev"
CHANNEL: Final = KindRef(GROUP, "v1", "Channel")
IN_MEMORY_CHANNEL: Final = KindRef(GROUP, "v1", "InMemoryChannel")
SUBSCRIPTION: Final = KindRef(GROUP, "v1", "Subscription")
#: The kinds that a Subscription can be to.
CHANNELS: Final = (CHANNEL, IN_MEMORY_CHANNEL)

#: Says which contract between Channel and Subscription is spoken; Knative's tools look for it.
SUBSCRIBABLE_ANNOTATION: Final = f"{GROUP}/subscribable"

#: What backs a Channel that does not say: Knative's `config-br-default-channel` as it is installed.
DEFAULT_TEMPLATE: Final[Mapping[str, Any]] = {
    "apiVersion": IN_MEMORY_CHANNEL.api_version,
    "kind": IN_MEMORY_CHANNEL.kind,
}


class ChannelTemplateShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """``spec.channelTemplate``: of which kind the channel behind it is, and that one's ``spec``."""

    api_version: str = ""
    kind: str = ""
    spec: dict[str, Any] | None = None


class ChannelShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """A Channel's ``spec``. `subscribers` is Knative's own bookkeeping, and refused."""

    channel_template: ChannelTemplateShape | None = None
    subscribers: tuple[dict[str, Any], ...] = ()
    delivery: DeliveryShape | None = None


class InMemoryChannelShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """An InMemoryChannel's ``spec``. `subscribers` is Knative's own bookkeeping, and refused."""

    subscribers: tuple[dict[str, Any], ...] = ()
    delivery: DeliveryShape | None = None


class SubscriptionShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """A Subscription's ``spec``: events of `channel` go to `subscriber`, what it answers to `reply`."""

    channel: KReference = KReference()
    subscriber: Destination | None = None
    reply: Destination | None = None
    delivery: DeliveryShape | None = None


def channel_name(namespace: str, name: str) -> str:
    """The name of a channel's events in a log and its path at the ingress. A Broker's has one slash, so that the two
    cannot be the same."""
    return f"{namespace}/channels/{name}"


def make_channel(name: str, owner: Resource, kind: KindRef, spec: Mapping[str, Any]) -> Resource:
    """A channel of one of the kinds `CHANNELS` that `owner` has in its namespace, with its defaults. Whether EventTypes
    are made of its events is as for its owner."""
    meta = ObjectMeta(
        name=name,
        namespace=owner.meta.namespace,
        owner_references=(owner_reference(owner),),
        annotations={key: text for key, text in owner.meta.annotations.items() if key == AUTO_CREATE_ANNOTATION},
    )
    made = Resource(ref=kind, meta=meta, body={"spec": dict(spec)})
    return _default_channel(made) if kind == CHANNEL else _default_in_memory_channel(made)


# ---- defaults


def template_of(channel: Resource) -> KindRef:
    """Of which kind the channel behind a stored Channel is to be."""
    template = channel.spec.get("channelTemplate") or DEFAULT_TEMPLATE
    return KindRef.parse(template.get("apiVersion", ""), template.get("kind", ""))


def default_template(spec: dict[str, Any]) -> None:
    """Fill in which channels back the Channel, Sequence or Parallel of this spec."""
    if spec.get("channelTemplate") is None:
        spec["channelTemplate"] = dict(DEFAULT_TEMPLATE)


def _default_channel(resource: Resource) -> Resource:
    resource = _default_in_memory_channel(resource)
    spec = dict(resource.spec)
    default_template(spec)
    return resource.with_spec(spec)


def _default_in_memory_channel(resource: Resource) -> Resource:
    spec = dict(resource.spec)
    place(spec, ("delivery", "deadLetterSink", "ref"), resource.meta.namespace)
    annotations = {SUBSCRIBABLE_ANNOTATION: "v1", **resource.meta.annotations}
    return resource.with_meta(annotations=annotations).with_spec(spec)


def default_subscription(resource: Resource) -> Resource:
    """The Subscription with its references' namespaces."""
    spec = dict(resource.spec)
    for path in (("subscriber", "ref"), ("reply", "ref"), ("delivery", "deadLetterSink", "ref")):
        place(spec, path, resource.meta.namespace)
    return resource.with_spec(spec)


# ---- rules

#: What a template's ``spec`` is, by the kind that it asks for.
_SHAPES: Final[Mapping[KindRef, type[ChannelShape] | type[InMemoryChannelShape]]] = {
    CHANNEL: ChannelShape,
    IN_MEMORY_CHANNEL: InMemoryChannelShape,
}


def validate_template(template: ChannelTemplateShape | None, path: str) -> Iterator[FieldError]:
    """Each broken rule of a channel template found at `path`."""
    if template is None:
        yield FieldError(path=path, rule="is required")
        return
    for name, value in (("apiVersion", template.api_version), ("kind", template.kind)):
        if not value:
            yield FieldError(path=f"{path}.{name}", rule="is required")
    kind = KindRef.parse(template.api_version, template.kind)
    shape = _SHAPES.get(kind)
    if shape is None:
        return  # the status says that there is no such channel
    try:
        spec = msgspec.convert(template.spec or {}, shape)
    except msgspec.ValidationError as error:
        # Nobody else looks: the channel is made by the platform itself.
        yield FieldError(path=f"{path}.spec", rule=f"is not the spec of {kind.kind}: {error}")
        return
    yield from _subscriber_errors(spec.subscribers, f"{path}.spec")
    yield from validate_delivery(spec.delivery, f"{path}.spec.delivery")


def _validate_channel(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, ChannelShape)
    yield from auto_create_errors(new)
    yield from validate_template(shape.channel_template, "spec.channelTemplate")
    yield from _subscriber_errors(shape.subscribers)
    yield from validate_delivery(shape.delivery, "spec.delivery")
    if old is not None and shape != msgspec.convert(old.spec, ChannelShape):
        rule = "is immutable: delete the Channel and create it again to change it"
        yield FieldError(path="spec", rule=rule)


def _validate_in_memory_channel(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, InMemoryChannelShape)
    yield from auto_create_errors(new)
    yield from _subscriber_errors(shape.subscribers)
    yield from validate_delivery(shape.delivery, "spec.delivery")


def _subscriber_errors(subscribers: tuple[dict[str, Any], ...], path: str = "spec") -> Iterator[FieldError]:
    if subscribers:
        rule = "is not taken from people: create a Subscription for each, and leave it out"
        yield FieldError(path=f"{path}.subscribers", rule=rule)


def _validate_subscription(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, SubscriptionShape)
    yield from _channel_errors(shape.channel)
    yield from validate_destination(shape.subscriber, "spec.subscriber")
    if shape.reply is not None and shape.reply != Destination():
        yield from validate_destination(shape.reply, "spec.reply")
    yield from validate_delivery(shape.delivery, "spec.delivery")
    yield from validate_flow(new.meta.annotations)
    if old is not None and shape.channel != msgspec.convert(old.spec, SubscriptionShape).channel:
        rule = "is immutable: delete the Subscription and create it again to move it to another channel"
        yield FieldError(path="spec.channel", rule=rule, value=new.spec.get("channel"))


def _channel_errors(channel: KReference) -> Iterator[FieldError]:
    path = "spec.channel"
    if channel == KReference():
        yield FieldError(path=path, rule="is required: name the Channel or InMemoryChannel")
        return
    for name, value in (("apiVersion", channel.api_version), ("kind", channel.kind), ("name", channel.name)):
        if not value:
            yield FieldError(path=f"{path}.{name}", rule="is required")
    if channel.kind and channel.api_version:
        given = KindRef.parse(channel.api_version, channel.kind)
        if given not in CHANNELS:
            known = " or ".join(kind.kind for kind in CHANNELS)
            rule = f"must be a {known} of {CHANNEL.api_version}"
            yield FieldError(path=f"{path}.kind", rule=rule, value=f"{channel.kind} of {channel.api_version}")
    if channel.namespace:
        rule = "must be left out: a Subscription is to a channel of its own namespace"
        yield FieldError(path=f"{path}.namespace", rule=rule, value=channel.namespace)


_URL: Final = Column(name="URL", path=".status.address.url")
_READY: Final = (
    Column(name="Ready", path=".status.conditions[Ready].status"),
    Column(name="Reason", path=".status.conditions[Ready].reason"),
)

KINDS: Final = (
    Kind(
        ref=CHANNEL,
        plural="channels",
        singular="channel",
        short_names=("ch",),
        categories=("all", "knative", "messaging", "channel"),
        spec_type=ChannelShape,
        default=_default_channel,
        validate=_validate_channel,
        columns=(_URL, *_READY),
    ),
    Kind(
        ref=IN_MEMORY_CHANNEL,
        plural="inmemorychannels",
        singular="inmemorychannel",
        short_names=("imc",),
        categories=("all", "knative", "messaging", "channel"),
        spec_type=InMemoryChannelShape,
        default=_default_in_memory_channel,
        validate=_validate_in_memory_channel,
        columns=(_URL, *_READY),
    ),
    Kind(
        ref=SUBSCRIPTION,
        plural="subscriptions",
        singular="subscription",
        short_names=("sub",),
        categories=("all", "knative", "messaging"),
        spec_type=SubscriptionShape,
        default=default_subscription,
        validate=_validate_subscription,
        columns=_READY,
    ),
)
