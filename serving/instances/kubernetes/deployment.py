"""The Deployment of a Revision, and what its scale has to be: pure functions of it and of its pods.

Who goes when a Deployment shrinks is decided by its ReplicaSet: pods that are not ready first, then the one with the
lowest ``controller.kubernetes.io/pod-deletion-cost``. So an instance is stopped in two writes. It is **marked** with
the lowest cost; then, in one write, the Deployment gets a replica less and **names the pod as leaving**. What is not
named is not leaving, whatever its mark: after a crash in between, the mark is only a preference. What is named already
is not counted a second time. Where the ReplicaSet took another one all the same (one that had just become unready), the
named pod is **overdue** and is deleted directly, and the ReplicaSet replaces the one that it took.

Source: kubernetes/kubernetes `pkg/controller/controller_utils.go`, `ActivePodsWithRanks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from core.resources import ObjectMeta, Resource
from core.resources.builtin import DEPLOYMENT
from serving.instances.kubernetes.template import REVISION_UID_LABEL, pod_labels, pod_template, template_of
from serving.instances.port import CannotRun, InstanceSpec
from serving.resources import child_name

__all__ = [
    "deployment_of",
    "is_active",
    "is_marked",
    "is_owned",
    "leaving",
    "marked",
    "overdue",
    "refusal",
    "scaled",
    "without",
]

#: Knative's name of a Revision's Deployment.
_SUFFIX: Final = "-deployment"

_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
#: The least cost that Kubernetes knows (an int32).
_LEAST_COST: Final = "-2147483648"

#: On the Deployment: a digest of the template that was written, to tell a changed one from one that the API server
#: filled in; and the pods for which replicas were taken back already.
_TEMPLATE: Final = "penstock.dev/template"
_LEAVING: Final = "penstock.dev/leaving"

Pods = Mapping[str, Resource]


def deployment_of(spec: InstanceSpec) -> Resource:
    """The Deployment of the Revision, at zero. Raises CannotRun."""
    template = pod_template(spec)
    owner = template_of(spec).owner
    labels = pod_labels(spec)
    body: dict[str, Any] = {
        "replicas": 0,
        "selector": {"matchLabels": {REVISION_UID_LABEL: owner.uid}},
        # Its pods are never replaced for the sake of a template, see `scaled`; where a person has them replaced, none
        # is added for it, so that the autoscaler does not find one too many.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "revisionHistoryLimit": 0,
        "progressDeadlineSeconds": max(1, int(spec.start_timeout_s)),
        "template": template,
    }
    meta = ObjectMeta(
        name=child_name(spec.revision, _SUFFIX),
        namespace=spec.namespace,
        labels=labels,
        annotations={_TEMPLATE: hashlib.sha256(msgspec.json.encode(template, order="sorted")).hexdigest()[:16]},
        owner_references=(owner,),
    )
    return Resource(ref=DEPLOYMENT, meta=meta, body={"spec": body})


def is_owned(held: Resource, wanted: Resource) -> bool:
    """Whether the Deployment of that name is this Revision's, and not a namesake's."""
    uids = {owner.uid for owner in held.meta.owner_references}
    return any(owner.uid in uids for owner in wanted.meta.owner_references)


def scaled(held: Resource, wanted: Resource, pods: Pods, count: int) -> Resource:
    """The Deployment with `count` pods that are not leaving, and none fewer than there are: whom to end is said by
    `without`. A template of a newer controller is taken over while there are no pods; it is no reason to replace them.
    """
    left = leaving(held) & pods.keys()
    staying = sum(1 for name, pod in pods.items() if name not in left and is_active(pod))
    spec = {**held.spec, "replicas": max(count, staying)}
    annotations = _annotations(held, left)
    if annotations.get(_TEMPLATE) != wanted.meta.annotations[_TEMPLATE] and not any(map(is_active, pods.values())):
        spec |= {name: value for name, value in wanted.spec.items() if name not in ("replicas", "selector")}
        annotations[_TEMPLATE] = wanted.meta.annotations[_TEMPLATE]
    if spec == held.spec and annotations == held.meta.annotations:
        return held
    return held.with_spec(spec).with_meta(annotations=annotations)


def without(held: Resource, names: frozenset[str], pods: Pods) -> Resource:
    """The Deployment with these among the pods that leave, and a replica less for each that was not yet and is active:
    one that is being deleted is replaced already."""
    fresh = {name for name in names - leaving(held) if name in pods and is_active(pods[name])}
    if not fresh:
        return held
    spec = {**held.spec, "replicas": max(0, replicas(held) - len(fresh))}
    return held.with_spec(spec).with_meta(annotations=_annotations(held, (leaving(held) & pods.keys()) | fresh))


def overdue(held: Resource, pods: Pods) -> frozenset[str]:
    """Those that leave and would stay for ever: there are no more pods than replicas, so the ReplicaSet is content."""
    active = {name for name, pod in pods.items() if is_active(pod)}
    return leaving(held) & active if len(active) <= replicas(held) else frozenset()


def replicas(held: Resource) -> int:
    return int(held.spec.get("replicas", 1))


def leaving(held: Resource) -> frozenset[str]:
    """Names of the pods that replicas were taken back for."""
    return frozenset(filter(None, held.meta.annotations.get(_LEAVING, "").split(",")))


def is_active(pod: Resource) -> bool:
    """Whether its ReplicaSet counts it: it is not being deleted and has not ended."""
    return pod.meta.deletion_timestamp is None and pod.status.get("phase") not in ("Succeeded", "Failed")


def is_marked(pod: Resource) -> bool:
    return pod.meta.annotations.get(_COST) == _LEAST_COST


def marked(pod: Resource) -> Resource:
    """The pod as the first to go when its Deployment shrinks."""
    return pod.with_meta(annotations={**pod.meta.annotations, _COST: _LEAST_COST})


def refusal(held: Resource) -> CannotRun | None:
    """Why its pods cannot be made at all: a quota, an admission policy, a service account that does not exist."""
    for condition in held.status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return CannotRun(
                condition.get("reason") or "FailedCreate", condition.get("message") or "No pod can be made."
            )
    return None


def _annotations(held: Resource, left: frozenset[str]) -> dict[str, str]:
    kept = {name: text for name, text in held.meta.annotations.items() if name != _LEAVING}
    return {**kept, _LEAVING: ",".join(sorted(left))} if left else kept
