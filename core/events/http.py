"""CloudEvents over HTTP: the HTTP protocol binding 1.0.2.

Header names are lower-case bytes, as `core.net` hands them over. Data is never re-encoded on its way in: a binary-mode
body is the data, and of the JSON formats see `core.events.jsonformat`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from core.errors import FieldError, InvalidInput
from core.events.jsonformat import STRUCTURED_TYPE, TooLarge, UnknownFormat, read_structured
from core.events.value import CloudEvent, check_attributes
from core.limits import MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES

__all__ = [
    "batch_type",
    "binary_head",
    "check_head",
    "from_http",
    "head_attributes",
    "is_event",
    "to_binary",
    "with_binary_head",
]

_STRUCTURED_PREFIX: Final = b"application/cloudevents"
_BATCH_PREFIX: Final = b"application/cloudevents-batch"

# "Space, double-quote, percent, and any characters outside the printable ASCII range" (section 3.1.3.2).
_MUST_ENCODE: Final = re.compile(r"[^\x21\x23-\x24\x26-\x7e]")
_NOT_PLAIN: Final = re.compile(rb"[^\x21\x23-\x24\x26-\x7e]")

_CONTENT_TYPE: Final = b"content-type"
_CONTENT_ENCODING: Final = b"content-encoding"
_DATA_TYPE: Final = "datacontenttype"
_ONE_TYPE: Final = "belongs in the Content-Type header, given once"
#: Attributes by the header that carries them. Extensions that are used are added; beyond the limit (somebody invents
#: names) each is looked at anew.
_attributes_by_header: Final[dict[bytes, str]] = {_CONTENT_TYPE: _DATA_TYPE}
_MAX_REMEMBERED: Final = 1_000


def is_event(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a message claims to be a CloudEvent in any mode: the test of section 3 of the binding."""
    for name, value in headers:
        if name == b"ce-specversion":
            return True
        if name == b"content-type" and value.lower().startswith(_STRUCTURED_PREFIX):
            return True
    return False


def from_http(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> CloudEvent:
    """The event that an HTTP message carries, in binary or structured mode.

    Raises InvalidInput with the attribute and the rule where the message is not a valid event.
    """
    return with_binary_head(headers, body)[0]


def with_binary_head(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[CloudEvent, bytes]:
    """The event that an HTTP message carries, and its `binary_head`, which for most events is there already.

    Raises InvalidInput with the attribute and the rule where the message is not a valid event.
    """
    attributes: dict[str, str] = {}
    lines: list[bytes] = []
    plain = True
    try:
        for name, value in headers:
            key = _attributes_by_header.get(name)
            if key is None:
                if name[:3] != b"ce-":
                    if name == _CONTENT_ENCODING:
                        _check_coding(value)
                    continue
                key = _attribute_of(name)
            elif name == _CONTENT_TYPE and value[:23].lower() == _STRUCTURED_PREFIX:
                return _structured(headers, body)
            if key in attributes:
                raise _invalid(key, _ONE_TYPE if key == _DATA_TYPE else "is given more than once")
            if name == _CONTENT_TYPE:
                attributes[key] = value.decode("latin-1")
            elif _NOT_PLAIN.search(value) is None:
                attributes[key] = value.decode("ascii")
            else:
                plain = False
                attributes[key] = _decode_value(key, value)
            lines.append(b"%b: %b\r\n" % (name, value))
    except InvalidInput:
        if not _formats(headers):
            raise
        return _structured(headers, body)  # where ce- headers say nothing (section 3.2.3)
    if "specversion" not in attributes:
        message = (
            "The request carries no CloudEvent: send the headers ce-specversion, ce-id, ce-source and ce-type "
            f"(binary mode), or a JSON body with Content-Type {STRUCTURED_TYPE} (structured mode)."
        )
        raise InvalidInput(message, [FieldError(path="specversion", rule="is required")])
    check_attributes(attributes)
    event = CloudEvent(attributes=attributes, data=body or None)
    return event, b"".join(lines) if plain else binary_head(event)


def check_head(event: CloudEvent, head: bytes) -> None:
    """Raise TooLarge where the event's `binary_head` is more than a delivery has room for: as headers, whichever mode
    the attributes came in."""
    if len(head) > MAX_ATTRIBUTES_BYTES or len(event.attributes) > MAX_ATTRIBUTES:
        raise TooLarge(
            f"The event's {len(event.attributes)} attributes have {len(head)} bytes as headers, and at most "
            f"{MAX_ATTRIBUTES} with {MAX_ATTRIBUTES_BYTES} bytes are taken: put what is large into its data."
        )


def head_attributes(head: bytes) -> dict[str, str]:
    """The attributes of a `binary_head`, which were checked when it was made and are not again: what is stored must
    stay what it is whatever the rules become. Raises ValueError or InvalidInput where it is no such head."""
    attributes: dict[str, str] = {}
    for line in head.split(b"\r\n")[:-1]:
        name, value = line.split(b": ", 1)
        key = _attributes_by_header.get(name) or _attribute_of(name)
        if name == _CONTENT_TYPE:
            attributes[key] = value.decode("latin-1")
        elif _NOT_PLAIN.search(value) is None:
            attributes[key] = value.decode("ascii")
        else:
            attributes[key] = _decode_value(key, value)
    return attributes


def batch_type(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The Content-Type of a message in batched mode; None for another one."""
    found = _formats(headers)
    return found[0] if found and found[0].lower().startswith(_BATCH_PREFIX) else None


def _formats(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """The values of Content-Type where one of them is an event format."""
    found = [value for name, value in headers if name == _CONTENT_TYPE]
    return found if any(value.lower().startswith(_STRUCTURED_PREFIX) for value in found) else []


def _structured(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[CloudEvent, bytes]:
    types = _formats(headers)
    if len(types) > 1:
        raise _invalid(_DATA_TYPE, _ONE_TYPE)
    for name, value in headers:
        if name == _CONTENT_ENCODING:
            _check_coding(value)
    if types[0].lower().startswith(_BATCH_PREFIX):
        raise UnknownFormat("A batch of events is not accepted here: send each event in a message of its own.")
    event = read_structured(types[0], body)
    return event, binary_head(event)


def _check_coding(value: bytes) -> None:
    """No attribute says how data is coded: whoever got it would not know."""
    if value.strip().lower() not in (b"", b"identity"):
        shown = value.decode("latin-1")
        raise UnknownFormat(f"The Content-Encoding {shown} is not supported: send the body as it is.")


def _attribute_of(name: bytes) -> str:
    """The attribute that a ``ce-`` header names; remembered, because the same few come with every event."""
    key = name[3:].decode("ascii", "replace")
    if key == _DATA_TYPE:
        raise _invalid(key, _ONE_TYPE)
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
