"""The resources that the benchmarks apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bench.platform import NAMESPACE

__all__ = ["broker", "documents", "service", "trigger"]


def service(name: str, source: str, scaling: Mapping[str, str]) -> dict[str, Any]:
    """A Knative Service that runs `source`; `scaling` are autoscaling annotations without their prefix."""
    annotations = {f"autoscaling.knative.dev/{key}": value for key, value in scaling.items()}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "template": {
                "metadata": {"annotations": {**annotations, "penstock.dev/source": source}},
                "spec": {"containers": [{"image": f"dev.local/{name}"}]},
            }
        },
    }


def broker(name: str) -> dict[str, Any]:
    """A Broker of the default class."""
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Broker",
        "metadata": {"name": name, "namespace": NAMESPACE},
    }


def trigger(name: str, of: str, event_type: str, subscriber: str) -> dict[str, Any]:
    """A Trigger with an exact filter on the event's type, whose subscriber is a plain URI."""
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "broker": of,
            "filter": {"attributes": {"type": event_type}},
            "subscriber": {"uri": subscriber},
        },
    }


def documents(*manifests: Mapping[str, Any]) -> str:
    """The manifests as one YAML stream (JSON is YAML)."""
    return "\n---\n".join(msgspec.json.encode(manifest).decode() for manifest in manifests)
