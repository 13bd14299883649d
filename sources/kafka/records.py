"""What event a record is.

CloudEvents in both modes of the Kafka protocol binding 1.0.2 are taken as they are. Every other record becomes an event
of Knative's type with Knative's attributes: its key as ``key`` and ``partitionkey``, its headers as extensions
``kafkaheader<name>`` (knative-extensions/eventing-kafka `pkg/source/adapter/message.go`). The newer adapter
(eventing-kafka-broker `InvalidCloudEventInterceptor.java`) leaves out that prefix, and a header named "type" replaces
the event's own; here it stays.

A record that claims to be an event and cannot be read as one is told like any other record, and `Read.flaw` says why:
it is neither lost nor in the way of those behind it.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from core.clock import rfc3339
from core.errors import InvalidInput
from core.events import CloudEvent, from_http
from sources.kafka.resources import KeyType

__all__ = ["RECORD", "Origin", "Place", "Read", "Record", "event_of", "kafka_source_of"]

RECORD: Final = "dev.knative.kafka.event"

#: Characters of a header's name that an extension's name may have (CloudEvents 1.0.2, "Naming conventions").
_NOT_IN_NAME: Final = re.compile(r"[^a-z0-9]")
_STRUCTURED_PREFIX: Final = b"application/cloudevents"
_CONTENT_TYPE: Final = "content-type"
_ATTRIBUTE_PREFIX: Final = "ce_"
# Characters that CloudEvents' type String excludes (1.0.2, "Type system").
_EXCLUDED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + tail) for plane in range(0, 0x110000, 0x10000) for tail in (0xFFFE, 0xFFFF))
    + "]"
)
#: What can stand in an HTTP Content-Type header.
_MEDIA_TYPE: Final = re.compile(rb"[\x20-\x7e]+\Z")
_INTEGERS: Final[Mapping[int, str]] = {4: ">i", 8: ">q"}
_FLOATS: Final[Mapping[int, str]] = {4: ">f", 8: ">d"}


class Place(msgspec.Struct, frozen=True, order=True):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record. `timestamp_ms` is negative where it has none; a header's name may come more than once."""

    place: Place
    offset: int
    timestamp_ms: int = -1
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The source that reads: its name is in its events' source attribute."""

    namespace: str
    name: str
    key_type: KeyType = "string"


class Read(msgspec.Struct, frozen=True):
    """The event that a record is; `flaw` says why it is not the one that the record claims to be."""

    event: CloudEvent
    flaw: str = ""


def kafka_source_of(namespace: str, name: str, topic: str) -> str:
    """The events' source attribute."""
    return f"/apis/v1/namespaces/{namespace}/kafkasources/{name}#{topic}"


def event_of(record: Record, origin: Origin) -> Read:
    """The event that this record is. Never raises: every record is one."""
    headers = dict(record.headers)  # of a name that comes more than once the last counts, as for Kafka's own clients
    content_type = next((value for name, value in headers.items() if name.lower() == _CONTENT_TYPE), None)
    try:
        if content_type is not None and content_type[:23].lower() == _STRUCTURED_PREFIX:
            return Read(from_http([(b"content-type", content_type)], record.value or b""))
        if f"{_ATTRIBUTE_PREFIX}specversion" in headers:
            return Read(_binary(headers, content_type, record.value))
    except InvalidInput as error:
        return Read(_plain(record, origin, None), str(error))
    return Read(_plain(record, origin, content_type))


def _binary(headers: Mapping[str, bytes], content_type: bytes | None, value: bytes | None) -> CloudEvent:
    """The event of binary mode: attributes are headers ``ce_<name>`` in UTF-8. Raises InvalidInput."""
    attributes: dict[str, str] = {}
    for name, raw in headers.items():
        if name.startswith(_ATTRIBUTE_PREFIX):
            try:
                attributes[name.removeprefix(_ATTRIBUTE_PREFIX)] = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInput(f"The header {name} is not UTF-8: {error}.") from error
    if content_type:
        attributes["datacontenttype"] = content_type.decode("latin-1")
    return CloudEvent.of(attributes, value)


def _plain(record: Record, origin: Origin, content_type: bytes | None) -> CloudEvent:
    place = record.place
    attributes = {
        "specversion": "1.0",
        "id": f"partition:{place.partition}/offset:{record.offset}",
        "source": kafka_source_of(origin.namespace, origin.name, place.topic),
        "type": RECORD,
        "subject": f"partition:{place.partition}#{record.offset}",
    }
    time = _time(record.timestamp_ms)
    if time:
        attributes["time"] = time
    if content_type and _MEDIA_TYPE.match(content_type):
        attributes["datacontenttype"] = content_type.decode("ascii")
    if record.key:
        attributes["key"] = attributes["partitionkey"] = _key(record.key, origin.key_type)
    attributes.update(_extensions(record.headers))
    return CloudEvent.of(attributes, record.value)


def _extensions(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    found = {}
    for name, value in headers:
        if name.lower() != _CONTENT_TYPE and value:
            found[f"kafkaheader{_NOT_IN_NAME.sub('', name.lower())}"] = _text(value)
    return found


def _time(timestamp_ms: int) -> str:
    """The record's time; "" where it has none, or one that no calendar knows (producers set it as they like)."""
    if timestamp_ms < 0:
        return ""
    try:
        return rfc3339(timestamp_ms / 1000, fraction=True)
    except (ValueError, OverflowError, OSError):
        return ""


def _key(key: bytes, key_type: KeyType) -> str:
    if key_type == "byte-array":
        return base64.b64encode(key).decode("ascii")
    formats = {"int": _INTEGERS, "float": _FLOATS}.get(key_type, {})
    if len(key) in formats:
        return str(struct.unpack(formats[len(key)], key)[0])
    return _text(key)


def _text(raw: bytes) -> str:
    """The text that these bytes are in UTF-8; of bytes that are no text an attribute can hold, their Base64, which is
    the canonical form of CloudEvents' type Binary."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode("ascii")
    return base64.b64encode(raw).decode("ascii") if _EXCLUDED.search(text) else text
