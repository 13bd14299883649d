"""The HTTP binding against the specification's own examples, and against the cloudevents SDK as an oracle."""

import json

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.events import (
    CloudEvent,
    TooLarge,
    UnknownFormat,
    binary_head,
    from_batch,
    from_http,
    head_attributes,
    is_event,
    new_event,
    to_batch,
    to_binary,
    to_structured,
    with_binary_head,
)
from core.limits import MAX_BATCH_EVENTS, MAX_EVENT_BYTES

BASE = {"specversion": "1.0", "id": "1", "source": "/here", "type": "a.b"}
BASE_HEADERS = [(f"ce-{name}".encode(), value.encode()) for name, value in BASE.items()]

text = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=30)
uri = st.from_regex(r"[a-zA-Z0-9/:._~%\-]{1,20}", fullmatch=True)
names = st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True).filter(
    lambda name: (
        name not in ("data", "id", "source", "type", "specversion", "time", "subject", "dataschema", "datacontenttype")
    )
)
events = st.builds(
    lambda required, extensions, subject, data: CloudEvent.of(
        {**extensions, **required, "specversion": "1.0", **({"subject": subject} if subject else {})}
        | ({"datacontenttype": "application/octet-stream"} if data else {}),
        data or None,
    ),
    st.fixed_dictionaries({"id": text, "source": uri, "type": text}),
    st.dictionaries(names, text, max_size=4),
    st.none() | text,
    st.none() | st.binary(min_size=1, max_size=200),
)


@given(events)
def test_binary_mode_gives_back_the_same_event(event):
    assert from_http(*to_binary(event)) == event
    assert head_attributes(binary_head(event)) == event.attributes


@given(events)
def test_the_encoded_head_that_comes_with_an_event_is_its_binary_head(event):
    for message in (to_binary(event), to_structured(event)):
        assert with_binary_head(*message) == (event, binary_head(event))


def test_a_head_that_was_not_encoded_as_the_binding_asks_is_encoded_anew():
    event, head = with_binary_head([*BASE_HEADERS, (b"ce-subject", b'"two words"')], b"")
    assert event.subject == "two words"
    assert b"ce-subject: two%20words\r\n" in head


@given(events)
def test_structured_mode_gives_back_the_same_event(event):
    assert from_http(*to_structured(event)) == event


@given(events)
def test_the_sdk_reads_our_binary_mode_as_the_same_event(event):
    headers, body = to_binary(event)
    assert_same(event, from_http_event(HTTPMessage({n.decode(): v.decode() for n, v in headers}, body)))


@given(events)
def test_the_sdk_reads_our_structured_mode_as_the_same_event(event):
    headers, body = to_structured(event)
    assert_same(event, from_http_event(HTTPMessage({n.decode(): v.decode() for n, v in headers}, body)))


@given(events, st.booleans())
def test_we_read_what_the_sdk_writes(event, binary):
    theirs = SdkEvent({**event.attributes}, event.data)
    message = (to_binary_event if binary else to_structured_event)(theirs)
    headers = [(name.lower().encode(), value.encode()) for name, value in message.headers.items()]
    read = from_http(headers, bytes(message.body))
    assert {name: value for name, value in read.attributes.items() if name != "time"} == event.attributes
    assert read.data == event.data


def assert_same(ours: CloudEvent, theirs) -> None:
    # The SDK gives an event without a time the present one.
    attributes = {
        name: value for name, value in theirs.get_attributes().items() if value is not None and name != "time"
    }
    assert attributes == ours.attributes
    data = theirs.get_data() or None
    assert (data.encode() if isinstance(data, str) else data) == ours.data  # the SDK decodes what it can to text


def test_the_specifications_example_of_percent_encoding():
    event = CloudEvent.of({**BASE, "subject": "Euro € 😀"})
    assert b"ce-subject: Euro%20%E2%82%AC%20%F0%9F%98%80\r\n" in binary_head(event)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        pytest.param(b"plain", "plain", id="plain"),
        pytest.param(b"Euro%20%e2%82%ac", "Euro €", id="lower-case hex is accepted"),
        pytest.param(b"%41", "A", id="needless encoding is accepted"),
        pytest.param(b'"with space"', "with space", id="quoted strings of older senders"),
        pytest.param(b'"say \\"hi\\""', 'say "hi"', id="escapes inside a quoted string"),
        pytest.param(b"100%", "100%", id="a lone percent sign stays"),
        pytest.param(b"%2520", "%20", id="one round of decoding only"),
    ],
)
def test_header_values_are_decoded(sent, read):
    assert from_http([*BASE_HEADERS, (b"ce-subject", sent)], b"").subject == read


def structured(**members) -> tuple[list[tuple[bytes, bytes]], bytes]:
    return [(b"content-type", b"application/cloudevents+json")], json.dumps({**BASE, **members}).encode()


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        pytest.param([], b"{}", "carries no CloudEvent", id="no event at all"),
        pytest.param([(b"ce-specversion", b"1.0")], b"", "id: is required", id="required attributes missing"),
        pytest.param([*BASE_HEADERS, (b"ce-id", b"2")], b"", "id: is given more than once", id="attribute twice"),
        pytest.param([*BASE_HEADERS, (b"ce-my_ext", b"x")], b"", "a-z and 0-9", id="name with underscore"),
        pytest.param([*BASE_HEADERS, (b"ce-datacontenttype", b"x")], b"", "Content-Type header", id="media type"),
        pytest.param([*BASE_HEADERS, *[(b"content-type", b"a/b")] * 2], b"", "given once", id="two media types"),
        pytest.param([*BASE_HEADERS, (b"ce-data", b"x")], b"", "reserved", id="data as an attribute"),
        pytest.param([*BASE_HEADERS, (b"ce-time", b"noon")], b"", "RFC 3339", id="time"),
        pytest.param([*BASE_HEADERS, (b"ce-time", b"2026-11-23T04:05:06")], b"", "time zone", id="time without zone"),
        pytest.param([*BASE_HEADERS, (b"ce-subject", b"%C0%A0")], b"", "valid UTF-8", id="overlong UTF-8"),
        pytest.param([*BASE_HEADERS, (b"ce-subject", b"a%0Ab")], b"", "control characters", id="newline in a value"),
        pytest.param([*BASE_HEADERS, (b"ce-subject", b"")], b"", "must not be empty", id="empty subject"),
        pytest.param([*BASE_HEADERS[1:], (b"ce-specversion", b"0.3")], b"", 'must be "1.0"', id="older version"),
        pytest.param(*structured(data=1, data_base64="YQ=="), "together with data", id="both data members"),
        pytest.param(*structured(data_base64="?"), "Base64", id="not base64"),
        pytest.param(*structured(ext={"a": 1}), "string, a boolean or a 32-bit integer", id="object attribute"),
        pytest.param(*structured(ext=2**31), "32-bit", id="integer too large"),
        pytest.param([(b"content-type", b"application/cloudevents+json")], b"[", "not a JSON object", id="broken JSON"),
        pytest.param([(b"content-type", b"application/cloudevents+avro")], b"", "not supported", id="unknown format"),
        pytest.param([(b"content-type", b"application/cloudevents-batch+json")], b"[]", "batch", id="batch"),
        pytest.param(*structured(datacontenttype="text/plain", data={"n": 1}), "data: must be a string", id="no text"),
        pytest.param(*structured(datacontenttype="text/plain;charset=us-ascii", data="é"), "cannot be", id="no ASCII"),
        pytest.param(*structured(datacontenttype="text/plain;charset=rot13", data="é"), "not known", id="no charset"),
        pytest.param(*structured(datacontenttype=" text/plain", data="é"), "media type", id="type with a space"),
        pytest.param(*structured(datacontenttype="té/xt", data="é"), "media type", id="type that is not ASCII"),
        pytest.param(*structured(data_base64=7), "must be a string", id="base64 that is a number"),
        pytest.param(*structured(data_base64="Yé=="), "Base64", id="base64 that is not ASCII"),
        pytest.param(
            [(b"content-type", b"application/cloudevents+json")] * 2, b"{}", "given once", id="structured, two types"
        ),
        pytest.param(
            [(b"content-type", b"application/cloudevents+json")],
            b'{"specversion":"1.0","id":"1","source":"/","type":"t","data":"\xff"}',
            "utf-8",
            id="bytes that are not UTF-8",
        ),
        pytest.param(
            [(b"content-type", b"application/cloudevents+json")],
            b'{"specversion":"1.0","id":"1","source":"/","type":"t","n":1e999}',
            "32-bit",
            id="number beyond all bounds",
        ),
        pytest.param(
            [(b"content-type", b"application/cloudevents+json")],
            b'{"data":' + b"[" * 200_000,
            "not a JSON object",
            id="deeper than can be read",
        ),
    ],
)
def test_an_invalid_event_is_refused_with_the_reason(headers, body, says):
    with pytest.raises(InvalidInput, match=says.replace("+", r"\+")):
        from_http(headers, body)


def test_json_data_is_kept_byte_for_byte():
    body = b'{"specversion":"1.0","id":"1","source":"/","type":"t","data": {"b":1.10,  "a":[ ]} }'
    event = from_http([(b"content-type", b"application/cloudevents+json; charset=utf-8")], body)
    assert event.data == b'{"b":1.10,  "a":[ ]}'
    assert event.attributes["datacontenttype"] == "application/json"


def test_attribute_types_become_their_canonical_strings_and_null_means_absent():
    event = from_http(*structured(yes=True, number=-7, nothing=None))
    assert event.attributes["yes"] == "true"
    assert event.attributes["number"] == "-7"
    assert "nothing" not in event.attributes


def test_text_data_of_a_structured_event_is_its_text():
    event = from_http(*structured(datacontenttype="text/plain", data="höhe"))
    assert event.data == "höhe".encode()


@pytest.mark.parametrize(
    ("kind", "sent", "data"),
    [
        pytest.param("text/plain;charset=iso-8859-1", "höhe", "höhe".encode("latin-1"), id="Latin 1"),
        pytest.param(
            'text/xml; a="b"; Charset="UTF-16LE"', "hö", "hö".encode("utf-16-le"), id="quoted and in capitals"
        ),
        pytest.param("text/plain", "", b"", id="empty text"),
        pytest.param("text/plain", None, None, id="null that is no text"),
        pytest.param("application/json", None, b"null", id="null that is JSON"),
        pytest.param("application/ld+json", "text", b'"text"', id="a JSON string"),
        pytest.param("application/json; charset=utf-8", [1.5], b"[1.5]", id="JSON in UTF-8"),
    ],
)
def test_data_of_a_structured_event_is_in_the_charset_of_its_media_type(kind, sent, data):
    assert from_http(*structured(datacontenttype=kind, data=sent)).data == data


def test_json_data_in_another_charset_is_the_same_json_value():
    members = json.dumps({**BASE, "datacontenttype": "text/json;charset=iso-8859-15"})[:-1]
    body = f'{members}, "data": {{"é": "€ 😀"}}}}'.encode()
    event = from_http([(b"content-type", b"application/cloudevents+json")], body)
    assert json.loads(event.data.decode("iso-8859-15")) == {"é": "€ 😀"}


@pytest.mark.parametrize(
    ("kind", "data", "member"),
    [
        pytest.param("application/json", b'{"n":1e999, "n": 0.10}', '"data":{"n":1e999, "n": 0.10}', id="JSON"),
        pytest.param("Text/JSON;a=b", b"[]", '"data":[]', id="JSON with a parameter"),
        pytest.param("application/json", b'{"n":', '"data_base64":"eyJuIjo="', id="no JSON"),
        pytest.param("application/json", b'"\xff"', '"data_base64":"Iv8i"', id="JSON that is not UTF-8"),
        pytest.param("application/json;charset=iso-8859-1", b'"\xc3\xa9"', '"data_base64":"IsOpIg=="', id="Latin 1"),
        pytest.param("text/plain", "höhe".encode(), '"data":"höhe"', id="text"),
        pytest.param("text/plain", b"\xff", '"data_base64":"/w=="', id="text that is not UTF-8"),
        pytest.param("TEXT/plain;charset=latin-1", b"\xc3\xa9", '"data_base64":"w6k="', id="charset by another name"),
        pytest.param("text/plain;charset=iso-8859-1", b"\xc3\xa9", '"data":"Ã©"', id="text in Latin 1"),
        pytest.param("text/plain;charset=utf-16", b"\xfe\xff\0a", '"data_base64":"/v8AYQ=="', id="byte order mark"),
        pytest.param(None, b"{}", '"data_base64":"e30="', id="no media type"),
    ],
)
def test_data_goes_into_structured_mode_so_that_it_comes_back_as_it_was(kind, data, member):
    event = CloudEvent.of({**BASE, **({} if kind is None else {"datacontenttype": kind})}, data)
    message = to_structured(event)
    assert member.encode() in message[1]
    assert from_http(*message) == event


def test_a_null_in_place_of_base64_is_no_data():
    assert from_http(*structured(data_base64=None)).data is None
    assert from_http(*structured(data_base64=None, data=1)).data == b"1"


def test_headers_of_a_structured_event_say_nothing_about_it():
    headers, body = structured(data=1)
    noise = [(b"ce-id", b"other"), (b"ce-id", b"twice"), (b"ce-datacontenttype", b"x/y"), (b"ce-my_ext", b"1")]
    for message in ([*noise, *headers], [*headers, *noise]):
        assert from_http(message, body).id == "1"


@pytest.mark.parametrize("coded", [[(b"content-encoding", b"gzip")], [(b"content-encoding", b"identity, br")]])
def test_a_coded_body_is_refused_because_nobody_could_tell_from_the_event_that_it_is(coded):
    headers, body = structured()
    for message in ([*BASE_HEADERS, *coded], [*coded, *BASE_HEADERS], [*coded, *headers], [*headers, *coded]):
        with pytest.raises(UnknownFormat, match="Content-Encoding"):
            from_http(message, body)
    assert from_http([*BASE_HEADERS, (b"content-encoding", b"Identity")], b"x").data == b"x"


@pytest.mark.parametrize("charset", ["utf-16", "iso-8859-1"])
def test_json_in_another_charset_than_utf_8_is_another_format(charset):
    with pytest.raises(UnknownFormat, match="RFC 8259"):
        from_http([(b"content-type", f"application/cloudevents+json; charset={charset}".encode())], b"{}")
    assert from_http([(b"content-type", b"application/cloudevents+json;charset=UTF8")], structured()[1]).id == "1"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
members = st.dictionaries(
    st.sampled_from(["id", "data", "data_base64", "datacontenttype", "time", "subject", "dataschema", "ext", "Ext"]),
    values
    | st.sampled_from(["text/plain;charset=utf-16", "application/json;charset=utf-7", "YQ==", "2026-01-01T00:00:00Z"]),
)
bodies = st.binary(max_size=50) | members.map(lambda made: json.dumps({**BASE, **made}).encode())
kinds = st.sampled_from(["application/cloudevents+json", "application/cloudevents+json;charset=utf-8"])


@pytest.mark.parametrize(
    ("moment", "is_time"),
    [
        ("2026-11-23T04:05:06Z", True),
        ("2026-11-23t04:05:06.123456789z", True),
        ("2026-11-23T04:05:06.1-07:30", True),
        ("2016-12-31T23:59:60Z", True),
        ("2026-11-23T04:05:06", False),
        ("2026-11-23T04:05Z", False),
        ("20261123T040506Z", False),
        ("2026-11-23 04:05:06Z", False),
        ("2026-W48-1T04:05:06Z", False),
        ("2026-11-23T04:05:06+0000", False),
        ("2026-11-31T04:05:06Z", False),
        ("2026-11-23T24:00:00Z", False),
        ("２026-11-23T04:05:06Z", False),  # noqa: RUF001 - a digit that is none of ASCII
        ("2026-11-23T04:05:06Z\n", False),
    ],
)
def test_a_time_is_written_as_rfc_3339_has_it(moment: str, is_time: bool):
    if is_time:
        assert CloudEvent.of({**BASE, "time": moment}).attributes["time"] == moment
    else:
        with pytest.raises(InvalidInput, match="time: must be an RFC 3339 time"):
            CloudEvent.of({**BASE, "time": moment})


@given(kinds, bodies)
def test_whatever_is_sent_is_refused_or_is_an_event_that_every_mode_gives_back(kind, body):
    try:
        event = from_http([(b"content-type", kind.encode())], body)
    except InvalidInput:
        return
    assert from_http(*to_binary(event)) == CloudEvent(attributes=event.attributes, data=event.data or None)
    assert from_http(*to_structured(event)) == event
    assert from_batch(BATCH, to_batch([event])[1]) == [event]


@given(st.lists(st.tuples(st.sampled_from([b"ce-id", b"ce-time", b"ce-ext", b"content-type"]), st.binary(max_size=12))))
def test_whatever_headers_say_is_refused_or_is_an_event_whose_head_reads_the_same(headers):
    headers = [pair for pair in headers if b"\r" not in pair[1] and b"\n" not in pair[1]]
    try:
        event, head = with_binary_head([*BASE_HEADERS[1:], *headers, (b"ce-specversion", b"1.0")], b"x")
    except InvalidInput:
        return
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[:-1]]
    assert from_http([(line[0], line[1]) for line in lines], b"x") == event
    assert head_attributes(head) == event.attributes


@pytest.mark.parametrize(
    "value", ["1e999", '"\\ud800 "', "[" * 5000 + "]" * 5000], ids=["number", "surrogate", "depth"]
)
@pytest.mark.parametrize("member", ["ext", "data", "data_base64", "datacontenttype"])
def test_json_that_cannot_be_read_is_refused_or_kept_as_it_is(member, value):
    body = f'{json.dumps({**BASE, "datacontenttype": "text/plain"})[:-1]}, "{member}": {value}}}'.encode()
    with pytest.raises(InvalidInput):
        from_http([(b"content-type", b"application/cloudevents+json")], body)


# --- batches

BATCH = b"application/cloudevents-batch+json"


@given(st.lists(events, max_size=5))
def test_a_batch_gives_back_the_same_events_in_their_order(sent):
    headers, body = to_batch(sent)
    assert from_batch(dict(headers)[b"content-type"], body) == sent


@pytest.mark.parametrize(
    ("kind", "body", "error", "says"),
    [
        pytest.param(BATCH, b"{}", InvalidInput, "not a JSON array", id="an object"),
        pytest.param(BATCH, b"[1]", InvalidInput, "at index 0: The event is not a JSON object", id="a number in it"),
        pytest.param(BATCH, b"[{}]", InvalidInput, r"at index 0: The event is invalid: id: is required", id="no event"),
        pytest.param(BATCH, b"[" + structured()[1], InvalidInput, "not a JSON array", id="cut off"),
        pytest.param(BATCH + b"; charset=utf-16", b"[]", UnknownFormat, "charset", id="charset"),
        pytest.param(b"application/cloudevents-batch+avro", b"[]", UnknownFormat, "not supported", id="format"),
        pytest.param(BATCH, b"[%b]" % b",".join([b"{}"] * 1001), TooLarge, "1001 events", id="too many"),
        pytest.param(
            BATCH,
            b'[{"data":"' + b"x" * MAX_EVENT_BYTES + b'"}]',
            TooLarge,
            "at index 0: The event has 10485[0-9]+ bytes",
            id="a large one",
        ),
    ],
)
def test_a_batch_with_an_event_that_is_none_is_refused_with_its_place(kind, body, error, says):
    assert MAX_BATCH_EVENTS == 1000
    with pytest.raises(error, match=says):
        from_batch(kind, body)


def test_an_error_in_a_batch_names_the_attribute_by_its_place_in_the_document():
    with pytest.raises(InvalidInput) as refused:
        from_batch(BATCH, b"[" + structured()[1] + b"," + structured(time="noon")[1] + b"]")
    assert [(error.path, error.value) for error in refused.value.errors] == [("[1].time", "noon")]


@pytest.mark.parametrize(
    ("headers", "claims"),
    [
        ([(b"ce-specversion", b"1.0")], True),
        ([(b"content-type", b"Application/CloudEvents+json")], True),
        ([(b"content-type", b"application/json")], False),
    ],
)
def test_a_message_claims_to_be_an_event_by_its_headers(headers, claims):
    assert is_event(headers) is claims


def test_a_new_event_has_an_id_and_its_time():
    event = new_event(type="t", source="/s", now=0.25)
    assert event.id
    assert event.attributes["time"] == "1970-01-01T00:00:00.250000Z"
