"""The verbs that write: create, update, patch, server-side apply, and the same for status."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, Final, cast, get_args

from core.clock import Clock, rfc3339
from core.control import lifecycle
from core.control.port import ResourceStore
from core.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from core.resources import Kind, Resource
from penstock.apiserver import admission
from penstock.apiserver.admission import FieldPolicy, Place
from penstock.apiserver.applying import apply
from penstock.apiserver.exchange import JSON, ApiRequest, Reply
from penstock.apiserver.media import decode_body, decode_json, load_yaml, media_type, unsupported
from penstock.apiserver.namespaces import Namespaces
from penstock.apiserver.patches import is_native, json_patch, merge_patch, strategic_merge
from penstock.apiserver.paths import Target
from penstock.apiserver.reading import find
from penstock.apiserver.statuses import (
    Cause,
    Details,
    Refused,
    Status,
    bad_request,
    object_conflict,
    object_exists,
)

__all__ = ["Writing", "dry_run"]

#: A patch without a resourceVersion is tried again this often when others write in between (Kubernetes: 5).
MAX_TRIES: Final = 5
#: Characters of one warning; Kubernetes cuts what webhooks warn of there, too.
MAX_WARNING: Final = 256
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")

_JSON_PATCH: Final = "application/json-patch+json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_STRATEGIC: Final = "application/strategic-merge-patch+json"
_APPLY: Final = "application/apply-patch+yaml"

Change = Callable[[dict[str, Any]], Any]


def dry_run(request: ApiRequest) -> bool:
    """Whether nothing may be stored. Raises Refused (400) for a value other than All."""
    word = request.query.get("dryRun", "")
    if word not in ("", "All"):
        raise bad_request(f"dryRun must be All, not {word!r}.")
    return word == "All"


def _policy(request: ApiRequest) -> FieldPolicy:
    word = request.query.get("fieldValidation", "") or "Strict"
    if word not in get_args(FieldPolicy):
        raise bad_request(f"fieldValidation must be Strict, Warn or Ignore, not {word!r}.")
    return cast("FieldPolicy", word)


def _written(target: Target, resource: Resource, warnings: tuple[str, ...], code: int = 200) -> Reply:
    if not target.status:
        # What status is written to may be from before a rule, or may be doubted for long.
        warnings += tuple(map(str, target.kind.doubts(resource)))
    headers = tuple((b"warning", f'299 - "{_quotable(text)}"'.encode("latin-1", "replace")) for text in warnings)
    return Reply(code=code, body=admission.encode(resource), headers=headers)


def _quotable(text: str) -> str:
    """As the quoted text of a header, which has one line."""
    line = _CONTROL.sub(" ", text)[:MAX_WARNING]
    return line.replace("\\", "\\\\").replace('"', '\\"')


class Writing:
    """create, update and patch on a store. Every write is decided on what is stored and carries its version."""

    def __init__(self, *, store: ResourceStore, clock: Clock, namespaces: Namespaces) -> None:
        self._store = store
        self._clock = clock
        self._namespaces = namespaces
        self._rng = random.SystemRandom()

    async def create(self, target: Target, request: ApiRequest) -> Reply:
        document = decode_body(request.content_type, request.body)
        place = Place(target.namespace or "")
        reading = admission.read_resource(document, target.kind, place, _policy(request))
        given = admission.for_create(reading.resource, target.kind)
        created = await self._create(target.kind, given, dry_run(request))
        return _written(target, created, reading.warnings, 201)

    async def _create(self, kind: Kind, given: Resource, dry: bool) -> Resource:
        generated = not given.meta.name and bool(given.meta.generate_name)
        for attempt in range(lifecycle.GENERATED_NAME_ATTEMPTS):
            named = lifecycle.named(given, self._rng) if generated else given
            admitted = admission.admit(named, kind, None)
            try:
                if dry:
                    return await self._imagine(admitted)
                await self._namespaces.ensure(admitted.meta.namespace)
                created = await self._store.create(admitted)
            except AlreadyExists as error:
                if generated and attempt + 1 < lifecycle.GENERATED_NAME_ATTEMPTS:
                    continue
                raise object_exists(kind, named.meta.name) from error
            return await self._namespaces.activated(created)
        raise AssertionError("the loop above returns or raises")

    async def _imagine(self, resource: Resource) -> Resource:
        """What a create would store. Raises AlreadyExists."""
        try:
            await self._store.get(resource.key)
        except NotFound:
            uid = lifecycle.new_uid(self._rng)
            return resource.with_meta(uid=uid, generation=1, creation_timestamp=rfc3339(self._clock.now()))
        raise AlreadyExists(f"{resource.key} exists.")

    async def update(self, target: Target, request: ApiRequest) -> Reply:
        document = decode_body(request.content_type, request.body)
        return _written(target, *await self._rewrite(target, request, lambda _: document))

    async def patch(self, target: Target, request: ApiRequest) -> Reply:
        form = media_type(request.content_type)
        if form == _APPLY:
            return await self._apply(target, request)
        change = self._patch_of(target.kind, form, request.body)
        return _written(target, *await self._rewrite(target, request, change))

    def _patch_of(self, kind: Kind, form: str, body: bytes) -> Change:
        native = is_native(kind.ref)
        if form == _JSON_PATCH:
            operations = decode_json(body)
            return lambda document: json_patch(document, operations)
        if form in (_MERGE_PATCH, _STRATEGIC) and (form == _MERGE_PATCH or native):
            merge = merge_patch if form == _MERGE_PATCH else strategic_merge
            patch = decode_json(body)
            if not isinstance(patch, dict):
                raise bad_request("A merge patch of a resource must be an object.")
            return lambda document: merge(document, patch)
        allowed = (_JSON_PATCH, _MERGE_PATCH, _APPLY, *((_STRATEGIC,) if native else ()))
        hint = "" if native or form != _STRATEGIC else f" (strategic merge is not for custom kinds; use {_MERGE_PATCH})"
        raise Refused(Status.failure(415, unsupported(form or JSON, allowed) + hint))

    async def _rewrite(self, target: Target, request: ApiRequest, change: Change) -> tuple[Resource, tuple[str, ...]]:
        """Store `change` of what is stored; again on the newer state where somebody else wrote in between."""
        kind, policy, dry = target.kind, _policy(request), dry_run(request)
        for _ in range(MAX_TRIES):
            old = await find(self._store, kind, target.key)
            try:
                document = change(old.to_dict())
            except InvalidInput as error:
                details = Details(name=old.meta.name, group=kind.ref.group, kind=kind.ref.kind)
                raise Refused(Status.failure(422, str(error), details=details)) from error
            reading = admission.read_resource(document, kind, Place(old.meta.namespace, old.meta.name), policy)
            try:
                return await self._replace(target, reading.resource, old, dry), reading.warnings
            except Conflict:
                continue
        raise object_conflict(kind, target.name or "", "others kept changing it; please try again")

    async def _replace(self, target: Target, given: Resource, old: Resource, dry: bool) -> Resource:
        """Store what `given` changes of `old`. Raises Conflict where `old` is no longer what is stored."""
        if target.status:
            wanted = admission.for_status(given, old, target.kind)
            return wanted if dry else await self._store.update_status(wanted)
        wanted = admission.for_update(given, old, target.kind)
        wanted = admission.admit(wanted, target.kind, old)
        return wanted if dry else await self._store.update(wanted)

    async def _apply(self, target: Target, request: ApiRequest) -> Reply:
        """Server-side apply: creates what is not there, else merges the fields of one manager."""
        kind = target.kind
        if target.status:
            raise Refused(Status.failure(415, "server-side apply of status is not supported; send a merge patch"))
        manager = request.query.get("fieldManager", "")
        if not manager:
            raise bad_request("fieldManager is required for apply: it names whose fields these are.")
        wanted = self._applied_document(kind, request.body)
        force, policy = request.flag("force"), _policy(request)
        place = Place(target.namespace or "", target.name)
        warnings: list[str] = []

        def settle(merged: dict[str, Any]) -> dict[str, Any]:
            reading = admission.read_resource(merged, kind, place, policy)
            warnings[:] = reading.warnings
            return kind.default(reading.resource).to_dict()

        def change(live: dict[str, Any]) -> dict[str, Any]:
            now = self._clock.now()
            applied = apply(live, wanted, manager=manager, force=force, now=now, settle=settle)
            if applied.conflicts:
                raise _apply_conflict(applied.conflicts)
            return applied.document

        try:
            written, _ = await self._rewrite(target, request, change)
            return _written(target, written, tuple(warnings))
        except Refused as error:
            if error.status.code != 404:
                raise
        document = change({})
        reading = admission.read_resource(document, kind, place, policy)
        fresh = admission.for_create(reading.resource, kind)
        fresh = fresh.with_meta(managed_fields=reading.resource.meta.managed_fields)
        return _written(target, await self._create(kind, fresh, dry_run(request)), tuple(warnings), 201)

    @staticmethod
    def _applied_document(kind: Kind, body: bytes) -> dict[str, Any]:
        try:
            document = load_yaml(body)
        except InvalidInput as error:
            raise bad_request(str(error)) from error
        if not isinstance(document, dict):
            raise bad_request(f"The body must be one {kind.ref.kind} as an object.")
        meta = document.get("metadata") or {}
        if not isinstance(meta, dict):
            raise bad_request("metadata must be an object.")
        if meta.get("managedFields"):
            raise bad_request("metadata.managedFields must not be set in an applied configuration.")
        return {**document, "metadata": meta}


def _apply_conflict(conflicts: Any) -> Refused:
    causes = tuple(
        Cause(reason="FieldManagerConflict", message=f'conflict with "{found.manager}"', field=found.field)
        for found in conflicts
    )
    listed = "; ".join(f"{cause.message}: {cause.field}" for cause in causes)
    noun = "conflict" if len(causes) == 1 else "conflicts"
    message = f"Apply failed with {len(causes)} {noun}: {listed}"
    return Refused(Status.failure(409, message, details=Details(causes=causes)))
