"""Service -> one Configuration and one Route of its name; its status is theirs.

Behaviour: knative/serving `pkg/reconciler/service` and `pkg/apis/serving/v1/service_lifecycle.go`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from core.control.reconcile import Action, Apply, Outcome, View
from core.resources import Condition, Key, KindRef, ObjectMeta, Resource, owner_reference, summarize
from serving.reconcile.configuration import conflicting_revision
from serving.reconcile.status import condition_of, copied, owner_keys, status_of, unknown
from serving.resources import (
    CONFIGURATION,
    LABEL_SERVICE,
    LABEL_SERVICE_UID,
    REVISION,
    ROLLOUT_DURATION,
    ROUTE,
    SERVICE,
)

__all__ = ["ServiceReconciler"]

#: What kubectl notes about itself; it means the Service's manifest and would mislead on the children.
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

_CONFIGURATIONS_READY: Final = "ConfigurationsReady"
_ROUTES_READY: Final = "RoutesReady"


class ServiceReconciler:
    """Keeps a Service's Configuration and Route as the Service says."""

    kind = SERVICE

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return {
            CONFIGURATION: lambda child, view: owner_keys(child, SERVICE),
            ROUTE: lambda child, view: owner_keys(child, SERVICE),
            REVISION: _service_of,
        }

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp:
            return Outcome()
        namespace, name = resource.meta.namespace, resource.meta.name
        held_configuration = view.get(Key(CONFIGURATION, namespace, name))
        held_route = view.get(Key(ROUTE, namespace, name))
        configuration, route = _configuration(resource), _route(resource)
        actions: list[Action] = []

        configurations_ready = _child_ready(resource, held_configuration, configuration, _CONFIGURATIONS_READY)
        if configurations_ready.reason != "NotOwned":
            actions.append(Apply(configuration))
        routes_ready = _child_ready(resource, held_route, route, _ROUTES_READY)
        named = _named_revision(resource)
        if named and held_configuration is not None and conflicting_revision(held_configuration, view) is not None:
            message = f'The Revision name "{named}" is taken by another Revision, so traffic stays where it is.'
            routes_ready = Condition(type=_ROUTES_READY, status="False", reason="RevisionNameTaken", message=message)
        elif routes_ready.reason != "NotOwned" and not (named and configurations_ready.reason == "OutOfDate"):
            # With a Revision named by the user, the Route waits until the Configuration has looked at that name.
            actions.append(Apply(route))
        if routes_ready.status == "True" and held_route is not None and held_configuration is not None:
            routes_ready = _migrated(held_route, held_configuration)
        status = status_of(
            resource,
            # Of two that are not there yet, the one with a reason says more.
            summarize("Ready", sorted((configurations_ready, routes_ready), key=lambda one: not one.reason)),
            now,
            **_fields(resource, held_configuration, ("latestCreatedRevisionName", "latestReadyRevisionName")),
            **_fields(resource, held_route, ("url", "address", "traffic")),
        )
        return Outcome(status=status, actions=tuple(actions))


def _service_of(revision: Resource, _view: View) -> Iterable[Key]:
    """A Revision matters directly only to a Service that names its Revisions."""
    name = revision.meta.labels.get(LABEL_SERVICE)
    return (Key(SERVICE, revision.meta.namespace, name),) if name else ()


def _named_revision(service: Resource) -> str:
    metadata = (service.spec.get("template") or {}).get("metadata") or {}
    return str(metadata.get("name") or "")


def _configuration(service: Resource) -> Resource:
    labels = {**service.meta.labels, LABEL_SERVICE: service.meta.name, LABEL_SERVICE_UID: service.meta.uid}
    return _child(service, CONFIGURATION, labels, {"template": service.spec["template"]}, without=ROLLOUT_DURATION)


def _route(service: Resource) -> Resource:
    labels = {**service.meta.labels, LABEL_SERVICE: service.meta.name}
    traffic = [
        target if target.get("revisionName") else {**target, "configurationName": service.meta.name}
        for target in service.spec.get("traffic") or ()
    ]
    return _child(service, ROUTE, labels, {"traffic": traffic})


def _child(
    service: Resource, kind: KindRef, labels: dict[str, str], spec: dict[str, Any], *, without: str = ""
) -> Resource:
    skipped = (_LAST_APPLIED, without)
    meta = ObjectMeta(
        name=service.meta.name,
        namespace=service.meta.namespace,
        labels=labels,
        annotations={name: text for name, text in service.meta.annotations.items() if name not in skipped},
        owner_references=(owner_reference(service),),
    )
    return Resource(ref=kind, meta=meta, body={"spec": spec})


def _child_ready(service: Resource, held: Resource | None, wanted: Resource, name: str) -> Condition:
    if held is None:
        return unknown(name, "OutOfDate", f"The {wanted.ref.kind} does not exist yet.")
    if not any(owner.uid == service.meta.uid for owner in held.meta.owner_references):
        message = f'There is a {wanted.ref.kind} "{held.meta.name}" that belongs to somebody else.'
        return Condition(type=name, status="False", reason="NotOwned", message=message)
    if held.spec != wanted.spec or held.status.get("observedGeneration") != held.meta.generation:
        return unknown(name, "OutOfDate", f"The {wanted.ref.kind} does not reflect the latest change yet.")
    return copied(name, condition_of(held, "Ready"))


def _migrated(route: Resource, configuration: Resource) -> Condition:
    """Whether the Route's traffic is where the Service wants it, the latest ready Revision included."""
    latest = configuration.status.get("latestReadyRevisionName")
    wanted = [
        (target.get("revisionName") or latest, target.get("percent") or 0, target.get("tag") or "")
        for target in route.spec.get("traffic") or ()
    ]
    found = [
        (target.get("revisionName"), target.get("percent") or 0, target.get("tag") or "")
        for target in route.status.get("traffic") or ()
    ]
    if wanted == found:
        return Condition(type=_ROUTES_READY, status="True")
    return unknown(_ROUTES_READY, "TrafficNotMigrated", "Traffic does not go to the latest ready Revision yet.")


def _fields(service: Resource, child: Resource | None, names: tuple[str, ...]) -> dict[str, Any]:
    """Fields of the child's status, or what was known of it before."""
    source = service if child is None or not child.status else child
    return {name: source.status.get(name) for name in names}
