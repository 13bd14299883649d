"""Which node a pod is bound to, or why none takes it, by the filters of kube-scheduler. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from tests.support.kubelet.lifecycle import all_containers
from tests.support.kubelet.spec import LabelSelector, Node, NodeTerm, Pod, PodTerm, Requirement, Taint, Toleration

__all__ = ["Placement", "place", "quantity", "requested"]

_UNITS: Final = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)} | {
    f"{letter}{suffix}": Decimal(base) ** power
    for power, letter in enumerate("KMGTPE", start=1)
    for suffix, base in (("", 1000), ("i", 1024))
}
_QUANTITY: Final = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Either a node's name, or the reason in kube-scheduler's words."""

    node: str = ""
    reason: str = ""


def place(pod: Pod, nodes: Sequence[Node], pods: Iterable[Pod]) -> Placement:
    """The node with the fewest pods of those that take this one. `pods` are all that are bound and not over."""
    placed = [one for one in pods if one.spec.node_name and not one.terminal]
    by_name = {node.metadata.name: node for node in nodes}
    reasons: Counter[str] = Counter()
    fitting: list[tuple[int, str]] = []
    for node in nodes:
        here = [one for one in placed if one.spec.node_name == node.metadata.name]
        reason = _refusal(pod, node, here) or _affinity_refusal(pod, node, placed, by_name)
        if reason:
            reasons[reason] += 1
        else:
            fitting.append((len(here), node.metadata.name))
    if fitting:
        return Placement(node=min(fitting)[1])
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return Placement(reason=f"0/{len(nodes)} nodes are available: {told}.")


def requested(pod: Pod) -> dict[str, Decimal]:
    """What a pod asks of a node; a limit without a request is one."""
    total: dict[str, Decimal] = {"pods": Decimal(1)}
    for container in all_containers(pod.spec):
        asked = container.resources.limits | container.resources.requests
        for name, value in asked.items():
            total[name] = total.get(name, Decimal(0)) + quantity(value)
    return total


def quantity(value: str | float) -> Decimal:
    """A Kubernetes quantity as a number: 500m, 1.5, 2Gi, 1e3."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no quantity: a number and one of {', '.join(_UNITS)}")
    return Decimal(match[1]) * _UNITS[match[2]]


def _refusal(pod: Pod, node: Node, here: Sequence[Pod]) -> str:
    if node.spec.unschedulable:
        return "node(s) were unschedulable"
    for taint in node.spec.taints:
        if taint.effect != "PreferNoSchedule" and not any(_tolerates(one, taint) for one in pod.spec.tolerations):
            return f"node(s) had untolerated taint {{{taint.key}: {taint.value}}}"
    if not _selected(pod, node):
        return "node(s) didn't match Pod's node affinity/selector"
    free = {name: quantity(value) for name, value in node.status.allocatable.items()}
    for one in here:
        for name, amount in requested(one).items():
            free[name] = free.get(name, Decimal(0)) - amount
    for name, amount in requested(pod).items():
        if amount > 0 and amount > free.get(name, Decimal(0)):
            return "Too many pods" if name == "pods" else f"Insufficient {name}"
    return ""


def _selected(pod: Pod, node: Node) -> bool:
    labels = node.metadata.labels
    if any(labels.get(key) != value for key, value in pod.spec.node_selector.items()):
        return False
    required = pod.spec.affinity.node_affinity.required
    return required is None or any(_term(term, node) for term in required.node_selector_terms)


def _term(term: NodeTerm, node: Node) -> bool:
    fields = {"metadata.name": node.metadata.name}
    return all(_holds(one, node.metadata.labels) for one in term.match_expressions) and all(
        _holds(one, fields) for one in term.match_fields
    )


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(requirement.values[0])
        case "Lt":
            return value is not None and int(value) < int(requirement.values[0])
    return False


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key in {"", taint.key}
    return toleration.key == taint.key and toleration.value == taint.value


def _affinity_refusal(pod: Pod, node: Node, placed: Sequence[Pod], nodes: Mapping[str, Node]) -> str:
    for term in pod.spec.affinity.pod_anti_affinity.required:
        if any(_near(term, node, one, nodes) and _matches(term, pod, one) for one in placed):
            return "node(s) didn't match pod anti-affinity rules"
    for term in pod.spec.affinity.pod_affinity.required:
        # The first of a group that wants to be together has nobody to be with.
        matching = [one for one in placed if _matches(term, pod, one)]
        if not any(_near(term, node, one, nodes) for one in matching) and (matching or not _matches(term, pod, pod)):
            return "node(s) didn't match pod affinity rules"
    return ""


def _near(term: PodTerm, node: Node, other: Pod, nodes: Mapping[str, Node]) -> bool:
    theirs = nodes.get(other.spec.node_name)
    domain = node.metadata.labels.get(term.topology_key)
    return theirs is not None and domain is not None and theirs.metadata.labels.get(term.topology_key) == domain


def _matches(term: PodTerm, pod: Pod, other: Pod) -> bool:
    namespaces = term.namespaces or (pod.metadata.namespace,)
    return other.metadata.namespace in namespaces and selects(term.label_selector, other.metadata.labels)


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(one, labels) for one in selector.match_expressions
    )
