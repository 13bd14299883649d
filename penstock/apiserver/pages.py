"""The pages beside the resource API: version, health, metrics and OpenAPI."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.control.port import ResourceStore
from core.errors import NotFound, Unavailable
from core.resources import Key, Registry
from core.resources.builtin import NAMESPACE
from core.telemetry import Metrics
from penstock.apiserver import gnostic
from penstock.apiserver.discovery import VERSION
from penstock.apiserver.exchange import JSON, json_reply
from penstock.apiserver.namespaces import DEFAULT
from penstock.apiserver.openapi import OpenApi
from penstock.apiserver.statuses import no_such_path

__all__ = ["PlatformPages"]


class PlatformPages:
    """GET-only pages, as Starlette routes."""

    def __init__(self, *, store: ResourceStore, registry: Registry, metrics: Metrics) -> None:
        self._store = store
        self._openapi = OpenApi(registry)
        self._metrics = metrics

    def routes(self) -> list[Route]:
        return [
            Route("/version", self._version),
            Route("/healthz", self._alive),
            Route("/livez", self._alive),
            Route("/readyz", self._ready),
            Route("/metrics", self._exposed),
            Route("/openapi/v2", self._openapi_v2),
            Route("/openapi/v3", self._openapi_index),
            Route("/openapi/v3/{path:path}", self._openapi_v3),
        ]

    async def _version(self, _: Request) -> Response:
        return Response(json_reply(VERSION).body, media_type=JSON)

    async def _alive(self, _: Request) -> Response:
        return Response("ok", media_type="text/plain")

    async def _ready(self, _: Request) -> Response:
        """Ready means that the store answers, whatever it holds."""
        try:
            await self._store.get(Key(NAMESPACE, "", DEFAULT))
        except NotFound:
            pass
        except Unavailable as error:
            return Response(f"The store does not answer: {error}", 503, media_type="text/plain")
        return Response("ok", media_type="text/plain")

    async def _exposed(self, _: Request) -> Response:
        return Response(self._metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi_v2(self, request: Request) -> Response:
        if "protobuf" in request.headers.get("accept", ""):
            return Response(self._openapi.v2_protobuf(), media_type=gnostic.CONTENT_TYPE)
        return Response(self._openapi.v2_json(), media_type=JSON)

    async def _openapi_index(self, _: Request) -> Response:
        return Response(self._openapi.index(), media_type=JSON)

    async def _openapi_v3(self, request: Request) -> Response:
        path = request.path_params["path"]
        found = self._openapi.group_version(path)
        if found is None:
            raise no_such_path(request.url.path)
        return Response(found, media_type=JSON)
