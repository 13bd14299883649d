import base64

import pytest

from core.errors import InvalidInput
from penstock.apiserver.media import Form, accepted_form, decode_body, load_yaml, parse_accept
from penstock.apiserver.protobuf import MEDIA_TYPE, decode_protobuf
from penstock.apiserver.statuses import Refused

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Form()),
        ("*/*", Form()),
        ("application/json", Form()),
        ("application/vnd.kubernetes.protobuf,application/json", Form()),
        (f"{TABLE},application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Form("Table")),
        ("application/json; as=Table; v=v1beta1; g=meta.k8s.io, application/json", Form("Table", "v1beta1")),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Form()),
        ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Form("PartialObjectMetadata")),
        ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Form("PartialObjectMetadataList")),
        ("text/html, application/*;q=0.8", Form()),
    ],
)
def test_the_first_representation_that_is_served_is_chosen(accept, form):
    assert accepted_form(accept) == form


@pytest.mark.parametrize("accept", ["text/html", "application/vnd.kubernetes.protobuf", "application/json;as=Poem"])
def test_other_representations_are_refused_as_not_acceptable(accept):
    with pytest.raises(Refused) as caught:
        accepted_form(accept)
    assert caught.value.status.code == 406


def test_parameters_of_accept_are_told_apart():
    assert parse_accept("A/b;c=d, e/f") == [("a/b", {"c": "d"}), ("e/f", {})]


def test_yaml_reads_as_its_json():
    text = b"{day: 2024-01-02, 12: one, true: yes, none: , nested: [1.5, {a: b}]}"
    assert load_yaml(text) == {
        "day": "2024-01-02",
        "12": "one",
        "true": True,
        "none": None,
        "nested": [1.5, {"a": "b"}],
    }


def test_yaml_merges_keys_of_an_anchor():
    assert load_yaml(b"a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: *a}\n") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"a: [1", "not YAML", id="syntax"),
        pytest.param(b"a: 1\nb: 2\na: 3", 'key "a" is given twice in one mapping', id="repeated key"),
        pytest.param(b"a: .nan", "no JSON form", id="not a number"),
        pytest.param(b"a: !!binary aGk=", "no JSON form", id="binary"),
        pytest.param(b"? [1, 2]\n: x", "not YAML", id="list as key"),
        pytest.param(b"a: !!python/object:os.system {}", "not YAML", id="objects"),
        pytest.param(b"a: 1\n---\nb: 2", "not YAML", id="two documents"),
        pytest.param(b"\xff\xfe\x00", "not YAML", id="not text"),
        pytest.param(b"a: &a {b: *a}", "contains itself", id="an alias inside its anchor"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "nested deeper than 100 levels", id="too deep"),
    ],
)
def test_yaml_that_means_no_json_is_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        load_yaml(text)


def test_aliases_cannot_blow_a_document_up():
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(InvalidInput, match="more than 500000 nodes"):
        load_yaml("\n".join(levels).encode())


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"", 400),
        ("application/json", b"\xff", 400),
        ("application/json", b"[" * 5_000, 400),
        ("application/json", b'{"a": 1e999}', 400),
        ("application/yaml", b"a: [", 400),
        ("text/plain", b"{}", 415),
        (MEDIA_TYPE, b"nonsense", 400),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(content_type, body, code):
    with pytest.raises(Refused) as caught:
        decode_body(content_type, body)
    assert caught.value.status.code == code


@pytest.mark.parametrize("content_type", ["", "application/json", "Application/JSON; charset=utf-8"])
def test_json_is_what_a_body_is_unless_told_otherwise(content_type):
    assert decode_body(content_type, b'{"a": 1}') == {"a": 1}


def _delimited(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def _kubernetes(kind: str, message: bytes) -> bytes:
    return b"k8s\x00" + _delimited(1, _delimited(1, b"v1") + _delimited(2, kind.encode())) + _delimited(2, message)


def test_a_secret_in_protobuf_reads_as_its_json():
    meta = _delimited(1, b"s") + _delimited(3, b"") + bytes([7 << 3, 0]) + _delimited(8, b"")
    message = (
        _delimited(1, meta) + _delimited(2, _delimited(1, b"k") + _delimited(2, b"\x00v")) + _delimited(3, b"Opaque")
    )
    assert decode_protobuf(_kubernetes("Secret", message)) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "data": {"k": base64.b64encode(b"\x00v").decode()},
        "type": "Opaque",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"k8s\x00",
        _kubernetes("Pod", b""),
        _kubernetes("Secret", b"\x0a"),
        _kubernetes("Secret", b"\x0a\x05a"),
        _kubernetes("Secret", b"\x0b"),
        _kubernetes("Secret", b"\x08\x01"),
        _kubernetes("Secret", b"\xff" * 20),
        _kubernetes("Secret", _delimited(3, b"\xff")),
    ],
)
def test_protobuf_that_is_cut_off_or_not_known_is_refused(body):
    with pytest.raises(InvalidInput):
        decode_protobuf(body)
