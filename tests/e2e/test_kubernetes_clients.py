"""The platform's real clients on a running API server: kubectl and the Kubernetes client for Python.

kubectl is whichever is installed: Debian's 1.20 and a current one must both pass.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, dynamic, watch
from kubernetes.client.exceptions import ApiException

from tests.support.apiserver import GROUP, widget
from tests.support.live_api import live_api

pytestmark = pytest.mark.e2e

TIMEOUT_S = 30.0

MANIFEST = f"""\
apiVersion: {GROUP}/v1
kind: Widget
metadata:
  name: scan
  labels: {{app: pictures}}
spec:
  size: 3
  parts:
  - name: lens
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  level: high
  old: "1"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_api(tmp_path_factory.mktemp("data")) as address:
        yield address


class Kubectl:
    """kubectl in one namespace, with its configuration and caches in a folder of the test."""

    def __init__(self, program: str, server: str, folder: Path, namespace: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "penstock", "cluster": {"server": server}}],
            "contexts": [
                {"name": "penstock", "context": {"cluster": "penstock", "namespace": namespace, "user": "penstock"}}
            ],
            "current-context": "penstock",
            "users": [{"name": "penstock", "user": {}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        self._command = [program, f"--kubeconfig={path}", f"--cache-dir={folder / 'cache'}"]
        self._environment = {**os.environ, "HOME": str(folder), "KUBE_EDITOR": "sed -i /size:/s/6$/7/"}

    def __call__(self, *arguments: str, stdin: str = "", fails: bool = False) -> str:
        """Standard output of a command that must succeed; of one that must fail, standard error."""
        done = subprocess.run(
            [*self._command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=self._environment,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._command, *arguments], stdout=subprocess.PIPE, text=True, env=self._environment)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))


@pytest.fixture
def kubectl(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Kubectl:
    program = shutil.which("kubectl")
    if program is None:
        pytest.fail("kubectl is not installed, and it is a client that must work: apt-get install kubernetes-client")
    namespace = request.node.originalname.removeprefix("test_").replace("_", "-")[:50].strip("-")
    return Kubectl(program, server, tmp_path, namespace)


def test_apply_creates_then_leaves_alone_then_configures(kubectl):
    first = kubectl("apply", "-f", "-", stdin=MANIFEST)
    assert first.splitlines() == [f"widget.{GROUP}/scan created", "configmap/settings created"]
    again = kubectl("apply", "-f", "-", stdin=MANIFEST)
    assert "configmap/settings unchanged" in again
    kubectl("annotate", "configmap", "settings", "kept=yes")
    changed = MANIFEST.replace("size: 3", "size: 4").replace('  old: "1"\n', "  new: x\n")
    assert kubectl("apply", "-f", "-", stdin=changed).splitlines() == [
        f"widget.{GROUP}/scan configured",
        "configmap/settings configured",
    ]
    settings = kubectl.json("get", "configmap", "settings")
    assert settings["data"] == {"level": "high", "new": "x"}
    assert settings["metadata"]["annotations"]["kept"] == "yes"
    assert kubectl.json("get", "widget", "scan")["spec"] == {"size": 4, "colour": "red", "parts": [{"name": "lens"}]}


def test_get_shows_tables_documents_and_names(kubectl):
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    header, row = (line.split() for line in kubectl("get", "wd").splitlines())
    assert header == ["NAME", "SIZE", "READY", "AGE"]
    assert row[:2] == ["scan", "3"]
    wide = kubectl("get", "widgets", "-o", "wide").splitlines()
    assert wide[0].split() == ["NAME", "SIZE", "READY", "COLOUR", "AGE"]
    assert wide[1].split()[:3] == ["scan", "3", "red"]
    assert kubectl("get", "widget", "-o", "name").split() == [f"widget.{GROUP}/scan"]
    assert "colour: red" in kubectl("get", "widget", "scan", "-o", "yaml")
    assert "scan" in kubectl("get", "widgets", "-l", "app=pictures")
    assert kubectl("get", "widgets", "-l", "app in (music)") == ""
    assert "scan" in kubectl("get", "widgets", "-A", "--field-selector", "metadata.name=scan")
    assert "scan" in kubectl("get", "all")
    assert kubectl("get", "widget", "scan", "-o", "jsonpath={.spec.parts[*].name}") == "lens"


def test_describe_shows_the_resource_and_its_events(kubectl):
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    scan = kubectl.json("get", "widget", "scan")
    about = {"kind": "Widget", "apiVersion": f"{GROUP}/v1"} | {
        name: scan["metadata"][name] for name in ("name", "namespace", "uid")
    }
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "scan.1"},
        "involvedObject": about,
        "reason": "LensFitted",
        "message": "The lens was fitted.",
        "type": "Normal",
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    }
    kubectl("create", "-f", "-", stdin=json.dumps(event))
    described = kubectl("describe", "widget", "scan")
    assert "Kind:         Widget" in described
    assert "Size:    3" in described
    assert "LensFitted" in described
    assert "level:" in kubectl("describe", "configmap", "settings")
    assert "LensFitted" in kubectl("get", "events")


def test_delete_removes_and_waits(kubectl):
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    gone = kubectl("delete", "-f", "-", stdin=MANIFEST)
    assert "deleted" in gone.splitlines()[0]
    assert "(NotFound)" in kubectl("get", "widget", "scan", fails=True)
    assert "not found" in kubectl("delete", "widget", "scan", fails=True)
    assert kubectl("delete", "widget", "scan", "--ignore-not-found") == ""
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    kubectl("delete", "widgets", "--all")
    assert kubectl("get", "widgets") == ""


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        pytest.param("size: 3", "sise: 3", ['unknown field "', "sise"], id="unknown key"),
        pytest.param("size: 3", "size: 101", ["spec.size", "must be at most 100", "101"], id="rule"),
        pytest.param("size: 3", "size: three", ["size", "integer", "three"], id="type"),
        pytest.param("name: scan", "name: Scan_It", ["metadata.name", "RFC 1123", "Scan_It"], id="name"),
        pytest.param("kind: Widget", "kind: Gadget", ['no matches for kind "Gadget"'], id="kind"),
    ],
)
def test_wrong_yaml_is_refused_with_key_rule_and_value(kubectl, right, wrong, named):
    assert right in MANIFEST
    # Debian's kubectl checks types by itself, where it can, and tells the type that it found but not the value.
    text = MANIFEST.split("---\n", maxsplit=1)[0].replace(right, wrong)
    said = kubectl("apply", "-f", "-", stdin=text, fails=True)
    unsaid = [part for part in named if part not in said]
    assert unsaid == [] or (unsaid == ["three"] and "ValidationError(Widget.spec.size)" in said), said


def test_wait_returns_once_the_condition_is_true(kubectl, server):
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    scan = kubectl.json("get", "widget", "scan")
    waiting = kubectl.start("wait", "--for=condition=Ready", "widget/scan", f"--timeout={TIMEOUT_S:.0f}s")
    scan["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    api = client.CustomObjectsApi(client.ApiClient(client.Configuration(host=server)))
    namespace = scan["metadata"]["namespace"]
    with api.api_client:
        api.replace_namespaced_custom_object_status(GROUP, "v1", namespace, "widgets", "scan", scan)
    said, _ = waiting.communicate(timeout=TIMEOUT_S)
    assert waiting.returncode == 0
    assert "condition met" in said
    assert kubectl("get", "widget", "scan").splitlines()[1].split()[:3] == ["scan", "3", "True"]


def test_a_watch_shows_changes_as_they_happen(kubectl):
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    watching = kubectl.start("get", "widgets", "-w", "--no-headers")
    lines: queue.Queue[str] = queue.Queue()
    assert watching.stdout is not None
    reader = threading.Thread(target=lambda stream=watching.stdout: [lines.put(line) for line in stream])
    reader.start()
    try:
        assert lines.get(timeout=TIMEOUT_S).split()[:2] == ["scan", "3"]
        kubectl("patch", "widget", "scan", "--type=merge", "-p", '{"spec":{"size":5}}')
        assert lines.get(timeout=TIMEOUT_S).split()[:2] == ["scan", "5"]
    finally:
        watching.terminate()
        watching.wait(TIMEOUT_S)
        reader.join(TIMEOUT_S)
        watching.stdout.close()


def test_label_annotate_patch_edit_and_replace_change_resources(kubectl):
    kubectl("apply", "-f", "-", stdin=MANIFEST)
    kubectl("label", "widget", "scan", "tier=front")
    kubectl("annotate", "widget", "scan", "note=read me")
    kubectl("patch", "widget", "scan", "--type=json", "-p", '[{"op":"replace","path":"/spec/size","value":6}]')
    kubectl("patch", "configmap", "settings", "-p", '{"data":{"patched":"yes"}}')
    kubectl("edit", "widget", "scan")
    scan = kubectl.json("get", "widget", "scan")
    assert scan["metadata"]["labels"] == {"app": "pictures", "tier": "front"}
    assert scan["metadata"]["annotations"]["note"] == "read me"
    assert scan["spec"]["size"] == 7
    scan["spec"]["size"] = 8
    kubectl("replace", "-f", "-", stdin=json.dumps(scan))
    stale = kubectl("replace", "-f", "-", stdin=json.dumps(scan | {"spec": {"size": 9}}), fails=True)
    assert "(Conflict)" in stale
    assert kubectl.json("get", "widget", "scan")["spec"]["size"] == 8
    assert kubectl.json("get", "configmap", "settings")["data"]["patched"] == "yes"


def test_create_makes_namespaces_config_maps_and_secrets(kubectl):
    assert kubectl("create", "namespace", "brand-new") == "namespace/brand-new created\n"
    kubectl("create", "configmap", "made", "--from-literal=a=b")
    kubectl("create", "secret", "generic", "hidden", "--from-literal=password=swordfish")
    assert kubectl.json("get", "configmap", "made")["data"] == {"a": "b"}
    assert kubectl.json("get", "secret", "hidden")["data"] == {"password": "c3dvcmRmaXNo"}
    assert "Active" in kubectl("get", "namespace", "brand-new")
    assert "(AlreadyExists)" in kubectl("create", "namespace", "brand-new", fails=True)
    kubectl("delete", "namespace", "brand-new")


def test_server_side_apply_keeps_managers_apart(kubectl):
    kubectl("apply", "--server-side", "-f", "-", stdin=MANIFEST)
    changed = MANIFEST.replace("level: high", "level: low")
    refused = kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=changed, fails=True)
    assert 'conflict with "kubectl": .data.level' in refused
    kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", stdin=changed)
    assert kubectl.json("get", "configmap", "settings")["data"]["level"] == "low"


def test_kinds_are_listed_and_explained(kubectl):
    listed = kubectl("api-resources")
    assert any(line.split()[:2] == ["widgets", "wd"] for line in listed.splitlines())
    assert f"{GROUP}/v1" in kubectl("api-versions").split()
    assert "Something to make." in kubectl("explain", "widget")
    assert "size" in kubectl("explain", "widget.spec")
    assert "count" in kubectl("explain", "widget.spec.parts")


@pytest.fixture
def api_client(server: str) -> Iterator[client.ApiClient]:
    with client.ApiClient(client.Configuration(host=server)) as found:
        yield found


def test_the_python_client_reads_and_writes_custom_objects(api_client):
    api = client.CustomObjectsApi(api_client)
    place = (GROUP, "v1", "python", "widgets")
    created = api.create_namespaced_custom_object(*place, widget("a"))
    assert created["spec"]["colour"] == "red"
    patched = api.patch_namespaced_custom_object(*place, "a", {"spec": {"size": 2}})
    assert patched["spec"]["size"] == 2
    listed = api.list_cluster_custom_object(GROUP, "v1", "widgets", label_selector="!absent")
    assert "a" in [item["metadata"]["name"] for item in listed["items"]]
    with pytest.raises(ApiException) as caught:
        api.replace_namespaced_custom_object(*place, "a", created)
    assert (caught.value.status, json.loads(caught.value.body)["reason"]) == (409, "Conflict")
    api.delete_namespaced_custom_object(*place, "a", body=client.V1DeleteOptions(propagation_policy="Background"))
    with pytest.raises(ApiException) as caught:
        api.get_namespaced_custom_object(*place, "a")
    assert caught.value.status == 404


def test_the_python_client_reads_and_writes_kubernetes_own_kinds(api_client):
    api = client.CoreV1Api(api_client)
    meta = client.V1ObjectMeta(name="typed", labels={"app": "x"})
    api.create_namespaced_config_map("python", client.V1ConfigMap(metadata=meta, data={"a": "1"}))
    api.patch_namespaced_config_map("typed", "python", {"data": {"b": "2"}})
    assert api.read_namespaced_config_map("typed", "python").data == {"a": "1", "b": "2"}
    assert "python" in [item.metadata.name for item in api.list_namespace().items]


def test_the_python_client_watches(api_client):
    api = client.CustomObjectsApi(api_client)
    place = (GROUP, "v1", "watched", "widgets")
    version = api.list_namespaced_custom_object(*place)["metadata"]["resourceVersion"]
    api.create_namespaced_custom_object(*place, widget("a"))
    api.delete_namespaced_custom_object(*place, "a")
    stream = watch.Watch()
    told = []
    for event in stream.stream(
        api.list_namespaced_custom_object, *place, resource_version=version, timeout_seconds=int(TIMEOUT_S)
    ):
        told.append((event["type"], event["object"]["metadata"]["name"]))
        if event["type"] == "DELETED":
            stream.stop()
    assert told == [("ADDED", "a"), ("DELETED", "a")]


def test_the_python_dynamic_client_discovers_and_applies(api_client, tmp_path):
    found = dynamic.DynamicClient(api_client, cache_file=str(tmp_path / "discovery.json"))
    widgets = found.resources.get(api_version=f"{GROUP}/v1", kind="Widget")
    assert (widgets.name, widgets.short_names) == ("widgets", ["wd"])
    applied = widgets.server_side_apply(
        body=widget("a", size=4), name="a", namespace="dynamic", field_manager="test", force_conflicts=True
    )
    assert applied.spec.size == 4
    assert widgets.get(name="a", namespace="dynamic").spec.colour == "red"
    with pytest.raises(dynamic.exceptions.UnprocessibleEntityError) as caught:
        widgets.create(body=widget("b", size=500), namespace="dynamic")
    assert "spec.size: Invalid value: 500: must be at most 100" in str(caught.value.body)
    assert [item.metadata.name for item in widgets.get(namespace="dynamic").items] == ["a"]
