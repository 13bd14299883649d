"""The HTTP binding in all three modes against the cloudevents SDK, on generated events in both directions.

Where the SDK (2.2) does not do what the specifications say, they are followed, and the tests go around it:

- It gives an event without a time the present one. Its times are moments: how one was written is lost.
- In binary mode it writes a JSON string without its quotes, and reads text of any media type that is UTF-8 as a string.
- In structured mode it does not tell ``"data": null`` from no data (JSON event format, section 3.1.1).
- It takes a message for structured by its lack of ``ce-`` headers, not by its Content-Type (HTTP binding, section 3).
- It decodes neither quoted strings nor refuses bytes that are not UTF-8 in headers (section 3.1.3.2).
- It knows no batched mode: its batches here are JSON arrays of what it writes in structured mode.
"""

import json
from datetime import UTC, datetime

from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from hypothesis import given
from hypothesis import strategies as st

from core.clock import parse_rfc3339
from core.events import CloudEvent, from_batch, from_http, to_batch, to_binary, to_structured

BATCH_TYPE = b"application/cloudevents-batch+json"

text = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=20)
names = st.from_regex(r"ext[a-z0-9]{1,12}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: value is not None and "\\ud" not in json.dumps(value))
types = st.sampled_from(["application/json", "text/json", "application/ld+json", "application/json; charset=utf-8"])
times = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat().replace("+00:00", "Z"))
attributes = st.builds(
    lambda extensions, required, optional: {
        **extensions,
        **required,
        **{name: value for name, value in optional.items() if value is not None},
        "specversion": "1.0",
    },
    st.dictionaries(names, text, max_size=3),
    st.fixed_dictionaries({"id": text, "source": st.from_regex(r"[a-z0-9/:._~-]{1,20}", fullmatch=True), "type": text}),
    st.fixed_dictionaries({"subject": st.none() | text, "time": times}),
)


@st.composite
def json_events(draw: st.DrawFn) -> tuple[dict[str, str], object]:
    """Attributes, and a JSON value for the data."""
    return {**draw(attributes), "datacontenttype": draw(types)}, draw(values)


def ours(attributes: dict[str, str], data: bytes | None) -> CloudEvent:
    return CloudEvent.of(attributes, data)


def sdk(attributes: dict[str, str], data: object) -> SdkEvent:
    return SdkEvent({**attributes, "time": datetime.fromisoformat(attributes["time"])}, data)


def told(attributes: dict[str, object]) -> dict[str, object]:
    """Attributes with their time as a moment, however it is written."""
    found = {name: value for name, value in attributes.items() if value is not None}
    moment = found.pop("time")
    return {**found, "at": parse_rfc3339(moment) if isinstance(moment, str) else moment.timestamp()}


def as_theirs(message: tuple[list[tuple[bytes, bytes]], bytes]) -> SdkEvent:
    headers, body = message
    return from_http_event(HTTPMessage({name.decode(): value.decode() for name, value in headers}, body))


def as_ours(message: HTTPMessage) -> CloudEvent:
    headers = [(name.lower().encode(), value.encode()) for name, value in message.headers.items()]
    return from_http(headers, message.body)


@given(json_events())
def test_the_sdk_reads_the_same_json_value_from_each_mode_of_ours(made):
    held, value = made
    event = ours(held, json.dumps(value, ensure_ascii=False).encode())
    for message in (to_binary(event), to_structured(event)):
        theirs = as_theirs(message)
        assert told(theirs.get_attributes()) == told(held)
        assert theirs.get_data() == value
    (element,) = json.loads(to_batch([event])[1])
    theirs = JSONFormat().read(None, json.dumps(element))
    assert told(theirs.get_attributes()) == told(held)
    assert theirs.get_data() == value


@given(json_events())
def test_we_read_the_same_json_value_from_each_mode_of_the_sdk(made):
    held, value = made
    theirs = sdk(held, value)
    messages = [as_ours(to_structured_event(theirs))]
    messages += from_batch(BATCH_TYPE, b"[" + to_structured_event(theirs).body + b"]")
    if isinstance(value, dict):  # of others the SDK writes no JSON
        messages.append(as_ours(to_binary_event(theirs)))
    for event in messages:
        assert told(event.attributes) == told(held)
        assert json.loads(event.data) == value


@given(attributes, st.sampled_from(["application/octet-stream", "image/png", None]), st.binary(min_size=1, max_size=99))
def test_bytes_pass_through_each_mode_of_both_as_they_are(held, kind, data):
    if kind is not None:
        held = {**held, "datacontenttype": kind}
    theirs = sdk(held, data)
    read = [as_ours(to_binary_event(theirs)), as_ours(to_structured_event(theirs))]
    read += from_batch(BATCH_TYPE, b"[" + to_structured_event(theirs).body + b"]")
    for event in read:
        assert (told(event.attributes), event.data) == (told(held), data)
    for message in (to_binary(read[0]), to_structured(read[0])):
        again = as_theirs(message)
        assert told(again.get_attributes()) == told(held)
        got = again.get_data()
        if kind is not None and not (isinstance(got, str) and message[1] != data):
            assert (got.encode() if isinstance(got, str) else got) == data


@given(st.lists(json_events(), max_size=4))
def test_a_batch_of_ours_is_what_the_sdk_writes_of_the_same_events(made):
    batch = to_batch([ours(held, json.dumps(value).encode()) for held, value in made])[1]
    theirs = [json.loads(JSONFormat().write(sdk(held, value))) for held, value in made]
    assert json.loads(batch) == theirs
