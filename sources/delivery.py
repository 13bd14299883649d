"""Handing events to a source's sink: until it accepts, with back-off, a bounded number at once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from core.control.backoff import Backoff
from core.errors import InvalidInput
from core.events import CloudEvent, to_binary
from core.limits import MAX_REPLY_BYTES
from core.net.names import Names, Target
from core.net.types import Address, Headers, NetError, Response
from core.telemetry import Counter, Metrics
from sources.port import Refused

__all__ = ["RETRY_BACKOFF", "Accepted", "Delivery", "DeliveryMetrics", "Reject", "Requester", "RetryIn", "decide"]

_log: Final = logging.getLogger(__name__)

#: Events of one source under way to its sink at once.
MAX_IN_FLIGHT: Final = 32
#: A sink may be a function at zero that starts slowly and then works; the broker's ingress answers within milliseconds.
ANSWER_TIMEOUT_S: Final = 120.0
#: A sink that comes back is noticed within the cap.
RETRY_BACKOFF: Final = Backoff(first_s=0.1, cap_s=10.0)
#: A sink may ask for a longer pause than ours, up to this.
MAX_RETRY_AFTER_S: Final = 60.0
#: Statuses that speak about the event itself. Every other failure (a sink that is missing, overloaded, or asks for
#: credentials) is the platform's or the sink's state, which a person can mend while the event waits.
_REFUSALS: Final = frozenset({400, 413, 415, 422, 431})


class Requester(Protocol):
    """What is needed of `core.net.client.Client`."""

    async def request(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        tls: bool = False,
    ) -> Response:
        """The whole answer. Raises NetError."""
        ...


class Accepted(msgspec.Struct, frozen=True):
    """The event is the sink's."""


class Reject(msgspec.Struct, frozen=True):
    """The sink will never take this event."""

    status: int
    message: str


class RetryIn(msgspec.Struct, frozen=True):
    """Send it again after `seconds`; `reason` is why it was not accepted."""

    seconds: float
    reason: str


Decision = Accepted | Reject | RetryIn


def decide(outcome: Response | NetError, attempt: int, rng: random.Random) -> Decision:
    """What follows from attempt number `attempt` (from 1)."""
    pause_s = RETRY_BACKOFF.delay_s(attempt, rng)
    if isinstance(outcome, NetError):
        return RetryIn(pause_s, str(outcome))
    if 200 <= outcome.status < 300:
        return Accepted()
    quoted = outcome.body[:200].decode("utf-8", "replace")
    if outcome.status in _REFUSALS:
        return Reject(outcome.status, f"The sink answered {outcome.status}: {quoted}")
    asked_s = _retry_after_s(outcome)
    return RetryIn(max(pause_s, asked_s), f"The sink answered {outcome.status}: {quoted}")


def _retry_after_s(response: Response) -> float:
    """Retry-After in seconds; its other form, a date, is passed over."""
    value = response.header(b"retry-after")
    return min(float(value), MAX_RETRY_AFTER_S) if value is not None and value.isdigit() else 0.0


class DeliveryMetrics:
    """One source's counters."""

    __slots__ = ("accepted", "refused", "retries", "waiting")

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        def outcome(word: str) -> Counter:
            help_text = "Events that a source has emitted, by what became of them"
            return metrics.counter("penstock_source_events_total", help_text, **labels, outcome=word)

        self.accepted = outcome("accepted")
        self.refused = outcome("refused")
        retries = "Attempts to hand an event to a source's sink that failed and are made again"
        self.retries = metrics.counter("penstock_source_retries_total", retries, **labels)
        waiting = "Events of a source that its sink has not accepted yet"
        self.waiting = metrics.gauge("penstock_source_waiting_events", waiting, **labels)


class Delivery:
    """The way to one sink. `emit` is what a source gets."""

    def __init__(
        self,
        *,
        requester: Requester,
        names: Names,
        sink: str,
        extensions: Mapping[str, str],
        metrics: DeliveryMetrics,
        facts: Mapping[str, str],
        rng: random.Random,
    ) -> None:
        """`sink` is the URL in the source's status. Raises ValueError where it is not one."""
        self._requester = requester
        self._target: Target = names.target(sink)
        self._sink = sink
        self._extensions = dict(extensions)
        self._metrics = metrics
        self._facts = dict(facts)
        self._rng = rng
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def emit(self, event: CloudEvent) -> None:
        """Hand over one event: returns once the sink has accepted it. Raises Refused."""
        self._metrics.waiting.value += 1
        try:
            async with self._slots:
                await self._send(self._with_extensions(event))
        finally:
            self._metrics.waiting.value -= 1

    def _with_extensions(self, event: CloudEvent) -> CloudEvent:
        if not self._extensions:
            return event
        try:
            return event.with_attributes(**self._extensions)
        except InvalidInput as error:
            raise Refused(f"spec.ceOverrides makes an invalid event: {error}", status=0) from error

    async def _send(self, event: CloudEvent) -> None:
        headers, body = to_binary(event)
        headers.append((b"host", self._target.host))
        attempt = 0
        while True:
            attempt += 1
            decision = decide(await self._attempt(headers, body), attempt, self._rng)
            if isinstance(decision, Accepted):
                self._metrics.accepted.value += 1
                if attempt > 1:
                    self._say(logging.INFO, "the sink has accepted an event that waited", event, attempt)
                return
            if isinstance(decision, Reject):
                self._metrics.refused.value += 1
                raise Refused(decision.message, status=decision.status)
            self._metrics.retries.value += 1
            if attempt & (attempt - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: an outage of hours is a few lines
                self._say(logging.WARNING, "the sink has not accepted an event", event, attempt, decision.reason)
            await asyncio.sleep(decision.seconds)

    async def _attempt(self, headers: Headers, body: bytes) -> Response | NetError:
        target = self._target
        try:
            return await self._requester.request(
                target.address,
                b"POST",
                target.path,
                headers,
                body,
                timeout_s=ANSWER_TIMEOUT_S,
                max_bytes=MAX_REPLY_BYTES,
                tls=target.tls,
            )
        except NetError as error:
            return error

    def _say(self, level: int, message: str, event: CloudEvent, attempt: int, reason: str = "") -> None:
        facts = {**self._facts, "event_id": event.id, "sink": self._sink, "attempt": attempt, "reason": reason}
        _log.log(level, message, extra={"facts": facts})
