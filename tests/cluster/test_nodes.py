"""The test kubelet and its network do what the tests above them take for granted of nodes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import IMAGE, container, deployment, pod, service
from tests.support.kubelet.cluster import Cluster, checkout_image
from tests.support.kubelet.identity import USERS_ALLOWED


def fetch(address: str, path: str) -> str:
    """The body, or what went wrong."""
    try:
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=5.0) as response:
            return str(response.read().decode().strip())
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        return f"failed: {error}"


class Here:
    """The cluster, seen from a namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def apply(self, *objects: dict[str, Any]) -> None:
        for one in objects:
            one["metadata"]["namespace"] = self.namespace
        self.cluster.apply(*objects)

    def kubectl(self, *words: str, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *words, check=check)

    def get(self, *words: str) -> Any:
        return self.cluster.get("-n", self.namespace, *words)

    def until(self, condition: Any, *, what: str) -> Any:
        return self.cluster.until(condition, what=what)

    def ready_pods(self, app: str) -> list[dict[str, Any]]:
        pods = self.get("pods", "-l", f"app={app}")
        return [one for one in pods if condition(one, "Ready") == "True" and "deletionTimestamp" not in one["metadata"]]

    def ended(self, name: str) -> dict[str, Any]:
        """The pod, once it has run to its end."""
        found: dict[str, Any] = self.until(
            lambda: (now := self.get("pod", name))["status"]["phase"] in {"Succeeded", "Failed"} and now,
            what=f"{name} ends",
        )
        return found


def condition(thing: dict[str, Any], kind: str) -> str:
    return next((one["status"] for one in thing["status"].get("conditions", ()) if one["type"] == kind), "Unknown")


def restarts(thing: dict[str, Any]) -> int:
    return sum(one["restartCount"] for one in thing["status"].get("containerStatuses", ()))


@pytest.fixture
def here(cluster: Cluster, namespace: str) -> Here:
    return Here(cluster, namespace)


def test_a_deployment_becomes_ready_answers_under_its_services_address_rolls_and_is_deleted(here: Here) -> None:
    here.apply(deployment("web", container(says="one"), replicas=2), service("web"))
    here.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    pods = here.ready_pods("web")
    assert {fetch(f"{one['status']['podIP']}:8080", "name") for one in pods} == {
        one["metadata"]["name"] for one in pods
    }
    assert len({one["spec"]["nodeName"] for one in pods}) == 2

    address = here.get("service", "web")["spec"]["clusterIP"]
    here.until(lambda: fetch(address, "says") == "one", what="the Service answers")
    assert {fetch(address, "name") for _ in range(4)} == {one["metadata"]["name"] for one in pods}

    here.apply(deployment("web", container(says="two"), replicas=2))
    here.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    here.until(lambda: {fetch(address, "says") for _ in range(4)} == {"two"}, what="only the new pods answer")

    here.kubectl("delete", "deployment", "web")
    here.until(lambda: not here.get("pods"), what="the pods are gone")
    assert "refused" in here.until(lambda: "failed" in (said := fetch(address, "says")) and said, what="nobody answers")


def test_pods_find_services_by_name_and_the_api_server_by_their_token(here: Here) -> None:
    here.apply(deployment("web", container(says="found")), service("web"))
    here.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "other"},
            "spec": {"type": "ExternalName", "externalName": f"web.{here.namespace}.svc.cluster.local"},
        }
    )
    here.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    here.kubectl("create", "role", "reader", "--verb=list", "--resource=pods")
    here.kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={here.namespace}:default")
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = f"""
        curl -sS http://web/says http://web.{here.namespace}.svc.cluster.local/says http://other/says
        pods=https://kubernetes.default.svc/api/v1/namespaces/$(cat {account}/namespace)/pods
        token="Authorization: Bearer $(cat {account}/token)"
        curl -sS --cacert {account}/ca.crt -H "$token" -o /dev/null -w '%{{http_code}}\\n' $pods
        curl -sS http://absent/ || true
    """
    here.apply(pod("asks", container(script), restartPolicy="Never"))
    here.ended("asks")
    said = here.kubectl("logs", "asks").splitlines()
    assert said[:4] == ["found", "found", "found", "200"]
    assert "Could not resolve host: absent" in said[4]


def test_init_containers_run_in_order_before_the_rest_and_a_sidecar_outlives_it(here: Here) -> None:
    def says(word: str, more: str = "") -> str:
        return f"echo {word} >> /shared/story; {more}"

    mount: dict[str, Any] = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    sidecar = container(
        says(
            "sidecar",
            "trap 'echo sidecar ends >> /shared/story; cat /shared/story; exit 0' TERM; while :; do sleep 0.1; done",
        ),
        name="sidecar",
        restartPolicy="Always",
        **mount,
    )
    here.apply(
        pod(
            "story",
            container(says("main"), **mount),
            initContainers=[
                container(says("first"), name="first", **mount),
                sidecar,
                container(says("last"), name="last", **mount),
            ],
            volumes=[{"name": "shared", "emptyDir": {}}],
            restartPolicy="Never",
        )
    )
    assert here.ended("story")["status"]["phase"] == "Succeeded"
    told = here.kubectl("logs", "story", "-c", "sidecar").splitlines()
    # The sidecar is not waited for longer than until it runs.
    assert [word for word in told if word != "sidecar"] == ["first", "last", "main", "sidecar ends"]


def test_the_environment_and_files_of_a_container_are_what_its_manifest_says(here: Here) -> None:
    here.kubectl("create", "configmap", "settings", "--from-literal=colour=blue", "--from-literal=page=hello")
    here.kubectl("create", "secret", "generic", "secrets", "--from-literal=word=swordfish")
    environment = [
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "secrets", "key": "word"}}},
        {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "BOTH", "value": "$(COLOUR)-$(ABSENT)-$$(COLOUR)"},
    ]
    mounts = [
        {"name": "settings", "mountPath": "/etc/settings", "readOnly": True},
        {"name": "word", "mountPath": "/etc/word", "subPath": "w"},
        {"name": "scratch", "mountPath": "/scratch"},
    ]
    script = """
        echo "$COLOUR $WORD $ADDRESS $LABEL $BOTH $0 $1"; cat /etc/settings/page /etc/word; echo
        touch /etc/settings/x 2>/dev/null || echo settings are read-only
        touch /etc/x 2>/dev/null || echo the root is read-only
        touch /scratch/x && echo scratch is not
    """
    here.apply(
        pod(
            "shows",
            {
                "name": "main",
                "image": IMAGE,
                "command": ["sh", "-c", script],
                "args": ["zero", "$(WORD)"],
                "env": environment,
                "volumeMounts": mounts,
                "securityContext": {"readOnlyRootFilesystem": True},
            },
            volumes=[
                {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "word", "secret": {"secretName": "secrets", "items": [{"key": "word", "path": "w"}]}},
                {"name": "scratch", "emptyDir": {}},
            ],
            restartPolicy="Never",
        )
    )
    address = here.ended("shows")["status"]["podIP"]
    assert here.kubectl("logs", "shows").splitlines() == [
        f"blue swordfish {address} shows blue-$(ABSENT)-$(COLOUR) zero swordfish",
        "helloswordfish",
        "settings are read-only",
        "the root is read-only",
        "scratch is not",
    ]


def test_a_killed_process_is_started_again_and_its_first_words_are_kept(here: Here) -> None:
    here.apply(pod("web", container("echo run; " + "mkdir -p /srv/www; cd /srv/www; exec python -m http.server 8080")))
    here.until(lambda: "run" in here.kubectl("logs", "web", check=False), what="it has said something")
    first = here.until(lambda: here.ready_pods("web"), what="it is ready")[0]

    here.cluster.kill(first)

    again = here.until(lambda: [one for one in here.ready_pods("web") if restarts(one) == 1], what="it runs again")[0]
    assert again["status"]["podIP"] == first["status"]["podIP"]
    last = again["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["exitCode"] == 137
    assert here.kubectl("logs", "web", "--previous").startswith("run\n")


def test_a_failing_liveness_probe_restarts_and_a_startup_probe_holds_it_back(here: Here) -> None:
    probes: dict[str, Any] = {
        "startupProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30},
        "livenessProbe": {
            "exec": {"command": ["test", "!", "-e", "/tmp/sick"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
    }
    # Before /tmp/up is there, the liveness probe would find it sick.
    script = "touch /tmp/sick; sleep 1; rm /tmp/sick; touch /tmp/up; sleep 1.5; touch /tmp/sick; exec sleep 600"
    here.apply(pod("ill", container(script, **probes), terminationGracePeriodSeconds=1))
    here.until(lambda: restarts(here.get("pod", "ill")) == 1, what="it is restarted")
    assert here.get("pod", "ill")["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] in {137, 143}


def test_a_deleted_pod_leaves_its_service_serves_while_it_drains_and_ends_after_its_hook(
    here: Here, tmp_path: Path
) -> None:
    hook = {
        "preStop": {
            "exec": {
                "command": ["sh", "-c", f"touch {tmp_path}/asked; until test -e {tmp_path}/go; do sleep 0.05; done"]
            }
        }
    }
    fields: dict[str, Any] = {"lifecycle": hook, "volumeMounts": [{"name": "out", "mountPath": str(tmp_path)}]}
    volumes = [{"name": "out", "hostPath": {"path": str(tmp_path)}}]
    here.apply(
        deployment("web", container(says="old", **fields), volumes=volumes, terminationGracePeriodSeconds=60),
        service("web"),
    )
    here.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    old = here.ready_pods("web")[0]

    here.kubectl("delete", "pod", old["metadata"]["name"], "--wait=false")

    here.until((tmp_path / "asked").exists, what="the hook runs")
    successor = here.until(lambda: here.ready_pods("web"), what="its successor is ready")[0]
    address = here.get("service", "web")["spec"]["clusterIP"]
    here.until(
        lambda: {fetch(address, "name") for _ in range(4)} == {successor["metadata"]["name"]},
        what="only the successor answers",
    )
    assert fetch(f"{old['status']['podIP']}:8080", "says") == "old"
    (tmp_path / "go").touch()
    here.until(lambda: len(here.get("pods")) == 1, what="the old pod is gone")
    assert fetch(f"{old['status']['podIP']}:8080", "says").startswith("failed")


def test_a_pod_that_ignores_the_signal_is_killed_after_its_grace_period(here: Here) -> None:
    here.apply(pod("deaf", container("trap '' TERM; while :; do sleep 1; done"), terminationGracePeriodSeconds=2))
    here.until(lambda: here.ready_pods("deaf"), what="it runs")
    here.kubectl("delete", "pod", "deaf", "--timeout=30s")
    assert here.get("pods") == []


def test_a_pod_that_no_node_can_take_says_why_and_one_that_asks_for_a_node_gets_it(here: Here) -> None:
    here.apply(pod("gpu", container(resources={"limits": {"nvidia.com/gpu": "1"}})))
    here.apply(pod("there", container(), nodeSelector={"kubernetes.io/hostname": "worker-1"}))
    told = here.until(
        lambda: [
            one for one in here.get("pod", "gpu")["status"].get("conditions", ()) if one["type"] == "PodScheduled"
        ],
        what="it is told why",
    )[0]
    assert (told["status"], told["reason"]) == ("False", "Unschedulable")
    assert "2 Insufficient nvidia.com/gpu" in told["message"]
    assert here.until(lambda: here.ready_pods("there"), what="it runs")[0]["spec"]["nodeName"] == "worker-1"


def test_an_unknown_image_is_waited_for(here: Here) -> None:
    here.apply(pod("late", container(image="example.com/late:1")))
    reasons = {"ErrImagePull", "ImagePullBackOff"}
    here.until(
        lambda: any(
            one["state"].get("waiting", {}).get("reason") in reasons
            for one in here.get("pod", "late")["status"].get("containerStatuses", ())
        ),
        what="it says that there is no such image",
    )
    here.cluster.use(checkout_image("example.com/late:*"))
    here.until(lambda: here.ready_pods("late"), what="it runs")


def test_a_drained_node_is_left_at_the_pace_that_a_disruption_budget_allows(here: Here) -> None:
    budget = {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}
    here.apply(
        deployment("web", container(), replicas=2),
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"}, "spec": budget},
    )
    here.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    selector = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--pod-selector=app=web")
    try:
        refused = here.cluster.kubectl("drain", "worker-0", "--timeout=2s", *selector, check=False)
        assert "disruption budget" in refused
        here.kubectl("patch", "pdb", "web", "--type=merge", "-p", json.dumps({"spec": {"minAvailable": 1}}))
        here.cluster.kubectl("drain", "worker-0", "--timeout=60s", *selector)
        pods = here.until(lambda: len(found := here.ready_pods("web")) == 2 and found, what="both run elsewhere")
        assert {one["spec"]["nodeName"] for one in pods} == {"worker-1"}
    finally:
        here.cluster.kubectl("uncordon", "worker-0")


def test_pods_and_services_go_on_while_the_api_server_is_away(here: Here) -> None:
    here.apply(deployment("web", container(says="still here")), service("web"))
    here.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    address = here.get("service", "web")["spec"]["clusterIP"]
    here.until(lambda: fetch(address, "says") == "still here", what="the Service answers")
    running = here.ready_pods("web")[0]

    here.cluster.plane.apiserver.kill()
    assert fetch(address, "says") == "still here"
    here.cluster.kill(running)
    here.until(lambda: fetch(address, "says") == "still here", what="the killed process is back without the API server")
    here.cluster.plane.apiserver.start()

    here.until(lambda: [one for one in here.ready_pods("web") if restarts(one) == 1], what="its status caught up")
    here.kubectl("delete", "deployment", "web")
    here.until(lambda: not here.get("pods"), what="the pods are gone")


def test_a_container_runs_as_the_user_that_its_manifest_says_and_keeps_what_it_claims(here: Here) -> None:
    context = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 2000}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    here.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"}, "spec": claim})
    fields: dict[str, Any] = {"volumeMounts": [{"name": "kept", "mountPath": "/data"}]}
    volumes = [{"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}]

    def run(name: str, script: str) -> str:
        main = container(script, **fields)
        here.apply(pod(name, main, volumes=volumes, securityContext=context, restartPolicy="Never"))
        here.ended(name)
        return here.kubectl("logs", name)

    said = run("first", "id -u; id -g; id -G; python -c 'import core'; echo written > /data/x; touch /etc/x || echo no")
    # A user's own namespace has no other users.
    assert said.splitlines()[:3] == (["65532", "65532", "65532 2000"] if USERS_ALLOWED else ["0", "0", "0"])
    assert said.endswith("no\n") == USERS_ALLOWED
    assert run("second", "cat /data/x") == "written\n"
    here.until(lambda: here.get("pvc", "kept")["status"]["phase"] == "Bound", what="the claim is bound")
