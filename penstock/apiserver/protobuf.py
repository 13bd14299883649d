"""Request bodies in Kubernetes' protobuf encoding, for the few messages that kubectl sends in no other way.

``kubectl create namespace``, ``create configmap`` and ``create secret`` encode what they send so and ask for JSON back.
Source: Kubernetes API concepts, "Kubernetes Protobuf encoding"; field numbers: ``generated.proto`` of
k8s.io/api/core/v1 and k8s.io/apimachinery/pkg/apis/meta/v1.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from core.clock import rfc3339
from core.errors import InvalidInput

__all__ = ["MEDIA_TYPE", "decode_protobuf"]

MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"

_MAGIC: Final = b"k8s\x00"
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10


class _Field(msgspec.Struct, frozen=True):
    """A field of a message: its JSON name and how its value is read."""

    name: str
    form: Literal["text", "bytes", "int", "bool", "time", "message", "text_map", "bytes_map"] = "text"
    repeated: bool = False
    message: Mapping[int, Any] = {}


_Message = Mapping[int, _Field]

_TIME: Final[_Message] = {1: _Field("seconds", "int")}
_OWNER: Final[_Message] = {
    1: _Field("kind"),
    3: _Field("name"),
    4: _Field("uid"),
    5: _Field("apiVersion"),
    6: _Field("controller", "bool"),
    7: _Field("blockOwnerDeletion", "bool"),
}
_META: Final[_Message] = {
    1: _Field("name"),
    2: _Field("generateName"),
    3: _Field("namespace"),
    5: _Field("uid"),
    6: _Field("resourceVersion"),
    8: _Field("creationTimestamp", "time"),
    11: _Field("labels", "text_map"),
    12: _Field("annotations", "text_map"),
    13: _Field("ownerReferences", "message", True, _OWNER),
    14: _Field("finalizers", "text", True),
}
_MESSAGES: Final[Mapping[str, _Message]] = {
    "v1/Namespace": {1: _Field("metadata", "message", False, _META)},
    "v1/ConfigMap": {
        1: _Field("metadata", "message", False, _META),
        2: _Field("data", "text_map"),
        3: _Field("binaryData", "bytes_map"),
        4: _Field("immutable", "bool"),
    },
    "v1/Secret": {
        1: _Field("metadata", "message", False, _META),
        2: _Field("data", "bytes_map"),
        3: _Field("type"),
        4: _Field("stringData", "text_map"),
        5: _Field("immutable", "bool"),
    },
    "v1/DeleteOptions": {
        1: _Field("gracePeriodSeconds", "int"),
        2: _Field("preconditions", "message", False, {1: _Field("uid"), 2: _Field("resourceVersion")}),
        3: _Field("orphanDependents", "bool"),
        4: _Field("propagationPolicy"),
        5: _Field("dryRun", "text", True),
    },
}
_ENVELOPE: Final[_Message] = {
    1: _Field("type", "message", False, {1: _Field("apiVersion"), 2: _Field("kind")}),
    2: _Field("raw", "bytes"),
}
_MAP_ENTRY: Final = {"text_map": {1: _Field("key"), 2: _Field("value")}}
_BYTES_ENTRY: Final[_Message] = {1: _Field("key"), 2: _Field("value", "bytes")}


def decode_protobuf(body: bytes) -> dict[str, Any]:
    """The document that `body` encodes, as its JSON would be. Raises InvalidInput."""
    if body[:4] != _MAGIC:
        raise InvalidInput("The body does not begin as Kubernetes protobuf does.")
    envelope = _read(body[4:], _ENVELOPE)
    kind = envelope.get("type", {})
    name = f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}"
    message = _MESSAGES.get(name)
    if message is None:
        raise InvalidInput(f"{name} is not read from protobuf; send it as JSON.")
    return {**kind, **_read(base64.b64decode(envelope.get("raw", "")), message)}


def _read(text: bytes, message: _Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, raw in _fields(text):
        field = message.get(number)
        if field is None:
            continue
        if field.form in ("text_map", "bytes_map"):
            entry = _read(_as_bytes(raw), _MAP_ENTRY["text_map"] if field.form == "text_map" else _BYTES_ENTRY)
            found.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", "")
        elif field.repeated:
            found.setdefault(field.name, []).append(_value(raw, field))
        elif (value := _value(raw, field)) not in ("", None):
            # Go writes empty text for what is not set; its JSON leaves it out.
            found[field.name] = value
    return found


def _value(raw: bytes | int, field: _Field) -> Any:
    if field.form == "int":
        return _as_int(raw)
    if field.form == "bool":
        return bool(_as_int(raw))
    content = _as_bytes(raw)
    if field.form == "bytes":
        return base64.b64encode(content).decode()
    if field.form == "message":
        return _read(content, field.message)
    if field.form == "time":
        seconds = _read(content, _TIME).get("seconds")
        return rfc3339(seconds) if seconds else None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The protobuf field {field.name} is not UTF-8.") from error


def _as_bytes(raw: bytes | int) -> bytes:
    if isinstance(raw, int):
        raise InvalidInput("The protobuf body has a number where text belongs.")
    return raw


def _as_int(raw: bytes | int) -> int:
    if not isinstance(raw, int):
        raise InvalidInput("The protobuf body has text where a number belongs.")
    # int64 on the wire is two's complement in 64 bits.
    return raw - (1 << 64) if raw >= 1 << 63 else raw


def _fields(text: bytes) -> Iterator[tuple[int, bytes | int]]:
    position = 0
    while position < len(text):
        tag, position = _varint(text, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(text, position)
            yield tag >> 3, value
            continue
        if wire == _DELIMITED:
            length, position = _varint(text, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise InvalidInput(f"The protobuf body has the unknown wire type {wire}.")
        end = position + length
        if end > len(text):
            raise InvalidInput("The protobuf body is cut off.")
        yield tag >> 3, text[position:end]
        position = end


def _varint(text: bytes, position: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(text[position : position + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number & (1 << 64) - 1, position + index + 1
    raise InvalidInput("The protobuf body is cut off.")
