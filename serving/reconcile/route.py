"""Route -> which Revision gets which share of its requests, and under which names.

Behaviour: knative/serving `pkg/reconciler/route` and `route_lifecycle.go`. `status.traffic` is what the gateway serves.
It changes only as a whole and only once every target is ready: until then the last assignment stays, which is what
keeps the old Revision serving while a new one starts, or fails to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from core.control.reconcile import Outcome, View
from core.resources import Condition, Key, KindRef, Resource, is_ready, summarize
from serving.reconcile.status import condition_of, copied, status_of, unknown
from serving.resources import (
    CONFIGURATION,
    LABEL_CONFIGURATION,
    LABEL_SERVICE,
    REVISION,
    ROUTE,
    RouteSpec,
    TrafficTarget,
    spec_of,
)

__all__ = ["RouteReconciler", "targets_of"]

_ASSIGNED: Final = "AllTrafficAssigned"
_CERTIFICATE: Final = "CertificateProvisioned"
_INGRESS: Final = "IngressReady"

_VISIBILITY: Final = "networking.knative.dev/visibility"
_CLUSTER_SUFFIX: Final = ".svc.cluster.local"


class _Bad(msgspec.Struct, frozen=True):
    """Why a target cannot have traffic. `failed` where waiting will not help."""

    failed: bool
    reason: str
    message: str


class RouteReconciler:
    """Resolves a Route's targets to Revisions."""

    kind = ROUTE

    def __init__(self, *, url_suffix: str) -> None:
        self._url_suffix = url_suffix

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return {
            CONFIGURATION: lambda configuration, view: _routes_to(configuration, configuration.meta.name, "", view),
            REVISION: lambda revision, view: _routes_to(
                revision, revision.meta.labels.get(LABEL_CONFIGURATION, ""), revision.meta.name, view
            ),
        }

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp:
            return Outcome()
        resolved = [_resolve(resource, target, view) for target in spec_of(resource, RouteSpec).traffic]
        bad = [one for one in resolved if isinstance(one, _Bad)]
        before = resource.status
        if bad:
            # A failure says more than something that is only not ready yet.
            worst = next((one for one in bad if one.failed), bad[0])
            assigned = unknown(_ASSIGNED, worst.reason, worst.message)
            if worst.failed:
                assigned = msgspec.structs.replace(assigned, status="False")
            ingress, certificate = self._not_assigned(resource)
            address, traffic = before.get("address"), before.get("traffic")
        else:
            assigned = Condition(type=_ASSIGNED, status="True")
            ingress, certificate = Condition(type=_INGRESS, status="True"), _NO_TLS
            address = {"url": f"http://{resource.meta.name}.{resource.meta.namespace}{_CLUSTER_SUFFIX}"}
            traffic = self._traffic(resource, [one for one in resolved if not isinstance(one, _Bad)])
        conditions = summarize("Ready", (assigned, certificate, ingress))
        url = self._url(resource, "")
        return Outcome(status=status_of(resource, conditions, now, url=url, address=address, traffic=traffic))

    def _not_assigned(self, route: Resource) -> tuple[Condition, Condition]:
        """What the network still does: what it did, if that was for this generation."""
        certificate = copied(_CERTIFICATE, condition_of(route, _CERTIFICATE))
        if route.status.get("observedGeneration") != route.meta.generation or condition_of(route, _INGRESS) is None:
            return unknown(_INGRESS, "IngressNotConfigured", "The gateway has not been told of this yet."), certificate
        return copied(_INGRESS, condition_of(route, _INGRESS)), certificate

    def _traffic(self, route: Resource, resolved: list[TrafficTarget]) -> list[dict[str, Any]]:
        """Targets as status lists them; those that say the same twice are one with their percents added."""
        shares: dict[tuple[str, str, bool], int] = {}
        for target in resolved:
            key = (target.tag, target.revision_name, bool(target.latest_revision))
            shares[key] = shares.get(key, 0) + (target.percent or 0)
        entries = []
        for (tag, revision, latest), percent in shares.items():
            entry: dict[str, Any] = {"latestRevision": latest, "percent": percent, "revisionName": revision}
            if tag:
                entry |= {"tag": tag, "url": self._url(route, tag)}
            entries.append(entry)
        return entries

    def _url(self, route: Resource, tag: str) -> str:
        is_local = route.meta.labels.get(_VISIBILITY) == "cluster-local"
        name = f"{tag}-{route.meta.name}" if tag else route.meta.name
        return f"http://{name}.{route.meta.namespace}{_CLUSTER_SUFFIX if is_local else self._url_suffix}"


_NO_TLS: Final = Condition(
    type=_CERTIFICATE, status="True", reason="TLSNotEnabled", message="TLS is not switched on for Routes."
)


def targets_of(route: Resource) -> tuple[set[str], set[str]]:
    """(Configurations, Revisions) that a Route names: where it should lead, and where it still does."""
    spec, status = route.spec.get("traffic") or (), route.status.get("traffic") or ()
    configurations = {str(target["configurationName"]) for target in spec if target.get("configurationName")}
    revisions = {str(target["revisionName"]) for target in (*spec, *status) if target.get("revisionName")}
    return configurations, revisions


def _routes_to(changed: Resource, configuration: str, revision: str, view: View) -> Iterable[Key]:
    for route in view.list(ROUTE, changed.meta.namespace):
        configurations, revisions = targets_of(route)
        if configuration in configurations or revision in revisions:
            yield route.key


def _resolve(route: Resource, target: TrafficTarget, view: View) -> TrafficTarget | _Bad:
    """The target with its Revision filled in."""
    namespace = route.meta.namespace
    name = target.revision_name
    if not name:
        configuration = view.get(Key(CONFIGURATION, namespace, target.configuration_name))
        if configuration is None:
            return _missing("Configuration", target.configuration_name)
        name = configuration.status.get("latestReadyRevisionName") or ""
        if not name:
            return _no_revision(configuration)
    revision = view.get(Key(REVISION, namespace, name))
    if revision is None:
        return _missing("Revision", name)
    owner = route.meta.labels.get(LABEL_SERVICE)
    if target.revision_name and owner and revision.meta.labels.get(LABEL_SERVICE) != owner:
        message = f'Revision "{name}" does not belong to Service "{owner}".'
        return _Bad(True, "RevisionNotOwned", message)
    ready = is_ready(revision.status, revision.meta.generation)
    if ready == "True":
        return msgspec.structs.replace(target, revision_name=name)
    why = condition_of(revision, "Ready")
    if ready == "False":
        return _Bad(True, "RevisionMissing", f'Revision "{name}" failed: {why.message if why else ""}')
    return _Bad(False, "RevisionMissing", f'Revision "{name}" is not ready yet.')


def _missing(kind: str, name: str) -> _Bad:
    return _Bad(True, f"{kind}Missing", f'{kind} "{name}", which the traffic names, does not exist.')


def _no_revision(configuration: Resource) -> _Bad:
    ready = condition_of(configuration, "Ready")
    name = configuration.meta.name
    if ready is not None and ready.status == "False":
        return _Bad(True, "RevisionMissing", f'Configuration "{name}" has no ready Revision: {ready.message}')
    return _Bad(False, "RevisionMissing", f'Configuration "{name}" waits for a Revision to become ready.')
