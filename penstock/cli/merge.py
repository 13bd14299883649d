"""What ``penstock apply`` changes: the three-way merge of ``kubectl apply``, as a JSON merge patch (RFC 7396).

Rule (Kubernetes, "Declarative management of objects", "How apply calculates differences"): a field in the last applied
document that is gone from the new one is deleted; every field of the new one is set; what others added stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = ["LAST_APPLIED", "three_way_patch", "with_last_applied"]

#: kubectl's annotation, so that kubectl and penstock can take turns on one object.
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


def with_last_applied(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with itself recorded in the annotation, as ``kubectl apply`` writes it."""
    bare = {**document, "metadata": _without_record(document.get("metadata") or {})}
    record = msgspec.json.encode(bare, order="deterministic").decode() + "\n"
    annotations = {**(bare["metadata"].get("annotations") or {}), LAST_APPLIED: record}
    return {**bare, "metadata": {**bare["metadata"], "annotations": annotations}}


def three_way_patch(new: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that applies `new` (which carries its record) to `live`; empty where nothing changes."""
    annotations = (live.get("metadata") or {}).get("annotations") or {}
    last = msgspec.json.decode(annotations.get(LAST_APPLIED, "{}"))
    return _patch(last, new, live)


def _patch(last: Mapping[str, Any], new: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    for name, wanted in new.items():
        held = live.get(name)
        if isinstance(wanted, dict) and isinstance(held, dict):
            before = last.get(name)
            inner = _patch(before if isinstance(before, dict) else {}, wanted, held)
            if inner:
                patch[name] = inner
        elif wanted != held:
            patch[name] = wanted
    for name in last:
        if name not in new and name in live:
            patch[name] = None
    return patch


def _without_record(metadata: Mapping[str, Any]) -> dict[str, Any]:
    annotations = {key: text for key, text in (metadata.get("annotations") or {}).items() if key != LAST_APPLIED}
    kept = {key: value for key, value in metadata.items() if key != "annotations"}
    return {**kept, "annotations": annotations} if annotations else kept
