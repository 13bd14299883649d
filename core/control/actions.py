"""Carrying out a reconciler's Outcome: its actions in order, then its status.

Each write is made against the state that the decision saw (its resourceVersion), so that a decision made on old state
ends in a Conflict and not in the loss of somebody's change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from core.control.lifecycle import same_json, wanted_body
from core.control.port import ResourceStore
from core.control.reconcile import Action, Apply, Delete, Outcome, View
from core.errors import Conflict, NotFound
from core.resources import Key, KindRef, OwnerReference, Resource

__all__ = ["Execution", "OnStatus", "merged"]

#: Called with a resource before and after its status was written.
OnStatus = Callable[[Resource, Resource], None]


def merged(current: Resource, wanted: Resource) -> Resource | None:
    """The update that an Apply of `wanted` makes of `current`; None where there is nothing to change.

    Labels, annotations, owner references and finalizers of others stay: only those that `wanted` has are set. The body
    is replaced as a whole, but for status.
    """
    meta = current.meta
    body = wanted_body(wanted)
    changed = current.with_meta(
        labels={**meta.labels, **wanted.meta.labels},
        annotations={**meta.annotations, **wanted.meta.annotations},
        owner_references=_merged_owners(meta.owner_references, wanted.meta.owner_references),
        finalizers=meta.finalizers if meta.deletion_timestamp else _union(meta.finalizers, wanted.meta.finalizers),
    )
    if changed.meta == meta and same_json(body, wanted_body(current)):
        return None
    return Resource(ref=current.ref, meta=changed.meta, body=body)


def _merged_owners(held: tuple[OwnerReference, ...], wanted: tuple[OwnerReference, ...]) -> tuple[OwnerReference, ...]:
    by_uid = {reference.uid: reference for reference in (*held, *wanted)}
    return tuple(by_uid.values())


def _union(held: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*held, *wanted)))


class Execution:
    """One Outcome being carried out for one resource.

    `written` is, per followed kind, the version that the cache must have seen to know of these writes, and of the newer
    state that a Conflict came from. `on_status` hears of the status that is written.
    """

    __slots__ = ("_followed", "_latest", "_on_status", "_resource", "_store", "_view", "written")

    def __init__(
        self,
        store: ResourceStore,
        view: View,
        followed: Collection[KindRef],
        resource: Resource,
        on_status: OnStatus | None = None,
    ) -> None:
        self._store = store
        self._on_status = on_status
        self._view = view
        self._resource = resource
        self._latest: dict[Key, Resource | None] = {resource.key: resource}
        self._followed = followed
        self.written: dict[KindRef, int] = {}

    async def carry_out(self, outcome: Outcome) -> None:
        """Raises Conflict where the decision was made on old state; whatever else the store raises."""
        for action in outcome.actions:
            await self._act(action)
        if outcome.status is not None:
            await self._write_status(outcome.status)

    async def _act(self, action: Action) -> None:
        if isinstance(action, Apply):
            await self._apply(action.resource)
        elif isinstance(action, Delete):
            await self._delete(action)
        else:
            await self._remove(action.finalizer)

    async def _apply(self, wanted: Resource) -> None:
        key = wanted.key
        current = await self._current(key) if wanted.meta.name else None
        try:
            if current is None:
                self._wrote(await self._store.create(wanted))
                return
            update = merged(current, wanted)
            if update is not None:
                self._wrote(await self._store.update(update))
        except (Conflict, NotFound) as error:
            await self._refresh(key)
            raise _outdated(key, error) from error

    async def _delete(self, action: Delete) -> None:
        try:
            gone = await self._store.delete(action.key, uid=action.uid)
        except NotFound:
            return
        except Conflict:
            # Another uid has the name: the one that was to be deleted is gone.
            return
        self._wrote(gone)
        self._latest[action.key] = gone if gone.meta.deletion_timestamp and gone.meta.finalizers else None

    async def _remove(self, finalizer: str) -> None:
        key = self._resource.key
        current = self._latest[key]
        if current is None or finalizer not in current.meta.finalizers:
            return
        left = tuple(name for name in current.meta.finalizers if name != finalizer)
        try:
            self._wrote(await self._store.update(current.with_meta(finalizers=left)))
        except NotFound:
            self._latest[key] = None
            return
        except Conflict:
            await self._refresh(key)
            raise
        if current.meta.deletion_timestamp and not left:
            self._latest[key] = None

    async def _write_status(self, status: Mapping[str, Any]) -> None:
        key = self._resource.key
        current = self._latest[key]
        if current is None or same_json(current.body.get("status"), status):
            return
        try:
            written = await self._store.update_status(current.with_status(dict(status)))
        except NotFound:
            return
        except Conflict:
            await self._refresh(key)
            raise
        self._wrote(written)
        if self._on_status is not None:
            self._on_status(current, written)

    async def _current(self, key: Key) -> Resource | None:
        if key in self._latest:
            return self._latest[key]
        if key.kind in self._followed:
            return self._view.get(key)
        try:
            return await self._store.get(key)
        except NotFound:
            return None

    async def _refresh(self, key: Key) -> None:
        """Learn which version a cache must have seen before deciding again makes sense."""
        try:
            self._wrote(await self._store.get(key))
        except NotFound:
            return

    def _wrote(self, resource: Resource) -> None:
        self._latest[resource.key] = resource
        if resource.ref not in self._followed:
            return
        version = int(resource.meta.resource_version)
        self.written[resource.ref] = max(version, self.written.get(resource.ref, 0))


def _outdated(key: Key, error: Conflict | NotFound) -> Conflict:
    return error if isinstance(error, Conflict) else Conflict(f"{key} was deleted since it was read.")
