"""A real API server takes the definitions as they are, and every manifest of the documentation and the examples."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml

from penstock.cluster import crds
from penstock.kinds import registry
from tests.support import document
from tests.support.controlplane.access import ClusterAccess
from tests.support.controlplane.servers import ControlPlane
from tests.support.document import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.service("kubernetes", own=True)]

SETTLE_S = 30.0
POLL_S = 0.05
DEFINED = [f"crd/{kind.plural}.{kind.ref.group}" for kind in crds.custom_kinds(registry())]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterAccess]:
    """A cluster of its own: kinds are the whole cluster's, and a chart installs them elsewhere."""
    with ControlPlane(tmp_path_factory.mktemp("crds")) as plane:
        kubectl(plane.access, "apply", "-f", str(ROOT / crds.FOLDER))
        deadline_s = time.monotonic() + SETTLE_S
        # Not `kubectl wait`: it gives up at a definition that has no conditions yet.
        while not all(found.get("Established") == "True" for found in conditions(plane.access).values()):
            assert time.monotonic() < deadline_s, conditions(plane.access)
            time.sleep(POLL_S)
        yield plane.access


def kubectl(access: ClusterAccess, *words: str, given: str = "") -> str:
    done = subprocess.run(
        ["kubectl", *words],
        env=access.environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def conditions(access: ClusterAccess) -> dict[str, dict[str, str]]:
    """Of each definition the conditions' states by type."""
    return {
        item["metadata"]["name"]: {
            condition["type"]: condition["status"] for condition in item["status"].get("conditions") or ()
        }
        for item in json.loads(kubectl(access, "get", *DEFINED, "-o", "json"))["items"]
    }


def test_every_definition_is_established_and_structural(cluster: ClusterAccess):
    for name, found in conditions(cluster).items():
        assert found == {"NamesAccepted": "True", "Established": "True"}, name


def test_every_manifest_that_we_show_is_taken_under_strict_validation(cluster: ClusterAccess):
    texts = [block.text for page in document.pages() for block in document.blocks(page) if block.language == "yaml"]
    texts += [path.read_text() for path in (ROOT / "examples").rglob("manifests/*.yaml")]
    found = [one for text in texts for one in yaml.safe_load_all(text)]
    assert len(found) > 20
    present = set(kubectl(cluster, "get", "namespaces", "-o", "name").split())
    for namespace in {one["metadata"].get("namespace", "default") for one in found}:
        if f"namespace/{namespace}" not in present:
            kubectl(cluster, "create", "namespace", namespace)
    stream = yaml.safe_dump_all(found)
    kubectl(cluster, "apply", "--dry-run=server", "--validate=strict", "-f", "-", given=stream)


def test_kubectl_shows_a_kinds_columns(cluster: ClusterAccess):
    broker = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}
    kubectl(cluster, "create", "-f", "-", given=json.dumps(broker))
    title, row = kubectl(cluster, "get", "brokers").splitlines()
    assert title.split() == ["NAME", "URL", "READY", "REASON", "AGE"]
    assert row.split()[0] == "default"
