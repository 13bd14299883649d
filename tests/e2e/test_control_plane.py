"""The control plane that tests of the cluster composition run on is a real one, and each of its servers can be lost."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.controlplane.access import ClusterAccess
from tests.support.controlplane.servers import ControlPlane

pytestmark = [pytest.mark.e2e, pytest.mark.service("kubernetes", own=True)]

#: What the controllers make of an object appears within this.
SETTLE_S = 30.0


def kubectl(access: ClusterAccess, *words: str, check: bool = True) -> str:
    command = ["kubectl", *words]
    done = subprocess.run(command, env=access.environment, capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stdout + done.stderr


def listed(access: ClusterAccess, *words: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(kubectl(access, "get", *words, "-o", "json"))["items"]
    return items


def eventually(access: ClusterAccess, *words: str, count: int) -> list[dict[str, Any]]:
    deadline_s = time.monotonic() + SETTLE_S
    while len(found := listed(access, *words)) != count:
        assert time.monotonic() < deadline_s, f"{len(found)} of {count}: {words}"
    return found


def test_a_deployment_becomes_pods_that_wait_for_a_node(control_plane: ControlPlane) -> None:
    access = control_plane.access
    kubectl(access, "create", "namespace", "pods")
    kubectl(access, "-n", "pods", "create", "deployment", "web", "--image=example.com/web", "--replicas=2")

    pods = eventually(access, "-n", "pods", "pods", count=2)

    assert {pod["status"]["phase"] for pod in pods} == {"Pending"}
    assert all(pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet" for pod in pods)
    assert all("nodeName" not in pod["spec"] for pod in pods)


def test_a_service_account_may_do_nothing_until_a_role_says_so(control_plane: ControlPlane) -> None:
    access = control_plane.access
    kubectl(access, "create", "namespace", "rbac")
    question = ("-n", "rbac", "auth", "can-i", "list", "pods", "--as=system:serviceaccount:rbac:default")
    assert "no" in kubectl(access, *question, check=False)

    kubectl(access, "-n", "rbac", "create", "role", "reader", "--verb=list", "--resource=pods")
    kubectl(access, "-n", "rbac", "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=rbac:default")

    assert "yes" in kubectl(access, *question)


def test_a_killed_etcd_and_api_server_come_back_with_what_was_stored(control_plane: ControlPlane) -> None:
    access = control_plane.access
    kubectl(access, "create", "namespace", "stored")
    kubectl(access, "-n", "stored", "create", "configmap", "kept", "--from-literal=key=value")

    control_plane.apiserver.kill()
    control_plane.etcd.kill()
    assert "refused" in kubectl(access, "get", "namespaces", check=False)
    control_plane.etcd.start()
    control_plane.apiserver.start()

    kept = json.loads(kubectl(access, "-n", "stored", "get", "configmap", "kept", "-o", "json"))
    assert kept["data"] == {"key": "value"}
    kubectl(access, "-n", "stored", "create", "deployment", "after", "--image=example.com/web")
    eventually(access, "-n", "stored", "pods", count=1)


def test_helm_installs_a_chart_and_takes_it_away(control_plane: ControlPlane, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: one\nversion: 0.1.0\nkubeVersion: '>=1.34.0'\n")
    (chart / "templates" / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}'}\ndata: {key: '{{ .Values.key }}'}\n"
    )
    homes = {f"HELM_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    environment = control_plane.access.environment | homes

    def helm(*words: str) -> None:
        command = [str(control_plane.helm), *words, "--namespace", "helm"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)

    helm("install", "release", str(chart), "--create-namespace", "--set", "key=value")
    stored = json.loads(kubectl(control_plane.access, "-n", "helm", "get", "configmap", "release", "-o", "json"))
    assert stored["data"] == {"key": "value"}

    helm("uninstall", "release")
    assert "NotFound" in kubectl(control_plane.access, "-n", "helm", "get", "configmap", "release", check=False)
