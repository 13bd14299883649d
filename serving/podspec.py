"""The part of a Kubernetes pod specification that Knative lets a Revision use, as frozen values.

Source: knative/serving `pkg/apis/serving/fieldmask.go`, with all of its feature flags on. What only a cluster gives
meaning to is kept as it is written, and checked by the cluster. `serving.podrules` says what must hold.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

__all__ = [
    "DNS_LABEL",
    "Container",
    "ContainerPort",
    "EnvFromSource",
    "EnvVar",
    "HTTPGetAction",
    "PodSpec",
    "Probe",
    "SourceRef",
    "TCPSocketAction",
    "Volume",
    "VolumeMount",
    "parse_quantity",
    "serving_container",
]

#: DNS-1035, as Kubernetes checks Service names: Knative makes host names of Service, Revision and tag names.
DNS_LABEL: Final = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?\Z")
_QUANTITY: Final = re.compile(
    r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(|m|u|n|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)\Z"
)
_SCALES: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{name: Decimal(1000) ** power for power, name in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{name: Decimal(1024) ** power for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}


class _Strict(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """Camel-case member names; an unknown member is an error."""


class KeyRef(_Strict, frozen=True, kw_only=True):
    """One key of a ConfigMap or Secret."""

    name: str = ""
    key: str = ""
    optional: bool | None = None


class FieldRef(_Strict, frozen=True, kw_only=True):
    """A field of the running instance: metadata.name, metadata.namespace, metadata.labels['x'], ..."""

    field_path: str
    api_version: str | None = None


class EnvVarSource(_Strict, frozen=True, kw_only=True):
    """Where a variable's value comes from."""

    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: dict[str, Any] | None = None


class EnvVar(_Strict, frozen=True, kw_only=True):
    """One environment variable: a value, or where to take it from."""

    name: str = ""
    value: str | None = None
    value_from: EnvVarSource | None = None


class SourceRef(_Strict, frozen=True, kw_only=True):
    """A ConfigMap or Secret by name."""

    name: str = ""
    optional: bool | None = None


class EnvFromSource(_Strict, frozen=True, kw_only=True):
    """All keys of a ConfigMap or Secret as variables, with `prefix` before each name."""

    prefix: str = ""
    config_map_ref: SourceRef | None = None
    secret_ref: SourceRef | None = None


class ContainerPort(_Strict, frozen=True, kw_only=True):
    """The port that the container listens on; `name` is "http1" (or "") or "h2c"."""

    container_port: int = 0
    name: str = ""
    protocol: str = ""


class HTTPHeader(_Strict, frozen=True, kw_only=True):
    """A header that a probe sends."""

    name: str
    value: str = ""


class HTTPGetAction(_Strict, frozen=True, kw_only=True):
    """Probe by GET: any status from 200 to 399 is success. The port is always the container's own."""

    path: str = "/"
    host: str = ""
    port: int | str = 0
    scheme: str = "HTTP"
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPSocketAction(_Strict, frozen=True, kw_only=True):
    """Probe by connecting."""

    host: str = ""
    port: int | str = 0


class ExecAction(_Strict, frozen=True, kw_only=True):
    """Probe by running a command: exit code 0 is success."""

    command: tuple[str, ...] = ()


class GRPCAction(_Strict, frozen=True, kw_only=True):
    """Probe by gRPC health check."""

    port: int = 0
    service: str | None = None


class Probe(_Strict, frozen=True, kw_only=True):
    """A probe; times in seconds. `period_seconds` 0 is Knative's own: try again quickly until it succeeds."""

    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    exec: ExecAction | None = None
    grpc: GRPCAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 0
    period_seconds: int = 0
    success_threshold: int = 0
    failure_threshold: int = 0
    termination_grace_period_seconds: int | None = None


class ResourceRequirements(_Strict, frozen=True, kw_only=True):
    """Quantities by resource name ("cpu", "memory", "nvidia.com/gpu")."""

    limits: dict[str, str | int | float] = {}
    requests: dict[str, str | int | float] = {}


class VolumeMount(_Strict, frozen=True, kw_only=True):
    """Where a volume appears in the container."""

    name: str
    mount_path: str = ""
    sub_path: str = ""
    read_only: bool = False
    mount_propagation: str | None = None


class Container(_Strict, frozen=True, kw_only=True):
    """One container, with the fields that Knative allows."""

    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFromSource, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    volume_mounts: tuple[VolumeMount, ...] = ()
    working_dir: str = ""
    security_context: dict[str, Any] | None = None
    image_pull_policy: str = ""
    termination_message_path: str = ""
    termination_message_policy: str = ""
    #: "Always" makes an init container a sidecar that starts before the others and ends after them.
    restart_policy: str = ""


class Volume(_Strict, frozen=True, kw_only=True):
    """A volume of one source."""

    name: str = ""
    secret: dict[str, Any] | None = None
    config_map: dict[str, Any] | None = None
    projected: dict[str, Any] | None = None
    empty_dir: dict[str, Any] | None = None
    persistent_volume_claim: dict[str, Any] | None = None
    host_path: dict[str, Any] | None = None
    csi: dict[str, Any] | None = None
    ephemeral: dict[str, Any] | None = None
    image: dict[str, Any] | None = None

    @property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """What it is given as its source; one, where it is right."""
        given = (
            self.secret,
            self.config_map,
            self.projected,
            self.empty_dir,
            self.persistent_volume_claim,
            self.host_path,
            self.csi,
            self.ephemeral,
            self.image,
        )
        return tuple(one for one in given if one is not None)

    @property
    def is_writable(self) -> bool:
        """Whether containers may write to it (Knative's rule)."""
        return any(one is not None for one in (self.empty_dir, self.persistent_volume_claim, self.ephemeral))


class LocalObjectReference(_Strict, frozen=True, kw_only=True):
    """Another resource of the same namespace."""

    name: str = ""


class PodSpec(_Strict, frozen=True, kw_only=True):
    """The pod-level fields that Knative allows; a RevisionSpec adds its own."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    service_account_name: str = ""
    image_pull_secrets: tuple[LocalObjectReference, ...] = ()
    enable_service_links: bool | None = None
    automount_service_account_token: bool | None = None
    affinity: dict[str, Any] | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    topology_spread_constraints: tuple[dict[str, Any], ...] = ()
    runtime_class_name: str | None = None
    priority_class_name: str = ""
    scheduler_name: str = ""
    dns_policy: str = ""
    dns_config: dict[str, Any] | None = None
    host_aliases: tuple[dict[str, Any], ...] = ()
    security_context: dict[str, Any] | None = None
    share_process_namespace: bool | None = None
    host_network: bool = False
    host_pid: bool = msgspec.field(default=False, name="hostPID")
    host_ipc: bool = msgspec.field(default=False, name="hostIPC")


def serving_container(pod: PodSpec) -> int:
    """The index of the container that takes requests: the only one, or the one with a port."""
    return next((index for index, one in enumerate(pod.containers) if one.ports), 0)


def parse_quantity(text: str | float) -> Decimal:
    """The number of a Kubernetes quantity: ``500m`` is 0.5, ``64Mi`` 67108864. Raises ValueError."""
    match = _QUANTITY.match(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 64Mi")
    number, suffix = match[1], match[2]
    try:
        return Decimal(number) * _SCALES[suffix] if suffix in _SCALES else Decimal(number + suffix)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 64Mi") from error
