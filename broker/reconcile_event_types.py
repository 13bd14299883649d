"""The reconciler of EventType: whether what it refers to is there.

Source: knative/eventing `pkg/apis/eventing/v1beta3/eventtype_lifecycle.go` and `pkg/reconciler/eventtype`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from broker.conditions import conditions_of
from broker.event_types import EVENT_TYPE, readable_references, reference_of
from core.control.reconcile import Outcome, View
from core.resources import Condition, Key, KindRef, Resource, merge_conditions, summarize

__all__ = ["EventTypeReconciler"]

_EXISTS: Final = "ReferenceExists"


class EventTypeReconciler:
    """Looks for what an EventType refers to, among the kinds that are known here."""

    kind = EVENT_TYPE

    def __init__(self, *, addressables: Iterable[KindRef]) -> None:
        self._related: Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]
        self._related = dict.fromkeys(addressables, _referring)

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        status: dict[str, Any] = {"observedGeneration": resource.meta.generation}
        exists = self._condition(reference_of(resource), view)
        status["conditions"] = merge_conditions(conditions_of(resource), summarize("Ready", (exists,)), now)
        return Outcome(status=status)

    def _condition(self, reference: Key | None, view: View) -> Condition:
        if reference is None:
            return Condition(
                type=_EXISTS, status="True", reason="ReferenceNotSet", message="spec.reference is not given."
            )
        if reference.kind not in self._related:
            message = f"Whether {reference} exists is not known here: nothing is sent to its kind."
            return Condition(type=_EXISTS, status="Unknown", reason="ReferenceGetFailed", message=message)
        if view.get(reference) is None:
            message = f"{reference} does not exist. Create it, or correct spec.reference."
            return Condition(type=_EXISTS, status="False", reason="ResourceDoesNotExist", message=message)
        return Condition(type=_EXISTS, status="True")


def _referring(changed: Resource, view: View) -> Iterable[Key]:
    """The EventTypes that refer to `changed`."""
    for event_type, reference in readable_references(view.list(EVENT_TYPE)):
        if reference == changed.key:
            yield event_type.key
