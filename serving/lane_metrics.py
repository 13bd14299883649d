"""What the gateway counts for each revision, in children that are looked up once."""

from __future__ import annotations

from typing import Final

from core.telemetry import Counter, Gauge, Histogram, Metrics
from serving.routing import RevisionKey

__all__ = ["LaneMetrics"]

_HELP_REQUESTS: Final = "Requests by revision and class of the answer's status; aborted ones got no whole answer."


class LaneMetrics:
    """One revision's children of the gateway's metrics, looked up once."""

    _CODES: Final = ("aborted", "1xx", "2xx", "3xx", "4xx", "5xx")

    def __init__(self, metrics: Metrics, key: RevisionKey) -> None:
        self._metrics = metrics
        self._labels = {"namespace": key.namespace, "revision": key.name}
        #: By the status' first digit; 0 is a request that ended without a whole answer.
        self.requests: list[Counter] = [
            metrics.counter("penstock_gateway_requests_total", _HELP_REQUESTS, **self._labels, code=code)
            for code in self._CODES
        ]
        self.latency: Histogram = metrics.histogram(
            "penstock_gateway_request_seconds", "From a request's head to the end of its answer.", **self._labels
        )
        self.hold: Histogram = metrics.histogram(
            "penstock_gateway_hold_seconds", "How long held requests waited for an instance.", **self._labels
        )
        self.retries: Counter = metrics.counter(
            "penstock_gateway_retries_total", "Attempts that failed and were safely repeated.", **self._labels
        )
        self.taken: Counter = metrics.counter(
            "penstock_gateway_handed_over_requests_total",
            "Requests that another gateway handed over, and counted as well.",
            **self._labels,
        )
        self.held: Gauge = metrics.gauge(
            "penstock_gateway_held_requests", "Requests that wait for an instance now.", **self._labels
        )
        self.in_flight: Gauge = metrics.gauge(
            "penstock_gateway_requests_in_flight", "Requests at an instance now.", **self._labels
        )

    def forget(self) -> None:
        """The revision is gone: end its series."""
        for code in self._CODES:
            self._metrics.forget("penstock_gateway_requests_total", **self._labels, code=code)
        for name in (
            "request_seconds",
            "hold_seconds",
            "retries_total",
            "handed_over_requests_total",
            "held_requests",
            "requests_in_flight",
        ):
            self._metrics.forget(f"penstock_gateway_{name}", **self._labels)
