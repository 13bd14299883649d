"""Pods, Deployments and Services as the tests of the nodes want them."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["IMAGE", "SERVER", "container", "deployment", "pod", "service"]

IMAGE: Final = "example.com/checkout"
#: Serves the files of /srv/www on port 8080: its pod's name, and what it was told to say.
SERVER: Final = (
    'mkdir -p /srv/www && cd /srv/www && hostname > name && echo "$SAYS" > says && exec python -m http.server 8080'
)


def container(script: str = SERVER, *, name: str = "main", says: str = "", **fields: Any) -> dict[str, Any]:
    """A container that runs a shell script from the checkout's image."""
    server = script == SERVER
    probe = {"readinessProbe": {"httpGet": {"path": "/says", "port": 8080}, "periodSeconds": 1}} if server else {}
    base = {"name": name, "image": IMAGE, "command": ["sh", "-c", script], "env": [{"name": "SAYS", "value": says}]}
    return base | probe | fields


def pod(name: str, *containers: dict[str, Any], labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels or {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": list(containers)} | spec}


def deployment(name: str, *containers: dict[str, Any], replicas: int = 1, **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": list(containers)} | spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def service(name: str, *, port: int = 80, target: int = 8080) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
