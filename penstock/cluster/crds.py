"""CustomResourceDefinitions of the platform's kinds, from the registry: ``python -m penstock.cluster.crds``.

It also writes the rules by which the API server sends these kinds' resources to the admission webhooks.

The schemas are structural: the API server prunes what they do not name, so whatever a kind takes as it is says so. They
hold shapes; defaults and rules are the admission webhook's, which calls the registry. Source: Kubernetes' "Extend the
Kubernetes API with CustomResourceDefinitions".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from core.resources import Column, Kind
from core.resources.builtin import KINDS as BUILTIN_KINDS
from penstock.kinds import registry

__all__ = ["FOLDER", "RULES", "custom_kinds", "definition", "main", "webhook_rules", "written"]

#: Where the chart has its files, and below it the definitions and the webhooks' rules.
FILES: Final = Path("charts/penstock/files")
FOLDER: Final = FILES / "crds"
RULES: Final = FILES / "webhook-rules.yaml"

_KEEP: Final = {"x-kubernetes-preserve-unknown-fields": True}
_PREFIX: Final = "#/"
_NULL: Final = {"type": "null"}
_INT_OR_STRING: Final = ({"type": "integer"}, {"type": "string"})
_STEP: Final = re.compile(r"(?P<name>\.[^.\[\]]+)(?:\[(?P<key>[^\]]*)\])?")


def custom_kinds(kinds: Iterable[Kind]) -> Iterator[Kind]:
    """Those that Kubernetes itself does not have."""
    built_in = {kind.ref for kind in BUILTIN_KINDS}
    return (kind for kind in kinds if kind.ref not in built_in)


def definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    ref = kind.ref
    names: dict[str, Any] = {
        "kind": ref.kind,
        "listKind": f"{ref.kind}List",
        "plural": kind.plural,
        "singular": kind.singular,
    }
    if kind.short_names:
        names["shortNames"] = list(kind.short_names)
    if kind.categories:
        names["categories"] = list(kind.categories)
    version = {
        "name": ref.version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            *(_column(column) for column in kind.columns),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "schema": {"openAPIV3Schema": _schema(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{ref.group}"},
        "spec": {
            "group": ref.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": names,
            "versions": [version],
        },
    }


def webhook_rules(kinds: Iterable[Kind]) -> list[dict[str, Any]]:
    """What the admission webhooks are asked about: each of these kinds' resources, but not their status."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for kind in custom_kinds(kinds):
        grouped.setdefault((kind.ref.group, kind.ref.version), []).append(kind.plural)
    return [
        {
            "apiGroups": [group],
            "apiVersions": [version],
            "operations": ["CREATE", "UPDATE"],
            "resources": sorted(plurals),
        }
        for (group, version), plurals in sorted(grouped.items())
    ]


def written(kinds: Iterable[Kind]) -> dict[Path, str]:
    """The text of each file by its path in the project."""
    kinds = tuple(kinds)
    documents: dict[Path, Any] = {
        FOLDER / f"{kind.plural}.{kind.ref.group}.yaml": definition(kind) for kind in custom_kinds(kinds)
    }
    documents[RULES] = webhook_rules(kinds)
    return {path: yaml.safe_dump(document, sort_keys=False, width=120) for path, document in documents.items()}


def _column(column: Column) -> dict[str, Any]:
    printed: dict[str, Any] = {"name": column.name, "type": "string", "jsonPath": _json_path(column.path)}
    return {**printed, "priority": 1} if column.wide else printed


def _json_path(path: str) -> str:
    """A column's path as Kubernetes' JSONPath: ``.status.conditions[Ready].status`` picks by type there, too,
    and ``.spec.attributes[source].value`` by name."""

    def step(match: re.Match[str]) -> str:
        name, key = match["name"], match["key"]
        if key is None:
            return name
        if name == ".conditions":
            return f'{name}[?(@.type=="{key}")]'
        if name == ".attributes":
            return f'{name}[?(@.name=="{key}")]'
        escaped = key.replace(".", "\\.")
        return f"{name}['{escaped}']"

    return _STEP.sub(step, path)


def _schema(kind: Kind) -> dict[str, Any]:
    status = {"type": "object", "description": "What was found and done, with conditions.", **_KEEP}
    if kind.spec_type is None:
        return {"type": "object", **_KEEP}
    (reference,), components = msgspec.json.schema_components([kind.spec_type], ref_template=_PREFIX + "{name}")
    spec = _structural(reference, components, ())
    return {
        "type": "object",
        "description": spec.get("description", ""),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }


def _structural(schema: dict[str, Any], components: dict[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
    """A msgspec schema in place of its references. `within` are the types that it lies in: one that holds itself is
    shaped one level deep, and checked below that by its kind's rules."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_PREFIX)
        if name in within:
            return {"type": "object", **_KEEP}
        return _structural(components[name], components, (*within, name))
    if "anyOf" in schema:
        return _one_of(schema["anyOf"], components, within)
    if "enum" in schema:
        nullable = {"nullable": True} if None in schema["enum"] else {}
        return {"type": "string", "enum": list(schema["enum"]), **nullable}
    shaped: dict[str, Any] = {name: schema[name] for name in ("type", "description") if name in schema}
    if "description" in shaped:
        shaped["description"] = " ".join(shaped["description"].replace("``", "").split())
    if schema.get("type") == "array":
        shaped["items"] = _structural(schema.get("items", {}), components, within)
    elif schema.get("type") == "object":
        shaped |= _members(schema, components, within)
    # What may be anything has no type at all.
    return shaped if "type" in shaped else {**shaped, **_KEEP}


def _one_of(options: list[dict[str, Any]], components: dict[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
    nullable = {"nullable": True} if _NULL in options else {}
    options = [option for option in options if option != _NULL]
    if len(options) == 1:
        return {**_structural(options[0], components, within), **nullable}
    if all(option in _INT_OR_STRING for option in options):
        return {"x-kubernetes-int-or-string": True, **nullable}
    return {**_KEEP, **nullable}


def _members(schema: dict[str, Any], components: dict[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        return {"additionalProperties": _structural(values, components, within)}
    members: dict[str, Any] = {}
    if schema.get("properties"):
        members["properties"] = {
            name: _structural(member, components, within) for name, member in schema["properties"].items()
        }
    if schema.get("required"):
        members["required"] = schema["required"]
    # A type that does not refuse unknown members takes them, and so does a map of anything.
    return members if values is False else {**members, **_KEEP}


def main(project: Path = Path()) -> None:
    """Write everything into the chart of `project`, and remove the definitions of kinds that are gone."""
    folder = project / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    texts = written(registry())
    for old in folder.glob("*.yaml"):
        if FOLDER / old.name not in texts:
            old.unlink()
    for path, text in texts.items():
        (project / path).write_text(text)


if __name__ == "__main__":
    main()
