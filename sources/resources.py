"""The kinds of this plane: PingSource as Knative has it, and ObjectStoreSource of our own.

PingSource's fields, defaults and rules are those of knative/eventing `pkg/apis/sources/v1/ping_*.go`. An
ObjectStoreSource names a bucket and one store out of a union: a folder today; another store is one more optional
member of `Store`, so a manifest that works keeps working.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from core.errors import FieldError
from core.resources import Column, DeliveryShape, Destination, Kind, KindRef, Resource, validate_destination
from sources.cron import CronError, Schedule

__all__ = [
    "KINDS",
    "OBJECT_STORE_SOURCE",
    "PING_SOURCE",
    "CloudEventOverrides",
    "FolderStore",
    "ObjectStoreSourceSpec",
    "PingSourceSpec",
    "Store",
    "check_source",
    "delivery_of",
    "object_store_spec",
    "ping_spec",
    "sink_of",
]

PING_SOURCE: Final = KindRef("sources.knative.dev", "v1", "PingSource")
OBJECT_STORE_SOURCE: Final = KindRef("sources.penstock.dev", "v1alpha1", "ObjectStoreSource")

DEFAULT_SCHEDULE: Final = "* * * * *"
# Attributes that every source sets by itself; an override of them would break identity or routing of its events.
_OWN_ATTRIBUTES: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data"}
)
_EXTENSION_NAME: Final = re.compile(r"[a-z0-9]+\Z")
# Amazon S3's bucket naming rules, which the compatible stores share.
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
# S3's limit for a key, in UTF-8 bytes; prefix and suffix are parts of keys.
_MAX_KEY_BYTES: Final = 1024


class CloudEventOverrides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Extension attributes that are set on every event that a source sends (knative.dev/pkg `duck/v1`)."""

    extensions: dict[str, str] = {}


class PingSourceSpec(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """An event with a fixed payload at each tick of a cron schedule.

    `timezone` "" means the machine's own zone. `data` and `data_base64` exclude each other.
    """

    sink: Destination | None = None
    ce_overrides: CloudEventOverrides | None = None
    schedule: str = ""
    timezone: str = ""
    content_type: str = ""
    data: str = ""
    data_base64: str = ""

    def payload(self) -> bytes | None:
        """The event's data. Call it on a checked spec only."""
        if self.data_base64:
            return base64.b64decode(self.data_base64, validate=True)
        return self.data.encode() if self.data else None


class FolderStore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A folder of this machine as a bucket. A relative `path` starts at the platform's root.

    `create` makes the folder where it is missing; without it a missing folder is waited for, and the condition says so.
    """

    path: str
    create: bool = False


class Store(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where the bucket is: exactly one member is given."""

    folder: FolderStore | None = None


class ObjectStoreSourceSpec(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """One event for each object that appears in a bucket, new or overwritten.

    Only keys that start with `prefix` and end with `suffix` count. `events` are the kinds of change to tell.
    """

    bucket: str
    store: Store
    sink: Destination | None = None
    ce_overrides: CloudEventOverrides | None = None
    prefix: str = ""
    suffix: str = ""
    events: tuple[Literal["created"], ...] = ()


def ping_spec(resource: Resource) -> PingSourceSpec:
    """The typed spec. Raises msgspec.ValidationError where the shape is wrong, which nobody can store."""
    return msgspec.convert(resource.spec, PingSourceSpec)


def object_store_spec(resource: Resource) -> ObjectStoreSourceSpec:
    """The typed spec. Raises msgspec.ValidationError where the shape is wrong."""
    return msgspec.convert(resource.spec, ObjectStoreSourceSpec)


def sink_of(resource: Resource) -> tuple[Destination | None, CloudEventOverrides]:
    """The part of the spec that every source has, as Knative's SourceSpec."""
    sink = msgspec.convert(resource.spec.get("sink"), Destination | None)
    overrides = msgspec.convert(resource.spec.get("ceOverrides"), CloudEventOverrides | None)
    return sink, overrides or CloudEventOverrides()


def delivery_of(resource: Resource) -> DeliveryShape | None:
    """The delivery spec, where the kind has one and the resource states it."""
    return msgspec.convert(resource.spec.get("delivery"), DeliveryShape | None)


def _default_ping(resource: Resource) -> Resource:
    if resource.spec.get("schedule"):
        return resource
    return resource.with_spec({**resource.spec, "schedule": DEFAULT_SCHEDULE})


def _default_object_store(resource: Resource) -> Resource:
    if resource.spec.get("events"):
        return resource
    return resource.with_spec({**resource.spec, "events": ["created"]})


def _check_ping(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    spec = ping_spec(new)
    yield from check_source(spec.sink, spec.ce_overrides)
    try:
        Schedule.parse(spec.schedule or DEFAULT_SCHEDULE, spec.timezone)
    except CronError as error:
        value = spec.timezone if error.field == "timezone" else spec.schedule
        yield FieldError(path=f"spec.{error.field}", rule=error.rule, value=value)
    if spec.data and spec.data_base64:
        yield FieldError(path="spec.data", rule="and spec.dataBase64 exclude each other; give one of them")
        return
    try:
        payload = spec.payload()
    except (binascii.Error, ValueError) as error:
        rule = f"must be Base64 (RFC 4648): {error}"
        yield FieldError(path="spec.dataBase64", rule=rule, value=spec.data_base64[:80])
        return
    if payload is not None and spec.content_type == "application/json" and not _is_json_object(payload):
        path = "spec.dataBase64" if spec.data_base64 else "spec.data"
        rule = "must be a JSON object where contentType is application/json"
        yield FieldError(path=path, rule=rule, value=payload[:80].decode("utf-8", "replace"))


def _check_object_store(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    spec = object_store_spec(new)
    yield from check_source(spec.sink, spec.ce_overrides)
    if _BUCKET.match(spec.bucket) is None:
        rule = "must be 3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends"
        yield FieldError(path="spec.bucket", rule=rule, value=spec.bucket)
    if spec.store.folder is None:
        yield FieldError(path="spec.store", rule="needs one store; known is folder")
    elif not spec.store.folder.path or "\0" in spec.store.folder.path:
        path = spec.store.folder.path
        yield FieldError(path="spec.store.folder.path", rule="must be the path of a folder", value=path)
    for name, value in (("prefix", spec.prefix), ("suffix", spec.suffix)):
        if len(value.encode()) > _MAX_KEY_BYTES:
            rule = f"must not be longer than a key, which is {_MAX_KEY_BYTES} bytes"
            yield FieldError(path=f"spec.{name}", rule=rule, value=value[:80])
    if spec.prefix.startswith("/"):
        rule = "is compared with keys, which do not start with a slash"
        yield FieldError(path="spec.prefix", rule=rule, value=spec.prefix)


def check_source(sink: Destination | None, overrides: CloudEventOverrides | None) -> Iterator[FieldError]:
    """Each broken rule of what all sources have."""
    yield from validate_destination(sink, "spec.sink")
    for name in overrides.extensions if overrides else ():
        path = f"spec.ceOverrides.extensions[{name}]"
        if _EXTENSION_NAME.match(name) is None:
            yield FieldError(path=path, rule="is not an attribute name: use only the characters a-z and 0-9")
        elif name in _OWN_ATTRIBUTES:
            yield FieldError(path=path, rule="is set by the source itself and cannot be an extension")


def _is_json_object(payload: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(payload), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


_SINK: Final = Column(name="SINK", path=".status.sinkUri")
_READY: Final = (
    Column(name="READY", path=".status.conditions[Ready].status"),
    Column(name="REASON", path=".status.conditions[Ready].reason"),
)
_CATEGORIES: Final = ("all", "knative", "sources")

KINDS: Final = (
    Kind(
        ref=PING_SOURCE,
        plural="pingsources",
        singular="pingsource",
        categories=_CATEGORIES,
        spec_type=PingSourceSpec,
        default=_default_ping,
        validate=_check_ping,
        columns=(_SINK, Column(name="SCHEDULE", path=".spec.schedule"), *_READY),
    ),
    Kind(
        ref=OBJECT_STORE_SOURCE,
        plural="objectstoresources",
        singular="objectstoresource",
        categories=_CATEGORIES,
        spec_type=ObjectStoreSourceSpec,
        default=_default_object_store,
        validate=_check_object_store,
        columns=(_SINK, Column(name="BUCKET", path=".spec.bucket"), *_READY),
    ),
)
