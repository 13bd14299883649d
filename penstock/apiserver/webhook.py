"""The admission webhooks of the cluster composition: ``/default`` and ``/validate``, over TLS, for its API server."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.limits import MAX_RESOURCE_BYTES
from core.resources import Registry
from penstock.apiserver.exchange import JSON, status_reply
from penstock.apiserver.reviews import Review, defaulted, read_review, validated
from penstock.apiserver.statuses import Refused, Status

__all__ = ["create_webhook", "serving_webhook"]

_LOG: Final = logging.getLogger(__name__)

#: A review holds a resource twice, new and old, each as another server encodes it, and little else.
MAX_REVIEW_BYTES: Final = 5 * MAX_RESOURCE_BYTES

#: How often the certificate is looked at: the kubelet brings a renewed one into a pod within about a minute.
CERTIFICATE_LOOK_S: Final = 30.0

Answer = Callable[[Review, Registry], dict[str, Any]]


def create_webhook(registry: Registry) -> Starlette:
    """The application that answers for the kinds of `registry`."""

    def route(path: str, answer: Answer) -> Route:
        async def review(request: Request) -> Response:
            try:
                body = await _body(request)
                return Response(msgspec.json.encode(answer(read_review(body), registry)), media_type=JSON)
            except Refused as refused:
                reply = status_reply(refused.status)
                return Response(reply.body, reply.code, media_type=JSON)

        return Route(path, review, methods=["POST"])

    return Starlette(routes=[route("/default", defaulted), route("/validate", validated)])


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_REVIEW_BYTES:
            raise Refused(Status.failure(413, f"A review may have at most {MAX_REVIEW_BYTES} bytes."))
    return bytes(body)


@asynccontextmanager
async def serving_webhook(
    app: Starlette, sock: socket.socket, certificates: Path, *, drain_s: float
) -> AsyncIterator[None]:
    """The app answers on `sock` by TLS until leaving, with ``tls.crt`` and ``tls.key`` of the folder `certificates`,
    which are read again when they change. Raises OSError where they cannot be read."""
    certificate, key = certificates / "tls.crt", certificates / "tls.key"
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(drain_s),
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    assert config.ssl is not None  # noqa: S101 - made of the files above
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[sock])
    renewing = asyncio.create_task(_renewed(config.ssl, certificate, key), name="webhook certificate")
    ticking = asyncio.create_task(server.main_loop(), name="webhook")
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        server.should_exit = True
        await ticking
        await server.shutdown(sockets=[sock])


async def _renewed(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Take a new certificate for new connections whenever its file is another one."""
    seen = _stamp(certificate)
    while True:
        await asyncio.sleep(CERTIFICATE_LOOK_S)
        try:
            found = _stamp(certificate)
            if found != seen:
                context.load_cert_chain(certificate, key)
                seen = found
        except (OSError, ssl.SSLError) as error:
            # Half of a pair, most likely; the next look finds both.
            _LOG.warning("the webhook's certificate cannot be read", extra={"facts": {"error": str(error)}})


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns
