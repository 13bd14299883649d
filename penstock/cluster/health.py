"""What Kubernetes asks a pod: is it alive, should it get requests, and what has it counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from core.net.pages import HEALTH, Pages
from core.net.types import Handler
from core.telemetry import Metrics

__all__ = ["Health"]

READY: Final = b"/readyz"


class Health:
    """The admin listener's answers: ``/healthz`` while the process turns at all, ``/readyz`` while it should get
    requests, ``/metrics``.

    `problem` says why it should get none, "" where it should. An API server that is away is no such reason: what was
    known last goes on being served.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.problem: Callable[[], str] = lambda: "starting"
        self._pages = Pages(metrics=metrics, checks={HEALTH: str, READY: self._unready})
        self._stopping = False

    @property
    def handler(self) -> Handler:
        return self._pages.handle

    def stop(self) -> None:
        """From now on it is not ready: new requests should go elsewhere."""
        self._stopping = True

    def _unready(self) -> str:
        return "stopping" if self._stopping else self.problem()
