"""CloudEvents over HTTP: the HTTP protocol binding 1.0.2 with the JSON event format 1.0.2.

Header names are lower-case bytes, as `core.net` hands them over. Data is never re-encoded on its way in: the JSON of a
structured event is kept byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from core.errors import FieldError, InvalidInput
from core.events.value import CloudEvent, check_attributes, is_json_type

__all__ = ["STRUCTURED_TYPE", "binary_head", "from_http", "is_event", "to_binary", "to_structured", "with_binary_head"]

STRUCTURED_TYPE: Final = "application/cloudevents+json"
_STRUCTURED_PREFIX: Final = b"application/cloudevents"
_BATCH_PREFIX: Final = b"application/cloudevents-batch"

# "Space, double-quote, percent, and any characters outside the printable ASCII range" (section 3.1.3.2).
_MUST_ENCODE: Final = re.compile(r"[^\x21\x23-\x24\x26-\x7e]")
_NOT_PLAIN: Final = re.compile(rb"[^\x21\x23-\x24\x26-\x7e]")
_MAX_INT: Final = 2_147_483_647

_CONTENT_TYPE: Final = b"content-type"
_DATA_TYPE: Final = "datacontenttype"
#: Attributes by the header that carries them. Extensions that are used are added; beyond the limit (somebody invents
#: names) each is looked at anew.
_attributes_by_header: Final[dict[bytes, str]] = {_CONTENT_TYPE: _DATA_TYPE}
_MAX_REMEMBERED: Final = 1_000


def is_event(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a message claims to be a CloudEvent in any mode: the test of section 3 of the binding."""
    for name, value in headers:
        if name == b"ce-specversion":
            return True
        if name == b"content-type" and value.lower().startswith(_STRUCTURED_PREFIX):
            return True
    return False


def from_http(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> CloudEvent:
    """The event that an HTTP message carries, in binary or structured mode.

    Raises InvalidInput with the attribute and the rule where the message is not a valid event.
    """
    return with_binary_head(headers, body)[0]


def with_binary_head(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> tuple[CloudEvent, bytes]:
    """The event that an HTTP message carries, and its `binary_head`, which for most events is there already.

    Raises InvalidInput with the attribute and the rule where the message is not a valid event.
    """
    attributes: dict[str, str] = {}
    lines: list[bytes] = []
    plain = True
    for name, value in headers:
        key = _attributes_by_header.get(name)
        if key is None:
            if name[:3] != b"ce-":
                continue
            key = _attribute_of(name)
        elif name == _CONTENT_TYPE and value[:23].lower() == _STRUCTURED_PREFIX:
            event = _from_structured(value, body)
            return event, binary_head(event)
        if key in attributes:
            rule = "belongs in the Content-Type header, given once" if key == _DATA_TYPE else "is given more than once"
            raise _invalid(key, rule)
        if name == _CONTENT_TYPE:
            attributes[key] = value.decode("latin-1")
        elif _NOT_PLAIN.search(value) is None:
            attributes[key] = value.decode("ascii")
        else:
            plain = False
            attributes[key] = _decode_value(key, value)
        lines.append(b"%b: %b\r\n" % (name, value))
    if "specversion" not in attributes:
        message = (
            "The request carries no CloudEvent: send the headers ce-specversion, ce-id, ce-source and ce-type "
            f"(binary mode), or a JSON body with Content-Type {STRUCTURED_TYPE} (structured mode)."
        )
        raise InvalidInput(message, [FieldError(path="specversion", rule="is required")])
    check_attributes(attributes)
    event = CloudEvent(attributes=attributes, data=body or None)
    return event, b"".join(lines) if plain else binary_head(event)


def _attribute_of(name: bytes) -> str:
    """The attribute that a ``ce-`` header names; remembered, because the same few come with every event."""
    key = name[3:].decode("ascii", "replace")
    if key == _DATA_TYPE:
        raise _invalid(key, "belongs in the Content-Type header, given once")
    if len(_attributes_by_header) < _MAX_REMEMBERED:
        _attributes_by_header[name] = key
    return key


def to_binary(event: CloudEvent) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers (lower-case names) and body of the event in binary mode."""
    headers = []
    for name, value in event.attributes.items():
        if name == "datacontenttype":
            headers.append((b"content-type", value.encode("latin-1", "replace")))
        else:
            headers.append((b"ce-" + name.encode("ascii"), _encode_value(value)))
    return headers, event.data or b""


def binary_head(event: CloudEvent) -> bytes:
    """The header lines of binary mode as they go on the wire, each ended by CRLF; computed once per stored event."""
    headers, _ = to_binary(event)
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def to_structured(event: CloudEvent) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and JSON body of the event in structured mode; JSON data is embedded byte for byte."""
    members: dict[str, object] = dict(event.attributes)
    if event.data is not None:
        _embed(members, event.data, event.attributes.get("datacontenttype"))
    body = msgspec.json.encode(members)
    return [(b"content-type", STRUCTURED_TYPE.encode() + b"; charset=utf-8")], body


def _embed(members: dict[str, object], data: bytes, content_type: str | None) -> None:
    if content_type is not None and is_json_type(content_type) and _is_json(data):
        members["data"] = msgspec.Raw(data)
        return
    if content_type is not None and content_type.startswith("text/"):
        try:
            members["data"] = data.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            return
    members["data_base64"] = base64.b64encode(data).decode("ascii")


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _from_structured(content_type: bytes, body: bytes) -> CloudEvent:
    if content_type.lower().startswith(_BATCH_PREFIX):
        raise InvalidInput("A batch of events is not accepted here: send each event in a request of its own.")
    media = content_type.partition(b";")[0].strip().lower()
    if media != STRUCTURED_TYPE.encode():
        shown = content_type.decode("latin-1")
        raise InvalidInput(f"The event format {shown} is not supported: send {STRUCTURED_TYPE}, or use binary mode.")
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The event's body is not a JSON object: {error}.") from error
    data_json = members.pop("data", None)
    data_base64 = members.pop("data_base64", None)
    if data_json is not None and data_base64 is not None:
        raise _invalid("data_base64", "must not be given together with data")
    attributes = {
        name: text for name, raw in members.items() if (text := _attribute_text(name, bytes(raw))) is not None
    }
    check_attributes(attributes)
    data: bytes | None = None
    if data_base64 is not None:
        data = _decode_base64(bytes(data_base64))
    elif data_json is not None:
        # Translated to another mode, an absent datacontenttype must be made explicit (JSON format, section 3.1).
        kind = attributes.setdefault("datacontenttype", "application/json")
        data = _data_bytes(kind, bytes(data_json))
    return CloudEvent(attributes=attributes, data=data)


def _attribute_text(name: str, raw: bytes) -> str | None:
    """The canonical string of a JSON attribute value; None for null, which means absent."""
    value = msgspec.json.decode(raw)
    match value:
        case None:
            return None
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() if -_MAX_INT - 1 <= value <= _MAX_INT:
            return str(value)
    rule = "must be a string, a boolean or a 32-bit integer (JSON event format, section 2.2)"
    raise _invalid(name, rule, value)


def _data_bytes(content_type: str, raw: bytes) -> bytes:
    if not is_json_type(content_type):
        value = msgspec.json.decode(raw)
        if isinstance(value, str):
            return value.encode("utf-8")
    return raw


def _decode_base64(raw: bytes) -> bytes:
    value = msgspec.json.decode(raw)
    if not isinstance(value, str):
        raise _invalid("data_base64", "must be a string", value)
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise _invalid("data_base64", f"must be Base64 (RFC 4648): {error}") from error


def _decode_value(name: str, value: bytes) -> str:
    """Unquote, then percent-decode once (section 3.1.3.2)."""
    if len(value) > 1 and value[:1] == b'"' == value[-1:]:
        value = re.sub(rb"\\(.)", rb"\1", value[1:-1])
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(name, "must be percent-encoded valid UTF-8", value.decode("latin-1")) from error


def _encode_value(value: str) -> bytes:
    if _MUST_ENCODE.search(value) is None:
        return value.encode("ascii")
    return _MUST_ENCODE.sub(_percent, value).encode("ascii")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8"))


def _invalid(name: str, rule: str, value: object = None) -> InvalidInput:
    return InvalidInput.of("The event", [FieldError(path=name, rule=rule, value=value)])
