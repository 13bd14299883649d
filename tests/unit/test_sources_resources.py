"""PingSource and ObjectStoreSource: defaults, and every rule with the field it names."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from core.resources import Kind, ObjectMeta, Registry, Resource
from sources.resources import KINDS, OBJECT_STORE_SOURCE, PING_SOURCE, object_store_spec, ping_spec

REGISTRY = Registry(KINDS)
SINK = {"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}}
PING: dict[str, Any] = {"sink": SINK, "schedule": "*/5 * * * *"}
STORE: dict[str, Any] = {"sink": SINK, "bucket": "uploads", "store": {"folder": {"path": "buckets/uploads"}}}


def ping(**spec: object) -> Resource:
    return Resource(ref=PING_SOURCE, meta=ObjectMeta(name="p", namespace="n"), body={"spec": {**PING, **spec}})


def store(**spec: object) -> Resource:
    meta = ObjectMeta(name="o", namespace="n")
    return Resource(ref=OBJECT_STORE_SOURCE, meta=meta, body={"spec": {**STORE, **spec}})


def broken(resource: Resource) -> list[str]:
    """The paths of the rules that the resource breaks."""
    kind: Kind = REGISTRY.get(resource.ref)
    return [error.path for error in kind.validate(kind.default(resource), None)]


def test_a_ping_source_without_a_schedule_ticks_every_minute() -> None:
    bare = Resource(ref=PING_SOURCE, meta=ObjectMeta(name="p"), body={"spec": {"sink": SINK}})
    assert ping_spec(REGISTRY.get(PING_SOURCE).default(bare)).schedule == "* * * * *"


def test_an_object_store_source_without_events_tells_of_created_objects() -> None:
    assert object_store_spec(REGISTRY.get(OBJECT_STORE_SOURCE).default(store())).events == ("created",)


@pytest.mark.parametrize("spec_type", [kind.spec_type for kind in KINDS], ids=[kind.singular for kind in KINDS])
def test_an_unknown_field_is_refused(spec_type: type[msgspec.Struct]) -> None:
    spec = PING if spec_type is REGISTRY.get(PING_SOURCE).spec_type else STORE
    with pytest.raises(msgspec.ValidationError, match="shedule"):
        msgspec.convert({**spec, "shedule": "x"}, spec_type)


def test_an_event_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="events"):
        object_store_spec(store(events=["destroyed"]))


@pytest.mark.parametrize(
    ("resource", "paths"),
    [
        pytest.param(ping(), [], id="a plain ping source"),
        pytest.param(ping(timezone="Europe/Berlin"), [], id="a zone"),
        pytest.param(ping(schedule="0 */5 * * * *"), [], id="six fields"),
        pytest.param(ping(schedule="every minute"), ["spec.schedule"], id="no cron"),
        pytest.param(ping(schedule="@every 5m"), ["spec.schedule"], id="@every"),
        pytest.param(ping(timezone="Mars/Olympus"), ["spec.timezone"], id="no such zone"),
        pytest.param(ping(timezone="../../etc/passwd"), ["spec.timezone"], id="a path for a zone"),
        pytest.param(ping(sink=None), ["spec.sink"], id="no sink"),
        pytest.param(ping(sink={"uri": "/relative"}), ["spec.sink.uri"], id="a relative sink"),
        pytest.param(ping(data="x", dataBase64="eA=="), ["spec.data"], id="data twice"),
        pytest.param(ping(dataBase64="!"), ["spec.dataBase64"], id="no Base64"),
        pytest.param(ping(data="plain text"), [], id="text without a type"),
        pytest.param(ping(data="[1", contentType="application/json"), ["spec.data"], id="broken JSON"),
        pytest.param(ping(data="[1]", contentType="application/json"), ["spec.data"], id="JSON that is no object"),
        pytest.param(ping(data='{"a": 1}', contentType="application/json"), [], id="a JSON object"),
        pytest.param(
            ping(dataBase64=base64.b64encode(b"{").decode(), contentType="application/json"),
            ["spec.dataBase64"],
            id="broken JSON in Base64",
        ),
        pytest.param(
            ping(ceOverrides={"extensions": {"Bad-Name": "x", "id": "y", "good1": "z"}}),
            ["spec.ceOverrides.extensions[Bad-Name]", "spec.ceOverrides.extensions[id]"],
            id="overrides that are no extensions",
        ),
        pytest.param(store(), [], id="a plain store"),
        pytest.param(store(bucket="Uploads"), ["spec.bucket"], id="upper case in a bucket"),
        pytest.param(store(bucket="up/loads"), ["spec.bucket"], id="a slash in a bucket"),
        pytest.param(store(bucket="ab"), ["spec.bucket"], id="a short bucket"),
        pytest.param(store(store={}), ["spec.store"], id="no store"),
        pytest.param(store(store={"folder": {"path": ""}}), ["spec.store.folder.path"], id="an empty path"),
        pytest.param(store(prefix="/in/"), ["spec.prefix"], id="a prefix with a leading slash"),
        pytest.param(store(suffix="x" * 1025), ["spec.suffix"], id="a suffix longer than a key"),
        pytest.param(store(sink={}), ["spec.sink"], id="an empty sink"),
    ],
)
def test_each_rule_names_the_field_that_breaks_it(resource: Resource, paths: list[str]) -> None:
    assert broken(resource) == paths
