"""What ``kubectl get`` shows: Tables with a kind's columns, and resources reduced to their metadata.

Source: Kubernetes API concepts, "Receiving resources as Tables" and "Metadata-only fetches".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from core.clock import parse_rfc3339
from core.resources import Kind, Resource

__all__ = ["Include", "age", "list_meta", "partial_metadata", "table"]

Include = Literal["Metadata", "None", "Object"]

_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")

#: How an age is told: (below this many seconds, unit, its length, the smaller unit told with it, its length).
_AGES: Final = (
    (120, "s", 1, "", 1),
    (10 * 60, "m", 60, "s", 1),
    (3 * 3_600, "m", 60, "", 1),
    (8 * 3_600, "h", 3_600, "m", 60),
    (2 * 86_400, "h", 3_600, "", 1),
    (8 * 86_400, "d", 86_400, "h", 3_600),
    (2 * 365 * 86_400, "d", 86_400, "", 1),
    (8 * 365 * 86_400, "y", 365 * 86_400, "d", 86_400),
)


def list_meta(version: int, following: str = "", remaining: int | None = None) -> dict[str, Any]:
    """The metadata of a list or Table: a watch goes on from `version`, the next page is asked for with `following`."""
    meta: dict[str, Any] = {"resourceVersion": str(version)}
    if following:
        meta["continue"] = following
    if remaining is not None:
        meta["remainingItemCount"] = remaining
    return meta


def table(
    kind: Kind,
    resources: Iterable[Resource],
    *,
    now: float,
    meta: Mapping[str, Any],
    version: str = "v1",
    include: Include = "Metadata",
) -> dict[str, Any]:
    """A Table of `resources`; `now` (seconds since the epoch) gives their ages."""
    definitions = [_definition("Name", form="name", description="The resource's name, unique in its namespace.")]
    definitions += [_definition(column.name, wide=column.wide, description=column.path) for column in kind.columns]
    definitions.append(_definition("Age", description="The time since it was created."))
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": meta,
        "columnDefinitions": definitions,
        "rows": [_row(kind, resource, now, version, include) for resource in resources],
    }


def _definition(name: str, *, form: str = "", description: str, wide: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "type": "string",
        "format": form,
        "description": description,
        "priority": 1 if wide else 0,
    }


def _row(kind: Kind, resource: Resource, now: float, version: str, include: Include) -> dict[str, Any]:
    document: dict[str, Any] = {"metadata": resource.meta, **resource.body}
    cells = [resource.meta.name, *(_cell(document, column.path, now) for column in kind.columns), age(resource, now)]
    row: dict[str, Any] = {"cells": cells}
    if include == "Object":
        row["object"] = {"apiVersion": resource.ref.api_version, "kind": resource.ref.kind, **document}
    elif include == "Metadata":
        row["object"] = partial_metadata(resource, version)
    return row


def partial_metadata(resource: Resource, version: str = "v1") -> dict[str, Any]:
    """The resource without its body."""
    return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{version}", "metadata": resource.meta}


def _cell(document: dict[str, Any], path: str, now: float) -> Any:
    value: Any = document
    for name, key in _STEP.findall(path):
        if isinstance(value, msgspec.Struct):
            value = msgspec.to_builtins(value)
        if isinstance(value, dict):
            value = value.get(name or key)
        elif isinstance(value, list):
            value = _entry(value, name or key)
        else:
            return None
    if isinstance(value, str) and path.endswith("Timestamp"):
        return _told(value, now)
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return str(value).lower() if isinstance(value, bool) else value


def _entry(entries: list[Any], key: str) -> Any:
    """Of a list the entry at index `key`, or whose type or name is `key`: a condition, a port."""
    if key.isdigit():
        return entries[int(key)] if int(key) < len(entries) else None
    for entry in entries:
        if isinstance(entry, dict) and key in (entry.get("type"), entry.get("name")):
            return entry
    return None


def age(resource: Resource, now: float) -> str:
    """How long ago the resource was created, as kubectl shows it: 12s, 3m4s, 5h, 2d."""
    return _told(resource.meta.creation_timestamp, now)


def _told(moment: str | None, now: float) -> str:
    try:
        seconds = max(0, int(now - parse_rfc3339(moment or "")))
    except ValueError:
        return "<unknown>"
    for below, unit, length, smaller, smaller_length in _AGES:
        if seconds < below:
            count, rest = divmod(seconds, length)
            told = rest // smaller_length if smaller else 0
            return f"{count}{unit}{told}{smaller}" if told else f"{count}{unit}"
    return f"{seconds // (365 * 86_400)}y"
