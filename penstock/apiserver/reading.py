"""The verbs that read: get, list, watch, in the representation that the client asked for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from core.clock import Clock
from core.control.port import ResourceStore
from core.errors import NotFound
from core.resources import Key, Kind, Resource
from penstock.apiserver.admission import encode, wire
from penstock.apiserver.exchange import ApiRequest, Reply, json_reply
from penstock.apiserver.media import Form, accepted_form
from penstock.apiserver.paths import Target
from penstock.apiserver.selectors import Selection, parse_selection
from penstock.apiserver.statuses import Refused, Status, bad_request, object_not_found
from penstock.apiserver.tables import Include, list_meta, partial_metadata, table
from penstock.apiserver.watching import MAX_WATCH_S, Render, Watch, Watches, WatchPlan

__all__ = ["MAX_PAGE", "Reading", "find", "selection_of"]

#: Resources in one page. kubectl asks for 500 at a time; without a limit a list is whole, as in Kubernetes.
MAX_PAGE: Final = 5_000

_INCLUDES: Final[Mapping[str, Include]] = {"": "Metadata", "Metadata": "Metadata", "None": "None", "Object": "Object"}


class _Position(msgspec.Struct, frozen=True):
    """What a continue token holds: the version of the first page and the last resource told."""

    version: int
    namespace: str
    name: str


async def find(store: ResourceStore, kind: Kind, key: Key) -> Resource:
    """The resource. Raises Refused (404) worded as Kubernetes does."""
    try:
        return await store.get(key)
    except NotFound as error:
        raise object_not_found(kind, key.name) from error


def selection_of(kind: Kind, request: ApiRequest) -> Selection:
    query = request.query
    return parse_selection(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))


class Reading:
    """get, list and watch on a store."""

    def __init__(self, *, store: ResourceStore, clock: Clock, watches: Watches) -> None:
        self._store = store
        self._clock = clock
        self._watches = watches

    async def get(self, target: Target, request: ApiRequest) -> Reply:
        form = accepted_form(request.accept)
        resource = await find(self._store, target.kind, target.key)
        if not form.name:
            return Reply(body=encode(resource))
        return json_reply(self._renderer(target.kind, form, request)(resource))

    async def list(self, target: Target, request: ApiRequest) -> Reply:
        kind = target.kind
        form = accepted_form(request.accept)
        selection = selection_of(kind, request)
        listing = await self._store.list(kind.ref, target.namespace)
        _check_version(request, listing.version)
        items = [item for item in listing.items if selection.everything or selection.matches(item)]
        version = listing.version
        position = _decode_position(request.query.get("continue", ""))
        if position is not None:
            # The first page's version: a watch from there tells again whatever changed between the pages.
            version = position.version
            last = (position.namespace, position.name)
            items = [item for item in items if (item.meta.namespace, item.meta.name) > last]
        limit = min(request.number("limit") or 0, MAX_PAGE)
        if not limit or len(items) <= limit:
            return self._list_reply(kind, form, request, items, list_meta(version))
        page = items[:limit]
        remaining = len(items) - limit if selection.everything else None
        following = _encode_position(_Position(version, page[-1].meta.namespace, page[-1].meta.name))
        return self._list_reply(kind, form, request, page, list_meta(version, following, remaining))

    def watch(self, target: Target, request: ApiRequest) -> Watch:
        """A stream of changes. `name` in the path narrows it, as the watch of one resource does."""
        kind = target.kind
        form = accepted_form(request.accept)
        selection = selection_of(kind, request)
        if target.name is not None:
            selection = parse_selection(kind, request.query.get("labelSelector", ""), f"metadata.name={target.name}")
        initial = request.flag("sendInitialEvents")
        bookmarks = request.flag("allowWatchBookmarks")
        since = _since(request)
        plan = WatchPlan(
            kind=kind.ref,
            namespace=target.namespace,
            since=None if initial else since,
            selection=selection,
            render=self._renderer(kind, form, request),
            timeout_s=float(request.number("timeoutSeconds") or MAX_WATCH_S),
            bookmarks=bookmarks,
            mark_initial_end=initial and bookmarks,
        )
        return self._watches.watch(plan)

    def _list_reply(
        self, kind: Kind, form: Form, request: ApiRequest, items: Sequence[Resource], meta: dict[str, Any]
    ) -> Reply:
        if form.name == "Table":
            include = _include(request)
            shown = table(kind, items, now=self._clock.now(), meta=meta, version=form.version, include=include)
            return json_reply(shown)
        if form.name:
            entries = [partial_metadata(item, form.version) for item in items]
            api_version = f"meta.k8s.io/{form.version}"
            return json_reply(
                {"kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": meta, "items": entries}
            )
        ref = kind.ref
        entries = [wire(item) for item in items]
        return json_reply(
            {"kind": f"{ref.kind}List", "apiVersion": ref.api_version, "metadata": meta, "items": entries}
        )

    def _renderer(self, kind: Kind, form: Form, request: ApiRequest) -> Render:
        if form.name == "Table":
            include = _include(request)

            def as_table(resource: Resource) -> dict[str, Any]:
                meta = {"resourceVersion": resource.meta.resource_version}
                now = self._clock.now()
                return table(kind, (resource,), now=now, meta=meta, version=form.version, include=include)

            return as_table
        if form.name:
            return lambda resource: partial_metadata(resource, form.version)
        return wire


def _include(request: ApiRequest) -> Include:
    word = request.query.get("includeObject", "")
    if word not in _INCLUDES:
        raise bad_request(f"includeObject must be None, Metadata or Object, not {word!r}.")
    return _INCLUDES[word]


def _since(request: ApiRequest) -> int | None:
    """The version to watch from; None for "whatever is there now", which is what no version and 0 mean."""
    return request.number("resourceVersion") or None


def _check_version(request: ApiRequest, current: int) -> None:
    """Refuse a list of a version that is not there: only the present one can be listed."""
    wanted = request.number("resourceVersion")
    if not wanted:
        return
    if wanted > current:
        message = f"Too large resource version: {wanted}, current: {current}"
        raise Refused(Status.failure(504, message))
    if request.query.get("resourceVersionMatch") == "Exact" and wanted != current:
        raise Refused(Status.failure(410, f"Version {wanted} is no longer kept; the current one is {current}."))


def _encode_position(position: _Position) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def _decode_position(token: str) -> _Position | None:
    if not token:
        return None
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        return msgspec.json.decode(text, type=_Position)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise bad_request("continue is not a token that this server gave; list from the start.") from error
