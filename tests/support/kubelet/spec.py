"""What is read of the API's objects, as typed values; all that is not named here is ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

import msgspec

__all__ = ["Container", "EndpointSlice", "Node", "Pod", "Probe", "Service", "Volume", "parse"]

T = TypeVar("T")


class OwnerReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    kind: str
    name: str
    uid: str


class Metadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None


class KeySelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    key: str
    name: str = ""
    optional: bool = False


class FieldSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    field_path: str


class ResourceSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    resource: str
    container_name: str = ""


class EnvSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    field_ref: FieldSelector | None = None
    resource_field_ref: ResourceSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    value: str = ""
    value_from: EnvSource | None = None


class ObjectReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str = ""
    optional: bool = False


class EnvFrom(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    prefix: str = ""
    config_map_ref: ObjectReference | None = None
    secret_ref: ObjectReference | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    value: str


class HttpGet(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: tuple[Header, ...] = ()


class TcpSocket(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    port: int | str
    host: str = ""


class Exec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    command: tuple[str, ...] = ()


class Sleep(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    seconds: int


class Handler(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a probe or a hook does; exactly one is set."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    sleep: Sleep | None = None


class Probe(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The defaults are Kubernetes'. Times are in seconds."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    #: Instead of the pod's, where this probe ends the container.
    termination_grace_period_seconds: int | None = None

    @property
    def handler(self) -> Handler:
        return Handler(http_get=self.http_get, tcp_socket=self.tcp_socket, exec=self.exec)


class Lifecycle(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    post_start: Handler | None = None
    pre_stop: Handler | None = None


class Port(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    container_port: int
    name: str = ""


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    mount_path: str
    sub_path: str = ""
    read_only: bool = False


class SecurityContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    read_only_root_filesystem: bool = False
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None


class PodSecurityContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()


class Resources(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    requests: dict[str, str | int | float] = {}
    limits: dict[str, str | int | float] = {}


class Container(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    ports: tuple[Port, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    resources: Resources = Resources()
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle = Lifecycle()
    security_context: SecurityContext = SecurityContext()
    #: Only an init container has one: `Always` makes it a sidecar.
    restart_policy: str = ""

    @property
    def sidecar(self) -> bool:
        return self.restart_policy == "Always"


class Item(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    key: str
    path: str


class DownwardItem(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    path: str
    field_ref: FieldSelector | None = None


class ConfigMapVolume(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str = ""
    items: tuple[Item, ...] = ()
    optional: bool = False


class SecretVolume(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    secret_name: str = ""
    name: str = ""
    items: tuple[Item, ...] = ()
    optional: bool = False


class TokenVolume(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    path: str
    audience: str = ""
    expiration_seconds: int = 3600


class DownwardVolume(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    items: tuple[DownwardItem, ...] = ()


class ProjectedSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    service_account_token: TokenVolume | None = None
    downward_api: DownwardVolume | None = msgspec.field(default=None, name="downwardAPI")


class ProjectedVolume(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    sources: tuple[ProjectedSource, ...] = ()


class HostPath(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    path: str


class Claim(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    claim_name: str


class Volume(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    empty_dir: dict[str, Any] | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    projected: ProjectedVolume | None = None
    downward_api: DownwardVolume | None = msgspec.field(default=None, name="downwardAPI")
    host_path: HostPath | None = None
    persistent_volume_claim: Claim | None = None


class Toleration(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Requirement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    key: str
    operator: str
    values: tuple[str, ...] = ()


class NodeTerm(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    match_expressions: tuple[Requirement, ...] = ()
    match_fields: tuple[Requirement, ...] = ()


class NodeTerms(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    node_selector_terms: tuple[NodeTerm, ...] = ()


class NodeAffinity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    required: NodeTerms | None = msgspec.field(default=None, name="requiredDuringSchedulingIgnoredDuringExecution")


class LabelSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()


class PodTerm(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    topology_key: str
    label_selector: LabelSelector = LabelSelector()
    namespaces: tuple[str, ...] = ()


class PodAffinity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    required: tuple[PodTerm, ...] = msgspec.field(default=(), name="requiredDuringSchedulingIgnoredDuringExecution")


class Affinity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    node_affinity: NodeAffinity = NodeAffinity()
    pod_affinity: PodAffinity = PodAffinity()
    pod_anti_affinity: PodAffinity = PodAffinity()


class PodSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: Affinity = Affinity()
    tolerations: tuple[Toleration, ...] = ()
    restart_policy: str = "Always"
    service_account_name: str = "default"
    termination_grace_period_seconds: int = 30
    hostname: str = ""
    security_context: PodSecurityContext = PodSecurityContext()


class Condition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class PodStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    phase: str = "Pending"
    conditions: tuple[dict[str, Any], ...] = ()


class Pod(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    metadata: Metadata
    spec: PodSpec
    status: PodStatus = PodStatus()

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def terminal(self) -> bool:
        return self.status.phase in {"Succeeded", "Failed"}


class Taint(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    key: str
    effect: str
    value: str = ""


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    allocatable: dict[str, str | int | float] = {}


class Node(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServicePort(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    port: int
    name: str = ""
    protocol: str = "TCP"


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    external_name: str = ""
    ports: tuple[ServicePort, ...] = ()
    publish_not_ready_addresses: bool = False


class Service(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Absent means ready and serving, as the API says."""

    ready: bool | None = True
    serving: bool | None = True
    terminating: bool | None = False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None


class EndpointPort(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    port: int | None = None
    name: str | None = ""
    protocol: str | None = "TCP"


class EndpointSlice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()


def parse(kind: type[T], document: Any) -> T:
    return msgspec.convert(document, kind)
