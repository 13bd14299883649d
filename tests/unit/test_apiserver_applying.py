from typing import Any

from penstock.apiserver.applying import Applied, apply

NOW_S = 1_700_000_000.0


def document(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "spec": spec}


def applied(live: dict[str, Any], wanted: dict[str, Any], manager: str, *, force: bool = False) -> Applied:
    return apply(live, wanted, manager=manager, force=force, now=NOW_S, settle=lambda merged: merged)


def test_the_first_apply_creates_the_document_and_notes_whose_fields_they_are():
    result = applied({}, document(size=1, parts=["a"]), "ann").document
    (entry,) = result["metadata"]["managedFields"]
    assert result["spec"] == {"size": 1, "parts": ["a"]}
    assert entry["manager"] == "ann"
    assert entry["operation"] == "Apply"
    assert entry["time"] == "2023-11-14T22:13:20Z"
    assert entry["fieldsV1"] == {"f:spec": {"f:parts": {}, "f:size": {}}}


def test_a_field_that_its_manager_no_longer_applies_is_removed_and_others_stay():
    live = applied({}, document(size=1, colour="red"), "ann").document
    live["spec"]["unowned"] = True
    assert applied(live, document(size=2), "ann").document["spec"] == {"size": 2, "unowned": True}


def test_an_object_that_only_held_removed_fields_goes_with_them():
    live = applied({}, {**document(), "spec": {"deep": {"er": 1}, "kept": 1}}, "ann").document
    assert applied(live, document(kept=1), "ann").document["spec"] == {"kept": 1}


def test_a_field_that_two_managers_applied_stays_until_both_drop_it():
    live = applied({}, document(size=1), "ann").document
    live = applied(live, document(size=1), "bob").document
    live = applied(live, document(), "ann").document
    assert live["spec"] == {"size": 1}
    assert "size" not in applied(live, document(), "bob").document.get("spec", {})


def test_another_value_for_another_managers_field_is_a_conflict_that_changes_nothing():
    live = applied({}, document(size=1), "ann").document
    result = applied(live, document(size=2), "bob")
    assert [(one.field, one.manager) for one in result.conflicts] == [(".spec.size", "ann")]
    assert result.document == live


def test_force_takes_the_field_away_from_the_other_manager():
    live = applied({}, document(size=1, colour="red"), "ann").document
    live = applied(live, document(size=2), "bob", force=True).document
    owned = {entry["manager"]: entry["fieldsV1"] for entry in live["metadata"]["managedFields"]}
    assert live["spec"] == {"size": 2, "colour": "red"}
    assert owned == {"ann": {"f:spec": {"f:colour": {}}}, "bob": {"f:spec": {"f:size": {}}}}


def test_applying_the_same_again_changes_nothing_not_even_the_time():
    live = applied({}, document(size=1), "ann").document
    again = apply(live, document(size=1), manager="ann", force=False, now=NOW_S + 99, settle=lambda merged: merged)
    assert again.document == live


def test_defaults_inside_an_applied_list_are_no_conflict():
    def settle(merged: dict[str, Any]) -> dict[str, Any]:
        return {**merged, "spec": {"parts": [{"count": 1, **part} for part in merged["spec"]["parts"]]}}

    wanted = document(parts=[{"name": "a"}])
    live = apply({}, wanted, manager="ann", force=False, now=NOW_S, settle=settle).document
    assert apply(live, wanted, manager="bob", force=False, now=NOW_S, settle=settle).conflicts == ()


def test_having_applied_an_empty_object_does_not_own_what_others_put_into_it():
    live = applied({}, document(), "ann").document
    result = applied(live, document(size=1), "bob")
    assert result.conflicts == ()
    assert result.document["spec"] == {"size": 1}


def test_replacing_an_object_conflicts_with_the_managers_of_what_is_in_it():
    live = applied({}, document(inner={"a": 1}), "ann").document
    result = applied(live, document(inner="flat"), "bob")
    assert [(one.field, one.manager) for one in result.conflicts] == [(".spec.inner", "ann")]
