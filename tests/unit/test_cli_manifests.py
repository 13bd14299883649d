"""Reading manifests: every problem names its file, its document, and the line or the key."""

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
    found = read_manifests([str(tmp_path)], REGISTRY, "default")
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
        pytest.param(GOOD.replace("Thing", "Tihng"), "There is no kind Tihng", id="unknown kind"),
        pytest.param(f"{GOOD}spec: {{a: 1, a: 2}}", 'key "a" is given twice', id="a key twice"),
        pytest.param("a: " + "[" * 200_000, "nested deeper", id="too deep"),
        pytest.param(f"{GOOD}---\nkind: 7", "document 2: apiVersion", id="names the document"),
    ],
)
def test_a_problem_names_its_place(tmp_path, text, says):
    file = tmp_path / "app.yaml"
    file.write_text(text)
    with pytest.raises(Failure) as caught:
        read_manifests([str(file)], REGISTRY, "default")
    assert says in caught.value.message
    assert "app.yaml" in caught.value.message
    assert caught.value.message.startswith("Nothing was applied.")


def test_a_missing_file_and_an_empty_one_are_said(tmp_path):
    with pytest.raises(Failure, match="does not exist"):
        read_manifests([str(tmp_path / "none.yaml")], REGISTRY, "default")
    (tmp_path / "empty.yaml").write_text("---\n")
    with pytest.raises(Failure, match="No manifest was found"):
        read_manifests([str(tmp_path / "empty.yaml")], REGISTRY, "default")
