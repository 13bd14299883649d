"""The API server as an ASGI application: routes, the trust boundary for browsers, and errors as Status objects."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.clock import Clock
from core.control.port import ResourceStore
from core.errors import PenstockError
from core.resources import Registry
from core.telemetry import Metrics
from penstock.apiserver.exchange import JSON, status_reply
from penstock.apiserver.pages import PlatformPages
from penstock.apiserver.rest import RestApi
from penstock.apiserver.statuses import Cause, Details, Refused, Status, status_of
from penstock.apiserver.watching import Watches

__all__ = ["create_app", "create_own_app"]

_LOG: Final = logging.getLogger(__name__)


def create_app(
    *,
    store: ResourceStore,
    registry: Registry,
    clock: Clock,
    metrics: Metrics,
    extra_routers: Iterable[APIRouter] = (),
) -> FastAPI:
    """The Kubernetes REST protocol for the kinds of `registry` on `store`, with `extra_routers` beside it.

    ``app.state.watches.close()`` ends all watches: call it when a shutdown begins, as they would hold it up.
    """
    app = _bare_app()
    watches = Watches(store, metrics)
    app.state.watches = watches
    rest = RestApi(store=store, registry=registry, clock=clock, metrics=metrics, watches=watches)
    pages = PlatformPages(store=store, registry=registry, metrics=metrics)
    # The busiest first: routes are tried in order.
    for path in ("/apis/{rest:path}", "/api/{rest:path}", "/apis", "/api"):
        app.router.routes.append(Route(path, rest, name=path))
    app.router.routes.extend(pages.routes())
    for router in extra_routers:
        app.include_router(router)
    return app


def create_own_app(routers: Iterable[APIRouter]) -> FastAPI:
    """What the platform tells beside Kubernetes' protocol, for where a cluster's API server has the resources."""
    app = _bare_app()
    for router in routers:
        app.include_router(router)
    return app


def _bare_app() -> FastAPI:
    app = FastAPI(title="Penstock", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(PenstockError, _refuse)
    app.add_middleware(_Boundary)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """Any error of a router as a Status."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, PenstockError):
        status = status_of(error)
        headers = error.headers if isinstance(error, Refused) else ()
    elif isinstance(error, RequestValidationError):
        causes = tuple(
            Cause(reason="FieldValueInvalid", message=found["msg"], field=".".join(map(str, found["loc"])))
            for found in error.errors()
        )
        listed = "; ".join(f"{cause.field}: {cause.message}" for cause in causes)
        status = Status.failure(422, f"The request is invalid: {listed}", details=Details(causes=causes))
    elif isinstance(error, HTTPException):
        status = _http_status(request, error)
        headers = tuple((name.lower().encode(), text.encode()) for name, text in (error.headers or {}).items())
    else:
        raise error
    reply = status_reply(status, headers)
    response = Response(reply.body, reply.code, media_type=JSON)
    response.raw_headers.extend(reply.headers)
    return response


def _http_status(request: Request, error: HTTPException) -> Status:
    if error.status_code == 404 and error.detail == "Not Found":
        return Status.failure(404, f"Nothing is served at {request.url.path}; see /apis.")
    if error.status_code == 405:
        return Status.failure(405, f"{request.method} is not possible at {request.url.path}.")
    return Status.failure(error.status_code, str(error.detail))


class _Boundary:
    """Around everything: keeps web pages out and turns a crash of a handler into a Status.

    There is no login on a laptop's loopback address, and whoever may create a Service may run commands. A browser would
    send requests there for any page that it shows, so a request is refused if it comes from another origin, or names a
    host that is not this machine's (a page's own domain, made to resolve to loopback).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reason = _untrusted(scope)
        if reason:
            await _send_status(Status.failure(403, reason), send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except Exception:
            place = {"method": scope["method"], "path": scope["path"]}
            _LOG.exception("A request failed unexpectedly.", extra={"facts": place})
            if started:
                raise
            await _send_status(Status.failure(500, "The request failed unexpectedly; see the server's log."), send)


def _untrusted(scope: Scope) -> str:
    """Why a request is not to be trusted; "" where it is."""
    host = origin = b""
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
        elif name == b"origin":
            origin = value
    if origin and origin.partition(b"://")[2] != host:
        return f"A page of {origin.decode('latin-1')} may not use this API."
    if not _is_local_name(host):
        return f"This API is not known as {host.decode('latin-1')}; use an IP address or localhost."
    return ""


@lru_cache(maxsize=256)
def _is_local_name(host: bytes) -> bool:
    """Whether a Host header is one that no foreign page can have: an address, localhost, or a name without a dot."""
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.removesuffix(".")
    if "." not in name and ":" not in name:
        return True
    if name.endswith((".localhost", ".svc", ".svc.cluster.local")):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


async def _send_status(status: Status, send: Send) -> None:
    reply = status_reply(status)
    headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.code, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
