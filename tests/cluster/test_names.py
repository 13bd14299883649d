"""Names in the cluster, as pods use them: a function's, a Broker's, and those of Services that are none of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import IMAGE, container, pod, service
from tests.support.kubelet.cluster import Cluster
from tests.support.release import Release, function_image, knative_service

BROKER = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}
PAGE = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the page"})
"""
#: Writes down what is posted to it.
SINK = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print("took", self.headers["ce-id"], self.headers["host"], flush=True)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(202)
        self.end_headers()

http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def page(release: Release, cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "function.py").write_text(PAGE)
    cluster.use(function_image("page", tmp_path))


def apply(cluster: Cluster, namespace: str, *objects: object) -> None:
    for each in objects:
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=each)


def python(name: str, code: str) -> dict[str, Any]:
    """A pod that runs this."""
    script = {"name": "main", "image": IMAGE, "command": ["python", "-u", "-c", code]}
    return pod(name, script, restartPolicy="Never")


def said(cluster: Cluster, namespace: str, name: str) -> str:
    return cluster.kubectl("logs", name, "-n", namespace, check=False)


def test_a_pod_calls_a_function_and_its_tagged_revision_by_their_names(
    cluster: Cluster, release: Release, namespace: str
):
    traffic = [{"latestRevision": True, "percent": 100, "tag": "blue"}]
    apply(cluster, namespace, knative_service("page", "dev.local/page:1", traffic=traffic))
    release.until_ready("ksvc", "page", namespace)
    hosts = [
        f"{name}.{namespace}{suffix}" for name in ("page", "blue-page") for suffix in (".svc.cluster.local", ".svc", "")
    ]
    code = f"""
import urllib.request
for host in {hosts}:
    print(host, urllib.request.urlopen(f"http://{{host}}/", timeout=30).read().decode())
"""
    apply(cluster, namespace, python("caller", code))
    cluster.until(
        lambda: said(cluster, namespace, "caller").splitlines() == [f"{host} the page" for host in hosts],
        what="every name leads to the function",
    )


def test_a_pod_publishes_to_the_address_that_a_broker_tells_and_a_service_of_the_cluster_subscribes(
    cluster: Cluster, release: Release, namespace: str
):
    subscriber = {"ref": {"apiVersion": "v1", "kind": "Service", "name": "sink"}}
    meta = {"name": "sink"}
    trigger = {"apiVersion": "eventing.knative.dev/v1", "kind": "Trigger", "metadata": meta}
    sink = pod("sink", container(f"exec python -u -c '{SINK}'"), labels={"app": "sink"})
    apply(
        cluster,
        namespace,
        BROKER,
        sink,
        service("sink"),
        trigger | {"spec": {"broker": "default", "subscriber": subscriber}},
    )
    for kind, name in (("broker", "default"), ("trigger", "sink")):
        release.until_ready(kind, name, namespace)
    address = cluster.get("broker", "default", "-n", namespace)["status"]["address"]["url"]
    code = f"""
import time, urllib.error, urllib.request
headers = {{"ce-specversion": "1.0", "ce-id": "n1", "ce-source": "/pod", "ce-type": "t", "content-type": "text/plain"}}
while True:
    try:
        print(urllib.request.urlopen(urllib.request.Request({address!r}, b"x", headers), timeout=30).status)
        break
    except urllib.error.HTTPError as error:  # the ingresses do not know the Broker yet
        print(error)
        time.sleep(0.2)
"""
    apply(cluster, namespace, python("publisher", code))
    cluster.until(lambda: "202" in said(cluster, namespace, "publisher"), what="the event is accepted")
    host = f"sink.{namespace}.svc.cluster.local"
    cluster.until(lambda: f"took n1 {host}" in said(cluster, namespace, "sink"), what="the Service got the event")
