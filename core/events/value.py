"""The CloudEvent value: context attributes in their canonical string form, and data as the bytes that were sent.

Rules are those of the CloudEvents specification 1.0.2 ("Context attributes", "Type system"). An instance has been
checked: nothing after construction by `CloudEvent.of`, `new_event` or the HTTP binding needs to validate again.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from core.clock import rfc3339
from core.errors import FieldError, InvalidInput

__all__ = ["CloudEvent", "check_attributes", "is_json_type", "new_event"]

SPEC_VERSION: Final = "1.0"
REQUIRED: Final = ("id", "source", "specversion", "type")

# "MUST consist of lower-case letters or digits" (Naming conventions).
_NAME: Final = re.compile(r"[a-z0-9]+\Z")
# Disallowed in String: C0 and C1 controls, noncharacters, lone surrogates (Type system).
_DISALLOWED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + tail) for plane in range(0, 0x110000, 0x10000) for tail in (0xFFFE, 0xFFFF))
    + "]"
)
_valid_names: Final[set[str]] = set()
_MAX_REMEMBERED: Final = 1_000
# RFC 3986 characters of a URI-reference; internationalised ones pass, as the SDKs let them.
_NOT_IN_URI: Final = re.compile(r'[\s<>"{}|\\^`]')

#: How almost all senders write a time, on a day that every month has.
_COMMON_TIME: Final = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?Z"
)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One occurrence, and its context.

    `attributes` holds every context attribute that is present, required, optional and extension alike, by name, each
    in its canonical string encoding. `data` is the payload as sent, or None where the event carries none.
    """

    attributes: dict[str, str]
    data: bytes | None = None

    @classmethod
    def of(cls, attributes: Mapping[str, str], data: bytes | None = None) -> CloudEvent:
        """A checked event. Raises InvalidInput naming each attribute that breaks a rule."""
        held = dict(attributes)
        check_attributes(held)
        return cls(attributes=held, data=data)

    @property
    def id(self) -> str:
        return self.attributes["id"]

    @property
    def source(self) -> str:
        return self.attributes["source"]

    @property
    def type(self) -> str:
        return self.attributes["type"]

    @property
    def subject(self) -> str | None:
        return self.attributes.get("subject")

    def with_attributes(self, **changed: str) -> CloudEvent:
        """The same event with some attributes set; data is untouched. Raises InvalidInput."""
        return CloudEvent.of({**self.attributes, **changed}, self.data)


def new_event(
    *,
    type: str,  # noqa: A002 - the attribute's name in the specification
    source: str,
    now: float,
    data: bytes | None = None,
    id: str | None = None,  # noqa: A002 - as above
    content_type: str | None = None,
    subject: str | None = None,
    **extensions: str,
) -> CloudEvent:
    """A new event that happened at `now` (seconds since the epoch), with a random id unless one is given."""
    attributes = {
        "specversion": SPEC_VERSION,
        "id": id or str(uuid.uuid4()),
        "source": source,
        "type": type,
        "time": rfc3339(now, fraction=True),
        **extensions,
    }
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    if subject is not None:
        attributes["subject"] = subject
    return CloudEvent.of(attributes, data)


def is_json_type(content_type: str | None) -> bool:
    """Whether data of this media type is JSON (JSON event format 1.0.2, section 3.1); absent means it is."""
    if content_type is None:
        return True
    media = content_type.partition(";")[0].strip().lower()
    subtype = media.partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Raise InvalidInput naming every attribute that breaks a rule of CloudEvents 1.0.2."""
    errors = [
        FieldError(path=name, rule="is required and must not be empty") for name in REQUIRED if not attributes.get(name)
    ]
    for name, value in attributes.items():
        if not value.isprintable() and _DISALLOWED.search(value):
            errors.append(FieldError(path=name, rule="must not hold control characters or noncharacters", value=value))
        if name not in _valid_names and not _is_name(name):
            rule = "is not an attribute name: use only the characters a-z and 0-9"
            errors.append(FieldError(path=name, rule=rule))
    if attributes.get("specversion", SPEC_VERSION) != SPEC_VERSION:
        errors.append(FieldError(path="specversion", rule='must be "1.0"', value=attributes["specversion"]))
    if "data" in attributes:
        errors.append(FieldError(path="data", rule="is reserved and cannot name an attribute"))
    errors.extend(_check_formats(attributes))
    if errors:
        raise InvalidInput.of("The event", errors)


def _is_name(name: str) -> bool:
    """Whether it can name an attribute; those that can are remembered, because the same few come with every event."""
    if _NAME.match(name) is None:
        return False
    if len(_valid_names) < _MAX_REMEMBERED:
        _valid_names.add(name)
    return True


def _check_formats(attributes: Mapping[str, str]) -> list[FieldError]:
    errors = []
    for name in ("source", "dataschema"):
        value = attributes.get(name)
        if value and _NOT_IN_URI.search(value):
            errors.append(FieldError(path=name, rule="must be a URI-reference (RFC 3986)", value=value))
    for name in ("subject", "dataschema", "datacontenttype"):
        if attributes.get(name) == "":
            errors.append(FieldError(path=name, rule="must not be empty where it is present"))
    moment = attributes.get("time")
    if moment is not None and not _is_time(moment):
        rule = "must be an RFC 3339 time with its time zone, such as 2026-11-23T04:05:06Z"
        errors.append(FieldError(path="time", rule=rule, value=moment))
    return errors


def _is_time(text: str) -> bool:
    """ISO 8601 has many ways to write a time, and RFC 3339 takes one of them."""
    if _COMMON_TIME.fullmatch(text) is not None:
        return True
    if _TIME.fullmatch(text) is None:
        return False
    second = "59" if text[17:19] == "60" else text[17:19]  # Python knows no leap seconds, and no small letters
    try:
        datetime.fromisoformat(f"{text[:17]}{second}{text[19:]}".upper())
    except ValueError:
        return False
    return True
