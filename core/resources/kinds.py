"""The registry of kinds: what the API server serves and how each kind is defaulted, checked and shown.

Each plane declares its kinds in its own `resources` module; `penstock/` puts them together. A kind's `spec_type` is a
msgspec Struct (frozen, camel-case names, unknown fields forbidden), so that the shape is checked by decoding into it;
`validate` then holds the rules that a shape cannot express.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from core.errors import FieldError, NotFound
from core.resources.meta import KindRef, Resource

__all__ = ["Column", "Kind", "Registry"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of ``kubectl get``: its title, and the place in the resource it shows (``.status.address.url``).

    `path` is dotted; ``.status.conditions[Ready].status`` picks the condition of that type. `wide` columns show only
    with ``-o wide``.
    """

    name: str
    path: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of resource.

    `default` returns the resource with its defaults filled in; it gets only resources whose shape is right.
    `validate` gets (new, old or None) after defaulting and yields each broken rule, the immutable fields' included.
    `doubts` gets a valid resource and yields what its author hardly means; it is stored, and they are told.
    `spec_type` None means that the body is taken as it is (ConfigMap, Event, EndpointSlice ...).
    `internal` kinds are written by the platform itself; a person may read them.
    `selector` (a label selector, as Kubernetes writes it) narrows what a store behind an API lists and watches of the
    kind, where a cluster has many more of it than a process looks at.
    """

    ref: KindRef
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool = True
    spec_type: type[msgspec.Struct] | None = None
    default: Callable[[Resource], Resource] = field(default=lambda resource: resource)
    validate: Callable[[Resource, Resource | None], Iterable[FieldError]] = field(default=lambda new, old: ())
    doubts: Callable[[Resource], Iterable[FieldError]] = field(default=lambda new: ())
    columns: tuple[Column, ...] = ()
    internal: bool = False
    selector: str = ""


class Registry:
    """All kinds that this platform knows, found by reference or by plural name."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._by_ref: dict[KindRef, Kind] = {}
        self._by_plural: dict[tuple[str, str, str], Kind] = {}
        for kind in kinds:
            if kind.ref in self._by_ref:
                raise ValueError(f"{kind.ref} is declared twice")
            self._by_ref[kind.ref] = kind
            self._by_plural[(kind.ref.group, kind.ref.version, kind.plural)] = kind

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_ref.values())

    def get(self, ref: KindRef) -> Kind:
        """The kind. Raises NotFound naming the kinds of that group that exist."""
        found = self._by_ref.get(ref)
        if found is not None:
            return found
        known = ", ".join(sorted(f"{k.ref.kind} ({k.ref.api_version})" for k in self._by_ref.values()))
        raise NotFound(f"There is no kind {ref.kind} in {ref.api_version}. Known are: {known}.")

    def by_plural(self, group: str, version: str, plural: str) -> Kind | None:
        return self._by_plural.get((group, version, plural))

    def find(self, word: str) -> Kind | None:
        """The kind that a person means by `word`: plural, singular, short name, kind, or ``plural.group``."""
        lower = word.lower()
        for kind in self._by_ref.values():
            names = {kind.plural, kind.singular, kind.ref.kind.lower(), *kind.short_names}
            names |= {f"{name}.{kind.ref.group}" for name in (kind.plural, kind.singular)}
            if lower in names:
                return kind
        return None
