"""The three-way merge of apply, as rules and as properties."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.merge import LAST_APPLIED, three_way_patch, with_last_applied

documents = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)
specs = st.dictionaries(st.sampled_from("abcd"), documents, max_size=4)


def manifest(spec: object) -> dict:
    return with_last_applied({"kind": "Thing", "metadata": {"name": "n"}, "spec": spec})


def merged(target: object, patch: object) -> object:
    """RFC 7396, section 2, as written there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


@given(specs, specs)
def test_applying_a_change_gives_exactly_the_new_document(before, after):
    live = manifest(before)
    patch = three_way_patch(manifest(after), copy.deepcopy(live))
    assert merged(live, patch)["spec"] == after


@given(specs)
def test_applying_the_same_again_changes_nothing(spec):
    assert three_way_patch(manifest(spec), manifest(spec)) == {}


def test_what_others_added_stays_and_what_was_taken_out_goes():
    live = manifest({"a": 1, "b": 2})
    live["spec"]["added"] = "by a controller"
    live["metadata"]["annotations"]["other"] = "kept"
    patch = three_way_patch(manifest({"a": 1}), live)
    assert patch["spec"] == {"b": None}
    assert set(patch["metadata"]["annotations"]) == {LAST_APPLIED}
