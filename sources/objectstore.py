"""The one form of event for objects in stores of every make.

It is that of the CloudEvents adapter for S3 (cloudevents/spec `adapters/aws-s3.md`):

- type: ``com.amazonaws.s3.ObjectCreated:Put``; by this prefix consumers know an S3 kind of event.
- source: ``<event source>.<region>.<bucket>``. The adapter asks stores other than Amazon's for an event source of their
  own, so a folder's is ``penstock:folder``, its region ``local``.
- subject: the object's key. Control characters, which an attribute must not hold, are percent-encoded in it.
- id: a hash of bucket, key and version, so that the same upload told twice has the same id.
- time: when the object appeared under its key.
- data: JSON with eventName, eventTime, awsRegion, bucket, key, size (bytes) and etag.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from core.clock import rfc3339
from core.events import CloudEvent, new_event
from sources.resources import ObjectStoreSourceSpec

__all__ = ["CREATED", "Bucket", "StoredObject", "bucket_of", "object_created"]

CREATED: Final = "com.amazonaws.s3.ObjectCreated:Put"
# Characters that CloudEvents' type String excludes (1.0.2, "Type system").
_EXCLUDED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane + tail) for plane in range(0, 0x110000, 0x10000) for tail in (0xFFFE, 0xFFFF))
    + "]"
)


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Where objects are, in the words of an S3 notification."""

    event_source: str
    region: str
    name: str

    @property
    def source(self) -> str:
        """The events' source attribute."""
        return f"{self.event_source}.{self.region}.{self.name}"


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one object. `appeared_s` is when it did, in seconds since the epoch."""

    key: str
    size: int
    etag: str
    appeared_s: float


class _Data(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    event_name: str
    event_time: str
    aws_region: str
    bucket: str
    key: str
    size: int
    etag: str


def bucket_of(spec: ObjectStoreSourceSpec) -> Bucket:
    """The bucket that a spec names."""
    return Bucket(event_source="penstock:folder", region="local", name=spec.bucket)


def object_created(bucket: Bucket, found: StoredObject) -> CloudEvent:
    """The event that says that this version of the object is there, complete."""
    data = _Data(
        event_name=CREATED.removeprefix("com.amazonaws.s3."),
        event_time=rfc3339(found.appeared_s, fraction=True),
        aws_region=bucket.region,
        bucket=bucket.name,
        key=found.key,
        size=found.size,
        etag=found.etag,
    )
    identity = "\0".join((bucket.source, found.key, found.etag))
    return new_event(
        id=hashlib.sha256(identity.encode()).hexdigest()[:32],
        type=CREATED,
        source=bucket.source,
        subject=_EXCLUDED.sub(_percent, found.key),
        now=found.appeared_s,
        content_type="application/json",
        data=msgspec.json.encode(data),
    )


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())
