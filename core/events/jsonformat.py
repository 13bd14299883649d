"""The JSON event format 1.0.2: one event as a JSON object, and a batch of them as a JSON array.

JSON data is kept byte for byte both ways, so that what is delivered is the same JSON value, whatever a parser would
make of its numbers and its repeated names. Other data is text in the charset that its media type states, or Base64.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from core.errors import FieldError, InvalidInput
from core.events.value import CloudEvent, check_attributes, is_json_type
from core.limits import MAX_BATCH_EVENTS, MAX_EVENT_BYTES

__all__ = [
    "BATCH_TYPE",
    "STRUCTURED_TYPE",
    "TooLarge",
    "UnknownFormat",
    "from_batch",
    "in_batch",
    "read_structured",
    "to_batch",
    "to_structured",
]

STRUCTURED_TYPE: Final = "application/cloudevents+json"
BATCH_TYPE: Final = "application/cloudevents-batch+json"

_MAX_INT: Final = 2_147_483_647
_CHARSET: Final = re.compile(r""";\s*charset\s*=\s*(?:"([^"]*)"|([^\s;"]+))""", re.IGNORECASE)
#: The charsets of text; Python's own list also has names of what is none (``rot13``, ``punycode``).
_TEXT_CODEC: Final = re.compile(
    r"us-ascii|ascii|utf-?8|utf-(16|32)([bl]e)?|iso-8859-\d+|windows-125\d|koi8-[ru]|shift_jis|euc-(jp|kr)"
    r"|iso-2022-(jp|kr)|gb2312|gbk|gb18030|big5"
)
_UTF_8: Final = "utf-8"
#: Of a value that cannot be read, in the answer.
_SHOWN_BYTES: Final = 100
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")


class UnknownFormat(InvalidInput):
    """The event is in a format, mode or coding that is not taken here: send it in another one."""


class TooLarge(InvalidInput):
    """The event, or the batch, is larger than is taken."""


# ---- out


def to_structured(event: CloudEvent) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and JSON body of the event in structured mode; JSON data is embedded byte for byte."""
    return [(b"content-type", STRUCTURED_TYPE.encode() + b"; charset=utf-8")], _encode(event)


def to_batch(events: Iterable[CloudEvent]) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and JSON body of the events in batched mode, in their order; JSON data is embedded byte for byte."""
    body = b"[%b]" % b",".join(map(_encode, events))
    return [(b"content-type", BATCH_TYPE.encode() + b"; charset=utf-8")], body


def _encode(event: CloudEvent) -> bytes:
    members: dict[str, object] = dict(event.attributes)
    if event.data is not None:
        _embed(members, event.data, event.attributes.get("datacontenttype"))
    return msgspec.json.encode(members)


def _embed(members: dict[str, object], data: bytes, content_type: str | None) -> None:
    charset = None if content_type is None else _charset(content_type)
    if content_type is not None and is_json_type(content_type):
        if charset in (None, _UTF_8) and _is_json(data):
            members["data"] = msgspec.Raw(data)
            return
    elif content_type is not None and content_type[:5].lower() == "text/":
        text = _text_of(data, charset or _UTF_8)
        if text is not None:
            members["data"] = text
            return
    members["data_base64"] = base64.b64encode(data).decode("ascii")


def _text_of(data: bytes, charset: str) -> str | None:
    """The text that `data` is, where encoding it again gives the same bytes."""
    codec = _codec(charset)
    if codec is None:
        return None
    try:
        text = data.decode(codec)
        return text if text.encode(codec) == data else None
    except UnicodeError:
        return None


def _is_json(data: bytes) -> bool:
    try:
        _decode(data, msgspec.Raw)
    except InvalidInput:
        return False
    return True


# ---- in


def read_structured(content_type: bytes, body: bytes) -> CloudEvent:
    """The event of a body in structured mode.

    Raises UnknownFormat for another format than JSON, InvalidInput with attribute and rule for what is no event.
    """
    _check_type(content_type, STRUCTURED_TYPE)
    return _event_of(_decode(body, dict[str, msgspec.Raw], "The event's body is not a JSON object"))


def from_batch(content_type: bytes, body: bytes) -> list[CloudEvent]:
    """The events of a body in batched mode, in their order: all of them are valid.

    Raises UnknownFormat for another format than JSON, TooLarge beyond a limit, and InvalidInput with the place in the
    batch (from 0), the attribute and the rule for the first that is no event.
    """
    _check_type(content_type, BATCH_TYPE)
    raws = _decode(body, list[msgspec.Raw], "The batch's body is not a JSON array")
    if len(raws) > MAX_BATCH_EVENTS:
        text = f"The batch holds {len(raws)} events, and at most {MAX_BATCH_EVENTS} are taken at once: send several."
        raise TooLarge(text)
    events = []
    for index, raw in enumerate(map(bytes, raws)):
        try:
            if len(raw) > MAX_EVENT_BYTES:
                raise TooLarge(f"The event has {len(raw)} bytes, and at most {MAX_EVENT_BYTES} are taken.")
            events.append(_event_of(_decode(raw, dict[str, msgspec.Raw], "The event is not a JSON object")))
        except InvalidInput as error:
            raise in_batch(index, error) from error
    return events


def in_batch(index: int, error: InvalidInput) -> InvalidInput:
    """The error of one event, with its place in the batch."""
    errors = [FieldError(path=f"[{index}].{held.path}", rule=held.rule, value=held.value) for held in error.errors]
    return type(error)(f"Nothing of the batch is stored. Its event at index {index}: {error}", errors)


def _check_type(content_type: bytes, wanted: str) -> None:
    shown = content_type.decode("latin-1")
    if shown.partition(";")[0].strip().lower() != wanted:
        raise UnknownFormat(f"The event format {shown} is not supported: send {STRUCTURED_TYPE}, or use binary mode.")
    if _charset(shown) not in (None, _UTF_8, "us-ascii"):
        raise UnknownFormat(f"The charset of {shown} is not supported: JSON is sent in UTF-8 (RFC 8259, section 8.1).")


def _decode(raw: bytes, kind: Any, what: str = "The data is not JSON") -> Any:
    """Raises InvalidInput where it is not JSON of this kind."""
    try:
        if not raw.isascii():
            raw.decode()  # what is passed over as Raw is not looked into for that
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{what}: {error}.") from error


def _event_of(members: dict[str, msgspec.Raw]) -> CloudEvent:
    data_json = members.pop("data", None)
    data_base64 = members.pop("data_base64", None)
    if data_base64 is not None and bytes(data_base64) == b"null":  # what the format's own schema permits for none
        data_base64 = None
    if data_json is not None and data_base64 is not None:
        raise _invalid("data_base64", "must not be given together with data")
    attributes = {
        name: text for name, raw in members.items() if (text := _attribute_text(name, bytes(raw))) is not None
    }
    check_attributes(attributes)
    kind = attributes.get("datacontenttype")
    if kind is not None and not (kind.isascii() and kind == kind.strip()):
        raise _invalid("datacontenttype", "must be a media type (RFC 2046), which is ASCII without spaces around", kind)
    data: bytes | None = None
    if data_base64 is not None:
        data = _decode_base64(bytes(data_base64))
    elif data_json is not None:
        # Translated to another mode, an absent datacontenttype must be made explicit (JSON format, section 3.1).
        data = _data_bytes(attributes.setdefault("datacontenttype", "application/json"), bytes(data_json))
    return CloudEvent(attributes=attributes, data=data)


def _attribute_text(name: str, raw: bytes) -> str | None:
    """The canonical string of a JSON attribute value; None for null, which means absent."""
    value = _value(raw)
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


def _value(raw: bytes) -> Any:
    """What JSON stands for; of what cannot be had (a number beyond all bounds, text of half a character, lists too deep
    in each other) the beginning of its bytes, which is none of the types that are asked for."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return raw[:_SHOWN_BYTES]


def _data_bytes(content_type: str, raw: bytes) -> bytes | None:
    """What the ``data`` member stands for: JSON as it is, other text as its media type says (section 3.1.2)."""
    charset = _charset(content_type)
    if is_json_type(content_type):
        if charset in (None, _UTF_8):
            return raw
        return _encoded(_NOT_ASCII.sub(_escaped, raw.decode()), charset, content_type)
    value = _value(raw)
    if value is None:
        return None
    if not isinstance(value, str):
        rule = f"must be a string where datacontenttype is {content_type}, which is not JSON; or send data_base64"
        raise _invalid("data", rule)
    return _encoded(value, charset, content_type)


def _encoded(text: str, charset: str | None, content_type: str) -> bytes:
    codec = _codec(charset or _UTF_8)
    if codec is None:
        raise _invalid("data", f"cannot be encoded as {content_type}, whose charset is not known; send data_base64")
    try:
        return text.encode(codec)
    except UnicodeEncodeError as error:
        raise _invalid("data", f"cannot be encoded as {content_type}: {error}") from error


def _escaped(match: re.Match[str]) -> str:
    """A character of JSON text that a charset may not have: outside strings there are none."""
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _charset(content_type: str) -> str | None:
    """The charset parameter, in lower case; None where there is none."""
    found = _CHARSET.search(content_type)
    if found is None:
        return None
    name = (found[1] or found[2] or "").lower()
    return _UTF_8 if name == "utf8" else name


def _codec(charset: str) -> str | None:
    if _TEXT_CODEC.fullmatch(charset) is None:
        return None
    try:
        return codecs.lookup(charset).name
    except LookupError:
        return None


def _decode_base64(raw: bytes) -> bytes:
    value = _value(raw)
    if not isinstance(value, str):
        raise _invalid("data_base64", "must be a string", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("data_base64", f"must be Base64 (RFC 4648): {error}") from error


def _invalid(name: str, rule: str, value: object = None) -> InvalidInput:
    return InvalidInput.of("The event", [FieldError(path=name, rule=rule, value=value)])
