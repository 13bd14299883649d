"""Server-side apply: a manager sends the fields it has an opinion on; the server merges and remembers whose they are.

Source: Kubernetes documentation, "Server-Side Apply". Objects merge key by key; lists belong to one manager as a whole,
as Kubernetes treats lists that declare no keys. Only managers that apply are remembered: a plain update or patch writes
over applied fields without taking them, and the next apply puts them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from core.clock import rfc3339
from penstock.apiserver.patches import json_equal

__all__ = ["Applied", "Ownership", "apply"]

Path = tuple[str, ...]
Settle = Callable[[dict[str, Any]], dict[str, Any]]

#: Members that say which resource is meant; nobody owns them.
_IDENTITY: Final[frozenset[Path]] = frozenset(
    {("apiVersion",), ("kind",), *(("metadata", name) for name in ("name", "namespace", "uid", "resourceVersion"))}
)
_MISSING: Final = object()


class Ownership(msgspec.Struct, frozen=True):
    """A field that is wanted with another value than `manager` applied; `held` is its field that stands against it."""

    path: Path
    manager: str
    held: Path

    @property
    def field(self) -> str:
        return "." + ".".join(self.path)


class Applied(msgspec.Struct, frozen=True):
    """The merged document, or the conflicts that stand against it."""

    document: dict[str, Any]
    conflicts: tuple[Ownership, ...] = ()


def apply(
    live: dict[str, Any], wanted: dict[str, Any], *, manager: str, force: bool, now: float, settle: Settle
) -> Applied:
    """`wanted` merged into `live` ({} where there is nothing yet) on behalf of `manager`.

    Fields that this manager applied before and no longer names are removed unless another manager applied them too.
    `force` takes fields away from other managers instead of conflicting. `now` is in seconds since the epoch. `settle`
    fills in defaults, so that what `wanted` leaves to them does not count as another value.
    """
    entries = list((live.get("metadata") or {}).get("managedFields") or ())
    applied = [entry for entry in entries if _is_apply(entry)]
    before = next((entry for entry in applied if entry["manager"] == manager), None)
    theirs = {
        entry["manager"]: frozenset(_decode(entry["fieldsV1"])) for entry in applied if entry["manager"] != manager
    }
    mine = frozenset(_leaves(wanted)) - _IDENTITY
    held = frozenset(_decode(before["fieldsV1"])) if before else frozenset()
    merged = settle(_merged(live, wanted, mine, held - mine, theirs))
    changed = [path for path in sorted(mine) if not _same(_at(live, path), _at(merged, path))]
    conflicts = tuple(
        Ownership(path, other, one)
        for path in changed
        for other, owned in theirs.items()
        for one in sorted(owned)
        if _contends(path, one, live)
    )
    if conflicts and not force:
        return Applied(live, conflicts)
    # An apply that changes nothing must store nothing, so its time stays as well.
    same = before is not None and held == mine and json_equal(merged, live)
    entry = before if same else _entry(manager, wanted, mine, now)
    taken = {(conflict.manager, conflict.held) for conflict in conflicts}
    others = [_less(one, taken) for one in entries if one is not before]
    fields = [one for one in (*others, entry) if one is not None]
    return Applied({**merged, "metadata": {**merged["metadata"], "managedFields": fields}})


def _merged(
    live: dict[str, Any],
    wanted: dict[str, Any],
    mine: frozenset[Path],
    dropped: frozenset[Path],
    theirs: dict[str, frozenset[Path]],
) -> dict[str, Any]:
    """`live` with the fields `mine` of `wanted` and without those `dropped` that nobody else applied."""
    kept = [mine, *theirs.values()]
    merged = live
    for path in sorted(dropped):
        if not any(one[: len(path)] == path for owned in kept for one in owned):
            merged = _removed(merged, path)
    for path in mine:
        merged = _placed(merged, path, _at(wanted, path))
    named = {name: value for name, value in wanted["metadata"].items() if ("metadata", name) in _IDENTITY}
    types: dict[str, Any] = {name: wanted[name] for name in ("apiVersion", "kind") if name in wanted}
    return {**merged, **types, "metadata": {**(merged.get("metadata") or {}), **named}}


def _is_apply(entry: dict[str, Any]) -> bool:
    return entry.get("operation") == "Apply" and isinstance(entry.get("fieldsV1"), dict)


def _same(held: Any, wanted: Any) -> bool:
    # An empty object asks for no more than that there is one.
    return json_equal(held, wanted) or (isinstance(held, dict) and isinstance(wanted, dict))


def _contends(path: Path, held: Path, live: dict[str, Any]) -> bool:
    """Whether a new value at `path` changes the field `held`: it is that field, holds it, or lies in it.

    A field whose value is an object was applied empty: that there is one is all that its manager asked for.
    """
    if len(held) >= len(path):
        return held[: len(path)] == path
    return path[: len(held)] == held and not isinstance(_at(live, held), dict)


def _leaves(value: Any, path: Path = ()) -> Iterable[Path]:
    """The paths of everything that is not a non-empty object."""
    if isinstance(value, dict) and (value or not path):
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    else:
        yield path


def _at(document: Any, path: Path) -> Any:
    for step in path:
        if not isinstance(document, dict) or step not in document:
            return _MISSING
        document = document[step]
    return document


def _placed(document: Any, path: Path, value: Any) -> Any:
    if not path:
        # An empty object asks for no more than that there is one.
        return document if value == {} and isinstance(document, dict) else value
    held = document if isinstance(document, dict) else {}
    return {**held, path[0]: _placed(held.get(path[0]), path[1:], value)}


def _removed(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """`document` less the field, and less the objects that only held it."""
    name, rest = path[0], path[1:]
    if not isinstance(document, dict) or name not in document:
        return document
    inner = _removed(document[name], rest) if rest else None
    if inner:
        return {**document, name: inner}
    return {key: value for key, value in document.items() if key != name}


def _encode(paths: Iterable[Path]) -> dict[str, Any]:
    """Paths in the FieldsV1 format: nested objects whose keys are ``f:<name>``."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        place = root
        for step in path:
            place = place.setdefault(f"f:{step}", {})
    return root


def _decode(fields: dict[str, Any], path: Path = ()) -> Iterable[Path]:
    named = [(name[2:], inner) for name, inner in fields.items() if name.startswith("f:") and isinstance(inner, dict)]
    if not named and path:
        yield path
    for name, inner in named:
        yield from _decode(inner, (*path, name))


def _entry(manager: str, wanted: dict[str, Any], mine: frozenset[Path], now: float) -> dict[str, Any]:
    return {
        "manager": manager,
        "operation": "Apply",
        "apiVersion": wanted.get("apiVersion", ""),
        "time": rfc3339(now),
        "fieldsType": "FieldsV1",
        "fieldsV1": _encode(mine),
    }


def _less(entry: dict[str, Any], taken: set[tuple[str, Path]]) -> dict[str, Any] | None:
    """The entry of another manager without the fields that were taken by force; None where nothing is left."""
    if not taken or not _is_apply(entry):
        return entry
    kept = [path for path in _decode(entry["fieldsV1"]) if (entry["manager"], path) not in taken]
    return {**entry, "fieldsV1": _encode(kept)} if kept else None
