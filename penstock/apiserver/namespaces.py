"""Namespaces as a person on a laptop expects them: one that is used without having been created is created on the spot.

A manifest that names a namespace should work, and ``kubectl get namespaces`` tell the truth afterwards. ``default`` is
there from the start. Deleting a namespace deletes what is in it first; what still has finalizers outlives it until
they are gone.
"""

from __future__ import annotations

from typing import Final

from core.control.port import ResourceStore
from core.errors import AlreadyExists, NotFound
from core.resources import Key, ObjectMeta, Registry, Resource
from core.resources.builtin import NAMESPACE
from penstock.apiserver.statuses import Refused, Status

__all__ = ["DEFAULT", "Namespaces"]

DEFAULT: Final = "default"

_NAME_LABEL: Final = "kubernetes.io/metadata.name"


class Namespaces:
    """Keeps Namespace objects in step with the namespaces in use, where the registry has that kind."""

    def __init__(self, *, store: ResourceStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._known = any(kind.ref == NAMESPACE for kind in registry)

    async def ensure(self, name: str) -> None:
        """Make sure that the namespace is there. Raises Refused (403) while it is being deleted."""
        if not self._known or not name:
            return
        try:
            held = await self._store.get(Key(NAMESPACE, "", name))
        except NotFound:
            await self._create(name)
            return
        if held.meta.deletion_timestamp is not None:
            message = f"nothing can be created in namespace {name} because it is being terminated"
            raise Refused(Status.failure(403, message))

    async def _create(self, name: str) -> None:
        meta = ObjectMeta(name=name, labels={_NAME_LABEL: name})
        try:
            created = await self._store.create(Resource(ref=NAMESPACE, meta=meta, body={"spec": {}}))
        except AlreadyExists:
            return
        await self.activated(created)

    async def activated(self, resource: Resource) -> Resource:
        """A Namespace that was just created, with its phase; any other resource as it is."""
        if resource.ref != NAMESPACE:
            return resource
        return await self._store.update_status(resource.with_status({"phase": "Active"}))

    async def empty(self, name: str) -> None:
        """Delete everything in the namespace. Raises Refused (403) for the default one."""
        if name == DEFAULT:
            raise Refused(Status.failure(403, f'namespaces "{DEFAULT}" is forbidden: it may not be deleted'))
        for kind in self._registry:
            if not kind.namespaced:
                continue
            for resource in (await self._store.list(kind.ref, name)).items:
                try:
                    await self._store.delete(resource.key)
                except NotFound:
                    continue
