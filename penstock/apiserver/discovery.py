"""What is served: the documents by which clients find groups, versions and kinds.

Source: Kubernetes API concepts, "API Discovery": one aggregated document for clients from 1.26 on, and the older one
for each group and version, which Debian's kubectl and the Python client read. All are fixed once the registry is.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from core.resources import Kind, Registry
from penstock import __version__
from penstock.apiserver.admission import has_status
from penstock.apiserver.exchange import JSON
from penstock.apiserver.media import parse_accept

__all__ = ["Discovery", "Document", "VERSION"]

VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS: Final = ("get", "patch", "update")

#: The Kubernetes release whose API this follows; clients compare their own version with it.
VERSION: Final = {
    "major": "1",
    "minor": "32",
    "gitVersion": f"v1.32.0+penstock.{__version__}",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux",
}

_VERSION_PARTS: Final = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?\Z")
_STABILITY: Final = {None: 2, "beta": 1, "alpha": 0}

AggregatedVersion = Literal["v2", "v2beta1"]
Document = tuple[dict[str, Any], str]


class Discovery:
    """Discovery documents for a registry, each with its content type."""

    def __init__(self, registry: Registry) -> None:
        self._kinds: dict[str, dict[str, list[Kind]]] = {}
        for kind in registry:
            self._kinds.setdefault(kind.ref.group, {}).setdefault(kind.ref.version, []).append(kind)

    def groups(self, accept: str, *, core: bool) -> Document:
        """The document at /api (`core`) or /apis, aggregated where the client asks for that first."""
        aggregated = _aggregated_version(accept)
        names = [name for name in sorted(self._kinds) if (name == "") == core]
        if aggregated:
            document = {
                "kind": "APIGroupDiscoveryList",
                "apiVersion": f"apidiscovery.k8s.io/{aggregated}",
                "metadata": {},
                "items": [self._aggregated_group(name) for name in names],
            }
            return document, f"{JSON};g=apidiscovery.k8s.io;v={aggregated};as=APIGroupDiscoveryList"
        if core:
            return {"kind": "APIVersions", "versions": self._versions(""), "serverAddressByClientCIDRs": []}, JSON
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self._group(name) for name in names]}, JSON

    def group(self, name: str) -> dict[str, Any] | None:
        """The document at /apis/<group>; None where there is no such group."""
        if not name or name not in self._kinds:
            return None
        return {"kind": "APIGroup", "apiVersion": "v1", **self._group(name)}

    def resources(self, group: str, version: str) -> dict[str, Any] | None:
        """The document at /apis/<group>/<version> or /api/v1; None where nothing is served there."""
        kinds = self._kinds.get(group, {}).get(version)
        if kinds is None:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": kinds[0].ref.api_version,
            "resources": [entry for kind in kinds for entry in _entries(kind)],
        }

    def _versions(self, group: str) -> list[str]:
        """The group's versions, the preferred one first: the highest stable one."""
        return sorted(self._kinds.get(group, {}), key=_precedence, reverse=True)

    def _group(self, name: str) -> dict[str, Any]:
        versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in self._versions(name)]
        return {"name": name, "versions": versions, "preferredVersion": versions[0]}

    def _aggregated_group(self, name: str) -> dict[str, Any]:
        versions = [
            {
                "version": version,
                "freshness": "Current",
                "resources": [_aggregated_entry(kind) for kind in self._kinds[name][version]],
            }
            for version in self._versions(name)
        ]
        return {"metadata": {"name": name, "creationTimestamp": None}, "versions": versions}


def _precedence(version: str) -> tuple[int, int, int, str]:
    match = _VERSION_PARTS.match(version)
    if match is None:
        return (-1, 0, 0, version)
    return (_STABILITY[match[2]], int(match[1]), int(match[3] or 0), version)


def _aggregated_version(accept: str) -> AggregatedVersion | None:
    for name, parameters in parse_accept(accept):
        if name != JSON:
            continue
        if parameters.get("as") != "APIGroupDiscoveryList" or parameters.get("g") != "apidiscovery.k8s.io":
            return None
        if parameters.get("v") == "v2":
            return "v2"
        if parameters.get("v") == "v2beta1":
            return "v2beta1"
    return None


def _entries(kind: Kind) -> list[dict[str, Any]]:
    entry: dict[str, Any] = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.ref.kind,
        "verbs": VERBS,
    }
    if kind.short_names:
        entry["shortNames"] = kind.short_names
    if kind.categories:
        entry["categories"] = kind.categories
    if not has_status(kind):
        return [entry]
    status = {
        "name": f"{kind.plural}/status",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": kind.ref.kind,
        "verbs": STATUS_VERBS,
    }
    return [entry, status]


def _aggregated_entry(kind: Kind) -> dict[str, Any]:
    ref = {"group": kind.ref.group, "version": kind.ref.version, "kind": kind.ref.kind}
    entry: dict[str, Any] = {
        "resource": kind.plural,
        "responseKind": ref,
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": VERBS,
    }
    if kind.short_names:
        entry["shortNames"] = kind.short_names
    if kind.categories:
        entry["categories"] = kind.categories
    if has_status(kind):
        entry["subresources"] = [{"subresource": "status", "responseKind": ref, "verbs": STATUS_VERBS}]
    return entry
