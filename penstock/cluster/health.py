"""What Kubernetes asks a pod: is it alive, should it get requests, and what has it counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from core.net.body import IGNORE
from core.net.types import BodySink, Exchange, RequestHead
from core.telemetry import Metrics

__all__ = ["Health"]

_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_METRICS: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


class Health:
    """The admin listener's answers: ``/healthz`` while the process turns at all, ``/readyz`` while it should get
    requests, ``/metrics``.

    `problem` says why it should get none, "" where it should. An API server that is away is no such reason: what was
    known last goes on being served.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.problem: Callable[[], str] = lambda: "starting"
        self._metrics = metrics
        self._stopping = False

    def stop(self) -> None:
        """From now on it is not ready: new requests should go elsewhere."""
        self._stopping = True

    def handler(self, head: RequestHead, exchange: Exchange) -> BodySink:
        path = head.target.partition(b"?")[0]
        if path == b"/metrics":
            exchange.respond(200, [_METRICS], self._metrics.expose().encode())
        elif path == b"/healthz":
            exchange.respond(200, [_TEXT], b"ok\n")
        elif path == b"/readyz":
            problem = "stopping" if self._stopping else self.problem()
            exchange.respond(503 if problem else 200, [_TEXT], f"{problem or 'ok'}\n".encode())
        else:
            exchange.respond(404, [_TEXT], b"Here are /healthz, /readyz and /metrics.\n")
        return IGNORE
