"""Schemas of the kinds, as OpenAPI v3 and v2: what ``kubectl explain`` shows and what tells kubectl that the server
validates fields and honours dry runs itself.

The schemas come from the kinds' spec types. kubectl before 1.27 reads v2, and only in gnostic's protobuf encoding: see
`gnostic`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec

from core.resources import Kind, ObjectMeta, Registry
from penstock import __version__
from penstock.apiserver import gnostic

__all__ = ["OpenApi"]

_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_GVK: Final = "x-kubernetes-group-version-kind"
_ACTION: Final = "x-kubernetes-action"
_KEEP: Final = "x-kubernetes-preserve-unknown-fields"
_V3_PREFIX: Final = "#/components/schemas/"
_V2_PREFIX: Final = "#/definitions/"

_TYPE_META: Final = {
    "apiVersion": {"type": "string", "description": "The API group and version of this resource."},
    "kind": {"type": "string", "description": "The kind of this resource."},
}
_QUERY: Final = ("dryRun", "fieldManager", "fieldValidation")
_JSON_TYPES: Final = ("application/json", "application/yaml")
_PATCH_TYPES: Final = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")


class OpenApi:
    """OpenAPI documents for a registry; each is made when it is first asked for."""

    def __init__(self, registry: Registry) -> None:
        self._kinds = tuple(registry)
        self._encoded: dict[str, bytes] = {}

    def index(self) -> bytes:
        """The document at /openapi/v3: where each group and version has its own."""
        return self._once("/", self._index)

    def group_version(self, path: str) -> bytes | None:
        """The OpenAPI v3 document at /openapi/v3/`path` (``apis/eventing.knative.dev/v1``)."""
        kinds = [kind for kind in self._kinds if _group_path(kind) == path]
        return self._once(path, lambda: _document(kinds)) if kinds else None

    def v2_json(self) -> bytes:
        return self._once("v2", self._v2)

    def v2_protobuf(self) -> bytes:
        found = self._encoded.get("v2.pb")
        if found is None:
            found = self._encoded["v2.pb"] = gnostic.document(self._v2())
        return found

    def _once(self, name: str, make: Any) -> bytes:
        found = self._encoded.get(name)
        if found is None:
            found = self._encoded[name] = msgspec.json.encode(make())
        return found

    def _index(self) -> dict[str, Any]:
        paths = sorted({_group_path(kind) for kind in self._kinds})
        # A client may keep a document for ever under its URL, so the URL changes with the version.
        return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={__version__}"} for path in paths}}

    def _v2(self) -> dict[str, Any]:
        schemas = _schemas(list(self._kinds), _V2_PREFIX)
        for kind in self._kinds:
            if kind.spec_type is None:
                # A v2 client checks against the properties that it is told; with none it takes any.
                del schemas[_schema_name(kind)]["properties"]
        return {"swagger": "2.0", "info": _info(), "paths": {}, "definitions": schemas}


def _info() -> dict[str, str]:
    return {"title": "Penstock", "version": __version__}


def _group_path(kind: Kind) -> str:
    return f"apis/{kind.ref.api_version}" if kind.ref.group else f"api/{kind.ref.version}"


def _document(kinds: list[Kind]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for kind in kinds:
        paths.update(_paths(kind))
    schemas = _schemas(kinds, _V3_PREFIX)
    return {"openapi": "3.0.0", "info": _info(), "paths": paths, "components": {"schemas": schemas}}


def _paths(kind: Kind) -> dict[str, Any]:
    place = f"/{_group_path(kind)}/" + ("namespaces/{namespace}/" if kind.namespaced else "") + kind.plural
    collection = {
        "get": _operation(kind, "list"),
        "post": _operation(kind, "post", _JSON_TYPES),
        "delete": _operation(kind, "deletecollection"),
    }
    one = {
        "get": _operation(kind, "get"),
        "put": _operation(kind, "put", _JSON_TYPES),
        "patch": _operation(kind, "patch", _PATCH_TYPES),
        "delete": _operation(kind, "delete"),
    }
    return {place: collection, place + "/{name}": one}


def _operation(kind: Kind, action: str, accepts: tuple[str, ...] = ()) -> dict[str, Any]:
    operation: dict[str, Any] = {
        _ACTION: action,
        _GVK: _gvk(kind),
        "responses": {"200": {"description": "OK"}},
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _QUERY],
    }
    if accepts:
        operation["requestBody"] = {"content": {name: {"schema": {"type": "object"}} for name in accepts}}
    return operation


def _gvk(kind: Kind) -> dict[str, str]:
    return {"group": kind.ref.group, "version": kind.ref.version, "kind": kind.ref.kind}


def _schemas(kinds: list[Kind], prefix: str) -> dict[str, Any]:
    types = [kind.spec_type for kind in kinds if kind.spec_type is not None]
    references, components = msgspec.json.schema_components(types, ref_template=prefix + "{name}")
    specs = dict(zip(types, references, strict=True))
    schemas = {name: _simplified(schema) for name, schema in components.items()}
    schemas[_META] = _metadata_schema()
    for kind in kinds:
        spec = specs[kind.spec_type] if kind.spec_type is not None else None
        schemas[_schema_name(kind)] = _kind_schema(kind, prefix, spec)
    return schemas


def _schema_name(kind: Kind) -> str:
    """The group in reverse, version, kind: ``dev.knative.eventing.v1.Trigger``."""
    return ".".join([*reversed((kind.ref.group or "core.api").split(".")), kind.ref.version, kind.ref.kind])


def _kind_schema(kind: Kind, prefix: str, spec: dict[str, Any] | None) -> dict[str, Any]:
    properties: dict[str, Any] = {**_TYPE_META, "metadata": {"$ref": prefix + _META}}
    schema: dict[str, Any] = {"type": "object", "properties": properties, _GVK: [_gvk(kind)]}
    if kind.spec_type is None or spec is None:
        schema[_KEEP] = True
        return schema
    properties["spec"] = spec
    properties["status"] = {"type": "object", "description": "What was found and done, with conditions."}
    if kind.spec_type.__doc__:
        schema["description"] = _prose(kind.spec_type.__doc__)
    return schema


@cache
def _metadata_schema() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([ObjectMeta], ref_template=_V3_PREFIX + "{name}")
    schema: dict[str, Any] = _simplified(components["ObjectMeta"])
    owner = _simplified(components["OwnerReference"])
    schema["properties"]["ownerReferences"] = {"type": "array", "items": owner}
    schema["properties"]["managedFields"] = {"type": "array", "items": {"type": "object"}}
    return schema


def _simplified(schema: Any) -> Any:
    """A msgspec schema in the words that Kubernetes' clients know: no null types, no unions, no defaults."""
    if isinstance(schema, list):
        return [_simplified(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name not in ("default", "title", "additionalProperties")}
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _simplified(schema["additionalProperties"])
    options = [option for option in kept.pop("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        kept = {**kept, **_simplified(options[0])}
    elif options:
        kept[_KEEP] = True
    if "description" in kept:
        kept["description"] = _prose(kept["description"])
    if "properties" in kept:
        kept["properties"] = {name: _simplified(value) for name, value in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _simplified(kept["items"])
    if not kept.get("required", True):
        del kept["required"]
    # kubectl explain gives up at a schema that says nothing at all.
    return _typed(kept) or {_KEEP: True}


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema and "type" not in schema and all(isinstance(value, str) for value in schema["enum"]):
        return {**schema, "type": "string"}
    return schema


def _prose(text: str) -> str:
    return " ".join(_words(text))


def _words(text: str) -> Iterator[str]:
    for word in text.split():
        yield word.replace("``", "")
