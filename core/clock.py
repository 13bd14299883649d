"""Wall time as a port, so that no decision reads the machine's clock.

Monotonic time and sleeping need no port: everything asynchronous uses the running event loop's clock, and the tests'
event loop (`tests/support/virtual_time.py`) moves that clock by itself.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "rfc3339", "parse_rfc3339"]


class Clock(Protocol):
    """Where wall time comes from."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> float:
        return time.time()


def rfc3339(epoch_s: float, *, fraction: bool = False) -> str:
    """`epoch_s` as Kubernetes and CloudEvents write times: UTC, ``Z``; whole seconds unless `fraction`."""
    moment = datetime.fromtimestamp(epoch_s, UTC)
    return moment.isoformat(timespec="microseconds" if fraction else "seconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time. Raises ValueError where it is not one."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write one, such as Z")
    return moment.timestamp()
