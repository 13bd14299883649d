"""The verbs that delete: one resource, or all that a selector names."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from core.control.port import ResourceStore
from core.errors import Conflict, NotFound
from core.resources import Kind, Registry, Resource
from core.resources.builtin import NAMESPACE
from penstock.apiserver.admission import encode, wire
from penstock.apiserver.exchange import ApiRequest, Reply, json_reply
from penstock.apiserver.media import decode_body
from penstock.apiserver.namespaces import Namespaces
from penstock.apiserver.paths import Target
from penstock.apiserver.reading import find, selection_of
from penstock.apiserver.statuses import bad_request, object_conflict, object_not_found, success
from penstock.apiserver.tables import list_meta
from penstock.apiserver.writing import dry_run

__all__ = ["Deleting"]


class _Preconditions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    uid: str | None = None
    resource_version: str | None = None


class _Options(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a delete may ask for. Dependents go in the background whether "Foreground" is asked for or not; with
    "Orphan" they lose their owner and stay."""

    propagation_policy: Literal["Background", "Foreground", "Orphan"] | None = None
    orphan_dependents: bool | None = None
    grace_period_seconds: int | None = None
    preconditions: _Preconditions | None = None
    dry_run: tuple[Literal["All"], ...] | None = None


class Deleting:
    """delete and deletecollection on a store."""

    def __init__(self, *, store: ResourceStore, registry: Registry, namespaces: Namespaces) -> None:
        self._store = store
        self._registry = registry
        self._namespaces = namespaces

    async def one(self, target: Target, request: ApiRequest) -> Reply:
        kind, options = target.kind, _options(request)
        current = await find(self._store, kind, target.key)
        _check(kind, current, options.preconditions)
        if options.dry_run:
            return _answer(kind, current)
        return _answer(kind, await self._delete(kind, current, options))

    async def collection(self, target: Target, request: ApiRequest) -> Reply:
        kind, options = target.kind, _options(request)
        selection = selection_of(kind, request)
        listing = await self._store.list(kind.ref, target.namespace)
        gone = []
        for resource in listing.items:
            if not selection.matches(resource):
                continue
            try:
                gone.append(resource if options.dry_run else await self._delete(kind, resource, options))
            except NotFound:
                continue
        ref = kind.ref
        items = [wire(resource) for resource in gone]
        body = {"kind": f"{ref.kind}List", "apiVersion": ref.api_version}
        return json_reply({**body, "metadata": list_meta(listing.version), "items": items})

    async def _delete(self, kind: Kind, resource: Resource, options: _Options) -> Resource:
        if options.orphan_dependents or options.propagation_policy == "Orphan":
            await self._orphan(resource)
        if kind.ref == NAMESPACE:
            await self._namespaces.empty(resource.meta.name)
        try:
            return await self._store.delete(resource.key, uid=resource.meta.uid)
        except NotFound as error:
            raise object_not_found(kind, resource.meta.name) from error
        except Conflict as error:
            raise object_conflict(kind, resource.meta.name, "it was deleted and made anew meanwhile") from error

    async def _orphan(self, owner: Resource) -> None:
        """Take the owner off its dependents, so that collecting garbage leaves them."""
        namespace = owner.meta.namespace or None
        for kind in self._registry:
            for resource in (await self._store.list(kind.ref, namespace)).items:
                kept = tuple(held for held in resource.meta.owner_references if held.uid != owner.meta.uid)
                if len(kept) == len(resource.meta.owner_references):
                    continue
                try:
                    await self._store.update(resource.with_meta(owner_references=kept))
                except NotFound:
                    continue
                except Conflict as error:
                    why = "one of its dependents was changed while it was being orphaned; please try again"
                    raise object_conflict(self._registry.get(owner.ref), owner.meta.name, why) from error


def _options(request: ApiRequest) -> _Options:
    """DeleteOptions from the body and, where that leaves them open, from the query."""
    given: Any = decode_body(request.content_type, request.body) if request.body.strip() else {}
    query = request.query
    if not isinstance(given, dict):
        raise bad_request("The body of a delete must be DeleteOptions.")
    if "propagationPolicy" in query:
        given = {"propagationPolicy": query["propagationPolicy"], **given}
    if dry_run(request):
        given = {"dryRun": ["All"], **given}
    try:
        return msgspec.convert(given, _Options)
    except msgspec.ValidationError as error:
        raise bad_request(f"The DeleteOptions are wrong: {error}") from error


def _check(kind: Kind, current: Resource, wanted: _Preconditions | None) -> None:
    if wanted is None:
        return
    pairs = (
        ("uid", wanted.uid, current.meta.uid),
        ("resourceVersion", wanted.resource_version, current.meta.resource_version),
    )
    for name, given, held in pairs:
        if given not in (None, held):
            raise object_conflict(
                kind, current.meta.name, f"the precondition asks for {name} {given}, but it is {held}"
            )


def _answer(kind: Kind, resource: Resource) -> Reply:
    """The resource while finalizers hold it; else a Status that says what is gone."""
    if resource.meta.finalizers:
        return Reply(body=encode(resource))
    return json_reply(success(kind, resource.meta.name, resource.meta.uid))
