import pytest

from core.resources import ObjectMeta, OwnerReference
from penstock.apiserver.metadata import broken_metadata, broken_name

LONG = "a" * 64


@pytest.mark.parametrize("name", ["a", "a-b.c", "0", "a" * 253, "x.y.z"])
def test_subdomains_are_names(name):
    assert list(broken_name(name, "metadata.name")) == []


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a" * 254, "a/b", "a\n", "é"])
def test_other_names_are_refused_with_the_rule(name):
    (error,) = broken_name(name, "metadata.name")
    assert error.path == "metadata.name"


@pytest.mark.parametrize("name", ["a.b", LONG])
def test_a_namespace_is_one_label(name):
    assert list(broken_name(name, "metadata.name", label=True))
    assert not list(broken_name("a" * 63, "metadata.name", label=True))


@pytest.mark.parametrize(
    ("meta", "paths"),
    [
        pytest.param(ObjectMeta(labels={"a": "", "x.y/B_c.d": "V-1"}, annotations={"Any/K": "v"}), [], id="right"),
        pytest.param(ObjectMeta(labels={"a": "no spaces"}), ["metadata.labels[a]"], id="label value"),
        pytest.param(ObjectMeta(labels={"a": LONG}), ["metadata.labels[a]"], id="label value too long"),
        pytest.param(ObjectMeta(labels={"a b": "v"}), ["metadata.labels"], id="label key"),
        pytest.param(ObjectMeta(labels={"UP/a": "v"}), ["metadata.labels"], id="label prefix"),
        pytest.param(ObjectMeta(labels={f"x/{LONG}": "v"}), ["metadata.labels"], id="label key too long"),
        pytest.param(ObjectMeta(annotations={"/a": "v"}), ["metadata.annotations"], id="annotation key"),
        pytest.param(
            ObjectMeta(annotations={"a": "v" * 262_144}), ["metadata.annotations"], id="annotations too large"
        ),
        pytest.param(ObjectMeta(finalizers=("x/y", "no way")), ["metadata.finalizers[1]"], id="finalizer"),
        pytest.param(
            ObjectMeta(owner_references=(OwnerReference(api_version="v1", kind="K", name="", uid=""),)),
            ["metadata.ownerReferences[0].name", "metadata.ownerReferences[0].uid"],
            id="owner",
        ),
        pytest.param(
            ObjectMeta(
                owner_references=tuple(
                    OwnerReference(api_version="v1", kind="K", name=name, uid=name, controller=True) for name in "ab"
                )
            ),
            ["metadata.ownerReferences"],
            id="two controllers",
        ),
    ],
)
def test_metadata_is_checked_as_kubernetes_does(meta, paths):
    assert [error.path for error in broken_metadata(meta)] == paths


def test_annotations_may_fill_their_limit():
    assert not list(broken_metadata(ObjectMeta(annotations={"a": "v" * 262_143})))
