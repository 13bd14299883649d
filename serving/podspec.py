"""The part of a Kubernetes pod specification that Knative lets a Revision use, as frozen values, and its rules.

Sources: knative/serving `pkg/apis/serving/fieldmask.go` (which fields exist) and `k8s_validation.go` (what must hold).
Fields that Knative puts behind feature flags are refused, as they are with Knative's default flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from posixpath import normpath
from typing import Any, Final

import msgspec

from core.errors import FieldError

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
    "parse_quantity",
    "serving_container",
    "validate_pod",
]

#: DNS-1035, as Kubernetes checks Service names: Knative makes host names of Service, Revision and tag names.
DNS_LABEL: Final = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?\Z")
_DNS_1123_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?\Z")
_DNS_1123_SUBDOMAIN: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*\Z"
)
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*\Z")
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
_RESERVED_ENV: Final = frozenset({"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"})
_RESERVED_PATHS: Final = frozenset({"/", "/dev", "/dev/log"})
#: Ports of Knative's queue-proxy; a manifest that uses one would not start on Knative.
_RESERVED_PORTS: Final = frozenset({8012, 8013, 8022, 9090, 9091, 8008})


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
    """Quantities by resource name ("cpu", "memory", "ephemeral-storage")."""

    limits: dict[str, str | int | float] = {}
    requests: dict[str, str | int | float] = {}


class VolumeMount(_Strict, frozen=True, kw_only=True):
    """Where a volume appears in the container."""

    name: str
    mount_path: str = ""
    sub_path: str = ""
    read_only: bool = False


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


class Volume(_Strict, frozen=True, kw_only=True):
    """A volume of one source."""

    name: str = ""
    secret: dict[str, Any] | None = None
    config_map: dict[str, Any] | None = None
    projected: dict[str, Any] | None = None
    empty_dir: dict[str, Any] | None = None


class LocalObjectReference(_Strict, frozen=True, kw_only=True):
    """Another resource of the same namespace."""

    name: str = ""


class PodSpec(_Strict, frozen=True, kw_only=True):
    """The pod-level fields that Knative allows; a RevisionSpec adds its own."""

    containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    service_account_name: str = ""
    image_pull_secrets: tuple[LocalObjectReference, ...] = ()
    enable_service_links: bool | None = None
    automount_service_account_token: bool | None = None


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


def validate_pod(pod: PodSpec, path: str) -> Iterator[FieldError]:
    """Each broken rule of the pod specification found at `path`."""
    if pod.automount_service_account_token:
        yield FieldError(path=f"{path}.automountServiceAccountToken", rule="may only be set to false", value=True)
    if pod.service_account_name and not _DNS_1123_SUBDOMAIN.match(pod.service_account_name):
        rule = "must be a DNS-1123 subdomain"
        yield FieldError(path=f"{path}.serviceAccountName", rule=rule, value=pod.service_account_name)
    mounted = {mount.name for container in pod.containers for mount in container.volume_mounts}
    yield from _validate_volumes(pod.volumes, mounted, f"{path}.volumes")
    if not pod.containers:
        yield FieldError(path=f"{path}.containers", rule="needs at least one container")
        return
    yield from _validate_port_count(pod, path)
    names: set[str] = set()
    serving = serving_container(pod)
    volumes = {volume.name: volume for volume in pod.volumes}
    for index, container in enumerate(pod.containers):
        place = f"{path}.containers[{index}]"
        if container.name in names:
            yield FieldError(path=f"{place}.name", rule="must be unique", value=container.name)
        names.add(container.name)
        yield from _validate_container(container, place, takes_requests=index == serving)
        yield from _validate_mounts(container.volume_mounts, volumes, f"{place}.volumeMounts")


def _validate_port_count(pod: PodSpec, path: str) -> Iterator[FieldError]:
    count = sum(len(container.ports) for container in pod.containers)
    if count > 1:
        rule = "only a single port is allowed across all containers"
        yield FieldError(path=f"{path}.containers[*].ports", rule=rule, value=count)
    elif count == 0 and len(pod.containers) > 1:
        rule = "with several containers, the one that takes requests must name its port"
        yield FieldError(path=f"{path}.containers[*].ports", rule=rule)


def _validate_container(container: Container, path: str, *, takes_requests: bool) -> Iterator[FieldError]:
    if container.name == "queue-proxy":
        yield FieldError(path=f"{path}.name", rule="is a reserved container name", value=container.name)
    elif container.name and not _DNS_1123_LABEL.match(container.name):
        yield FieldError(path=f"{path}.name", rule="must be a DNS-1123 label", value=container.name)
    if not container.image:
        yield FieldError(path=f"{path}.image", rule="is required")
    elif not _IMAGE.match(container.image):
        yield FieldError(path=f"{path}.image", rule="must be an image reference", value=container.image)
    yield from _validate_env(container, path, reserved=_RESERVED_ENV if takes_requests else _RESERVED_ENV - {"PORT"})
    for index, port in enumerate(container.ports):
        yield from _validate_port(port, f"{path}.ports[{index}]")
    for word, amounts in (("limits", container.resources.limits), ("requests", container.resources.requests)):
        yield from _validate_quantities(amounts, f"{path}.resources.{word}")
    policy = container.termination_message_policy
    if policy not in ("", "File", "FallbackToLogsOnError"):
        rule = "must be File or FallbackToLogsOnError"
        yield FieldError(path=f"{path}.terminationMessagePolicy", rule=rule, value=policy)
    if container.image_pull_policy not in ("", "Always", "IfNotPresent", "Never"):
        rule = "must be Always, IfNotPresent or Never"
        yield FieldError(path=f"{path}.imagePullPolicy", rule=rule, value=container.image_pull_policy)
    for word, probe in (
        ("livenessProbe", container.liveness_probe),
        ("readinessProbe", container.readiness_probe),
        ("startupProbe", container.startup_probe),
    ):
        if probe is not None:
            yield from _validate_probe(probe, f"{path}.{word}", readiness=word == "readinessProbe")


def _validate_env(container: Container, path: str, reserved: frozenset[str]) -> Iterator[FieldError]:
    for index, variable in enumerate(container.env):
        place = f"{path}.env[{index}]"
        if not variable.name:
            yield FieldError(path=f"{place}.name", rule="is required")
        elif variable.name in reserved:
            yield FieldError(
                path=f"{place}.name", rule="is set by the platform and cannot be given", value=variable.name
            )
        elif "=" in variable.name or "\0" in variable.name:
            yield FieldError(path=f"{place}.name", rule="must not hold '='", value=variable.name)
        source = variable.value_from
        if source is None:
            continue
        given = [ref for ref in (source.config_map_key_ref, source.secret_key_ref, source.field_ref) if ref is not None]
        if len(given) != 1:
            rule = "needs exactly one of configMapKeyRef, secretKeyRef, fieldRef"
            yield FieldError(path=f"{place}.valueFrom", rule=rule)
        if variable.value:
            yield FieldError(path=f"{place}.valueFrom", rule="must not be given together with value")
    for index, whole in enumerate(container.env_from):
        if (whole.config_map_ref is None) == (whole.secret_ref is None):
            rule = "needs exactly one of configMapRef and secretRef"
            yield FieldError(path=f"{path}.envFrom[{index}]", rule=rule)


def _validate_port(port: ContainerPort, path: str) -> Iterator[FieldError]:
    if port.container_port in _RESERVED_PORTS:
        yield FieldError(
            path=f"{path}.containerPort", rule="is a port that Knative reserves", value=port.container_port
        )
    if not 0 <= port.container_port <= 65535:
        yield FieldError(path=f"{path}.containerPort", rule="must be within 0 and 65535", value=port.container_port)
    if port.protocol not in ("", "TCP"):
        yield FieldError(path=f"{path}.protocol", rule="must be TCP", value=port.protocol)
    if port.name not in ("", "http1", "h2c"):
        yield FieldError(path=f"{path}.name", rule="must be empty, http1 or h2c", value=port.name)


def _validate_quantities(amounts: Mapping[str, str | int | float], path: str) -> Iterator[FieldError]:
    for name, amount in amounts.items():
        try:
            parsed = parse_quantity(amount)
        except ValueError as error:
            yield FieldError(path=f"{path}.{name}", rule=str(error))
            continue
        if parsed < 0:
            yield FieldError(path=f"{path}.{name}", rule="must not be negative", value=amount)


def _validate_probe(probe: Probe, path: str, *, readiness: bool) -> Iterator[FieldError]:
    given = [one for one in (probe.http_get, probe.tcp_socket, probe.exec, probe.grpc) if one is not None]
    if len(given) != 1:
        yield FieldError(path=path, rule="needs exactly one of httpGet, tcpSocket, exec, grpc")
    for name, value in (
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ):
        if value < 0:
            yield FieldError(path=f"{path}.{name}", rule="must not be negative", value=value)
    if readiness and probe.period_seconds == 0:
        # Period zero asks for Knative's own quick probing, which has no thresholds.
        for name, value in (("failureThreshold", probe.failure_threshold), ("timeoutSeconds", probe.timeout_seconds)):
            if value:
                rule = "is not allowed where periodSeconds is zero"
                yield FieldError(path=f"{path}.{name}", rule=rule, value=value)


def _validate_volumes(volumes: tuple[Volume, ...], mounted: set[str], path: str) -> Iterator[FieldError]:
    seen: set[str] = set()
    for index, volume in enumerate(volumes):
        place = f"{path}[{index}]"
        if not volume.name:
            yield FieldError(path=f"{place}.name", rule="is required")
        elif not _DNS_1123_LABEL.match(volume.name):
            yield FieldError(path=f"{place}.name", rule="must be a DNS-1123 label", value=volume.name)
        if volume.name in seen:
            yield FieldError(path=f"{place}.name", rule="must be unique", value=volume.name)
        elif volume.name not in mounted:
            yield FieldError(path=f"{place}.name", rule="must be mounted by a container", value=volume.name)
        seen.add(volume.name)
        given = [
            one for one in (volume.secret, volume.config_map, volume.projected, volume.empty_dir) if one is not None
        ]
        if len(given) != 1:
            yield FieldError(path=place, rule="needs exactly one of secret, configMap, projected, emptyDir")


def _validate_mounts(mounts: tuple[VolumeMount, ...], volumes: Mapping[str, Volume], path: str) -> Iterator[FieldError]:
    seen: set[str] = set()
    for index, mount in enumerate(mounts):
        place = f"{path}[{index}]"
        volume = volumes.get(mount.name)
        if volume is None:
            yield FieldError(path=f"{place}.name", rule="has no matching volume", value=mount.name)
        clean = normpath(mount.mount_path) if mount.mount_path else ""
        if not clean:
            yield FieldError(path=f"{place}.mountPath", rule="is required")
        elif not clean.startswith("/"):
            yield FieldError(path=f"{place}.mountPath", rule="must be absolute", value=mount.mount_path)
        elif clean in _RESERVED_PATHS:
            yield FieldError(path=f"{place}.mountPath", rule="is a reserved path", value=mount.mount_path)
        elif clean in seen:
            yield FieldError(path=f"{place}.mountPath", rule="must be unique", value=mount.mount_path)
        seen.add(clean)
        if volume is not None and volume.empty_dir is None and not mount.read_only:
            yield FieldError(path=f"{place}.readOnly", rule="must be true for this type of volume", value=False)
