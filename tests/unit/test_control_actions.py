import msgspec
import pytest

from core.control.actions import merged
from core.resources import KindRef, ObjectMeta, OwnerReference, Resource

PIPE = KindRef("test.penstock.dev", "v1", "Pipe")


def owner(uid: str, *, controller: bool = False) -> OwnerReference:
    return OwnerReference(api_version="x/v1", kind="X", name=uid, uid=uid, controller=controller or None)


CURRENT = Resource(
    ref=PIPE,
    meta=ObjectMeta(
        name="a",
        namespace="default",
        uid="u",
        resource_version="7",
        labels={"mine": "1", "theirs": "1"},
        annotations={"note": "x"},
        finalizers=("f/1",),
        owner_references=(owner("o1"),),
    ),
    body={"spec": {"size": 1}, "status": {"ready": True}},
)


def wanted(spec: object = None, **meta: object) -> Resource:
    held = ObjectMeta(name="a", namespace="default")
    return Resource(ref=PIPE, meta=msgspec.structs.replace(held, **meta), body={"spec": spec or {"size": 1}})


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(wanted(), id="nothing stated"),
        pytest.param(wanted(labels={"mine": "1"}), id="a label that is there"),
        pytest.param(wanted(owner_references=(owner("o1"),)), id="an owner that is there"),
        pytest.param(wanted(finalizers=("f/1",)), id="a finalizer that is there"),
        pytest.param(wanted().with_status({"ready": False}), id="another status"),
    ],
)
def test_nothing_is_written_where_what_is_wanted_is_there(same: Resource):
    assert merged(CURRENT, same) is None


def test_wanted_labels_and_annotations_are_set_and_those_of_others_stay():
    changed = merged(CURRENT, wanted(labels={"mine": "2", "new": "1"}, annotations={"more": "y"}))
    assert changed is not None
    assert changed.meta.labels == {"mine": "2", "theirs": "1", "new": "1"}
    assert changed.meta.annotations == {"note": "x", "more": "y"}


def test_the_body_is_replaced_as_a_whole_and_the_write_is_tied_to_what_was_seen():
    changed = merged(CURRENT, wanted(spec={"length": 2}))
    assert changed is not None
    assert changed.body == {"spec": {"length": 2}}
    assert (changed.meta.resource_version, changed.meta.uid) == ("7", "u")


def test_owners_are_merged_by_uid():
    changed = merged(CURRENT, wanted(owner_references=(owner("o1", controller=True), owner("o2"))))
    assert changed is not None
    assert changed.meta.owner_references == (owner("o1", controller=True), owner("o2"))


def test_a_finalizer_is_added_but_not_to_what_is_being_deleted():
    changed = merged(CURRENT, wanted(finalizers=("f/2",)))
    assert changed is not None
    assert changed.meta.finalizers == ("f/1", "f/2")
    ending = CURRENT.with_meta(deletion_timestamp="2026-01-01T00:00:00Z")
    assert merged(ending, wanted(finalizers=("f/2",))) is None
