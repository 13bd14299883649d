"""The chart's CustomResourceDefinitions are those of the registry, and structural."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from penstock.cluster import crds
from penstock.kinds import registry
from tests.support.document import ROOT

TEXTS = crds.written(registry())


def test_the_charts_definitions_are_those_of_the_kinds():
    held = {path.name: path.read_text() for path in (ROOT / crds.FOLDER).glob("*.yaml")}
    assert held == TEXTS, "run: python -m penstock.cluster.crds"


def test_writing_them_removes_those_of_kinds_that_are_gone(tmp_path):
    (tmp_path / "gone.yaml").write_text("")
    crds.main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(TEXTS)


def nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if inner is not None:
            yield from nodes(inner)


@pytest.mark.parametrize("name", TEXTS)
def test_every_node_has_a_type_or_says_that_it_has_none(name: str):
    version = yaml.safe_load(TEXTS[name])["spec"]["versions"][0]
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
