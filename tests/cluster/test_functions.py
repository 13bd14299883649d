"""Functions as pods, on the whole platform: what a person writes, what a cluster does to pods, and what callers see."""

from __future__ import annotations

import threading
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest

from tests.cluster.test_instances import WHOLE_POD, expect
from tests.support.release import Release, function_image, knative_service

#: Slow enough that a request is always under way while a pod goes.
APPLICATION = """
import asyncio, os

async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.05)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": os.environ["HOSTNAME"].encode()})
"""


@pytest.fixture(scope="module")
def release(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The one that all share, with this module's image."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "function.py").write_text(APPLICATION)
    release.cluster.use(function_image("slow", folder))
    return release


class Callers:
    """Clients that POST one request after the other on connections that they keep, until they are stopped.

    A gateway may try a POST again only where the function cannot have seen it.
    """

    def __init__(self, release: Release, host: str, count: int = 6) -> None:
        self.answers: Counter[object] = Counter()
        self.pods: set[str] = set()
        self._address = release.address("gateway")
        self._host = host
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        connection = HTTPConnection(self._address, 80, timeout=60)
        while not self._stopping.is_set():
            try:
                connection.request("POST", "/", b"{}", {"Host": self._host})
                answer = connection.getresponse()
                text = answer.read().decode()
            except (HTTPException, OSError) as error:
                self.answers[repr(error)] += 1
                connection.close()
                continue
            self.answers[answer.status if answer.status == 200 else (answer.status, text)] += 1
            if answer.status == 200:
                self.pods.add(text)
        connection.close()


def apply(release: Release, namespace: str, *objects: object) -> None:
    for each in objects:
        release.cluster.kubectl("apply", "-n", namespace, "-f", "-", given=each)


def running(release: Release, namespace: str) -> set[str]:
    """Pods that are ready and not being ended."""
    found = release.cluster.get("pods", "-n", namespace)
    return {
        each["metadata"]["name"]
        for each in found
        if "deletionTimestamp" not in each["metadata"]
        and any(one["type"] == "Ready" and one["status"] == "True" for one in each["status"].get("conditions", ()))
    }


def test_no_request_fails_while_pods_are_deleted_and_come_and_go_with_load(release: Release, namespace: str):
    scaling = {"min-scale": "2", "max-scale": "4", "target": "2", "window": "6s"}
    apply(release, namespace, knative_service("slow", "dev.local/slow:1", scaling=scaling))
    until = release.cluster.until
    until(lambda: release.is_ready("ksvc", "slow", namespace), what="slow is ready")
    with Callers(release, f"slow.{namespace}.svc.cluster.local", 8) as callers:
        until(lambda: len(running(release, namespace)) == 4, what="there are four pods under load")
        for _ in range(2):
            before = running(release, namespace)
            chosen = min(before)
            release.cluster.kubectl("delete", "pod", "-n", namespace, chosen, "--wait=false")
            until(lambda gone=chosen: gone not in running(release, namespace), what=f"{chosen} goes")
            until(lambda: len(running(release, namespace)) == 4, what="another takes its place")
    with Callers(release, f"slow.{namespace}.svc.cluster.local", 1) as fewer:
        until(lambda: len(running(release, namespace)) == 2, what="with less load there are two again")
    assert callers.answers.keys() == {200}, callers.answers
    assert fewer.answers.keys() == {200}, fewer.answers
    assert len(callers.pods) >= 5  # four, and one that took another's place


def test_the_whole_pod_specification_reaches_the_deployment(release: Release, namespace: str):
    mounts = [
        {"name": each["name"], "mountPath": f"/{each['name']}", "readOnly": True} for each in WHOLE_POD["volumes"]
    ]
    written: dict[str, Any] = {
        **WHOLE_POD,
        "containers": [
            {
                "name": "slow",
                "image": "dev.local/slow:1",
                "ports": [{"containerPort": 8080}],
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
                "env": [{"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
                "securityContext": {"allowPrivilegeEscalation": False},
                "volumeMounts": mounts,
            },
            {"name": "helper", "image": "dev.local/slow:1"},
        ],
    }
    service = knative_service("whole", "dev.local/slow:1", scaling={"initial-scale": "0"}, **written)
    apply(release, namespace, service)
    made = release.cluster.until(
        lambda: release.cluster.get("deployments", "-n", namespace), what="the Deployment is made"
    )
    expect(made[0]["spec"]["template"]["spec"], written)
    assert made[0]["spec"]["replicas"] == 0


def test_why_a_function_does_not_run_is_in_its_conditions(release: Release, namespace: str):
    apply(release, namespace, knative_service("absent", "dev.local/nobody-made-this:1"))

    def told() -> str:
        conditions = release.cluster.get("ksvc", "absent", "-n", namespace).get("status", {}).get("conditions", ())
        return next((one.get("message", "") for one in conditions if one["type"] == "Ready"), "")

    release.cluster.until(lambda: "nobody-made-this" in told(), what="the Service says which image is missing")
    (revision,) = release.cluster.get("revisions", "-n", namespace)
    healthy = next(one for one in revision["status"]["conditions"] if one["type"] == "ContainerHealthy")
    assert healthy["reason"] in ("ErrImagePull", "ImagePullBackOff")


def test_with_its_service_everything_of_a_function_goes(release: Release, namespace: str):
    apply(release, namespace, knative_service("slow", "dev.local/slow:1", scaling={"min-scale": "2"}))
    release.cluster.until(lambda: len(running(release, namespace)) == 2, what="there are two pods")
    release.cluster.kubectl("delete", "ksvc", "-n", namespace, "slow", "--wait=false")
    for kind in ("revisions", "deployments", "pods", "endpointslices"):
        release.cluster.until(lambda kind=kind: not release.cluster.get(kind, "-n", namespace), what=f"no {kind}")
