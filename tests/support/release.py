"""The chart installed on a test's cluster: what tests do with the platform there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from tests.support.chart import CHART
from tests.support.kubelet.cluster import Cluster, checkout_image
from tests.support.kubelet.images import Image

__all__ = ["ROLES", "Release", "function_image", "knative_service", "trigger"]

ROLES: Final = ("broker-ingress", "control", "dispatcher", "gateway", "sources")
#: A Redis of its own, without a volume: the test's nodes have none.
VALUES: Final = ("redis.install=true", "redis.persistence.enabled=false")
INSTALL_TIMEOUT_S: Final = 240
ANSWER_TIMEOUT_S: Final = 60
#: A pod has a network of its own.
ANYWHERE: Final = "0.0.0.0"  # noqa: S104


class Release:
    """One release in the namespace `namespace`, with the images that its pods name."""

    def __init__(self, cluster: Cluster, *, namespace: str = "penstock", name: str = "penstock") -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name
        self._addresses: dict[str, str] = {}
        cluster.use(checkout_image("penstock:*"), Image(pattern="redis:*"))

    def install(self, *values: str) -> None:
        """Install or upgrade it with `VALUES` and these, and wait until all of it is ready. Raises AssertionError with
        its pods where it is not."""
        settings = [word for value in (*VALUES, *values) for word in ("--set", value)]
        words = ("upgrade", "--install", self.name, str(CHART), "--namespace", self.namespace, "--create-namespace")
        done = subprocess.run(
            [str(self.cluster.plane.helm), *words, *settings, "--wait", f"--timeout={INSTALL_TIMEOUT_S}s"],
            env=self.cluster.plane.access.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S + 30,
        )
        if done.returncode != 0:
            pods = self.cluster.kubectl("get", "pods", "-A", "-o", "wide", check=False)
            raise AssertionError(f"{done.stderr}\n{pods}")

    def uninstall(self) -> None:
        """Stop it; the kinds' definitions stay."""
        subprocess.run(
            [str(self.cluster.plane.helm), "uninstall", self.name, "--namespace", self.namespace, "--wait"],
            env=self.cluster.plane.access.environment,
            capture_output=True,
            check=True,
            timeout=INSTALL_TIMEOUT_S,
        )

    def address(self, role: str) -> str:
        """The cluster's address of a role's Service; asked for once, so that traffic needs no API server."""
        if role not in self._addresses:
            service = self.cluster.get("service", f"{self.name}-{role}", "-n", self.namespace)
            self._addresses[role] = service["spec"]["clusterIP"]
        return self._addresses[role]

    def pods(self, role: str) -> dict[str, dict[str, Any]]:
        """The pods of a role that are not being ended, by name."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={role}"
        found = self.cluster.get("pods", "-n", self.namespace, "-l", labels)
        return {each["metadata"]["name"]: each for each in found if "deletionTimestamp" not in each["metadata"]}

    def request(
        self,
        host: str,
        path: str = "/",
        *,
        role: str = "gateway",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, bytes]:
        """One request through a role's Service, on a connection of its own."""
        connection = HTTPConnection(self.address(role), 8082 if role == "control" else 80, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path, body, {"Host": host, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def call(self, service: str, namespace: str, path: str = "/") -> tuple[int, bytes]:
        """What a Service answers."""
        return self.request(f"{service}.{namespace}.svc.cluster.local", path)

    def publish(self, namespace: str, event_id: str, *, broker: str = "default", type_: str = "hello") -> int:
        """Send a CloudEvent to a Broker; the status of the answer."""
        headers = {"ce-specversion": "1.0", "ce-id": event_id, "ce-source": "/test", "ce-type": type_}
        headers["content-type"] = "application/json"
        status, _ = self.request(
            "ingress", f"/{namespace}/{broker}", role="broker-ingress", method="POST", headers=headers, body=b"{}"
        )
        return status

    def explained(self, event_id: str) -> list[dict[str, Any]]:
        """What ``penstock explain`` is told of the events of this id; empty while there is none."""
        status, body = self.request("control.localhost", f"/penstock/v1/events/{event_id}/explain", role="control")
        found: list[dict[str, Any]] = json.loads(body)["events"] if status == 200 else []
        return found

    def until_ready(self, kind: str, name: str, namespace: str) -> None:
        """Wait for it. Raises AssertionError with its status where it does not become ready."""
        try:
            self.cluster.until(lambda: self.is_ready(kind, name, namespace), what=f"{kind} {name} is ready")
        except AssertionError as error:
            status = self.cluster.get(kind, name, "-n", namespace).get("status")
            raise AssertionError(f"{error}\n{json.dumps(status, indent=1)}") from error

    def is_ready(self, kind: str, name: str, namespace: str) -> bool:
        """Whether its condition Ready is True for its present generation."""
        found = self.cluster.get(kind, name, "-n", namespace)
        status = found.get("status") or {}
        ready = {one["type"]: one["status"] for one in status.get("conditions") or ()}.get("Ready")
        return ready == "True" and status.get("observedGeneration") == found["metadata"]["generation"]


def function_image(name: str, folder: Path) -> Image:
    """``dev.local/<name>`` with any tag: the function in `folder`, as an image runs it."""
    return checkout_image(f"dev.local/{name}*", "-m", "penstock", "serve", "--host", ANYWHERE, str(folder))


def knative_service(
    name: str,
    image: str,
    *,
    scaling: Mapping[str, str] | None = None,
    traffic: Sequence[dict[str, Any]] = (),
    **spec: Any,
) -> dict[str, Any]:
    """A Service; `scaling` are autoscaling annotations without their prefix, `spec` goes into the Revision's."""
    annotations = {f"autoscaling.knative.dev/{key}": value for key, value in (scaling or {}).items()}
    template = {"metadata": {"annotations": annotations}, "spec": {"containers": [{"image": image}], **spec}}
    made: dict[str, Any] = {"template": template}
    if traffic:
        made["traffic"] = list(traffic)
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name}, "spec": made}


def trigger(name: str, service: str, *, broker: str = "default", type_: str = "") -> dict[str, Any]:
    """A Trigger that sends a Broker's events (of one type) to a Service."""
    spec: dict[str, Any] = {
        "broker": broker,
        "subscriber": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": service}},
    }
    if type_:
        spec["filter"] = {"attributes": {"type": type_}}
    return {"apiVersion": "eventing.knative.dev/v1", "kind": "Trigger", "metadata": {"name": name}, "spec": spec}
