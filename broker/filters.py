"""Filters: which events a Trigger wants, as pure functions of an event's context attributes.

Dialects are those of the CloudEvents Subscriptions API that Knative's Triggers carry (``spec.filters``) and the older
``spec.filter.attributes``, which is exact with "" for "any value". An attribute that the event does not carry never
matches. A filter that cannot be read is an error, never a filter that lets everything through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from broker.cesql_filter import Cesql
from broker.verdict import MATCHED, Verdict

__all__ = [
    "ANYTHING",
    "All",
    "Any",
    "Cesql",
    "Exact",
    "Filter",
    "Not",
    "Prefix",
    "Suffix",
    "Verdict",
    "explain",
]

Attributes = Mapping[str, str]


class Exact(msgspec.Struct, frozen=True):
    """Every attribute has exactly this value; "" asks only that it is there (``filter.attributes``)."""

    pairs: tuple[tuple[str, str], ...]

    def matches(self, attributes: Attributes) -> bool:
        for name, wanted in self.pairs:
            value = attributes.get(name)
            if value is None or (wanted and value != wanted):
                return False
        return True

    def explain(self, attributes: Attributes, path: str) -> Verdict:
        for name, wanted in self.pairs:
            value = attributes.get(name)
            if value is None or (wanted and value != wanted):
                rule = f"is {wanted!r}" if wanted else "is present"
                return Verdict(matched=False, clause=path, attribute=name, wanted=rule, value=value)
        return MATCHED


class Prefix(msgspec.Struct, frozen=True):
    """Every attribute starts with this value."""

    pairs: tuple[tuple[str, str], ...]

    def matches(self, attributes: Attributes) -> bool:
        return all(attributes.get(name, "").startswith(wanted) for name, wanted in self.pairs)

    def explain(self, attributes: Attributes, path: str) -> Verdict:
        for name, wanted in self.pairs:
            value = attributes.get(name)
            if value is None or not value.startswith(wanted):
                rule = f"starts with {wanted!r}"
                return Verdict(matched=False, clause=path, attribute=name, wanted=rule, value=value)
        return MATCHED


class Suffix(msgspec.Struct, frozen=True):
    """Every attribute ends with this value."""

    pairs: tuple[tuple[str, str], ...]

    def matches(self, attributes: Attributes) -> bool:
        return all(attributes.get(name, "").endswith(wanted) for name, wanted in self.pairs)

    def explain(self, attributes: Attributes, path: str) -> Verdict:
        for name, wanted in self.pairs:
            value = attributes.get(name)
            if value is None or not value.endswith(wanted):
                rule = f"ends with {wanted!r}"
                return Verdict(matched=False, clause=path, attribute=name, wanted=rule, value=value)
        return MATCHED


class All(msgspec.Struct, frozen=True):
    """Every nested filter matches; an empty one, which only the platform makes, matches anything."""

    filters: tuple[Filter, ...]

    def matches(self, attributes: Attributes) -> bool:
        return all(nested.matches(attributes) for nested in self.filters)

    def explain(self, attributes: Attributes, path: str) -> Verdict:
        for number, nested in enumerate(self.filters):
            verdict = nested.explain(attributes, _child(path, nested, number))
            if not verdict.matched:
                return verdict
        return MATCHED


class Any(msgspec.Struct, frozen=True):
    """At least one nested filter matches."""

    filters: tuple[Filter, ...]

    def matches(self, attributes: Attributes) -> bool:
        return any(nested.matches(attributes) for nested in self.filters)

    def explain(self, attributes: Attributes, path: str) -> Verdict:
        verdicts = [nested.explain(attributes, _child(path, nested, n)) for n, nested in enumerate(self.filters)]
        if any(verdict.matched for verdict in verdicts):
            return MATCHED
        wanted = " or ".join(f"{verdict.attribute} {verdict.wanted}" for verdict in verdicts)
        first = verdicts[0]
        # The verdict names the first attribute by itself.
        wanted = wanted.removeprefix(f"{first.attribute} ")
        return Verdict(matched=False, clause=path, attribute=first.attribute, wanted=wanted, value=first.value)


class Not(msgspec.Struct, frozen=True):
    """The nested filter does not match."""

    nested: Filter

    def matches(self, attributes: Attributes) -> bool:
        return not self.nested.matches(attributes)

    def explain(self, attributes: Attributes, path: str) -> Verdict:
        if not self.nested.matches(attributes):
            return MATCHED
        attribute = _first_attribute(self.nested)
        wanted = f"does not match {_name(self.nested)}"
        return Verdict(matched=False, clause=path, attribute=attribute, wanted=wanted, value=attributes.get(attribute))


Filter = Exact | Prefix | Suffix | All | Any | Not | Cesql

#: What a Trigger without a filter wants.
ANYTHING: Final = All(())


def explain(wanted: Filter, attributes: Attributes) -> Verdict:
    """Whether `wanted` matches the attributes, and if not, which clause fails on which value.

    A compiled `filters` list is an `All` at the top; an `Exact` there comes from ``filter.attributes``.
    """
    return wanted.explain(attributes, "filter.attributes" if isinstance(wanted, Exact) else "")


def _child(path: str, nested: Filter, number: int) -> str:
    name = _name(nested)
    return f"{path}[{number}].{name}" if path else f"filters[{number}].{name}"


def _name(of: Filter) -> str:
    return type(of).__name__.lower()


def _first_attribute(of: Filter) -> str:
    match of:
        case Exact() | Prefix() | Suffix():
            return of.pairs[0][0] if of.pairs else ""
        case All() | Any():
            return _first_attribute(of.filters[0]) if of.filters else ""
        case Not():
            return _first_attribute(of.nested)
        case Cesql():
            return next(iter(of.expression.attributes()), "")
