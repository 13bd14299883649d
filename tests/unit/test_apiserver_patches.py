import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.resources import KindRef
from penstock.apiserver.patches import is_native, json_equal, json_patch, merge_patch, strategic_merge

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab~/", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=3), inner, max_size=3),
    max_leaves=10,
)


# The cases of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_rfc_7396_says(document, patch, result):
    assert merge_patch(document, patch) == result


@given(JSON_VALUES, JSON_VALUES)
def test_merging_twice_is_merging_once(document, patch):
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once


# The cases of RFC 6902, appendix A.
@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        pytest.param({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": 1}], {"foo": "bar", "baz": 1}, id="add"),
        pytest.param({"f": ["a", "c"]}, [{"op": "add", "path": "/f/1", "value": "b"}], {"f": ["a", "b", "c"]}, id="in"),
        pytest.param({"f": ["a"]}, [{"op": "add", "path": "/f/-", "value": ["b"]}], {"f": ["a", ["b"]]}, id="append"),
        pytest.param({"a": 1, "b": 2}, [{"op": "remove", "path": "/b"}], {"a": 1}, id="remove"),
        pytest.param({"f": [1, 2, 3]}, [{"op": "remove", "path": "/f/1"}], {"f": [1, 3]}, id="remove from list"),
        pytest.param({"f": [1, 2]}, [{"op": "replace", "path": "/f/1", "value": 9}], {"f": [1, 9]}, id="replace"),
        pytest.param(
            {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
            [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
            {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
            id="move",
        ),
        pytest.param(
            {"f": ["all", "grass", "cows", "eat"]},
            [{"op": "move", "from": "/f/1", "path": "/f/3"}],
            {"f": ["all", "cows", "eat", "grass"]},
            id="move in list",
        ),
        pytest.param(
            {"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}], {"a": {"b": 1}, "c": {"b": 1}}, id="copy"
        ),
        pytest.param(
            {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}, id="escapes"
        ),
        pytest.param({"a": 1}, [{"op": "add", "path": "", "value": {"b": 2}}], {"b": 2}, id="whole document"),
        pytest.param({"a": 1.0}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1.0}, id="1.0 is 1"),
    ],
)
def test_a_json_patch_does_what_rfc_6902_says(document, patch, result):
    before = copy.deepcopy(document)
    assert json_patch(document, patch) == result
    assert document == before


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ([{"op": "test", "path": "/n", "value": True}], "operation 0: test failed: /n is 1, not True"),
        ([{"op": "remove", "path": "/missing"}], "/missing does not exist"),
        ([{"op": "replace", "path": "/missing", "value": 1}], "/missing does not exist"),
        ([{"op": "add", "path": "/a/b/c", "value": 1}], "'b' does not exist"),
        ([{"op": "add", "path": "/list/5", "value": 1}], "'5' is not an index of a list whose last is 2"),
        ([{"op": "add", "path": "/list/01", "value": 1}], "'01' is not an index"),
        ([{"op": "add", "path": "/n/x", "value": 1}], "neither an object nor a list"),
        ([{"op": "move", "from": "/a", "path": "/a/b"}], "cannot be moved into itself"),
        ([{"op": "remove", "path": ""}], "whole document"),
        ([{"op": "add", "path": "/x"}], "add needs a value"),
        ([{"op": "invent", "path": "/x"}], "must be add, remove, replace, move, copy or test, not 'invent'"),
        ([{"op": "add", "path": "x", "value": 1}], "path must be a JSON pointer"),
        ([{"op": "add", "path": "/n", "value": 1}, "no"], "operation 1: an operation is an object"),
        ({"op": "add"}, "a list of operations"),
    ],
)
def test_a_json_patch_that_does_not_fit_says_which_operation_and_why(patch, message):
    with pytest.raises(InvalidInput) as caught:
        json_patch({"n": 1, "a": {}, "list": [1, 2]}, patch)
    assert message in str(caught.value)


@given(JSON_VALUES, JSON_VALUES)
def test_a_value_put_into_a_document_is_found_there_and_can_be_taken_out_again(document, value):
    holder = {"held": document}
    placed = json_patch(holder, [{"op": "add", "path": "/new", "value": value}])
    assert (
        json_patch(placed, [{"op": "test", "path": "/new", "value": value}, {"op": "remove", "path": "/new"}]) == holder
    )


def test_json_equality_tells_true_from_one_at_any_depth():
    assert not json_equal({"a": [True]}, {"a": [1]})
    assert json_equal({"a": [1, {"b": None}]}, {"a": [1.0, {"b": None}]})
    assert not json_equal([1, 2], [1])


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        pytest.param(
            {"data": {"a": "1", "b": "2"}}, {"data": {"b": None, "c": "3"}}, {"data": {"a": "1", "c": "3"}}, id="maps"
        ),
        pytest.param(
            {"data": {"a": "1"}}, {"data": {"$patch": "replace", "b": "2"}}, {"data": {"b": "2"}}, id="replace"
        ),
        pytest.param({"data": {"a": "1"}}, {"data": {"$patch": "delete"}}, {"data": {}}, id="delete"),
        pytest.param({"d": {"a": 1, "b": 2}}, {"d": {"$retainKeys": ["b"], "b": 3}}, {"d": {"b": 3}}, id="retain"),
        pytest.param({"ports": [1, 2]}, {"ports": [3]}, {"ports": [3]}, id="other lists are replaced"),
        pytest.param(
            {"metadata": {"finalizers": ["a", "b"]}},
            {"metadata": {"finalizers": ["b", "c"], "$setElementOrder/finalizers": ["a", "b", "c"]}},
            {"metadata": {"finalizers": ["a", "b", "c"]}},
            id="sets are united",
        ),
        pytest.param(
            {"metadata": {"finalizers": ["a", "b"]}},
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}},
            {"metadata": {"finalizers": ["b"]}},
            id="values leave sets",
        ),
        pytest.param(
            {"metadata": {"ownerReferences": [{"uid": "1", "name": "a"}, {"uid": "2", "name": "b"}]}},
            {
                "metadata": {
                    "ownerReferences": [{"uid": "1", "$patch": "delete"}, {"uid": "2", "name": "c"}, {"uid": "3"}]
                }
            },
            {"metadata": {"ownerReferences": [{"uid": "2", "name": "c"}, {"uid": "3"}]}},
            id="owners merge by uid",
        ),
    ],
)
def test_a_strategic_merge_follows_merge_keys_and_directives(document, patch, result):
    assert strategic_merge(document, patch) == result


@pytest.mark.parametrize(
    ("group", "native"), [("", True), ("discovery.k8s.io", True), ("apps", True), ("eventing.knative.dev", False)]
)
def test_only_kubernetes_own_groups_take_strategic_merges(group, native):
    assert is_native(KindRef(group, "v1", "Any")) is native
