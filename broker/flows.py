"""The kinds Sequence and Parallel: their shape, defaults and rules, and what each is made of.

Sources: knative/eventing `pkg/apis/flows/v1` (defaults, validation), `pkg/reconciler/{sequence,parallel}/resources`
(names, who sends to whom) and the printed columns of the CRDs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from broker.messaging import (
    SUBSCRIPTION,
    ChannelTemplateShape,
    default_subscription,
    default_template,
    validate_template,
)
from broker.resources import place
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
    "KINDS",
    "MAX_STEPS",
    "PARALLEL",
    "SEQUENCE",
    "BranchShape",
    "ParallelShape",
    "Plan",
    "SequenceShape",
    "StepShape",
    "plan_parallel",
    "plan_sequence",
    "with_defaults",
]

GROUP: Final = "flows.knative.dev"
SEQUENCE: Final = KindRef(GROUP, "v1", "Sequence")
PARALLEL: Final = KindRef(GROUP, "v1", "Parallel")

#: Steps or branches in one flow: each is a channel and up to two Subscriptions, all written anew when it changes.
MAX_STEPS: Final = 100


class StepShape(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"ca_certs": "CACerts"},
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """One step of a Sequence: a Destination, and how it is delivered to."""

    ref: KReference | None = None
    uri: str | None = None
    ca_certs: str | None = None
    audience: str | None = None
    delivery: DeliveryShape | None = None


class SequenceShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """A Sequence's ``spec``: each step gets what the one before answered; what the last one answers goes to `reply`."""

    steps: tuple[StepShape, ...] = ()
    channel_template: ChannelTemplateShape | None = None
    reply: Destination | None = None


class BranchShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """One branch of a Parallel: what `filter` answers goes to `subscriber`, and what that answers to `reply`."""

    filter: Destination | None = None
    subscriber: Destination | None = None
    reply: Destination | None = None
    delivery: DeliveryShape | None = None


class ParallelShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """A Parallel's ``spec``: every branch gets every event. `reply` is for branches that have none of their own."""

    branches: tuple[BranchShape, ...] = ()
    channel_template: ChannelTemplateShape | None = None
    reply: Destination | None = None


class Plan(msgspec.Struct, frozen=True):
    """What a flow is made of: channels by name, the first of which is its address, and Subscriptions."""

    channels: tuple[str, ...]
    subscriptions: tuple[Resource, ...]


def plan_sequence(resource: Resource) -> Plan:
    """A channel in front of each step; each but the last replies into the next one's."""
    spec = resource.spec
    steps: Sequence[Mapping[str, Any]] = spec.get("steps") or ()
    names = tuple(f"{resource.meta.name}-kn-sequence-{number}" for number in range(len(steps)))
    subscriptions = []
    for number, step in enumerate(steps):
        reply = _to(resource, names[number + 1]) if number + 1 < len(steps) else spec.get("reply")
        subscriber = {name: value for name, value in step.items() if name != "delivery"}
        made = _subscription(resource, names[number], names[number], subscriber, reply, step.get("delivery"))
        subscriptions.append(made)
    return Plan(names, tuple(subscriptions))


def plan_parallel(resource: Resource) -> Plan:
    """One channel in front, and one behind each branch's filter. The filters' Subscriptions come first, then the
    subscribers', in the branches' order."""
    spec, name = resource.spec, f"{resource.meta.name}-kn-parallel"
    branches: Sequence[Mapping[str, Any]] = spec.get("branches") or ()
    filters, subscribers = [], []
    for number, branch in enumerate(branches):
        channel = f"{name}-{number}"
        wanted = branch.get("filter")
        through = _to(resource, channel)
        asked, reply = (through, None) if wanted is None else (wanted, through)
        filters.append(_subscription(resource, f"{name}-filter-{number}", name, asked, reply, None))
        answers = branch.get("reply") or spec.get("reply")
        delivery = branch.get("delivery")
        subscribers.append(_subscription(resource, channel, channel, branch["subscriber"], answers, delivery))
    return Plan((name, *(f"{name}-{number}" for number in range(len(branches)))), (*filters, *subscribers))


def with_defaults(flow: Resource) -> Resource:
    """A stored flow as admission leaves it: where there is no admission, it is as somebody wrote it."""
    return _default_sequence(flow) if flow.ref == SEQUENCE else _default_parallel(flow)


def _to(flow: Resource, channel: str) -> dict[str, Any]:
    """The Destination that one of the flow's own channels is."""
    template = flow.spec["channelTemplate"]
    ref = {"apiVersion": template["apiVersion"], "kind": template["kind"], "name": channel}
    return {"ref": {**ref, "namespace": flow.meta.namespace}}


def _subscription(
    flow: Resource,
    name: str,
    channel: str,
    subscriber: Mapping[str, Any],
    reply: Mapping[str, Any] | None,
    delivery: Mapping[str, Any] | None,
) -> Resource:
    template = flow.spec["channelTemplate"]
    spec: dict[str, Any] = {
        "channel": {"apiVersion": template["apiVersion"], "kind": template["kind"], "name": channel},
        "subscriber": subscriber,
    }
    spec |= {name: value for name, value in (("reply", reply), ("delivery", delivery)) if value}
    meta = ObjectMeta(name=name, namespace=flow.meta.namespace, owner_references=(owner_reference(flow),))
    return default_subscription(Resource(ref=SUBSCRIPTION, meta=meta, body={"spec": spec}))


# ---- defaults


def _default_sequence(resource: Resource) -> Resource:
    spec = dict(resource.spec)
    default_template(spec)
    spec["steps"] = [dict(step) for step in spec.get("steps") or ()]
    for step in spec["steps"]:
        place(step, ("ref",), resource.meta.namespace)
    place(spec, ("reply", "ref"), resource.meta.namespace)
    return resource.with_spec(spec)


def _default_parallel(resource: Resource) -> Resource:
    spec, namespace = dict(resource.spec), resource.meta.namespace
    default_template(spec)
    branches = [dict(branch) for branch in spec.get("branches") or ()]
    for branch in branches:
        for name in ("filter", "subscriber", "reply"):
            place(branch, (name, "ref"), namespace)
    spec["branches"] = branches
    place(spec, ("reply", "ref"), namespace)
    return resource.with_spec(spec)


# ---- rules


def _validate_sequence(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, SequenceShape)
    yield from _count_errors(len(shape.steps), "steps")
    for number, step in enumerate(shape.steps):
        yield from validate_destination(Destination(ref=step.ref, uri=step.uri), f"spec.steps[{number}]")
        yield from validate_delivery(step.delivery, f"spec.steps[{number}].delivery")
    yield from validate_template(shape.channel_template, "spec.channelTemplate")
    yield from _optional(shape.reply, "spec.reply")


def _validate_parallel(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, ParallelShape)
    yield from _count_errors(len(shape.branches), "branches")
    for number, branch in enumerate(shape.branches):
        path = f"spec.branches[{number}]"
        yield from _optional(branch.filter, f"{path}.filter")
        yield from validate_destination(branch.subscriber, f"{path}.subscriber")
        yield from _optional(branch.reply, f"{path}.reply")
        yield from validate_delivery(branch.delivery, f"{path}.delivery")
    yield from validate_template(shape.channel_template, "spec.channelTemplate")
    yield from _optional(shape.reply, "spec.reply")


def _count_errors(count: int, name: str) -> Iterator[FieldError]:
    if not count:
        yield FieldError(path=f"spec.{name}", rule="must hold at least one")
    if count > MAX_STEPS:
        yield FieldError(path=f"spec.{name}", rule=f"must not hold more than {MAX_STEPS}", value=count)


def _optional(destination: Destination | None, path: str) -> Iterator[FieldError]:
    if destination is not None:
        yield from validate_destination(destination, path)


_COLUMNS: Final = (
    Column(name="URL", path=".status.address.url"),
    Column(name="Ready", path=".status.conditions[Ready].status"),
    Column(name="Reason", path=".status.conditions[Ready].reason"),
)

KINDS: Final = (
    Kind(
        ref=SEQUENCE,
        plural="sequences",
        singular="sequence",
        categories=("all", "knative", "flows"),
        spec_type=SequenceShape,
        default=_default_sequence,
        validate=_validate_sequence,
        columns=_COLUMNS,
    ),
    Kind(
        ref=PARALLEL,
        plural="parallels",
        singular="parallel",
        categories=("all", "knative", "flows"),
        spec_type=ParallelShape,
        default=_default_parallel,
        validate=_validate_parallel,
        columns=_COLUMNS,
    ),
)
