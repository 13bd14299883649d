"""The kind EventType, which says what a Broker or channel has to offer; and the EventType that an event is of.

Sources: knative/eventing `pkg/apis/eventing/v1beta3` (shape, defaults, validation), `pkg/eventtype/eventtypes.go` (what
is created automatically, and its name) and the printed columns of the CRD.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from broker.conditions import readable
from broker.resources import GROUP, place
from core.errors import FieldError
from core.resources import Column, Key, Kind, KindRef, KReference, ObjectMeta, OwnerReference, Resource

__all__ = [
    "EVENT_TYPE",
    "KINDS",
    "AttributeShape",
    "EventTypeShape",
    "event_type_name",
    "make_event_type",
    "readable_references",
    "reference_of",
]

EVENT_TYPE: Final = KindRef(GROUP, "v1beta3", "EventType")

#: Attributes that every event has, so that every EventType must say something of them.
_REQUIRED: Final = ("type", "source", "specversion", "id")
#: A name may have 253 characters; Knative leaves ten of them free.
_NAME_LENGTH: Final = 243
_NOT_IN_NAMES: Final = re.compile(r"[^-a-z0-9.]")


class AttributeShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """An attribute of such events; in `value`, braces stand for what may be anything."""

    name: str
    required: bool = False
    value: str = ""


class EventTypeShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """An EventType's ``spec``: events with these attributes come from `reference`."""

    reference: KReference | None = None
    description: str = ""
    attributes: tuple[AttributeShape, ...] = ()


def event_type_name(namespace: str, name: str, event_type: str, source: str) -> str:
    """What the EventType of an event is called that the Broker or channel of that name has."""
    digest = hashlib.md5(f"{event_type}{source}{namespace}{name}".encode(), usedforsecurity=False).hexdigest()
    start = f"et-{name}"[: _NAME_LENGTH - len(digest) - 1]  # what tells two apart is kept
    return _NOT_IN_NAMES.sub("", f"{start}-{digest}".lower()).strip("-.")


def make_event_type(giver: Resource, event_type: str, source: str, schema: str | None) -> Resource:
    """The EventType of an event that `giver` has: it goes with it."""
    ref, meta = giver.ref, giver.meta
    owner = OwnerReference(api_version=ref.api_version, kind=ref.kind, name=meta.name, uid=meta.uid)
    attributes: list[dict[str, Any]] = [
        {"name": "type", "required": True, "value": event_type},
        {"name": "source", "required": True, "value": source},
        {"name": "specversion", "required": True, "value": "1.0"},
        {"name": "id", "required": True},
    ]
    if schema:
        attributes.append({"name": "schemadata", "required": True, "value": schema})
    spec = {
        "reference": {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "name": meta.name,
            "namespace": meta.namespace,
        },
        "description": f"Created when the {ref.kind} took the first such event.",
        "attributes": attributes,
    }
    made = ObjectMeta(
        name=event_type_name(meta.namespace, meta.name, event_type, source),
        namespace=meta.namespace,
        owner_references=(owner,),
    )
    return Resource(ref=EVENT_TYPE, meta=made, body={"spec": spec})


def reference_of(resource: Resource) -> Key | None:
    """What a stored EventType refers to; None where it refers to nothing."""
    reference = msgspec.convert(resource.spec, EventTypeShape).reference
    return _key(reference, resource.meta.namespace)


def readable_references(event_types: Iterable[Resource]) -> Iterator[tuple[Resource, Key | None]]:
    """Each with what it refers to, but for those that cannot be read."""
    for event_type, shape in readable(event_types, EventTypeShape):
        yield event_type, _key(shape.reference, event_type.meta.namespace)


def _key(reference: KReference | None, namespace: str) -> Key | None:
    if reference is None or reference == KReference(namespace=reference.namespace):
        return None
    kind = KindRef.parse(reference.api_version or f"{reference.group}/v1", reference.kind)
    return Key(kind, reference.namespace or namespace, reference.name)


def _default(resource: Resource) -> Resource:
    spec = dict(resource.spec)
    place(spec, ("reference",), resource.meta.namespace)
    return resource.with_spec(spec)


def _validate(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, EventTypeShape)
    known = {attribute.name for attribute in shape.attributes}
    for name in _REQUIRED:
        if name not in known:
            yield FieldError(path="spec.attributes", rule=f"must have an entry of the name {name}")


KINDS: Final = (
    Kind(
        ref=EVENT_TYPE,
        plural="eventtypes",
        singular="eventtype",
        categories=("all", "knative", "eventing"),
        spec_type=EventTypeShape,
        default=_default,
        validate=_validate,
        columns=(
            Column(name="Type", path=".spec.attributes[type].value"),
            Column(name="Source", path=".spec.attributes[source].value"),
            Column(name="Reference Name", path=".spec.reference.name"),
            Column(name="Reference Kind", path=".spec.reference.kind"),
            Column(name="Description", path=".spec.description", wide=True),
            Column(name="Ready", path=".status.conditions[Ready].status"),
            Column(name="Reason", path=".status.conditions[Ready].reason"),
        ),
    ),
)
