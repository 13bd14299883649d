"""Reading manifests: every problem names its file, its document, and the line or the key."""

from itertools import pairwise

import pytest

from core.resources import Kind, KindRef, Registry
from penstock.cli.failure import Failure
from penstock.cli.manifests import read_manifests

REGISTRY = Registry([Kind(ref=KindRef("x.dev", "v1", "Thing"), plural="things", singular="thing")])
GOOD = "apiVersion: x.dev/v1\nkind: Thing\nmetadata: {name: a}\n"


def test_documents_of_files_and_folders_are_read_in_order(tmp_path):
    (tmp_path / "2.yaml").write_text(GOOD.replace("name: a", "name: c, namespace: other"))
    (tmp_path / "1.yml").write_text(f"---\n{GOOD}---\n{GOOD.replace('name: a', 'name: b')}")
    (tmp_path / "readme.txt").write_text("not a manifest")
    found = read_manifests([str(tmp_path)], REGISTRY, "default", undone="Nothing was applied.")
    assert [(each.namespace, each.name) for each in found] == [("default", "a"), ("default", "b"), ("other", "c")]
    assert found[0].title == "thing.x.dev/a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("a: [1", "line 2, column 1: is not YAML", id="not YAML"),
        pytest.param("- a", "must be a mapping", id="a list"),
        pytest.param("kind: Thing\nmetadata: {name: a}", "apiVersion: is required", id="no apiVersion"),
        pytest.param("apiVersion: x.dev/v1\nkind: Thing", "metadata: is required", id="no metadata"),
        pytest.param("apiVersion: x.dev/v1\nkind: Thing\nmetadata: {}", "metadata.name: is required", id="no name"),
        pytest.param(GOOD.replace("Thing", "Tihng"), "kind: there is no kind 'Tihng'", id="unknown kind"),
        pytest.param(GOOD.replace("Thing", "thing"), "kind: there is no kind 'thing'; write Thing", id="case of kind"),
        pytest.param(
            GOOD.replace("x.dev/v1", "x.dev/v2"),
            "apiVersion: there is no Thing in x.dev/v2; write x.dev/v1",
            id="version",
        ),
        pytest.param(
            GOOD.replace("name: a", "name: yes"),
            "metadata.name: must be text; write it in quotes (got True)",
            id="name is no text",
        ),
        pytest.param(
            GOOD.replace("name: a", "name: a, namespace: 5"),
            "metadata.namespace: must be text",
            id="namespace is no text",
        ),
        pytest.param("a: &a [*a]", "contains itself", id="an alias inside its anchor"),
        pytest.param(
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in pairwise("abcdefgh")),
            "more than 500000 nodes",
            id="aliases without end",
        ),
        pytest.param("a: .inf", "has no JSON form", id="infinity"),
        pytest.param("a\0b", "the character U+0000 at position 1", id="a control character"),
        pytest.param("hello", "must be a mapping with apiVersion, kind and metadata (got 'hello')", id="one word"),
        pytest.param(f"{GOOD}spec: {{a: 1, a: 2}}", 'key "a" is given twice', id="a key twice"),
        pytest.param("a: " + "[" * 200_000, "nested deeper", id="too deep"),
        pytest.param(f"{GOOD}---\nkind: 7", "document 2: apiVersion", id="names the document"),
    ],
)
def test_a_problem_names_its_place(tmp_path, text, says):
    file = tmp_path / "app.yaml"
    file.write_text(text)
    with pytest.raises(Failure) as caught:
        read_manifests([str(file)], REGISTRY, "default", undone="Nothing was applied.")
    assert says in caught.value.message
    assert "app.yaml" in caught.value.message
    assert caught.value.message.startswith("Nothing was applied.")


def test_a_missing_file_and_an_empty_one_are_said(tmp_path):
    with pytest.raises(Failure, match=r"none[.]yaml does not exist"):
        read_manifests([str(tmp_path / "none.yaml")], REGISTRY, "default", undone="Nothing was applied.")
    (tmp_path / "empty.yaml").write_text("---\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Failure, match=r"empty[.]yaml: holds no document"):
        read_manifests([str(tmp_path / "empty.yaml")], REGISTRY, "default", undone="Nothing was applied.")
    with pytest.raises(Failure, match="its files must end in"):
        read_manifests([str(tmp_path / "folder")], REGISTRY, "default", undone="Nothing was deleted.")


def test_all_problems_of_all_files_are_told_at_once(tmp_path):
    (tmp_path / "1.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "2.yaml").write_text(GOOD)
    (tmp_path / "3.yaml").write_text(f"{GOOD}---\n- a\n---\nkind: Thing")
    (tmp_path / "4.yaml").symlink_to("nowhere")
    with pytest.raises(Failure) as caught:
        read_manifests([str(tmp_path), str(tmp_path / "5.yaml")], REGISTRY, "default", undone="Nothing was deleted.")
    first, *told = caught.value.message.splitlines()
    assert first == "Nothing was deleted."
    places = [line.strip().removeprefix(f"{tmp_path}/").partition(":")[0] for line in told]
    assert places == [
        "1.yaml",
        "4.yaml does not exist",
        "3.yaml, document 2",
        "3.yaml, document 3",
        "5.yaml does not exist",
    ]


def test_what_get_prints_can_be_applied(tmp_path):
    printed = """\
apiVersion: v1
kind: ThingList
metadata: {resourceVersion: "7"}
items:
- apiVersion: x.dev/v1
  kind: Thing
  metadata: {name: a, uid: u, resourceVersion: "5", labels: {app: x}}
  spec: {size: 1}
  status: {ready: true}
- {apiVersion: x.dev/v1, kind: Thing, metadata: {name: b}}
"""
    (tmp_path / "list.yaml").write_text(printed)
    first, second = read_manifests([str(tmp_path)], REGISTRY, "default", undone="Nothing was applied.")
    assert first.document == {
        "apiVersion": "x.dev/v1",
        "kind": "Thing",
        "metadata": {"name": "a", "labels": {"app": "x"}},
        "spec": {"size": 1},
    }
    assert second.place.endswith("list.yaml, items[1]")


def test_a_file_that_is_no_manifest_by_its_size_is_not_read_whole():
    with pytest.raises(Failure, match="/dev/zero is larger than 16777216 bytes"):
        read_manifests(["/dev/zero"], REGISTRY, "default", undone="Nothing was applied.")
