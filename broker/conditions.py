"""What the reconcilers of this plane share: a dead-letter sink's condition, and who refers to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from core.control.reconcile import View
from core.resources import Condition, DeliveryShape, Destination, Key, KindRef, Resource, Unresolved, resolve

__all__ = ["condition_of", "conditions_of", "owners_of", "readable", "ready_of", "refers", "sink_condition", "sink_of"]

T = TypeVar("T")


def sink_condition(sink: Destination | None, namespace: str, view: View, status: dict[str, Any]) -> Condition:
    """Whether the sink, where there is one, has an address, which goes into `status`."""
    kind = "DeadLetterSinkResolved"
    if sink is None:
        reason, message = "DeadLetterSinkNotConfigured", "No dead letter sink is configured."
        return Condition(type=kind, status="True", reason=reason, message=message)
    try:
        status["deadLetterSinkUri"] = resolve(sink, namespace, view.get)
    except Unresolved as error:
        return Condition(type=kind, status="False", reason=error.reason, message=str(error))
    return Condition(type=kind, status="True")


def refers(destination: Destination | None, to: Resource, namespace: str) -> bool:
    """Whether the destination, of a resource in `namespace`, is that resource or below it."""
    ref = destination.ref if destination is not None else None
    if ref is None or ref.name != to.meta.name or ref.kind != to.ref.kind:
        return False
    return (ref.namespace or namespace) == to.meta.namespace


def readable(resources: Iterable[Resource], shape: type[T]) -> Iterator[tuple[Resource, T]]:
    """Each with its spec. One that cannot be read, which a store without admission may hold, keeps the others from
    nothing; its own decision fails and says why."""
    for resource in resources:
        try:
            read = msgspec.convert(resource.spec, shape)
        except msgspec.ValidationError:
            continue
        yield resource, read


def sink_of(delivery: DeliveryShape | None) -> Destination | None:
    return delivery.dead_letter_sink if delivery is not None else None


def ready_of(resource: Resource) -> Mapping[str, Any]:
    """The condition Ready; an empty one where there is none yet."""
    return condition_of(resource, "Ready")


def condition_of(resource: Resource, wanted: str) -> Mapping[str, Any]:
    """The condition of that type; an empty one where there is none yet."""
    for entry in conditions_of(resource):
        if entry.get("type") == wanted:
            return entry
    return {}


def conditions_of(resource: Resource) -> list[Mapping[str, Any]]:
    return resource.status.get("conditions") or []


def owners_of(dependent: Resource, kind: KindRef) -> Iterable[Key]:
    """The owners of that kind, which are looked at again when `dependent` changes."""
    namespace = dependent.meta.namespace
    return [
        Key(kind, namespace, owner.name)
        for owner in dependent.meta.owner_references
        if owner.kind == kind.kind and KindRef.parse(owner.api_version, owner.kind).group == kind.group
    ]
