"""The ResourceStore port: desired state and status, with optimistic concurrency and a watch that can be resumed.

Every adapter (SQLite, REST, Kubernetes, the in-memory fake) passes `tests/conformance/resource_store.py`. Semantics are
those of the Kubernetes API ("API concepts": resource versions, efficient detection of changes).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

import msgspec

from core.resources import Key, KindRef, Resource

__all__ = ["Change", "Listing", "ResourceStore"]


class Change(msgspec.Struct, frozen=True):
    """One change seen by a watch. For "DELETED" the resource is its last state. `version` resumes after this change.

    "BOOKMARK" carries no resource: everything up to `version` has been told.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    version: int
    resource: Resource | None = None


class Listing(msgspec.Struct, frozen=True):
    """Resources as of one moment; a watch from `version` misses nothing that came after."""

    items: tuple[Resource, ...]
    version: int


class ResourceStore(Protocol):
    """Where resources live. Writes are durable when they return. All methods may raise Unavailable."""

    async def get(self, key: Key) -> Resource:
        """Raises NotFound."""
        ...

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        """All resources of a kind, in one namespace or (None) in all, sorted by namespace and name."""
        ...

    def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        """Every change of the kind after version `since`, once each, in order.

        It goes on until closed; a remote store's may end by itself, and is resumed from the last change's version.

        Raises Gone where changes since then are no longer kept: list again and watch from there. Closing the iterator
        (``aclose``) ends the watch.
        """
        ...

    async def create(self, resource: Resource) -> Resource:
        """Store a new resource; fills uid, resourceVersion, generation 1 and creationTimestamp; status starts empty.

        Raises AlreadyExists; InvalidInput where the adapter checks what it is given.
        """
        ...

    async def update(self, resource: Resource) -> Resource:
        """Replace everything but status (metadata that the store owns is kept). An update that changes nothing writes
        nothing. generation grows where more than metadata changed.

        A resource whose last finalizer goes while it has a deletionTimestamp is deleted.
        Raises NotFound; Conflict where resourceVersion is given and is not the stored one; InvalidInput.
        """
        ...

    async def update_status(self, resource: Resource) -> Resource:
        """Replace status only. Raises NotFound; Conflict where resourceVersion is given and is not the stored one."""
        ...

    async def delete(self, key: Key, *, uid: str | None = None) -> Resource:
        """Delete, or, where finalizers are left, mark with a deletionTimestamp. Returns the resource's last state.

        Raises NotFound; Conflict where `uid` is given and is another one.
        """
        ...
