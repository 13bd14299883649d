"""The kinds Broker and Trigger: their shape, defaults and rules.

Sources: knative/specs `eventing/control-plane.md`; knative/eventing `pkg/apis/eventing/v1` (defaults, validation,
immutability), `config-br-defaults` and the printed columns of the two CRDs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from broker import filters
from broker.cesql import MAX_LENGTH, Expression, ParseError
from broker.flow.settings import validate_flow
from core.errors import FieldError
from core.resources import (
    Column,
    DeliveryShape,
    Destination,
    Kind,
    KindRef,
    KReference,
    Resource,
    validate_delivery,
    validate_destination,
)

__all__ = [
    "AUTO_CREATE_ANNOTATION",
    "BROKER",
    "BROKER_LABEL",
    "CLASS_ANNOTATION",
    "DEFAULT_CLASS",
    "DEFAULT_DELIVERY",
    "DEPENDENCY_ANNOTATION",
    "DISABLED",
    "GROUP",
    "KAFKA_CLASS",
    "KINDS",
    "REDIS_CLASS",
    "TRIGGER",
    "BrokerShape",
    "FilterShape",
    "ObjectReference",
    "TriggerShape",
    "auto_create_errors",
    "class_of",
    "compile_filter",
    "dependency_of",
    "place",
]

GROUP: Final = "eventing.knative.dev"
BROKER: Final = KindRef(GROUP, "v1", "Broker")
TRIGGER: Final = KindRef(GROUP, "v1", "Trigger")

#: Which log a Broker uses. Existing manifests name Knative's own class, which is read as our default.
CLASS_ANNOTATION: Final = f"{GROUP}/broker.class"
DEFAULT_CLASS: Final = "Penstock"
REDIS_CLASS: Final = "Redis"
KAFKA_CLASS: Final = "Kafka"
CLASSES: Final = frozenset({DEFAULT_CLASS, REDIS_CLASS, KAFKA_CLASS})
READ_AS_DEFAULT: Final = frozenset({"MTChannelBasedBroker"})

#: Whether EventTypes are made of what a Broker or channel takes, by the name of Knative's switch for a whole cluster.
AUTO_CREATE_ANNOTATION: Final = "penstock.dev/eventtype-auto-create"
ENABLED: Final = "enabled"
DISABLED: Final = "disabled"

#: Put on every Trigger, so that ``kubectl get triggers -l`` finds a Broker's.
BROKER_LABEL: Final = f"{GROUP}/broker"
#: A Trigger that is ready only while this object is (JSON of an ObjectReference).
DEPENDENCY_ANNOTATION: Final = "knative.dev/dependency"

#: What Knative's `config-br-defaults` gives a Broker that says nothing of delivery.
DEFAULT_DELIVERY: Final[Mapping[str, Any]] = {"retry": 10, "backoffPolicy": "exponential", "backoffDelay": "PT0.2S"}

#: Filters in one Trigger, counted through all levels: each costs a comparison per event.
MAX_FILTERS: Final = 200

_ATTRIBUTE: Final = re.compile(r"[a-z][a-z0-9]*\Z")


class BrokerShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """A Broker's ``spec``."""

    config: KReference | None = None
    delivery: DeliveryShape | None = None


class AttributesShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """``spec.filter``: exact values by attribute, "" for any value."""

    attributes: dict[str, str] = {}


class FilterShape(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"all_": "all", "any_": "any", "not_": "not"},
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """One entry of ``spec.filters``: exactly one dialect is given."""

    exact: dict[str, str] | None = None
    prefix: dict[str, str] | None = None
    suffix: dict[str, str] | None = None
    all_: tuple[FilterShape, ...] | None = None
    any_: tuple[FilterShape, ...] | None = None
    not_: FilterShape | None = None
    cesql: str | None = None


class TriggerShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """A Trigger's ``spec``. `filters`, where given, replaces `filter` (Knative's rule)."""

    broker: str = ""
    filter: AttributesShape | None = None
    filters: tuple[FilterShape, ...] | None = None
    subscriber: Destination | None = None
    delivery: DeliveryShape | None = None


class ObjectReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the dependency annotation names."""

    kind: str = ""
    api_version: str = ""
    name: str = ""
    namespace: str = ""


def class_of(resource: Resource) -> str:
    """Which log a stored Broker asks for."""
    name = resource.meta.annotations.get(CLASS_ANNOTATION) or DEFAULT_CLASS
    return DEFAULT_CLASS if name in READ_AS_DEFAULT else name


def compile_filter(shape: TriggerShape) -> filters.Filter:
    """The filter that the Trigger's spec asks for. Raises ValueError naming the field that cannot be read."""
    if shape.filters:
        for number, entry in enumerate(shape.filters):
            for error in _filter_errors(entry, f"spec.filters[{number}]"):
                raise ValueError(str(error))
        return filters.All(tuple(map(_compile, shape.filters)))
    if shape.filter is not None and shape.filter.attributes:
        return filters.Exact(tuple(sorted(shape.filter.attributes.items())))
    return filters.ANYTHING


def dependency_of(resource: Resource) -> ObjectReference | None:
    """The object that a Trigger depends on. Raises ValueError where the annotation cannot be read."""
    text = resource.meta.annotations.get(DEPENDENCY_ANNOTATION)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=ObjectReference)
    except msgspec.DecodeError as error:
        raise ValueError(f"is not the JSON of an object reference: {error}") from error


def _compile(shape: FilterShape) -> filters.Filter:
    """Of a filter that breaks no rule."""
    if shape.exact is not None:
        return filters.Exact(tuple(sorted(shape.exact.items())))
    if shape.prefix is not None:
        return filters.Prefix(tuple(sorted(shape.prefix.items())))
    if shape.suffix is not None:
        return filters.Suffix(tuple(sorted(shape.suffix.items())))
    if shape.all_ is not None:
        return filters.All(tuple(map(_compile, shape.all_)))
    if shape.any_ is not None:
        return filters.Any(tuple(map(_compile, shape.any_)))
    if shape.not_ is not None:
        return filters.Not(_compile(shape.not_))
    if shape.cesql is not None:
        return filters.Cesql(_expression(shape.cesql))
    return filters.ANYTHING


# ---- defaults


def _default_broker(resource: Resource) -> Resource:
    spec = dict(resource.spec)
    if spec.get("delivery") is None:
        spec["delivery"] = dict(DEFAULT_DELIVERY)
    place(spec, ("config",), resource.meta.namespace)
    place(spec, ("delivery", "deadLetterSink", "ref"), resource.meta.namespace)
    annotations = resource.meta.annotations
    if not annotations.get(CLASS_ANNOTATION) or annotations[CLASS_ANNOTATION] in READ_AS_DEFAULT:
        resource = resource.with_meta(annotations={**annotations, CLASS_ANNOTATION: DEFAULT_CLASS})
    return resource.with_spec(spec)


def _default_trigger(resource: Resource) -> Resource:
    spec = dict(resource.spec)
    if not spec.get("broker"):
        spec["broker"] = "default"
    if spec.get("filter") is None:
        spec["filter"] = {}
    place(spec, ("subscriber", "ref"), resource.meta.namespace)
    place(spec, ("delivery", "deadLetterSink", "ref"), resource.meta.namespace)
    labels = {**resource.meta.labels, BROKER_LABEL: spec["broker"]}
    return resource.with_meta(labels=labels).with_spec(spec)


def place(spec: dict[str, Any], path: tuple[str, ...], namespace: str) -> None:
    """Give the reference at `path`, where there is one without a namespace, this namespace; copies on the way."""
    held: dict[str, Any] = spec
    for name in path:
        inner = held.get(name)
        if not isinstance(inner, dict):
            return
        held[name] = dict(inner)
        held = held[name]
    if not held.get("namespace"):
        held["namespace"] = namespace


# ---- rules


def _validate_broker(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, BrokerShape)
    yield from _class_errors(new, old)
    yield from auto_create_errors(new)
    if shape.config is not None:
        for name, value in (("kind", shape.config.kind), ("name", shape.config.name)):
            if not value:
                yield FieldError(path=f"spec.config.{name}", rule="is required")
    yield from validate_delivery(shape.delivery, "spec.delivery")
    if old is not None and old.spec.get("config") != new.spec.get("config"):
        rule = "is immutable: delete the Broker and create it again to change it"
        yield FieldError(path="spec.config", rule=rule, value=new.spec.get("config"))


def auto_create_errors(resource: Resource) -> Iterator[FieldError]:
    """Whether it says in a readable way if EventTypes are made of its events."""
    given = resource.meta.annotations.get(AUTO_CREATE_ANNOTATION, ENABLED)
    if given not in (ENABLED, DISABLED):
        path, rule = f"metadata.annotations[{AUTO_CREATE_ANNOTATION}]", f"must be {ENABLED} or {DISABLED}"
        yield FieldError(path=path, rule=rule, value=given)


def _class_errors(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    path = f"metadata.annotations[{CLASS_ANNOTATION}]"
    name = new.meta.annotations.get(CLASS_ANNOTATION, "")
    if name not in CLASSES:
        known = ", ".join(sorted(CLASSES | READ_AS_DEFAULT))
        yield FieldError(path=path, rule=f"must be one of {known}", value=name)
    if old is not None and old.meta.annotations.get(CLASS_ANNOTATION, DEFAULT_CLASS) != name:
        rule = "is immutable: delete the Broker and create it again to change it"
        yield FieldError(path=path, rule=rule, value=name)


def _validate_trigger(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, TriggerShape)
    if old is not None and old.spec.get("broker") != shape.broker:
        rule = "is immutable: delete the Trigger and create it again to move it to another Broker"
        yield FieldError(path="spec.broker", rule=rule, value=shape.broker)
    if shape.filter is not None:
        yield from _name_errors(shape.filter.attributes, "spec.filter.attributes")
    count = 0
    for number, entry in enumerate(shape.filters or ()):
        count += _count(entry)
        yield from _filter_errors(entry, f"spec.filters[{number}]")
    if count > MAX_FILTERS:
        yield FieldError(path="spec.filters", rule=f"must not hold more than {MAX_FILTERS} filters", value=count)
    yield from validate_destination(shape.subscriber, "spec.subscriber")
    yield from validate_delivery(shape.delivery, "spec.delivery")
    yield from validate_flow(new.meta.annotations)
    yield from _dependency_errors(new)


def _dependency_errors(resource: Resource) -> Iterator[FieldError]:
    path = f"metadata.annotations[{DEPENDENCY_ANNOTATION}]"
    try:
        reference = dependency_of(resource)
    except ValueError as error:
        yield FieldError(path=path, rule=str(error), value=resource.meta.annotations[DEPENDENCY_ANNOTATION])
        return
    if reference is None:
        return
    for name, value in (
        ("kind", reference.kind),
        ("name", reference.name),
        ("apiVersion", reference.api_version),
    ):
        if not value:
            yield FieldError(path=f"{path}.{name}", rule="is required")
    if reference.namespace not in ("", resource.meta.namespace):
        rule = "must be the Trigger's own namespace, or left out"
        yield FieldError(path=f"{path}.namespace", rule=rule, value=reference.namespace)


def _filter_errors(shape: FilterShape, path: str) -> Iterator[FieldError]:
    given = [name for name in FilterShape.__struct_encode_fields__ if getattr(shape, _FIELDS[name]) is not None]
    if len(given) > 1:
        rule = "must hold one dialect: put several into separate entries, or under all"
        yield FieldError(path=path, rule=rule, value=", ".join(given))
    for name, pairs in (("exact", shape.exact), ("prefix", shape.prefix), ("suffix", shape.suffix)):
        if pairs is not None:
            yield from _pair_errors(pairs, f"{path}.{name}")
    for name, nested in (("all", shape.all_), ("any", shape.any_)):
        if nested is not None:
            if not nested:
                yield FieldError(path=f"{path}.{name}", rule="must hold at least one filter")
            for number, entry in enumerate(nested):
                yield from _nested_errors(entry, f"{path}.{name}[{number}]")
    if shape.not_ is not None:
        yield from _nested_errors(shape.not_, f"{path}.not")
    if shape.cesql is not None:
        yield from _expression_errors(shape.cesql, f"{path}.cesql")


@lru_cache(maxsize=256)
def _expression(text: str) -> Expression:
    """Of one filter, which is checked, doubted and compiled in turn. Raises ParseError."""
    return Expression(text)


def _trigger_doubts(new: Resource) -> Iterator[FieldError]:
    shape = msgspec.convert(new.spec, TriggerShape)
    for number, entry in enumerate(shape.filters or ()):
        for path, text in _expressions(entry, f"spec.filters[{number}]"):
            yield from (FieldError(path=path, rule=doubt) for doubt in _expression(text).doubts())


def _expressions(shape: FilterShape, path: str) -> Iterator[tuple[str, str]]:
    """The expressions in a filter, with their paths."""
    if shape.cesql is not None:
        yield f"{path}.cesql", shape.cesql
    for name, nested in (("all", shape.all_), ("any", shape.any_)):
        for number, entry in enumerate(nested or ()):
            yield from _expressions(entry, f"{path}.{name}[{number}]")
    if shape.not_ is not None:
        yield from _expressions(shape.not_, f"{path}.not")


def _expression_errors(text: str, path: str) -> Iterator[FieldError]:
    try:
        expression = _expression(text)
    except ParseError as error:
        yield FieldError(path=path, rule=str(error), value=text[:MAX_LENGTH])
        return
    for problem in expression.problems():
        yield FieldError(path=path, rule=problem, value=text)


def _pair_errors(pairs: Mapping[str, str], path: str) -> Iterator[FieldError]:
    if not pairs:
        yield FieldError(path=path, rule="must hold at least one attribute")
    yield from _name_errors(pairs, path)
    for attribute, value in pairs.items():
        if not value:
            yield FieldError(path=f"{path}[{attribute}]", rule="must not be empty")


_FIELDS: Final = dict(zip(FilterShape.__struct_encode_fields__, FilterShape.__struct_fields__, strict=True))


def _nested_errors(shape: FilterShape, path: str) -> Iterator[FieldError]:
    if shape == FilterShape():
        yield FieldError(path=path, rule="is empty: name a dialect (exact, prefix, suffix, all, any, not or cesql)")
    yield from _filter_errors(shape, path)


def _count(shape: FilterShape) -> int:
    nested = (*(shape.all_ or ()), *(shape.any_ or ()), *((shape.not_,) if shape.not_ else ()))
    return 1 + sum(_count(entry) for entry in nested)


def _name_errors(attributes: Iterable[str], path: str) -> Iterator[FieldError]:
    for name in attributes:
        if _ATTRIBUTE.match(name) is None:
            rule = "is not an attribute name: start with a letter, use only a-z and 0-9"
            yield FieldError(path=f"{path}[{name}]", rule=rule)


_READY: Final = (
    Column(name="Ready", path=".status.conditions[Ready].status"),
    Column(name="Reason", path=".status.conditions[Ready].reason"),
)

KINDS: Final = (
    Kind(
        ref=BROKER,
        plural="brokers",
        singular="broker",
        categories=("all", "knative", "eventing"),
        spec_type=BrokerShape,
        default=_default_broker,
        validate=_validate_broker,
        columns=(Column(name="URL", path=".status.address.url"), *_READY),
    ),
    Kind(
        ref=TRIGGER,
        plural="triggers",
        singular="trigger",
        categories=("all", "knative", "eventing"),
        spec_type=TriggerShape,
        default=_default_trigger,
        validate=_validate_trigger,
        doubts=_trigger_doubts,
        columns=(
            Column(name="Broker", path=".spec.broker"),
            Column(name="Subscriber_URI", path=".status.subscriberUri"),
            *_READY,
        ),
    ),
)
