"""The chart's CustomResourceDefinitions are those of the registry, and structural."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.cluster import crds
from penstock.kinds import registry
from tests.support.document import ROOT

TEXTS = crds.written(registry())
DEFINITIONS = [text for path, text in TEXTS.items() if path.parent == crds.FOLDER]


def test_the_charts_files_are_those_of_the_kinds():
    held = {crds.FOLDER / path.name: path.read_text() for path in (ROOT / crds.FOLDER).glob("*.yaml")}
    held[crds.RULES] = (ROOT / crds.RULES).read_text()
    assert held == TEXTS, "run: python -m penstock.cluster.crds"


def test_writing_them_removes_those_of_kinds_that_are_gone(tmp_path: Path):
    crds.main(tmp_path)
    gone = tmp_path / crds.FOLDER / "gone.yaml"
    gone.write_text("")
    crds.main(tmp_path)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.yaml")} == set(TEXTS)


def test_the_webhooks_are_asked_about_every_kind_and_no_status():
    asked = {
        (rule["apiGroups"][0], plural) for rule in yaml.safe_load(TEXTS[crds.RULES]) for plural in rule["resources"]
    }
    assert asked == {(kind.ref.group, kind.plural) for kind in crds.custom_kinds(registry())}


def nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if inner is not None:
            yield from nodes(inner)


@pytest.mark.parametrize("text", DEFINITIONS, ids=[yaml.safe_load(text)["metadata"]["name"] for text in DEFINITIONS])
def test_every_node_has_a_type_or_says_that_it_has_none(text: str):
    version = yaml.safe_load(text)["spec"]["versions"][0]
    for node in nodes(version["schema"]["openAPIV3Schema"]):
        assert (
            "type" in node or node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-int-or-string")
        )
        assert not {"$ref", "anyOf", "default", "title"} & node.keys()
        assert not ("properties" in node and "additionalProperties" in node)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (".status.address.url", ".status.address.url"),
        (".status.conditions[Ready].status", '.status.conditions[?(@.type=="Ready")].status'),
        (".metadata.labels[a.b/c]", r".metadata.labels['a\.b/c']"),
    ],
)
def test_a_columns_path_becomes_kubernetes_json_path(path: str, told: str):
    assert crds._json_path(path) == told
