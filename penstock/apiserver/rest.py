"""The resource API behind ``/api`` and ``/apis``: finds the verb that a request asks for and answers it."""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope, Send

from core.clock import Clock
from core.control.port import ResourceStore
from core.errors import PenstockError
from core.resources import Registry
from core.telemetry import Metrics
from penstock.apiserver.admission import has_status
from penstock.apiserver.deleting import Deleting
from penstock.apiserver.discovery import Discovery, Document
from penstock.apiserver.exchange import (
    JSON,
    ApiRequest,
    Reply,
    RequestCounters,
    Stream,
    json_reply,
    read_request,
    send_reply,
    status_reply,
)
from penstock.apiserver.namespaces import Namespaces
from penstock.apiserver.paths import GroupVersion, Target, parse_path
from penstock.apiserver.reading import Reading
from penstock.apiserver.statuses import Refused, Status, no_such_path, status_of
from penstock.apiserver.watching import Watches
from penstock.apiserver.writing import Writing

__all__ = ["RestApi"]

_COLLECTION_METHODS: Final = ("GET", "POST", "DELETE")
_OBJECT_METHODS: Final = ("GET", "PUT", "PATCH", "DELETE")
_STATUS_METHODS: Final = ("GET", "PUT", "PATCH")


class RestApi:
    """An ASGI application. It reads a request whole, so every answer but a watch's is computed from values."""

    def __init__(
        self, *, store: ResourceStore, registry: Registry, clock: Clock, metrics: Metrics, watches: Watches
    ) -> None:
        namespaces = Namespaces(store=store, registry=registry)
        self._registry = registry
        self._discovery = Discovery(registry)
        self._counters = RequestCounters(metrics)
        self._reading = Reading(store=store, clock=clock, watches=watches)
        self._writing = Writing(store=store, clock=clock, namespaces=namespaces)
        self._deleting = Deleting(store=store, registry=registry, namespaces=namespaces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        try:
            request = await read_request(scope, receive)
            answer = await self.answer(request)
        except Refused as error:
            answer = status_reply(error.status, error.headers)
        except PenstockError as error:
            answer = status_reply(status_of(error))
        except RecursionError:
            answer = status_reply(Status.failure(400, "The document is nested too deeply."))
        if isinstance(answer, Reply):
            self._counters.count(method, answer.code)
            await send_reply(answer, send, head_only=method == "HEAD")
        else:
            self._counters.count("WATCH", 200)
            await answer.run(receive, send)

    async def answer(self, request: ApiRequest) -> Reply | Stream:
        """The answer to a request. Raises PenstockError, most of them Refused with a Status."""
        path = request.path
        if path.rstrip("/") in ("/api", "/apis"):
            return self._discover(request, self._discovery.groups(request.accept, core=path.rstrip("/") == "/api"))
        target = parse_path(path, self._registry)
        if isinstance(target, GroupVersion):
            found = (
                self._discovery.resources(target.group, target.version)
                if target.version
                else self._discovery.group(target.group)
            )
            if found is None:
                raise no_such_path(path)
            return self._discover(request, (found, JSON))
        if target.name is None:
            return await self._on_collection(target, request)
        if target.status:
            return await self._on_status(target, request)
        return await self._on_object(target, request)

    @staticmethod
    def _discover(request: ApiRequest, document: Document) -> Reply:
        if request.method not in ("GET", "HEAD"):
            raise _not_allowed(request, ("GET",))
        return json_reply(document[0], content_type=document[1])

    async def _on_collection(self, target: Target, request: ApiRequest) -> Reply | Stream:
        match request.method:
            case "GET" | "HEAD":
                if _is_watch(request):
                    return self._reading.watch(target, request)
                return await self._reading.list(target, request)
            case "POST":
                if target.kind.namespaced and target.namespace is None:
                    raise _not_allowed(request, ("GET", "DELETE"), "name the namespace in the URL to create in it")
                return await self._writing.create(target, request)
            case "DELETE":
                return await self._deleting.collection(target, request)
        raise _not_allowed(request, _COLLECTION_METHODS)

    async def _on_object(self, target: Target, request: ApiRequest) -> Reply | Stream:
        match request.method:
            case "GET" | "HEAD":
                if _is_watch(request):
                    return self._reading.watch(target, request)
                return await self._reading.get(target, request)
            case "PUT":
                return await self._writing.update(target, request)
            case "PATCH":
                return await self._writing.patch(target, request)
            case "DELETE":
                return await self._deleting.one(target, request)
        raise _not_allowed(request, _OBJECT_METHODS)

    async def _on_status(self, target: Target, request: ApiRequest) -> Reply:
        if not has_status(target.kind):
            raise no_such_path(request.path)
        match request.method:
            case "GET" | "HEAD":
                return await self._reading.get(target, request)
            case "PUT":
                return await self._writing.update(target, request)
            case "PATCH":
                return await self._writing.patch(target, request)
        raise _not_allowed(request, _STATUS_METHODS)


def _is_watch(request: ApiRequest) -> bool:
    # HEAD asks for an end of the head that a stream does not come to.
    return bool(request.query) and request.method == "GET" and request.flag("watch")


def _not_allowed(request: ApiRequest, allowed: tuple[str, ...], hint: str = "") -> Refused:
    message = f"{request.method} is not possible at {request.path}; possible are {', '.join(allowed)}"
    headers = ((b"allow", ", ".join(allowed).encode()),)
    return Refused(Status.failure(405, f"{message}: {hint}" if hint else message), headers)
