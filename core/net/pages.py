"""What a process tells about itself: checks, each with the reason where it fails, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from core.net.body import IGNORE
from core.net.types import BodySink, Exchange, RequestHead
from core.telemetry import Metrics

__all__ = ["HEALTH", "METRICS", "Pages"]

HEALTH: Final = b"/healthz"
METRICS: Final = b"/metrics"

_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_METRICS_TEXT: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
#: What is missing at the start is there a second later.
_RETRY_AFTER: Final = (b"retry-after", b"1")


class Pages:
    """``/metrics``, and the `checks` by their paths: each says what is wrong, "" where nothing is."""

    def __init__(self, *, metrics: Metrics, checks: Mapping[bytes, Callable[[], str]]) -> None:
        self._metrics = metrics
        self._checks = dict(checks)

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        """A `core.net.types.Handler`."""
        path = head.target.partition(b"?")[0]
        check = self._checks.get(path)
        if check is None and path != METRICS:
            here = b", ".join(self._checks)
            exchange.respond(404, [_TEXT], b"Here are %b and %b.\n" % (here, METRICS))
        elif head.method not in (b"GET", b"HEAD"):
            exchange.respond(405, [(b"allow", b"GET, HEAD"), _TEXT], b"Read this with GET.\n")
        elif check is None:
            exchange.respond(200, [_METRICS_TEXT], self._metrics.expose().encode())
        elif problem := check():
            exchange.respond(503, [_TEXT, _RETRY_AFTER], f"{problem}\n".encode())
        else:
            exchange.respond(200, [_TEXT], b"ok\n")
        return IGNORE
