"""The nodes that the test kubelet pretends to be: registered once, then kept alive by a heartbeat."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tests.support.kubelet.api import AWAY, Api, ApiError
from tests.support.kubelet.spec import Taint
from tests.support.kubelet.status import timestamp

__all__ = ["NodeShape", "heartbeat", "register"]

_LOG = logging.getLogger("kubelet.nodes")
#: A kubelet's own; the node controller gives up on a node after four of them.
_HEARTBEAT_S: Final = 10.0
_RETRY_S: Final = 0.5
_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class NodeShape(msgspec.Struct, frozen=True, kw_only=True):
    """A node as a test wants it; `resources` adds to what every node has, such as ``{"nvidia.com/gpu": "1"}``."""

    name: str
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
    resources: dict[str, str] = {}


async def register(api: Api, shape: NodeShape, address: str, port: int) -> None:
    """Make the node, Ready, with its log server at `address` and `port`."""
    resources = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "100Gi"} | shape.resources
    labels = {"kubernetes.io/hostname": shape.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": shape.name, "labels": labels | shape.labels},
        "spec": {"taints": msgspec.to_builtins(shape.taints)},
    }
    try:
        await api.create("/api/v1/nodes", node)
    except ApiError as error:
        if error.status != 409:
            raise
    status: dict[str, Any] = {
        "capacity": resources,
        "allocatable": resources,
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": shape.name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "architecture": "amd64",
            "operatingSystem": "linux",
            "osImage": "test kubelet",
            "kernelVersion": "test",
            "containerRuntimeVersion": "test://1",
            "kubeletVersion": "v1.34.0-test",
            "kubeProxyVersion": "",
            "machineID": shape.name,
            "systemUUID": shape.name,
            "bootID": shape.name,
        },
    }
    await api.merge(f"/api/v1/nodes/{shape.name}/status", {"status": status | {"conditions": _conditions()}})


async def heartbeat(api: Api, name: str) -> None:
    """Renew the node's lease and its condition for ever; a lost API server is waited out."""
    while True:
        delay_s = _HEARTBEAT_S
        try:
            await _renew(api, name)
            await api.merge(f"/api/v1/nodes/{name}/status", {"status": {"conditions": _conditions()}})
        except (ApiError, *AWAY) as error:
            _LOG.info("heartbeat of %s: %s", name, error)
            delay_s = _RETRY_S
        await asyncio.sleep(delay_s)


async def _renew(api: Api, name: str) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}
    try:
        await api.merge(f"{_LEASES}/{name}", {"spec": spec})
    except ApiError as error:
        if error.status != 404:
            raise
        metadata = {"name": name, "namespace": "kube-node-lease"}
        await api.create(_LEASES, {"metadata": metadata, "spec": spec})


def _conditions() -> list[dict[str, str]]:
    now = timestamp(time.time())
    common = {"lastHeartbeatTime": now, "lastTransitionTime": now, "message": "as the test kubelet says"}
    pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
    calm = [{"type": kind, "status": "False", "reason": "None"} | common for kind in pressures]
    return [*calm, {"type": "Ready", "status": "True", "reason": "KubeletReady"} | common]
