"""From a document that a client sent to a resource that may be stored: shape, defaults, rules. Pure functions.

`read_resource` turns a document into a Resource (or says every way in which its shape is wrong); `for_create`,
`for_update` and `for_status` decide what of it is taken, given what is stored; `admit` defaults and validates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from core.errors import FieldError
from core.limits import MAX_RESOURCE_BYTES
from core.resources import Kind, ObjectMeta, Resource
from core.resources.builtin import NAMESPACE
from penstock.apiserver.metadata import broken_metadata, broken_name
from penstock.apiserver.shapes import Fault, UnknownField, faults, without
from penstock.apiserver.statuses import Refused, Status, bad_request, cause_of, invalid, object_conflict

__all__ = [
    "FieldPolicy",
    "Place",
    "Reading",
    "admit",
    "encode",
    "for_create",
    "for_status",
    "for_update",
    "has_status",
    "read_resource",
    "wire",
]

#: What to do about keys that a kind does not have: refuse, drop with a warning, drop.
FieldPolicy = Literal["Strict", "Warn", "Ignore"]

_META_NAMES: Final = tuple(field.encode_name for field in msgspec.structs.fields(ObjectMeta))
_TYPED_MEMBERS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_ENCODER: Final = msgspec.json.Encoder()


class Place(msgspec.Struct, frozen=True):
    """Where the request's URL puts the resource; `name` None where the document names it."""

    namespace: str
    name: str | None = None


class Reading(msgspec.Struct, frozen=True):
    """A document read. `warnings` are for the client, one for each key that was dropped."""

    resource: Resource
    warnings: tuple[str, ...] = ()


def has_status(kind: Kind) -> bool:
    """Whether status is a write of its own. Kubernetes' untyped kinds (ConfigMap, Secret ...) have none."""
    return kind.spec_type is not None or kind.ref == NAMESPACE


def wire(resource: Resource) -> dict[str, Any]:
    """The resource in the member order that people expect, ready to be encoded."""
    ref = resource.ref
    return {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": resource.meta, **resource.body}


def encode(resource: Resource) -> bytes:
    return _ENCODER.encode(wire(resource))


def read_resource(document: Any, kind: Kind, place: Place, policy: FieldPolicy) -> Reading:
    """The resource that `document` describes. Raises Refused: 400 for what is not a `kind` at `place` or has unknown
    keys under "Strict", 422 for values of the wrong type.
    """
    if not isinstance(document, dict):
        raise bad_request(f"The body must be one {kind.ref.kind} as an object, not {_json_type(document)}.")
    _check_type(document, kind)
    cleaned = {**document, "metadata": _without_nulls(document.get("metadata"))}
    unknown, wrong = _sort_faults(_document_faults(cleaned, kind))
    name = _name_of(cleaned["metadata"])
    if policy == "Strict" and unknown:
        raise _unknown_fields(kind, unknown, wrong)
    if wrong:
        raise invalid(kind, name, wrong)
    # Deepest and last first, so that the indexes in the remaining steps stay right.
    for fault in reversed(unknown):
        cleaned = without(cleaned, fault.steps)
    body = {name: value for name, value in cleaned.items() if name not in ("apiVersion", "kind", "metadata")}
    meta = msgspec.convert(cleaned["metadata"], ObjectMeta)
    resource = Resource(ref=kind.ref, meta=_placed(meta, kind, place), body=body)
    warnings = tuple(str(fault) for fault in unknown) if policy == "Warn" else ()
    return Reading(resource, warnings)


def _check_type(document: dict[str, Any], kind: Kind) -> None:
    # Typed clients leave apiVersion and kind out, as the URL says both.
    for member, expected in (("apiVersion", kind.ref.api_version), ("kind", kind.ref.kind)):
        given = document.get(member)
        if given not in (None, "", expected):
            raise bad_request(f"{member} in the body is {given!r}, but this URL is for {expected!r}.")


def _without_nulls(meta: Any) -> Any:
    """Metadata less its null members: Go clients write ``creationTimestamp: null`` for what they leave out."""
    if meta is None:
        return {}
    if isinstance(meta, dict):
        return {name: value for name, value in meta.items() if value is not None}
    return meta


def _document_faults(document: dict[str, Any], kind: Kind) -> Iterable[Fault]:
    meta = document["metadata"]
    yield from faults(meta, ObjectMeta, "metadata", ("metadata",))
    if isinstance(meta, dict):
        for name in meta:
            if name not in _META_NAMES:
                yield UnknownField(f"metadata.{name}", ("metadata", name), _META_NAMES)
    if kind.spec_type is None:
        return
    for name in document:
        if name not in _TYPED_MEMBERS:
            yield UnknownField(name, (name,), _TYPED_MEMBERS)
    spec = document.get("spec")
    yield from faults({} if spec is None else spec, kind.spec_type, "spec", ("spec",))
    status = document.get("status")
    if status is not None and not isinstance(status, dict):
        yield FieldError(path="status", rule="must be an object", value=status)


def _sort_faults(found: Iterable[Fault]) -> tuple[list[UnknownField], list[FieldError]]:
    unknown: list[UnknownField] = []
    wrong: list[FieldError] = []
    for fault in found:
        if isinstance(fault, UnknownField):
            unknown.append(fault)
        else:
            wrong.append(fault)
    return unknown, wrong


def _unknown_fields(kind: Kind, unknown: list[UnknownField], wrong: list[FieldError]) -> Refused:
    ref = kind.ref
    parts = [str(fault) for fault in unknown] + [f"{error.path}: {cause_of(error).message}" for error in wrong]
    message = (
        f'{ref.kind} in version "{ref.version}" cannot be handled as a {ref.kind}: '
        f"strict decoding error: {', '.join(parts)}"
    )
    return bad_request(message, (cause_of(error) for error in wrong))


def _name_of(meta: Any) -> str:
    name = meta.get("name") or meta.get("generateName") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else ""


def _placed(meta: ObjectMeta, kind: Kind, place: Place) -> ObjectMeta:
    if meta.namespace and not kind.namespaced:
        error = FieldError(
            path="metadata.namespace",
            rule=f"must not be set, as {kind.plural} do not live in namespaces",
            value=meta.namespace,
        )
        raise invalid(kind, meta.name, [error])
    if meta.namespace not in ("", place.namespace):
        raise bad_request(
            f"the namespace of the provided object ({meta.namespace}) does not match the namespace sent on the "
            f"request ({place.namespace})"
        )
    if place.name is not None and meta.name not in ("", place.name):
        raise bad_request(
            f"the name of the object ({meta.name}) does not match the name on the URL ({place.name}); "
            "a resource cannot be renamed"
        )
    return msgspec.structs.replace(meta, namespace=place.namespace, name=place.name or meta.name)


def for_create(given: Resource, kind: Kind) -> Resource:
    """What a create takes of `given`: no status, none of the metadata that the store fills."""
    if given.meta.resource_version not in ("", "0"):
        raise bad_request("metadata.resourceVersion must not be set on a resource that is to be created.")
    meta = msgspec.structs.replace(
        given.meta,
        uid="",
        resource_version="",
        generation=0,
        creation_timestamp=None,
        deletion_timestamp=None,
        deletion_grace_period_seconds=None,
        self_link="",
        managed_fields=(),
    )
    return Resource(ref=given.ref, meta=meta, body=_less_status(given, kind))


def _less_status(resource: Resource, kind: Kind) -> dict[str, Any]:
    if not has_status(kind) or "status" not in resource.body:
        return resource.body
    return {name: value for name, value in resource.body.items() if name != "status"}


def for_update(given: Resource, old: Resource, kind: Kind) -> Resource:
    """What an update of `old` takes of `given`: everything but status and the metadata that the store owns.

    Raises Refused (409) where `given` names another uid or resourceVersion, (422) for a finalizer added too late.
    """
    _check_preconditions(given.meta, old.meta, kind)
    added = set(given.meta.finalizers) - set(old.meta.finalizers)
    if old.meta.deletion_timestamp and added:
        rule = "must not gain finalizers, because the resource is being deleted"
        error = FieldError(path="metadata.finalizers", rule=rule, value=sorted(added))
        raise invalid(kind, old.meta.name, [error])
    meta = _owned_by_store(given.meta, old.meta)
    body = _less_status(given, kind)
    if has_status(kind) and "status" in old.body:
        body = {**body, "status": old.body["status"]}
    return Resource(ref=old.ref, meta=meta, body=body)


def for_status(given: Resource, old: Resource, kind: Kind) -> Resource:
    """`old` with the status of `given`. Raises Refused (409) as `for_update` does."""
    _check_preconditions(given.meta, old.meta, kind)
    return old.with_status(given.status)


def _check_preconditions(given: ObjectMeta, old: ObjectMeta, kind: Kind) -> None:
    if given.uid not in ("", old.uid):
        raise object_conflict(kind, old.name, f"its uid is {old.uid}, not {given.uid}: it was deleted and made anew")
    if given.resource_version not in ("", "0", old.resource_version):
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise object_conflict(kind, old.name, why)


def _owned_by_store(given: ObjectMeta, old: ObjectMeta) -> ObjectMeta:
    return msgspec.structs.replace(
        given,
        name=old.name,
        namespace=old.namespace,
        generate_name=old.generate_name,
        uid=old.uid,
        resource_version=old.resource_version,
        generation=old.generation,
        creation_timestamp=old.creation_timestamp,
        deletion_timestamp=old.deletion_timestamp,
        deletion_grace_period_seconds=old.deletion_grace_period_seconds,
        self_link="",
    )


def admit(resource: Resource, kind: Kind, old: Resource | None) -> Resource:
    """`resource` with its defaults. Raises Refused: 422 with every broken rule, 413 where it is too large."""
    errors = list(broken_metadata(resource.meta))
    if old is None:
        label = kind.ref == NAMESPACE
        errors += broken_name(resource.meta.name, "metadata.name", label=label)
        if kind.namespaced:
            errors += broken_name(resource.meta.namespace, "metadata.namespace", label=True)
    defaulted = kind.default(resource)
    told = list(kind.validate(defaulted, old))
    if any(error.path == "metadata.name" for error in told):
        # The kind's own rule for names is the stricter one: one message about the name is enough.
        errors = [error for error in errors if error.path != "metadata.name"]
    errors += told
    if errors:
        raise invalid(kind, resource.meta.name, errors)
    size = len(encode(defaulted))
    if size > MAX_RESOURCE_BYTES:
        message = f'{kind.ref} "{resource.meta.name}" is {size} bytes; the limit is {MAX_RESOURCE_BYTES}.'
        raise Refused(Status.failure(413, message))
    return defaulted


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    return {str: "a string", bool: "a boolean", list: "a list"}.get(type(value), "a number")
