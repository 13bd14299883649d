import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import ValidationError, convert

from penstock.apiserver.shapes import UnknownField, faults, without
from tests.support.apiserver import WidgetSpec


def told(value):
    return [str(fault) for fault in faults(value, WidgetSpec, "spec", ("spec",))]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param({"size": 1}, [], id="fits"),
        pytest.param({}, ["spec.size: is required"], id="missing"),
        pytest.param({"size": "1"}, ["spec.size: must be an integer, not a string (got '1')"], id="type"),
        pytest.param({"size": None}, ["spec.size: must be an integer, not null (got 'null')"], id="null"),
        pytest.param(
            {"size": 1, "colour": "green"}, ['spec.colour: must be one of "red", "blue" (got \'green\')'], id="enum"
        ),
        pytest.param(
            {"size": 1, "sise": 2}, ['unknown field "spec.sise" (did you mean "size"?)'], id="unknown with a guess"
        ),
        pytest.param({"size": 1, "zzz": 2}, ['unknown field "spec.zzz"'], id="unknown"),
        pytest.param(
            {"size": 1, "parts": [{"name": "a"}, {"name": 2, "cuont": 3}]},
            [
                'unknown field "spec.parts[1].cuont" (did you mean "count"?)',
                "spec.parts[1].name: must be a string, not an integer (got 2)",
            ],
            id="in a list",
        ),
        pytest.param(
            {"size": 1, "spares": {"a.b": {"name": True}}},
            ["spec.spares[a.b].name: must be a string, not true or false (got True)"],
            id="in a map",
        ),
        pytest.param(
            {"size": 1, "madeOf": {"name": "a", "count": 1.5}},
            ["spec.madeOf.count: must be an integer, not a number (got 1.5)"],
            id="in an optional object",
        ),
        pytest.param({"size": 1, "parts": {}}, ["spec.parts: must be a list, not an object (got {})"], id="shape"),
        pytest.param([], ["spec: must be an object, not a list (got [])"], id="whole"),
        pytest.param(
            {"colour": 1, "parts": [{}]},
            [
                "spec.size: is required",
                'spec.colour: must be one of "red", "blue" (got 1)',
                "spec.parts[0].name: is required",
            ],
            id="several at once",
        ),
    ],
)
def test_every_fault_is_told_with_its_path_rule_and_value(value, expected):
    assert sorted(told(value)) == sorted(expected)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["size", "colour", "parts", "spares", "madeOf", "name", "count", "other"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_faults_are_told_exactly_where_msgspec_refuses(value):
    try:
        convert(value, WidgetSpec)
        fits = True
    except ValidationError:
        fits = False
    assert (told(value) == []) == fits


@given(DOCUMENTS)
def test_without_its_unknown_fields_a_document_has_none(value):
    document = {"spec": value}
    unknown = [fault for fault in faults(value, WidgetSpec, "spec", ("spec",)) if isinstance(fault, UnknownField)]
    for fault in reversed(unknown):
        document = without(document, fault.steps)
    left = faults(document["spec"], WidgetSpec, "spec", ("spec",))
    assert not [fault for fault in left if isinstance(fault, UnknownField)]
