"""The kinds of the serving half: Service, Configuration, Revision, Route, and the internal PodAutoscaler.

Sources: knative/serving `pkg/apis/serving/v1` (defaults and validation), `config/core/300-resources` (columns) and
the Knative Serving API specification 1.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec

from core.errors import FieldError
from core.resources import Column, Kind, KindRef, Resource, parse_go_duration
from serving.podrules import validate_pod
from serving.podspec import DNS_LABEL, PodSpec, serving_container
from serving.scaling import AUTOSCALING_GROUP, validate_scaling

__all__ = [
    "CONFIGURATION",
    "ENDPOINT_SLICE",
    "GROUP",
    "HANDLER_ANNOTATION",
    "KINDS",
    "LABEL_CONFIGURATION",
    "LABEL_CONFIGURATION_GENERATION",
    "LABEL_CONFIGURATION_UID",
    "LABEL_REVISION",
    "LABEL_SERVICE",
    "LABEL_SERVICE_UID",
    "POD_AUTOSCALER",
    "REVISION",
    "ROLLOUT_DURATION",
    "ROUTE",
    "SERVICE",
    "SOURCE_ANNOTATION",
    "ConfigurationSpec",
    "PodAutoscalerSpec",
    "RevisionSpec",
    "RouteSpec",
    "ScaleTargetRef",
    "ServiceSpec",
    "Template",
    "TrafficTarget",
    "child_name",
    "protocol_of",
    "spec_of",
]

GROUP: Final = "serving.knative.dev"

SERVICE: Final = KindRef(GROUP, "v1", "Service")
CONFIGURATION: Final = KindRef(GROUP, "v1", "Configuration")
REVISION: Final = KindRef(GROUP, "v1", "Revision")
ROUTE: Final = KindRef(GROUP, "v1", "Route")
POD_AUTOSCALER: Final = KindRef("autoscaling.internal.knative.dev", "v1alpha1", "PodAutoscaler")
#: Declared in core; named here because the autoscaler writes it and the gateway reads it.
ENDPOINT_SLICE: Final = KindRef("discovery.k8s.io", "v1", "EndpointSlice")

LABEL_SERVICE: Final = f"{GROUP}/service"
LABEL_SERVICE_UID: Final = f"{GROUP}/serviceUID"
LABEL_CONFIGURATION: Final = f"{GROUP}/configuration"
LABEL_CONFIGURATION_UID: Final = f"{GROUP}/configurationUID"
LABEL_CONFIGURATION_GENERATION: Final = f"{GROUP}/configurationGeneration"
LABEL_REVISION: Final = f"{GROUP}/revision"
ROLLOUT_DURATION: Final = f"{GROUP}/rollout-duration"

#: A folder or a command that runs a Revision where there are no containers.
SOURCE_ANNOTATION: Final = "penstock.dev/source"
#: ``module:attribute`` of a Python function or ASGI application in that folder.
HANDLER_ANNOTATION: Final = "penstock.dev/handler"

#: Knative's `config-defaults`.
DEFAULT_TIMEOUT_S: Final = 300
MAX_TIMEOUT_S: Final = 600
MAX_CONTAINER_CONCURRENCY: Final = 1000
DEFAULT_CONTAINER_NAME: Final = "user-container"
DEFAULT_INIT_CONTAINER_NAME: Final = "init-container"

_MAX_NAME: Final = 63

T = TypeVar("T", bound=msgspec.Struct)


class _Strict(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """Camel-case member names; an unknown member is an error."""


class RevisionSpec(PodSpec, frozen=True, kw_only=True):
    """What a Revision runs and how requests reach it. Times in seconds; `container_concurrency` 0 is without limit."""

    container_concurrency: int | None = None
    timeout_seconds: int | None = None
    response_start_timeout_seconds: int | None = None
    idle_timeout_seconds: int | None = None


class TemplateMeta(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The metadata that a Revision starts with. Other members are ignored, as Kubernetes does within a template."""

    name: str = ""
    generate_name: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Template(_Strict, frozen=True, kw_only=True):
    """From what a Configuration makes its Revisions."""

    metadata: TemplateMeta = TemplateMeta()
    spec: RevisionSpec = RevisionSpec()


class TrafficTarget(_Strict, frozen=True, kw_only=True):
    """A share of a Route's requests for one Revision, and perhaps a name (tag) to reach it by."""

    revision_name: str = ""
    configuration_name: str = ""
    latest_revision: bool | None = None
    percent: int | None = None
    tag: str = ""
    url: str = ""


class ServiceSpec(_Strict, frozen=True, kw_only=True):
    """A Configuration and a Route in one."""

    template: Template
    traffic: tuple[TrafficTarget, ...] = ()


class ConfigurationSpec(_Strict, frozen=True, kw_only=True):
    """The latest wanted state of a function: each change makes a Revision."""

    template: Template


class RouteSpec(_Strict, frozen=True, kw_only=True):
    """How requests for a host name are shared out."""

    traffic: tuple[TrafficTarget, ...] = ()


class ScaleTargetRef(_Strict, frozen=True, kw_only=True):
    """What is scaled: here always the Revision of the same name."""

    api_version: str
    kind: str
    name: str


class PodAutoscalerSpec(_Strict, frozen=True, kw_only=True):
    """Asks for a Revision to be scaled. `reachability` is "", "Reachable" or "Unreachable" (no Route leads to it)."""

    scale_target_ref: ScaleTargetRef
    protocol_type: Literal["http1", "h2c"]
    container_concurrency: int = 0
    reachability: Literal["", "Reachable", "Unreachable"] = ""


def spec_of(resource: Resource, spec_type: type[T]) -> T:
    """The resource's spec as a value. It was checked when it was stored, so a failure is a corrupt store."""
    return msgspec.convert(resource.spec, spec_type)


def protocol_of(pod: PodSpec) -> Literal["http1", "h2c"]:
    """The protocol that the serving container speaks, from its port's name."""
    ports = pod.containers[serving_container(pod)].ports if pod.containers else ()
    return "h2c" if ports and ports[0].name == "h2c" else "http1"


def child_name(parent: str, suffix: str) -> str:
    """`parent` + `suffix`, shortened with a digest of the parent where it would be longer than a DNS label."""
    if len(parent) + len(suffix) <= _MAX_NAME:
        return parent + suffix
    digest = hashlib.sha256(parent.encode()).hexdigest()[:16]
    return parent[: _MAX_NAME - len(digest) - len(suffix)] + digest + suffix


# Defaults


def _default_service(resource: Resource) -> Resource:
    spec = {**resource.spec, "template": _default_template(resource.spec.get("template") or {})}
    return resource.with_spec({**spec, "traffic": _default_traffic(spec.get("traffic"), latest=True)})


def _default_configuration(resource: Resource) -> Resource:
    return resource.with_spec({**resource.spec, "template": _default_template(resource.spec.get("template") or {})})


def _default_revision(resource: Resource) -> Resource:
    # An existing Revision's spec never changes, so defaults that came later must not be added to it.
    return resource if resource.meta.uid else resource.with_spec(_default_pod(resource.spec))


def _default_route(resource: Resource) -> Resource:
    return resource.with_spec(
        {**resource.spec, "traffic": _default_traffic(resource.spec.get("traffic"), latest=False)}
    )


def _default_traffic(traffic: Iterable[Mapping[str, Any]] | None, *, latest: bool) -> list[dict[str, Any]]:
    if not traffic:
        return [{"latestRevision": True, "percent": 100}] if latest else []
    filled = []
    for target in traffic:
        entry = dict(target)
        if entry.get("latestRevision") is None:
            entry["latestRevision"] = not entry.get("revisionName")
        if entry.get("percent") is None:
            entry["percent"] = 0
        filled.append(entry)
    return filled


def _default_template(template: Mapping[str, Any]) -> dict[str, Any]:
    return {**template, "spec": _default_pod(template.get("spec") or {})}


def _default_pod(spec: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(spec)
    if filled.get("containerConcurrency") is None:
        filled["containerConcurrency"] = 0
    if not filled.get("timeoutSeconds"):
        filled["timeoutSeconds"] = DEFAULT_TIMEOUT_S
    if filled.get("enableServiceLinks") is None:
        filled["enableServiceLinks"] = False
    containers = list(filled.get("containers") or ())
    writable = {volume.get("name") for volume in filled.get("volumes") or () if _is_writable(volume)}
    initial = list(filled.get("initContainers") or ())
    names = _free_names(containers, initial, DEFAULT_CONTAINER_NAME)
    filled["containers"] = [
        _default_container(
            container,
            name=container.get("name") or next(names),
            serving=len(containers) == 1 or bool(container.get("ports")),
            writable=writable,
        )
        for container in containers
    ]
    if initial:
        names = _free_names(initial, containers, DEFAULT_INIT_CONTAINER_NAME)
        filled["initContainers"] = [
            _default_mounts({**container, "name": container.get("name") or next(names)}, writable)
            for container in initial
        ]
    return filled


def _is_writable(volume: Mapping[str, Any]) -> bool:
    return any(volume.get(source) is not None for source in ("emptyDir", "persistentVolumeClaim", "ephemeral"))


def _free_names(containers: list[Mapping[str, Any]], others: list[Mapping[str, Any]], default: str) -> Iterator[str]:
    """Default names: the plain one for a single container, numbered ones otherwise, none taken already."""
    taken = {container.get("name") for container in (*containers, *others)}
    if len(containers) == 1 and default not in taken:
        yield default
        return
    number = 0
    while True:
        name = f"{default}-{number}"
        number += 1
        if name not in taken:
            yield name


def _default_container(
    container: Mapping[str, Any], *, name: str, serving: bool, writable: set[str | None]
) -> dict[str, Any]:
    filled = {**container, "name": name, "resources": container.get("resources") or {}}
    probe = container.get("readinessProbe")
    if serving or probe is not None:
        probe = dict(probe or {})
        if serving and not any(probe.get(kind) for kind in ("tcpSocket", "httpGet", "exec", "grpc")):
            probe["tcpSocket"] = {"port": 0}
        if not probe.get("successThreshold"):
            probe["successThreshold"] = 1
        if probe.get("periodSeconds"):
            probe["failureThreshold"] = probe.get("failureThreshold") or 3
            probe["timeoutSeconds"] = probe.get("timeoutSeconds") or 1
        filled["readinessProbe"] = probe
    return _default_mounts(filled, writable)


def _default_mounts(container: dict[str, Any], writable: set[str | None]) -> dict[str, Any]:
    """What cannot be written to is mounted so."""
    if not container.get("volumeMounts"):
        return container
    mounts = [
        mount if mount.get("name") in writable else {**mount, "readOnly": True} for mount in container["volumeMounts"]
    ]
    return {**container, "volumeMounts": mounts}


# Validation


def _validate_service(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    spec = spec_of(new, ServiceSpec)
    yield from _validate_name(new)
    yield from _validate_no_scaling(new.meta.annotations)
    yield from _validate_rollout(new.meta.annotations)
    yield from _validate_template(spec.template, new.meta.name)
    yield from _validate_traffic(spec.traffic, own_configuration=True)
    if old is not None:
        yield from _validate_renamed(spec.template, new, old)


def _validate_configuration(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    spec = spec_of(new, ConfigurationSpec)
    yield from _validate_name(new)
    yield from _validate_no_scaling(new.meta.annotations)
    yield from _validate_owner_label(new, LABEL_SERVICE, "Service")
    yield from _validate_template(spec.template, new.meta.name)
    if old is not None:
        yield from _validate_renamed(spec.template, new, old)


def _validate_revision(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    yield from _validate_name(new)
    yield from validate_scaling(new.meta.annotations, "metadata.annotations")
    yield from _validate_owner_label(new, LABEL_CONFIGURATION, "Configuration")
    if old is None:
        yield from _validate_revision_spec(spec_of(new, RevisionSpec), "spec")
    elif new.spec != old.spec:
        changed = sorted(name for name in {*new.spec, *old.spec} if new.spec.get(name) != old.spec.get(name))
        rule = f"cannot be changed, because Revisions are immutable: {', '.join(changed)} differ"
        yield FieldError(path="spec", rule=rule)


def _validate_route(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    yield from _validate_name(new)
    yield from _validate_no_scaling(new.meta.annotations)
    yield from _validate_rollout(new.meta.annotations)
    yield from _validate_owner_label(new, LABEL_SERVICE, "Service")
    yield from _validate_traffic(spec_of(new, RouteSpec).traffic, own_configuration=False)


def _validate_name(resource: Resource) -> Iterator[FieldError]:
    name = resource.meta.name
    if not name and resource.meta.generate_name:
        return
    if not DNS_LABEL.match(name):
        rule = "must be a DNS label (a-z, 0-9 and '-', starting with a letter, at most 63 characters)"
        yield FieldError(path="metadata.name", rule=rule, value=name)


def _validate_no_scaling(annotations: Mapping[str, str]) -> Iterator[FieldError]:
    for key in annotations:
        if key.startswith(AUTOSCALING_GROUP):
            rule = "autoscaling annotations work only under spec.template.metadata.annotations"
            yield FieldError(path=f"metadata.annotations[{key}]", rule=rule)


def _validate_rollout(annotations: Mapping[str, str]) -> Iterator[FieldError]:
    text = annotations.get(ROLLOUT_DURATION)
    if not text:
        return
    path = f"metadata.annotations[{ROLLOUT_DURATION}]"
    try:
        seconds = parse_go_duration(text)
    except ValueError as error:
        yield FieldError(path=path, rule=str(error))
        return
    if seconds != int(seconds):
        yield FieldError(path=path, rule="must be given in whole seconds", value=text)


def _validate_owner_label(resource: Resource, label: str, kind: str) -> Iterator[FieldError]:
    name = resource.meta.labels.get(label)
    if name is None:
        return
    if not any(owner.kind == kind and owner.name == name for owner in resource.meta.owner_references):
        rule = f"is set by the platform and must name the owning {kind}"
        yield FieldError(path=f"metadata.labels[{label}]", rule=rule, value=name)


def _validate_template(template: Template, parent: str) -> Iterator[FieldError]:
    name = template.metadata.name
    path = "spec.template.metadata.name"
    if name and not DNS_LABEL.match(name):
        yield FieldError(path=path, rule="must be a DNS label", value=name)
    elif name and not name.startswith(f"{parent}-"):
        yield FieldError(path=path, rule=f'must start with "{parent}-"', value=name)
    yield from validate_scaling(template.metadata.annotations, "spec.template.metadata.annotations")
    yield from _validate_revision_spec(template.spec, "spec.template.spec")


def _validate_renamed(template: Template, new: Resource, old: Resource) -> Iterator[FieldError]:
    """A template that names its Revision must name another one whenever it changes."""
    before = old.spec.get("template") or {}
    if not template.metadata.name or (before.get("metadata") or {}).get("name") != template.metadata.name:
        return
    if new.spec.get("template") != before:
        rule = "must change together with the template, because a Revision is immutable"
        yield FieldError(path="spec.template.metadata.name", rule=rule, value=template.metadata.name)


def _validate_revision_spec(spec: RevisionSpec, path: str) -> Iterator[FieldError]:
    yield from validate_pod(spec, path)
    concurrency = spec.container_concurrency
    if concurrency is not None and not 0 <= concurrency <= MAX_CONTAINER_CONCURRENCY:
        rule = f"must be within 0 and {MAX_CONTAINER_CONCURRENCY}"
        yield FieldError(path=f"{path}.containerConcurrency", rule=rule, value=concurrency)
    timeout = spec.timeout_seconds
    if timeout is not None and not 0 <= timeout <= MAX_TIMEOUT_S:
        yield FieldError(path=f"{path}.timeoutSeconds", rule=f"must be within 0 and {MAX_TIMEOUT_S}", value=timeout)
    for name, value in (
        ("responseStartTimeoutSeconds", spec.response_start_timeout_seconds),
        ("idleTimeoutSeconds", spec.idle_timeout_seconds),
    ):
        if value is not None and not 0 <= value <= (timeout or DEFAULT_TIMEOUT_S):
            rule = "must be within 0 and timeoutSeconds"
            yield FieldError(path=f"{path}.{name}", rule=rule, value=value)


def _validate_traffic(traffic: tuple[TrafficTarget, ...], *, own_configuration: bool) -> Iterator[FieldError]:
    tags: dict[str, int] = {}
    for index, target in enumerate(traffic):
        path = f"spec.traffic[{index}]"
        yield from _validate_target(target, path, own_configuration=own_configuration)
        if not target.tag:
            continue
        if not DNS_LABEL.match(target.tag):
            yield FieldError(path=f"{path}.tag", rule="must be a DNS label", value=target.tag)
        if target.tag in tags:
            rule = f"must be unique, but is also the tag of spec.traffic[{tags[target.tag]}]"
            yield FieldError(path=f"{path}.tag", rule=rule, value=target.tag)
        tags.setdefault(target.tag, index)
    total = sum(target.percent or 0 for target in traffic)
    if total != 100:
        yield FieldError(path="spec.traffic", rule="the percents must add up to 100", value=total)


def _validate_target(target: TrafficTarget, path: str, *, own_configuration: bool) -> Iterator[FieldError]:
    pinned = bool(target.revision_name)
    if target.latest_revision is not None and target.latest_revision == pinned:
        rule = "must be false together with revisionName" if pinned else "must be true where there is no revisionName"
        yield FieldError(path=f"{path}.latestRevision", rule=rule, value=target.latest_revision)
    if own_configuration and target.configuration_name:
        rule = "cannot be given, because a Service routes to its own Configuration"
        yield FieldError(path=f"{path}.configurationName", rule=rule, value=target.configuration_name)
    elif pinned and target.configuration_name:
        yield FieldError(path=path, rule="must have one of revisionName and configurationName, not both")
    elif not own_configuration and not pinned and not target.configuration_name:
        yield FieldError(path=path, rule="needs revisionName or configurationName")
    for name, value in (("revisionName", target.revision_name), ("configurationName", target.configuration_name)):
        if value and not DNS_LABEL.match(value):
            yield FieldError(path=f"{path}.{name}", rule="must be a DNS label", value=value)
    if target.percent is not None and not 0 <= target.percent <= 100:
        yield FieldError(path=f"{path}.percent", rule="must be within 0 and 100", value=target.percent)
    if target.url:
        yield FieldError(path=f"{path}.url", rule="is set by the platform and cannot be given", value=target.url)


_READY: Final = (
    Column(name="Ready", path=".status.conditions[Ready].status"),
    Column(name="Reason", path=".status.conditions[Ready].reason"),
)
_LATEST: Final = (
    Column(name="LatestCreated", path=".status.latestCreatedRevisionName"),
    Column(name="LatestReady", path=".status.latestReadyRevisionName"),
)

KINDS: Final = (
    Kind(
        ref=SERVICE,
        plural="services",
        singular="service",
        short_names=("kservice", "ksvc"),
        categories=("all", "knative", "serving"),
        spec_type=ServiceSpec,
        default=_default_service,
        validate=_validate_service,
        columns=(Column(name="URL", path=".status.url"), *_LATEST, *_READY),
    ),
    Kind(
        ref=CONFIGURATION,
        plural="configurations",
        singular="configuration",
        short_names=("config", "cfg"),
        categories=("all", "knative", "serving"),
        spec_type=ConfigurationSpec,
        default=_default_configuration,
        validate=_validate_configuration,
        columns=(*_LATEST, *_READY),
    ),
    Kind(
        ref=REVISION,
        plural="revisions",
        singular="revision",
        short_names=("rev",),
        categories=("all", "knative", "serving"),
        spec_type=RevisionSpec,
        default=_default_revision,
        validate=_validate_revision,
        columns=(
            Column(name="Config Name", path=f".metadata.labels[{LABEL_CONFIGURATION}]"),
            Column(name="Generation", path=f".metadata.labels[{LABEL_CONFIGURATION_GENERATION}]"),
            *_READY,
            Column(name="Actual Replicas", path=".status.actualReplicas"),
            Column(name="Desired Replicas", path=".status.desiredReplicas"),
        ),
    ),
    Kind(
        ref=ROUTE,
        plural="routes",
        singular="route",
        short_names=("rt",),
        categories=("all", "knative", "serving"),
        spec_type=RouteSpec,
        default=_default_route,
        validate=_validate_route,
        columns=(Column(name="URL", path=".status.url"), *_READY),
    ),
    Kind(
        ref=POD_AUTOSCALER,
        plural="podautoscalers",
        singular="podautoscaler",
        short_names=("kpa", "pa"),
        categories=("knative-internal", "autoscaling"),
        spec_type=PodAutoscalerSpec,
        internal=True,
        columns=(
            Column(name="DesiredScale", path=".status.desiredScale"),
            Column(name="ActualScale", path=".status.actualScale"),
            *_READY,
        ),
    ),
)
