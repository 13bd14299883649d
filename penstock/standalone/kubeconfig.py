"""The kubeconfig that points kubectl, kn and every Kubernetes client at this platform."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["write_kubeconfig"]

_TEMPLATE: Final = """\
apiVersion: v1
kind: Config
clusters:
- name: penstock
  cluster:
    server: {server}
contexts:
- name: penstock
  context:
    cluster: penstock
    namespace: default
    user: penstock
current-context: penstock
users:
- name: penstock
  user: {{}}
"""


def write_kubeconfig(data: Path, server: str) -> Path:
    """Write ``<data>/kubeconfig``, readable by its owner alone, and return its path."""
    path = data / "kubeconfig"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(_TEMPLATE.format(server=server))
    return path
