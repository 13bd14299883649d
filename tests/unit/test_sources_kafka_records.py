"""What event a record is: CloudEvents in both modes, plain records, and those that claim to be what they are not."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.events import CloudEvent, from_http, to_binary, to_structured
from sources.kafka.records import Origin, Place, Read, Record, event_of
from sources.kafka.resources import KEY_TYPES, KeyType

PLACE = Place("orders", 3)
ORIGIN = Origin(namespace="team", name="reader")
#: 2026-11-25T12:00:00.25Z
MOMENT_MS = 1_795_608_000_250


def record(
    *headers: tuple[str, bytes],
    value: bytes | None = b'{"n":1}',
    key: bytes | None = None,
    timestamp_ms: int = MOMENT_MS,
) -> Record:
    return Record(place=PLACE, offset=42, timestamp_ms=timestamp_ms, key=key, value=value, headers=headers)


def plain(found: Read) -> CloudEvent:
    assert found.flaw == ""
    return found.event


CE = (("ce_specversion", b"1.0"), ("ce_id", b"7"), ("ce_source", b"/shop"), ("ce_type", b"order.placed"))


def test_a_plain_record_has_knatives_attributes() -> None:
    event = plain(event_of(record(), ORIGIN))
    assert event.attributes == {
        "specversion": "1.0",
        "id": "partition:3/offset:42",
        "source": "/apis/v1/namespaces/team/kafkasources/reader#orders",
        "type": "dev.knative.kafka.event",
        "subject": "partition:3#42",
        "time": "2026-11-25T12:00:00.250000Z",
    }
    assert event.data == b'{"n":1}'


def test_a_plain_records_key_and_headers_are_extensions_and_its_content_type_the_datas() -> None:
    headers = (("Trace-ID", b"abc"), ("content-type", b"application/json"), ("empty", b""), ("type", b"x"))
    event = plain(event_of(record(*headers, key=b"customer-1"), ORIGIN))
    assert event.attributes["key"] == event.attributes["partitionkey"] == "customer-1"
    assert event.attributes["kafkaheadertraceid"] == "abc"
    assert event.attributes["kafkaheadertype"] == "x"
    assert event.attributes["datacontenttype"] == "application/json"
    assert event.type == "dev.knative.kafka.event"
    assert "kafkaheaderempty" not in event.attributes


def test_a_record_without_a_value_is_an_event_without_data() -> None:
    assert plain(event_of(record(value=None, key=b"k"), ORIGIN)).data is None


@pytest.mark.parametrize("timestamp_ms", [-1, 2**62], ids=["none", "beyond every calendar"])
def test_a_record_without_a_readable_time_is_an_event_without_time(timestamp_ms: int) -> None:
    assert "time" not in plain(event_of(record(timestamp_ms=timestamp_ms), ORIGIN)).attributes


@pytest.mark.parametrize(
    ("key_type", "key", "expected"),
    [
        ("string", b"abc", "abc"),
        ("string", "größe".encode(), "größe"),
        ("string", b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
        ("string", b"a\nb", base64.b64encode(b"a\nb").decode()),
        ("int", struct.pack(">i", -5), "-5"),
        ("int", struct.pack(">q", 2**40), str(2**40)),
        ("int", b"seven", "seven"),
        ("float", struct.pack(">f", 1.5), "1.5"),
        ("float", struct.pack(">d", 0.1), "0.1"),
        ("byte-array", b"abc", "YWJj"),
    ],
)
def test_a_key_is_read_as_the_label_says(key_type: KeyType, key: bytes, expected: str) -> None:
    origin = Origin(namespace="team", name="reader", key_type=key_type)
    assert plain(event_of(record(key=key), origin)).attributes["key"] == expected


def test_an_event_in_binary_mode_is_taken_as_it_is() -> None:
    headers = (*CE, ("ce_team", "blå".encode()), ("content-type", b"text/plain"), ("other", b"y"))
    event = plain(event_of(record(*headers, key=b"k"), ORIGIN))
    assert event.attributes == {
        "specversion": "1.0",
        "id": "7",
        "source": "/shop",
        "type": "order.placed",
        "team": "blå",
        "datacontenttype": "text/plain",
    }
    assert event.data == b'{"n":1}'


def test_an_attribute_is_not_percent_decoded_as_http_would() -> None:
    assert plain(event_of(record(*CE, ("ce_subject", b"100%25")), ORIGIN)).subject == "100%25"


def test_an_event_in_structured_mode_is_taken_as_it_is() -> None:
    body = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.placed", "data": {"n": 1}}
    header = ("Content-Type", b"application/cloudevents+json; charset=utf-8")
    event = plain(event_of(record(header, value=json.dumps(body).encode()), ORIGIN))
    assert (event.id, event.type) == ("7", "order.placed")
    assert json.loads(event.data or b"") == {"n": 1}


@pytest.mark.parametrize(
    ("headers", "value", "said"),
    [
        (CE[:3], b"x", "type"),
        ((*CE, ("ce_specversion", b"0.3")), b"x", "specversion"),
        ((*CE, ("ce_Bad-Name", b"x")), b"x", "Bad-Name"),
        ((*CE, ("ce_subject", b"\xff")), b"x", "UTF-8"),
        ((*CE, ("ce_time", b"yesterday")), b"x", "time"),
        ((("content-type", b"application/cloudevents+json"),), b"no json", "JSON"),
        ((("content-type", b"application/cloudevents+json"),), None, "JSON"),
        ((("content-type", b"application/cloudevents-batch+json"),), b"[]", "batch"),
        ((("content-type", b"application/cloudevents+avro"),), b"x", "not supported"),
    ],
    ids=["no type", "another version", "a bad name", "not UTF-8", "no time", "no JSON", "no body", "a batch", "Avro"],
)
def test_a_record_that_cannot_be_read_as_the_event_that_it_claims_to_be_is_told_like_any_other_record(
    headers: tuple[tuple[str, bytes], ...], value: bytes | None, said: str
) -> None:
    found = event_of(record(*headers, value=value, key=b"k"), ORIGIN)
    assert said in found.flaw
    assert found.event.type == "dev.knative.kafka.event"
    assert found.event.id == "partition:3/offset:42"
    assert found.event.data == value
    # With the record's content type, whoever gets it would try to read an event again.
    assert "datacontenttype" not in found.event.attributes


# ---- for all records

NAMES = st.text(max_size=8) | st.sampled_from(["content-type", "Content-Type", "ce_specversion", "ce_id", "ce_source"])
VALUES = st.binary(max_size=12) | st.sampled_from([b"1.0", b"application/cloudevents+json", b"application/json"])
RECORDS = st.builds(
    Record,
    place=st.builds(Place, topic=st.from_regex(r"[a-zA-Z0-9._-]{1,20}", fullmatch=True), partition=st.integers(0, 99)),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=st.integers(-(2**63), 2**63 - 1),
    key=st.none() | st.binary(max_size=12),
    value=st.none() | st.binary(max_size=30),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple),
)


@given(RECORDS, st.sampled_from(KEY_TYPES))
def test_every_record_is_a_valid_event_that_http_carries_unchanged(found: Record, key_type: KeyType) -> None:
    event = event_of(found, Origin(namespace="team", name="reader", key_type=key_type)).event
    assert CloudEvent.of(event.attributes, event.data) == event
    headers, body = to_binary(event)
    carried = from_http(headers, body)
    assert carried.attributes == event.attributes
    assert carried.data == (event.data or None)


@given(RECORDS)
def test_the_same_record_is_the_same_event_each_time(found: Record) -> None:
    assert event_of(found, ORIGIN) == event_of(found, ORIGIN)


TEXTS = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=10)


@given(TEXTS, TEXTS, TEXTS, st.binary(min_size=1, max_size=30))
def test_an_event_is_the_same_in_both_modes(event_id: str, kind: str, subject: str, data: bytes) -> None:
    attributes = {"specversion": "1.0", "id": event_id, "source": "/s", "type": kind, "subject": subject}
    event = CloudEvent.of({**attributes, "datacontenttype": "application/octet-stream"}, data)
    binary = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    ((_, content_type),), body = to_structured(event)
    in_binary = record(*binary, ("content-type", b"application/octet-stream"), value=data)
    in_structured = record(("content-type", content_type), value=body)
    assert plain(event_of(in_binary, ORIGIN)) == plain(event_of(in_structured, ORIGIN)) == event
