"""The one form of event for objects: what identifies it, and which keys it can carry."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from sources.objectstore import Bucket, StoredObject, bucket_of, object_created
from sources.resources import FolderStore, ObjectStoreSourceSpec, Store

BUCKET = Bucket(event_source="penstock:folder", region="local", name="uploads")


def stored(key: str = "a/b.jpg", etag: str = "4-5-6", size: int = 4, appeared_s: float = 1.5) -> StoredObject:
    return StoredObject(key=key, size=size, etag=etag, appeared_s=appeared_s)


def test_the_attributes_are_those_of_the_s3_adapter() -> None:
    event = object_created(BUCKET, stored())
    assert event.type == "com.amazonaws.s3.ObjectCreated:Put"
    assert event.source == "penstock:folder.local.uploads"
    assert event.subject == "a/b.jpg"
    assert event.attributes["time"] == "1970-01-01T00:00:01.500000Z"
    assert event.attributes["datacontenttype"] == "application/json"
    assert json.loads(event.data or b"") == {
        "eventName": "ObjectCreated:Put",
        "eventTime": "1970-01-01T00:00:01.500000Z",
        "awsRegion": "local",
        "bucket": "uploads",
        "key": "a/b.jpg",
        "size": 4,
        "etag": "4-5-6",
    }


def test_the_id_follows_from_bucket_key_and_version_and_nothing_else() -> None:
    first = object_created(BUCKET, stored())
    assert object_created(BUCKET, stored(appeared_s=9.0)).id == first.id
    others = [
        object_created(BUCKET, stored(key="a/c.jpg")),
        object_created(BUCKET, stored(etag="4-7-6")),
        object_created(Bucket(event_source="penstock:folder", region="local", name="other"), stored()),
    ]
    assert len({first.id, *(event.id for event in others)}) == 4


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_every_key_can_be_carried_and_read_back(key: str) -> None:
    event = object_created(BUCKET, stored(key=key))
    assert json.loads(event.data or b"")["key"] == key
    assert event.subject


def test_a_spec_names_its_bucket() -> None:
    spec = ObjectStoreSourceSpec(bucket="uploads", store=Store(folder=FolderStore(path="x")))
    assert bucket_of(spec) == BUCKET
