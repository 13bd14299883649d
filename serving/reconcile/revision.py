"""Revision -> a PodAutoscaler of its name; its status follows from that one's.

Behaviour: knative/serving `pkg/reconciler/revision`, `revision_lifecycle.go` (how the PodAutoscaler's status
becomes the Revision's) and `pkg/reconciler/labeler` (which Revisions a Route can reach; here computed from the Routes
each time instead of being noted on the Revision).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

import msgspec

from core.control.reconcile import Apply, Outcome, View
from core.resources import Condition, Key, KindRef, ObjectMeta, Resource, owner_reference, summarize
from serving.reconcile.podautoscaler import CONTAINER_HEALTHY, TIMED_OUT
from serving.reconcile.route import targets_of
from serving.reconcile.status import condition_of, copied, owner_keys, status_of, unknown
from serving.resources import (
    CONFIGURATION,
    LABEL_CONFIGURATION,
    LABEL_REVISION,
    POD_AUTOSCALER,
    REVISION,
    ROUTE,
    PodAutoscalerSpec,
    RevisionSpec,
    ScaleTargetRef,
    protocol_of,
    spec_of,
)
from serving.scaling import AUTOSCALING_GROUP, KPA_CLASS, PROGRESS_DEADLINE

__all__ = ["RevisionReconciler"]

_AVAILABLE: Final = "ResourcesAvailable"
_DEPLOYING: Final = "Deploying"
_LABEL_UID: Final = "serving.knative.dev/revisionUID"

Reachability = Literal["", "Reachable", "Unreachable"]


class RevisionReconciler:
    """Asks for a Revision to be scaled, and says how it fares."""

    kind = REVISION

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return {
            POD_AUTOSCALER: lambda scaler, view: owner_keys(scaler, REVISION),
            CONFIGURATION: lambda configuration, view: [one.key for one in view.owned(configuration, REVISION)],
            ROUTE: _reached,
        }

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp:
            return Outcome()
        held = view.get(Key(POD_AUTOSCALER, resource.meta.namespace, resource.meta.name))
        if held is not None and not any(owner.uid == resource.meta.uid for owner in held.meta.owner_references):
            message = f'There is a PodAutoscaler "{held.meta.name}" that belongs to somebody else.'
            taken = Condition(type=_AVAILABLE, status="False", reason="NotOwned", message=message)
            conditions = (unknown("Active"), *summarize("Ready", (unknown(CONTAINER_HEALTHY), taken)))
            return Outcome(status=status_of(resource, conditions, now))
        wanted = _pod_autoscaler(resource, _reachability(resource, view))
        healthy, available, active = _conditions(held)
        scale = held.status if held is not None else {}
        status = status_of(
            resource,
            # A Revision at zero is ready, so Active does not count.
            (active, *summarize("Ready", (healthy, available))),
            now,
            actualReplicas=scale.get("actualScale"),
            desiredReplicas=scale.get("desiredScale"),
        )
        return Outcome(status=status, actions=(Apply(wanted),))


def _reached(route: Resource, view: View) -> Iterable[Key]:
    """Revisions whose reachability this Route may change."""
    configurations, revisions = targets_of(route)
    for revision in view.list(REVISION, route.meta.namespace):
        if revision.meta.name in revisions or revision.meta.labels.get(LABEL_CONFIGURATION) in configurations:
            yield revision.key


def _reachability(revision: Resource, view: View) -> Reachability:
    """Whether requests can come to it: a Route names it, or names its Configuration and it is the latest created (which
    is about to get traffic) or ready one. The latest one of a Configuration without a Route may still get one."""
    name, namespace = revision.meta.name, revision.meta.namespace
    owner = revision.meta.labels.get(LABEL_CONFIGURATION, "")
    configuration = view.get(Key(CONFIGURATION, namespace, owner)) if owner else None
    status = configuration.status if configuration is not None else {}
    is_latest = name == status.get("latestCreatedRevisionName", name)
    for route in view.list(ROUTE, namespace):
        configurations, revisions = targets_of(route)
        if name in revisions:
            return "Reachable"
        if owner in configurations and (is_latest or name == status.get("latestReadyRevisionName")):
            return "Reachable"
    return "" if is_latest else "Unreachable"


def _pod_autoscaler(revision: Resource, reachability: Reachability) -> Resource:
    spec = spec_of(revision, RevisionSpec)
    asked = PodAutoscalerSpec(
        scale_target_ref=ScaleTargetRef(api_version=REVISION.api_version, kind=REVISION.kind, name=revision.meta.name),
        protocol_type=protocol_of(spec),
        container_concurrency=spec.container_concurrency or 0,
        reachability=reachability,
    )
    annotations = {
        name: text
        for name, text in revision.meta.annotations.items()
        if name.startswith(f"{AUTOSCALING_GROUP}/") or name == PROGRESS_DEADLINE
    }
    annotations.setdefault(f"{AUTOSCALING_GROUP}/class", KPA_CLASS)
    meta = ObjectMeta(
        name=revision.meta.name,
        namespace=revision.meta.namespace,
        labels={
            **revision.meta.labels,
            LABEL_REVISION: revision.meta.name,
            _LABEL_UID: revision.meta.uid,
            "app": revision.meta.name,
        },
        annotations=annotations,
        owner_references=(owner_reference(revision),),
    )
    return Resource(ref=POD_AUTOSCALER, meta=meta, body={"spec": msgspec.to_builtins(asked)})


def _conditions(scaler: Resource | None) -> tuple[Condition, Condition, Condition]:
    """(ContainerHealthy, ResourcesAvailable, Active)."""
    healthy, available = unknown(CONTAINER_HEALTHY, _DEPLOYING), unknown(_AVAILABLE, _DEPLOYING)
    if scaler is None or condition_of(scaler, "Ready") is None:
        return healthy, available, unknown("Active", _DEPLOYING)
    active = copied("Active", condition_of(scaler, "Active"))
    failure = condition_of(scaler, CONTAINER_HEALTHY)
    started = condition_of(scaler, "ScaleTargetInitialized")
    if started is not None and started.status == "True":
        healthy, available = Condition(type=CONTAINER_HEALTHY, status="True"), Condition(type=_AVAILABLE, status="True")
    elif active.status == "False" and active.reason == TIMED_OUT:
        message = "The initial scale was not reached in time."
        available = Condition(type=_AVAILABLE, status="False", reason="ProgressDeadlineExceeded", message=message)
    if failure is not None:
        healthy = failure
    return healthy, available, active
