"""What a benchmark and its load process tell each other: one JSON object a line on the process's pipes."""

from __future__ import annotations

import msgspec

__all__ = [
    "Answer",
    "Closed",
    "ClosedResult",
    "Command",
    "Connect",
    "Connected",
    "Deliveries",
    "DeliveriesResult",
    "Failed",
    "Open",
    "OpenResult",
    "Request",
]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of a request. With `numbered`, each one's number stands between `before` and `after`."""

    before: bytes
    after: bytes = b""
    numbered: bool = False

    def bytes_of(self, number: int) -> bytes:
        return b"%b%d%b" % (self.before, number, self.after) if self.numbered else self.before


class Connect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open keep-alive connections to a server and call them `target`."""

    target: str
    host: str
    port: int
    connections: int


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run a closed loop over all connections of `target`; requests are numbered from `first`."""

    target: str
    count: int
    request: Request
    expect: int
    first: int = 0
    timeout_s: float = 60.0


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run an open loop. `timeout_s` is how long to wait for answers beyond the last request's time."""

    target: str
    count: int
    rate_per_s: float
    request: Request
    expect: int
    timeout_s: float = 10.0


class Deliveries(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run an open loop whose requests publish events that come back to this process's own sink (`Connected.sink`)."""

    publish: Open


Command = Connect | Closed | Open | Deliveries


class Connected(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The port where this process's sink listens."""

    sink: int


class ClosedResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a closed loop saw. `failures` counts what was not the expected answer, by what it was."""

    seconds: float
    failures: dict[str, int]


class OpenResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What an open loop saw: see bench.loops.OpenLoop."""

    latencies_s: list[float]
    late_s: list[float]
    failures: dict[str, int]


class DeliveriesResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`publish` is up to the broker's answer; `latencies_s` from when each event was due to its delivery."""

    publish: OpenResult
    latencies_s: list[float]
    lost: int
    duplicates: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The command could not be run at all."""

    reason: str


Answer = Connected | ClosedResult | OpenResult | DeliveriesResult | Failed
