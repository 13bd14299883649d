"""What a client needs to know of a cluster, and the kubeconfig that says it to kubectl, helm and the Python client."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ClusterAccess", "existing", "kubeconfig"]


@dataclass(frozen=True, kw_only=True)
class ClusterAccess:
    """An administrator's way into a cluster: the API server's URL, its authority's certificate (PEM), and the folder
    of the programs of the cluster's own release, None where the machine's have to do."""

    kubeconfig: Path
    server: str
    ca: bytes
    programs: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For kubectl and helm."""
        path = os.environ.get("PATH", os.defpath)
        if self.programs is not None:
            path = f"{self.programs}{os.pathsep}{path}"
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": path}


def kubeconfig(path: Path, *, server: str, ca: Path, certificate: Path, key: Path) -> Path:
    """Write one that holds all it needs, so that it can be handed on alone."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {"server": server, "certificate-authority-data": _data(ca)}}],
        "users": [
            {
                "name": "admin",
                "user": {"client-certificate-data": _data(certificate), "client-key-data": _data(key)},
            }
        ],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        "current-context": "tests",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
    return path


def existing(path: Path) -> ClusterAccess:
    """The current context of a kubeconfig that somebody gave. Raises RuntimeError where it names no server."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    contexts = {one["name"]: one["context"] for one in document.get("contexts") or ()}
    clusters = {one["name"]: one["cluster"] for one in document.get("clusters") or ()}
    context = contexts.get(document.get("current-context", ""))
    cluster = clusters.get(context["cluster"]) if context else None
    if cluster is None:
        raise RuntimeError(f"{path}: the current context {document.get('current-context')!r} names no cluster")
    if "certificate-authority-data" in cluster:
        ca = base64.b64decode(cluster["certificate-authority-data"])
    elif "certificate-authority" in cluster:
        ca = (path.parent / cluster["certificate-authority"]).read_bytes()
    else:
        ca = b""
    return ClusterAccess(kubeconfig=path, server=cluster["server"], ca=ca)


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
