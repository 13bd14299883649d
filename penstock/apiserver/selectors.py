"""Label and field selectors: which resources a list, a watch or a deletecollection is about.

Syntax: Kubernetes documentation, "Labels and Selectors" and "Field Selectors".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from core.resources import Kind, ObjectMeta, Resource
from core.resources.builtin import EVENT
from penstock.apiserver.statuses import bad_request

__all__ = ["Selection", "parse_selection"]

#: Requirements in one selector; a person writes one to five.
_MAX_REQUIREMENTS: Final = 100

_KEY: Final = r"[A-Za-z0-9][-A-Za-z0-9_./]*"
_SET: Final = re.compile(rf"\s*(?P<key>{_KEY})\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)\s*(?:,|\Z)")
_EQUAL: Final = re.compile(rf"\s*(?P<key>{_KEY})\s*(?P<operator>==|=|!=)\s*(?P<values>[-A-Za-z0-9_.]*)\s*(?:,|\Z)")
_EXISTS: Final = re.compile(rf"\s*(?P<operator>!?)\s*(?P<key>{_KEY})\s*(?:,|\Z)")
_FIELD: Final = re.compile(r"\s*(?P<key>[A-Za-z][A-Za-z.]*)\s*(?P<operator>==|=|!=)(?P<value>(?:[^,\\]|\\.)*)(?:,|\Z)")

#: Fields of an Event that kubectl selects by (``describe`` shows a resource's events with the first four).
_EVENT_FIELDS: Final = frozenset(
    {
        *(f"involvedObject.{name}" for name in ("apiVersion", "kind", "name", "namespace", "uid")),
        *("involvedObject.resourceVersion", "involvedObject.fieldPath"),
        *("reason", "reportingComponent", "source", "type"),
    }
)

LabelTest = Callable[[dict[str, str]], bool]
FieldTest = Callable[[Resource], bool]


class Selection(msgspec.Struct, frozen=True):
    """A conjunction of tests. Fields never change in a resource's life; labels may."""

    labels: tuple[LabelTest, ...] = ()
    fields: tuple[FieldTest, ...] = ()

    def covers(self, resource: Resource) -> bool:
        """Whether the resource passes the field tests."""
        return all(test(resource) for test in self.fields)

    def labelled(self, meta: ObjectMeta) -> bool:
        return all(test(meta.labels) for test in self.labels)

    def matches(self, resource: Resource) -> bool:
        return self.labelled(resource.meta) and self.covers(resource)

    @property
    def everything(self) -> bool:
        return not self.labels and not self.fields


def parse_selection(kind: Kind, label_selector: str, field_selector: str) -> Selection:
    """Raises Refused (400) for a selector that cannot be read: a wrong one must not select everything."""
    labels = tuple(_label_tests(label_selector)) if label_selector.strip() else ()
    fields = tuple(_field_tests(kind, field_selector)) if field_selector.strip() else ()
    return Selection(labels, fields)


def _scan(text: str, name: str, *patterns: re.Pattern[str]) -> Iterator[re.Match[str]]:
    position, count = 0, 0
    while position < len(text):
        match = next((found for pattern in patterns if (found := pattern.match(text, position))), None)
        count += 1
        if match is None or count > _MAX_REQUIREMENTS:
            raise bad_request(f"unable to parse {name} {text!r} at {text[position:]!r}")
        yield match
        position = match.end()
    if text.rstrip().endswith(","):
        raise bad_request(f"unable to parse {name} {text!r}: it ends with a comma")


def _label_tests(text: str) -> Iterator[LabelTest]:
    for match in _scan(text, "labelSelector", _SET, _EQUAL, _EXISTS):
        key, operator = match["key"], match["operator"]
        if match.re is _EXISTS:
            yield _absent(key) if operator == "!" else _present(key)
            continue
        values = frozenset(value.strip() for value in match["values"].split(","))
        yield _other(key, values) if operator in ("!=", "notin") else _among(key, values)


def _present(key: str) -> LabelTest:
    return lambda labels: key in labels


def _absent(key: str) -> LabelTest:
    return lambda labels: key not in labels


def _among(key: str, values: frozenset[str]) -> LabelTest:
    return lambda labels: labels.get(key) in values


def _other(key: str, values: frozenset[str]) -> LabelTest:
    return lambda labels: labels.get(key) not in values


def _field_tests(kind: Kind, text: str) -> Iterator[FieldTest]:
    for match in _scan(text, "fieldSelector", _FIELD):
        key, wanted = match["key"], re.sub(r"\\(.)", r"\1", match["value"]).strip()
        read = _field_reader(kind, key)
        yield _field_differs(read, wanted) if match["operator"] == "!=" else _field_equals(read, wanted)


def _field_equals(read: Callable[[Resource], str], wanted: str) -> FieldTest:
    return lambda resource: read(resource) == wanted


def _field_differs(read: Callable[[Resource], str], wanted: str) -> FieldTest:
    return lambda resource: read(resource) != wanted


def _field_reader(kind: Kind, key: str) -> Callable[[Resource], str]:
    if key == "metadata.name":
        return lambda resource: resource.meta.name
    if key == "metadata.namespace":
        return lambda resource: resource.meta.namespace
    if kind.ref == EVENT and key in _EVENT_FIELDS:
        steps = ("source", "component") if key == "source" else tuple(key.split("."))
        return lambda resource: _text_at(resource.body, steps)
    raise bad_request(f"field label not supported: {key} (of {kind.plural})")


def _text_at(value: Any, steps: tuple[str, ...]) -> str:
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
