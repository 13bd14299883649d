"""The kinds of Kubernetes itself that manifests and clients expect to find, and that the platform writes.

Their bodies are taken as they are. Names as in the Kubernetes API reference, v1.
"""

from __future__ import annotations

from typing import Final

from core.resources.kinds import Column, Kind
from core.resources.meta import KindRef

__all__ = [
    "CONFIG_MAP",
    "DEPLOYMENT",
    "ENDPOINT_SLICE",
    "EVENT",
    "KINDS",
    "LEASE",
    "NAMESPACE",
    "POD",
    "SECRET",
    "WORKLOADS",
]

NAMESPACE: Final = KindRef("", "v1", "Namespace")
EVENT: Final = KindRef("", "v1", "Event")
CONFIG_MAP: Final = KindRef("", "v1", "ConfigMap")
SECRET: Final = KindRef("", "v1", "Secret")
ENDPOINT_SLICE: Final = KindRef("discovery.k8s.io", "v1", "EndpointSlice")
LEASE: Final = KindRef("coordination.k8s.io", "v1", "Lease")
POD: Final = KindRef("", "v1", "Pod")
DEPLOYMENT: Final = KindRef("apps", "v1", "Deployment")

KINDS: Final = (
    Kind(
        ref=NAMESPACE,
        plural="namespaces",
        singular="namespace",
        short_names=("ns",),
        namespaced=False,
        columns=(Column(name="Status", path=".status.phase"),),
    ),
    Kind(
        ref=EVENT,
        plural="events",
        singular="event",
        short_names=("ev",),
        columns=(
            Column(name="Last Seen", path=".lastTimestamp"),
            Column(name="Type", path=".type"),
            Column(name="Reason", path=".reason"),
            Column(name="Kind", path=".involvedObject.kind"),
            Column(name="Object", path=".involvedObject.name"),
            Column(name="Message", path=".message"),
        ),
    ),
    Kind(ref=CONFIG_MAP, plural="configmaps", singular="configmap", short_names=("cm",)),
    Kind(
        ref=SECRET,
        plural="secrets",
        singular="secret",
        columns=(Column(name="Type", path=".type"),),
    ),
    Kind(
        ref=ENDPOINT_SLICE,
        plural="endpointslices",
        singular="endpointslice",
        columns=(Column(name="AddressType", path=".addressType"),),
    ),
    Kind(
        ref=LEASE,
        plural="leases",
        singular="lease",
        columns=(Column(name="Holder", path=".spec.holderIdentity"),),
    ),
)

#: What runs in a cluster. Elsewhere nothing would run what such a manifest asks for, so there they are no kinds.
WORKLOADS: Final = (
    Kind(ref=POD, plural="pods", singular="pod", short_names=("po",)),
    Kind(ref=DEPLOYMENT, plural="deployments", singular="deployment", short_names=("deploy",)),
)
