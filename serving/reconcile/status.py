"""Reading conditions of other resources and writing one's own, as all reconcilers here do it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from core.resources import Condition, Key, KindRef, Resource, merge_conditions

__all__ = ["condition_of", "copied", "owner_keys", "status_of", "unknown"]


def condition_of(resource: Resource, name: str) -> Condition | None:
    """The condition of that type, None where it is not there. Whether it is current is the caller's question."""
    for entry in resource.status.get("conditions") or ():
        if entry.get("type") == name:
            return Condition(
                type=name,
                status=entry.get("status", "Unknown"),
                reason=entry.get("reason", ""),
                message=entry.get("message", ""),
            )
    return None


def copied(name: str, condition: Condition | None) -> Condition:
    """The condition `name` that says what another resource's condition says; Unknown where that is not there."""
    if condition is None:
        return unknown(name)
    return Condition(type=name, status=condition.status, reason=condition.reason, message=condition.message)


def unknown(name: str, reason: str = "", message: str = "") -> Condition:
    return Condition(type=name, status="Unknown", reason=reason, message=message)


def status_of(resource: Resource, conditions: Iterable[Condition], now: float, **fields: Any) -> dict[str, Any]:
    """The resource's status: its conditions, and those `fields` that are not None."""
    entries = merge_conditions(resource.status.get("conditions") or (), conditions, now)
    status: dict[str, Any] = {"observedGeneration": resource.meta.generation, "conditions": entries}
    status.update({name: value for name, value in fields.items() if value is not None})
    return status


def owner_keys(resource: Resource, kind: KindRef) -> list[Key]:
    """The resource of `kind` that controls this one."""
    return [
        Key(kind, resource.meta.namespace, owner.name)
        for owner in resource.meta.owner_references
        if owner.controller and owner.kind == kind.kind and owner.api_version == kind.api_version
    ]
