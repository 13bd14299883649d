"""What a broker process tells about itself: ``/healthz``, with the reason where it is not well, and ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from core.net.body import IGNORE
from core.net.types import BodySink, Exchange, RequestHead
from core.telemetry import Metrics

__all__ = ["PATHS", "Pages"]

PATHS: Final = frozenset({b"/healthz", b"/metrics"})

_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_METRICS: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
#: What is missing at the start is there a second later.
_RETRY_AFTER: Final = (b"retry-after", b"1")


class Pages:
    """`problem` says why this process should get nothing to do now, "" where it should."""

    def __init__(self, *, metrics: Metrics, problem: Callable[[], str]) -> None:
        self._metrics = metrics
        self._problem = problem

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        """A `core.net.types.Handler`."""
        path = head.target.partition(b"?")[0]
        if path not in PATHS:
            exchange.respond(404, [_TEXT], b"Here are /healthz and /metrics.\n")
        elif head.method not in (b"GET", b"HEAD"):
            exchange.respond(405, [(b"allow", b"GET, HEAD"), _TEXT], b"Read this with GET.\n")
        elif path == b"/metrics":
            exchange.respond(200, [_METRICS], self._metrics.expose().encode())
        elif problem := self._problem():
            exchange.respond(503, [_TEXT, _RETRY_AFTER], f"{problem}\n".encode())
        else:
            exchange.respond(200, [_TEXT], b"ok\n")
        return IGNORE
