"""Resources in memory, found by key, kind, namespace and owner: the state behind a `View`."""

from __future__ import annotations

from collections.abc import Sequence

from core.resources import Key, KindRef, Resource

__all__ = ["Index"]


class Index:
    """The last known state of some kinds. Lists are sorted by namespace and name, and kept until the kind changes, so
    asking again costs nothing."""

    __slots__ = ("_by_kind", "_by_owner", "_lists", "_uids")

    def __init__(self) -> None:
        self._by_kind: dict[KindRef, dict[Key, Resource]] = {}
        self._by_owner: dict[str, dict[Key, Resource]] = {}
        self._lists: dict[KindRef, dict[str | None, tuple[Resource, ...]]] = {}
        self._uids: dict[str, Key] = {}

    def get(self, key: Key) -> Resource | None:
        return self._by_kind.get(key.kind, {}).get(key)

    def list(self, kind: KindRef, namespace: str | None = None) -> Sequence[Resource]:
        lists = self._lists.setdefault(kind, {})
        found = lists.get(namespace)
        if found is None:
            held = self._by_kind.get(kind, {})
            keys = sorted(key for key in held if namespace in (None, key.namespace))
            found = lists[namespace] = tuple(held[key] for key in keys)
        return found

    def owned(self, owner: Resource, kind: KindRef) -> Sequence[Resource]:
        """Resources of `kind` that have `owner` as their controller, sorted by name."""
        return tuple(
            dependent
            for key, dependent in sorted(self._by_owner.get(owner.meta.uid, {}).items())
            if key.kind == kind
            and any(ref.controller and ref.uid == owner.meta.uid for ref in dependent.meta.owner_references)
        )

    def dependents(self, uid: str) -> Sequence[Resource]:
        """Resources of any kind that name the uid among their owners."""
        return tuple(self._by_owner.get(uid, {}).values())

    def holds_uid(self, uid: str) -> bool:
        return uid in self._uids

    def put(self, resource: Resource) -> Resource | None:
        """Hold this state; the state before, if any."""
        key = resource.key
        before = self.drop(key)
        self._by_kind.setdefault(key.kind, {})[key] = resource
        self._uids[resource.meta.uid] = key
        for reference in resource.meta.owner_references:
            self._by_owner.setdefault(reference.uid, {})[key] = resource
        return before

    def drop(self, key: Key) -> Resource | None:
        """Forget the resource; its last state, if there was one."""
        self._lists.pop(key.kind, None)
        before = self._by_kind.get(key.kind, {}).pop(key, None)
        if before is None:
            return None
        self._uids.pop(before.meta.uid, None)
        for reference in before.meta.owner_references:
            dependents = self._by_owner.get(reference.uid, {})
            dependents.pop(key, None)
            if not dependents:
                self._by_owner.pop(reference.uid, None)
        return before

    def keys(self, kind: KindRef) -> frozenset[Key]:
        return frozenset(self._by_kind.get(kind, ()))
