"""Status conditions as Knative writes them: a list sorted by type, with one happy condition that sums up the rest.

Rules: knative.dev/pkg `apis/condition_set.go` and the Knative specifications' "Status conditions": dependents all True
-> Ready True; any False -> Ready False with that reason; else Unknown. `lastTransitionTime` moves only with `status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from core.clock import rfc3339

__all__ = ["Condition", "is_ready", "merge_conditions", "summarize"]

Truth = Literal["True", "False", "Unknown"]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconciler found about one aspect. `severity` "" counts towards Ready, "Info" does not."""

    type: str
    status: Truth
    reason: str = ""
    message: str = ""
    severity: str = ""


def summarize(happy: str, dependents: Iterable[Condition]) -> tuple[Condition, ...]:
    """`dependents` with the condition `happy` ("Ready", "Succeeded") that follows from them."""
    found = tuple(dependents)
    counted = [condition for condition in found if not condition.severity]
    worst = next((c for c in counted if c.status == "False"), None)
    worst = worst or next((c for c in counted if c.status == "Unknown"), None)
    if worst is None:
        return (*found, Condition(type=happy, status="True"))
    summary = Condition(type=happy, status=worst.status, reason=worst.reason, message=worst.message)
    return (*found, summary)


def merge_conditions(
    previous: Iterable[Mapping[str, Any]], found: Iterable[Condition], now: float
) -> list[dict[str, Any]]:
    """`found` as status entries sorted by type; a transition time is kept where the status did not change."""
    before = {str(entry.get("type")): entry for entry in previous}
    entries = []
    for condition in sorted(found, key=lambda c: c.type):
        entry = {name: value for name, value in msgspec.to_builtins(condition).items() if value}
        old = before.get(condition.type)
        kept = old is not None and old.get("status") == condition.status and old.get("lastTransitionTime")
        entry["lastTransitionTime"] = old["lastTransitionTime"] if old and kept else rfc3339(now)
        entries.append(entry)
    return entries


def is_ready(status: Mapping[str, Any], generation: int, happy: str = "Ready") -> Truth:
    """The happy condition of a status; "Unknown" where the status speaks of an older generation."""
    if status.get("observedGeneration") != generation:
        return "Unknown"
    for entry in status.get("conditions") or ():
        if entry.get("type") == happy:
            value: Truth = entry.get("status", "Unknown")
            return value
    return "Unknown"
