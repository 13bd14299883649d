"""An OpenAPI v2 document in the protobuf encoding of gnostic's ``openapi.v2.Document``.

kubectl before 1.27 downloads this before it applies anything. Only the fields that it reads are written. Field numbers:
google/gnostic ``openapiv2/OpenAPIv2.proto``; encoding: protobuf's documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

__all__ = ["CONTENT_TYPE", "document"]

#: Clients ask for it with "@v1.0", which is no media type: Go refuses to parse it in an answer.
CONTENT_TYPE: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

_LENGTH_DELIMITED: Final = 2

# Document
_SWAGGER, _INFO, _PATHS, _DEFINITIONS = 1, 2, 8, 9
# Schema
_REF, _FORMAT, _DESCRIPTION, _REQUIRED = 1, 2, 4, 19
_ADDITIONAL, _TYPE, _ITEMS, _PROPERTIES, _EXTENSION = 21, 22, 23, 25, 31


def document(openapi: Mapping[str, Any]) -> bytes:
    """`openapi`, a JSON-like OpenAPI v2 document, as protobuf; its paths are left out."""
    info = _text(1, openapi["info"]["title"]) + _text(2, openapi["info"]["version"])
    definitions = _named_schemas(openapi["definitions"])
    return (
        _text(_SWAGGER, openapi["swagger"])
        + _bytes(_INFO, info)
        + _bytes(_PATHS, b"")
        + _bytes(_DEFINITIONS, definitions)
    )


def _schema(schema: Mapping[str, Any]) -> bytes:
    parts = [_text(_REF, schema["$ref"])] if "$ref" in schema else []
    if "format" in schema:
        parts.append(_text(_FORMAT, schema["format"]))
    if "description" in schema:
        parts.append(_text(_DESCRIPTION, schema["description"]))
    parts += [_text(_REQUIRED, name) for name in schema.get("required", ())]
    if isinstance(schema.get("additionalProperties"), Mapping):
        parts.append(_bytes(_ADDITIONAL, _bytes(1, _schema(schema["additionalProperties"]))))
    if "type" in schema:
        parts.append(_bytes(_TYPE, _text(1, schema["type"])))
    if isinstance(schema.get("items"), Mapping):
        parts.append(_bytes(_ITEMS, _bytes(1, _schema(schema["items"]))))
    if "properties" in schema:
        parts.append(_bytes(_PROPERTIES, _named_schemas(schema["properties"])))
    for name, value in schema.items():
        if name.startswith("x-"):
            # NamedAny {name, Any {yaml}}: an extension's value is carried as YAML, of which JSON is a part.
            parts.append(_bytes(_EXTENSION, _text(1, name) + _bytes(2, _text(2, msgspec.json.encode(value).decode()))))
    return b"".join(parts)


def _named_schemas(schemas: Mapping[str, Any]) -> bytes:
    return _joined(_bytes(1, _text(1, name) + _bytes(2, _schema(schema))) for name, schema in schemas.items())


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(parts)


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
