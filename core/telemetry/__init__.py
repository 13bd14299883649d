"""What the platform says of itself: structured logs and metrics."""

from core.telemetry.logs import configure_logging
from core.telemetry.metrics import Counter, Gauge, Histogram, Metrics

__all__ = ["Counter", "Gauge", "Histogram", "Metrics", "configure_logging"]
