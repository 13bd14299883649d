"""From a Revision to what its instances run: the serving container, with the sources of its variables resolved."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from core.resources import Key, KindRef, Resource, owner_reference, parse_go_duration
from core.resources.builtin import CONFIG_MAP, SECRET
from serving.instances.port import CannotRun, InstanceSpec, PodTemplate, Readiness
from serving.podspec import Container, EnvFromSource, EnvVar, KeyRef, Probe, parse_quantity, serving_container
from serving.resources import (
    DEFAULT_TIMEOUT_S,
    HANDLER_ANNOTATION,
    LABEL_CONFIGURATION,
    LABEL_SERVICE,
    SOURCE_ANNOTATION,
    RevisionSpec,
    spec_of,
)
from serving.scaling import PROGRESS_DEADLINE

__all__ = ["FOLLOWED", "Lookup", "instance_spec"]

Lookup = Callable[[Key], Resource | None]

#: The kinds that a lookup must know.
FOLLOWED: Final[frozenset[KindRef]] = frozenset({CONFIG_MAP, SECRET})

#: Kubernetes' reason for a container whose variables cannot be filled in.
CONFIG_ERROR: Final = "CreateContainerConfigError"

#: How long an instance may take to start (Knative's progress deadline).
START_TIMEOUT_S: Final = 600.0


def instance_spec(revision: Resource, lookup: Lookup | None = None) -> InstanceSpec:
    """What to run for the Revision.

    With a `lookup` the sources of its variables are resolved, and CannotRun is raised where a ConfigMap or Secret that
    it needs is not there. Without one that is left to where it runs: in a cluster to the kubelet, so that Secrets are
    neither read here nor copied into pods.
    """
    spec = spec_of(revision, RevisionSpec)
    container = spec.containers[serving_container(spec)]
    annotations, labels = revision.meta.annotations, revision.meta.labels
    limit = container.resources.limits.get("memory")
    deadline = annotations.get(PROGRESS_DEADLINE)
    return InstanceSpec(
        namespace=revision.meta.namespace,
        revision=revision.meta.name,
        service=labels.get(LABEL_SERVICE, ""),
        configuration=labels.get(LABEL_CONFIGURATION, ""),
        image=container.image,
        source=annotations.get(SOURCE_ANNOTATION, ""),
        handler=annotations.get(HANDLER_ANNOTATION, ""),
        command=container.command,
        args=container.args,
        working_dir=container.working_dir,
        environment=_environment(revision, container, lookup) if lookup is not None else {},
        mounts=tuple(mount.mount_path for mount in container.volume_mounts),
        init_containers=tuple(one.name for one in spec.init_containers),
        port=container.ports[0].container_port if container.ports else 0,
        readiness=_readiness(container.readiness_probe),
        memory_limit=int(parse_quantity(limit)) if limit is not None else None,
        start_timeout_s=parse_go_duration(deadline) if deadline else START_TIMEOUT_S,
        drain_timeout_s=float(spec.timeout_seconds or DEFAULT_TIMEOUT_S),
        template=PodTemplate(
            owner=owner_reference(revision), labels=labels, annotations=annotations, spec=revision.spec
        ),
    )


def _readiness(probe: Probe | None) -> Readiness:
    if probe is None:
        return Readiness()
    timing: dict[str, Any] = {
        "initial_delay_s": float(probe.initial_delay_seconds),
        "timeout_s": float(probe.timeout_seconds or 1),
        "successes": max(1, probe.success_threshold),
    }
    if probe.http_get is not None:
        headers = tuple((header.name, header.value) for header in probe.http_get.http_headers)
        return Readiness(kind="http", path=probe.http_get.path or "/", headers=headers, **timing)
    if probe.exec is not None:
        return Readiness(kind="exec", command=probe.exec.command, **timing)
    # A gRPC health check needs HTTP/2, which the platform does not speak; that it listens is as much as can be told.
    return Readiness(kind="tcp", **timing)


def _environment(revision: Resource, container: Container, lookup: Lookup) -> dict[str, str]:
    """Later wins, as in Kubernetes: whole sources in their order, then single variables."""
    found: dict[str, str] = {}
    namespace = revision.meta.namespace
    for source in container.env_from:
        found.update(_whole(source, namespace, lookup))
    for variable in container.env:
        value = _value(variable, revision, lookup)
        if value is not None:
            found[variable.name] = _expanded(value, found)
    return found


def _whole(source: EnvFromSource, namespace: str, lookup: Lookup) -> Iterator[tuple[str, str]]:
    for kind, ref in ((CONFIG_MAP, source.config_map_ref), (SECRET, source.secret_ref)):
        if ref is None:
            continue
        data = _data(kind, namespace, ref.name, lookup)
        if data is None and not ref.optional:
            raise CannotRun(CONFIG_ERROR, f'{kind.kind} "{ref.name}", which envFrom names, does not exist.')
        for name, value in (data or {}).items():
            yield source.prefix + name, value


def _value(variable: EnvVar, revision: Resource, lookup: Lookup) -> str | None:
    source = variable.value_from
    if source is None:
        return variable.value or ""
    for kind, ref in ((CONFIG_MAP, source.config_map_key_ref), (SECRET, source.secret_key_ref)):
        if ref is not None:
            return _key(kind, ref, variable.name, revision.meta.namespace, lookup)
    if source.field_ref is not None:
        return _field(source.field_ref.field_path, variable.name, revision)
    if source.resource_field_ref is not None:
        what = source.resource_field_ref.get("resource")
        raise CannotRun(CONFIG_ERROR, f"The variable {variable.name} cannot be set: {what} is not measured out here.")
    return None


def _key(kind: KindRef, ref: KeyRef, variable: str, namespace: str, lookup: Lookup) -> str | None:
    data = _data(kind, namespace, ref.name, lookup)
    if data is not None and ref.key in data:
        return data[ref.key]
    if ref.optional:
        return None
    problem = "does not exist" if data is None else f"has no key {ref.key}"
    raise CannotRun(CONFIG_ERROR, f'The variable {variable} cannot be set: {kind.kind} "{ref.name}" {problem}.')


def _field(path: str, variable: str, revision: Resource) -> str:
    """The downward fields that mean something for a local process."""
    meta = revision.meta
    if path == "metadata.namespace":
        return meta.namespace
    for prefix, values in (("metadata.labels['", meta.labels), ("metadata.annotations['", meta.annotations)):
        if path.startswith(prefix) and path.endswith("']"):
            return values.get(path[len(prefix) : -2], "")
    raise CannotRun(CONFIG_ERROR, f"The variable {variable} cannot be set: the field {path} does not exist here.")


def _data(kind: KindRef, namespace: str, name: str, lookup: Lookup) -> Mapping[str, str] | None:
    resource = lookup(Key(kind, namespace, name))
    if resource is None:
        return None
    data = dict(resource.body.get("data") or {})
    if kind != SECRET:
        return {key: str(value) for key, value in data.items()}
    plain = {str(key): str(value) for key, value in (resource.body.get("stringData") or {}).items()}
    return {**{key: _decoded(str(value), name, key) for key, value in data.items()}, **plain}


def _decoded(value: str, name: str, key: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise CannotRun(CONFIG_ERROR, f'Secret "{name}": the key {key} is not text in base64.') from error


def _expanded(value: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` of variables defined before, as Kubernetes expands values."""
    for name, text in known.items():
        value = value.replace(f"$({name})", text)
    return value
