"""What a request path names: a pure function from path to target.

Shapes, from the Kubernetes API concepts ("Resource URIs"): ``/api/v1/...`` for the core group and
``/apis/<group>/<version>/...`` for the rest; then ``<plural>[/<name>[/<subresource>]]`` for cluster-scoped kinds and
for all namespaces at once, or ``namespaces/<namespace>/<plural>[/<name>[/<subresource>]]``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.resources import Key, Kind, Registry
from penstock.apiserver.statuses import no_such_path

__all__ = ["GroupVersion", "Target", "parse_path"]

_NAMESPACES: Final = "namespaces"
_STATUS: Final = "status"


class GroupVersion(msgspec.Struct, frozen=True):
    """A discovery path: ``version`` "" names the group as a whole."""

    group: str
    version: str


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A resource path. `namespace` None means all namespaces (or a cluster-scoped kind); `name` None the collection."""

    kind: Kind
    namespace: str | None = None
    name: str | None = None
    status: bool = False

    @property
    def key(self) -> Key:
        return Key(self.kind.ref, self.namespace or "", self.name or "")


def parse_path(path: str, registry: Registry) -> GroupVersion | Target:
    """What `path` (decoded, starting with ``/api`` or ``/apis``) names. Raises Refused (404) where it names nothing."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        group, version, rest = "", *_version_and_rest(parts, 1)
    elif len(parts) > 1:
        group, version, rest = parts[1], *_version_and_rest(parts, 2)
    else:
        raise no_such_path(path)
    if not rest:
        return GroupVersion(group, version)
    found = _resource(registry, group, version, rest)
    if found is None:
        raise no_such_path(path)
    return found


def _version_and_rest(parts: list[str], start: int) -> tuple[str, list[str]]:
    return (parts[start], parts[start + 1 :]) if len(parts) > start else ("", [])


def _resource(registry: Registry, group: str, version: str, rest: list[str]) -> Target | None:
    # namespaces/<ns>/<plural> is read as namespaced where <plural> is known: namespaces/<name>/status is not.
    if rest[0] == _NAMESPACES and len(rest) > 2:
        kind = registry.by_plural(group, version, rest[2])
        if kind is not None:
            return _below(kind, rest[1], rest[3:]) if kind.namespaced and rest[1] else None
    kind = registry.by_plural(group, version, rest[0])
    if kind is None or (kind.namespaced and len(rest) > 1):
        return None
    return _below(kind, None, rest[1:])


def _below(kind: Kind, namespace: str | None, rest: list[str]) -> Target | None:
    if not rest:
        return Target(kind=kind, namespace=namespace)
    if not rest[0]:
        return None
    if len(rest) == 1:
        return Target(kind=kind, namespace=namespace, name=rest[0])
    if rest[1:] == [_STATUS]:
        return Target(kind=kind, namespace=namespace, name=rest[0], status=True)
    return None
