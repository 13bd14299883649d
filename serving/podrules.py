"""What must hold of a Revision's pod specification.

Source: knative/serving `pkg/apis/serving/k8s_validation.go`, with all of its feature flags on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from posixpath import normpath
from typing import Final

from core.errors import FieldError
from serving.podspec import (
    Container,
    ContainerPort,
    PodSpec,
    Probe,
    Volume,
    VolumeMount,
    parse_quantity,
    serving_container,
)

__all__ = ["validate_pod"]

_DNS_1123_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?\Z")
_DNS_1123_SUBDOMAIN: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*\Z"
)
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*\Z")
_RESERVED_ENV: Final = frozenset({"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"})
_RESERVED_PATHS: Final = frozenset({"/", "/dev", "/dev/log"})
#: Ports of Knative's queue-proxy; a manifest that uses one would not start on Knative.
_RESERVED_PORTS: Final = frozenset({8012, 8013, 8022, 9090, 9091, 8008})
_VOLUME_SOURCES: Final = (
    "secret, configMap, projected, emptyDir, persistentVolumeClaim, hostPath, csi, ephemeral, image"
)


def validate_pod(pod: PodSpec, path: str) -> Iterator[FieldError]:
    """Each broken rule of the pod specification found at `path`."""
    if pod.automount_service_account_token:
        yield FieldError(path=f"{path}.automountServiceAccountToken", rule="may only be set to false", value=True)
    if pod.service_account_name and not _DNS_1123_SUBDOMAIN.match(pod.service_account_name):
        rule = "must be a DNS-1123 subdomain"
        yield FieldError(path=f"{path}.serviceAccountName", rule=rule, value=pod.service_account_name)
    everything = (*pod.containers, *pod.init_containers)
    mounted = {mount.name for container in everything for mount in container.volume_mounts}
    yield from _validate_volumes(pod.volumes, mounted, f"{path}.volumes")
    if not pod.containers:
        yield FieldError(path=f"{path}.containers", rule="needs at least one container")
        return
    yield from _validate_port_count(pod, path)
    names: set[str] = set()
    serving = serving_container(pod)
    volumes = {volume.name: volume for volume in pod.volumes}
    for word, containers in (("containers", pod.containers), ("initContainers", pod.init_containers)):
        for index, container in enumerate(containers):
            place = f"{path}.{word}[{index}]"
            if container.name in names:
                yield FieldError(path=f"{place}.name", rule="must be unique", value=container.name)
            names.add(container.name)
            takes_requests = containers is pod.containers and index == serving
            yield from _validate_container(container, place, takes_requests=takes_requests)
            yield from _validate_mounts(container.volume_mounts, volumes, f"{place}.volumeMounts")
            if containers is pod.init_containers:
                yield from _validate_init(container, place)
            elif container.restart_policy:
                rule = "may only be given to an init container"
                yield FieldError(path=f"{place}.restartPolicy", rule=rule, value=container.restart_policy)


def _validate_init(container: Container, path: str) -> Iterator[FieldError]:
    """What sets an init container apart; as a sidecar (Kubernetes', not Knative's) it may be probed."""
    if container.restart_policy not in ("", "Always"):
        yield FieldError(path=f"{path}.restartPolicy", rule="must be Always", value=container.restart_policy)
    if container.restart_policy:
        return
    for word, probe in (
        ("livenessProbe", container.liveness_probe),
        ("readinessProbe", container.readiness_probe),
        ("startupProbe", container.startup_probe),
    ):
        if probe is not None:
            yield FieldError(path=f"{path}.{word}", rule="is not allowed in an init container")


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
    if (container.security_context or {}).get("privileged"):
        yield FieldError(path=f"{path}.securityContext.privileged", rule="may only be set to false", value=True)
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
        refs = (source.config_map_key_ref, source.secret_key_ref, source.field_ref, source.resource_field_ref)
        if sum(ref is not None for ref in refs) != 1:
            rule = "needs exactly one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef"
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
        if len(volume.sources) != 1:
            yield FieldError(path=place, rule=f"needs exactly one of {_VOLUME_SOURCES}")


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
        if volume is not None and not volume.is_writable and not mount.read_only:
            yield FieldError(path=f"{place}.readOnly", rule="must be true for this type of volume", value=False)
        if mount.mount_propagation not in (None, "None", "HostToContainer"):
            rule = "must be None or HostToContainer"
            yield FieldError(path=f"{place}.mountPropagation", rule=rule, value=mount.mount_propagation)
