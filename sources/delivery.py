"""Handing events to a source's sink: until it accepts, with back-off, a bounded number at once.

Without a delivery spec a sink that is away is waited for. With one (`Policy`), an event is given up after that many
retries; given up or refused, it goes to the dead-letter sink where there is one, which is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from core.control.backoff import Backoff
from core.errors import InvalidInput
from core.events import CloudEvent, dead_letter, to_binary, to_structured
from core.limits import MAX_REPLY_BYTES
from core.net.names import Names, Target
from core.net.types import Address, Headers, NetError, Response
from core.resources import DeliveryShape, parse_iso_duration
from core.telemetry import Counter, Metrics
from sources.port import Refused

__all__ = [
    "PATIENT",
    "RETRY_BACKOFF",
    "Accepted",
    "Delivery",
    "DeliveryMetrics",
    "Policy",
    "Reject",
    "Requester",
    "RetryIn",
    "decide",
    "policy_of",
]

_log: Final = logging.getLogger(__name__)

#: Events of one source under way to its sink at once.
MAX_IN_FLIGHT: Final = 32
#: A sink may be a function at zero that starts slowly and then works; the broker's ingress answers within milliseconds.
ANSWER_TIMEOUT_S: Final = 120.0
#: A sink that comes back is noticed within the cap.
RETRY_BACKOFF: Final = Backoff(first_s=0.1, cap_s=10.0)
#: A sink may ask for a longer pause than ours, up to this.
MAX_RETRY_AFTER_S: Final = 60.0
#: Retries where a spec names a dead-letter sink and no number: what Knative's `config-br-defaults` gives a Broker.
DEFAULT_RETRIES: Final = 10
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


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a delivery spec asks for. Times in seconds; `retries` counts attempts after the first, None is without end.

    `pause_s` is the first pause (None: `RETRY_BACKOFF`), which grows by itself each time where `linear`, else doubles.
    `structured` asks for events in structured mode (``format: json``); `dead_letter_sink` is a URL, or "".
    """

    retries: int | None = None
    pause_s: float | None = None
    linear: bool = False
    timeout_s: float = ANSWER_TIMEOUT_S
    retry_after_max_s: float = MAX_RETRY_AFTER_S
    structured: bool = False
    dead_letter_sink: str = ""


#: Without a delivery spec: a sink that is away is waited for.
PATIENT: Final = Policy()


def policy_of(shape: DeliveryShape | None, dead_letter_sink: str) -> Policy:
    """The policy that a checked delivery spec states; `dead_letter_sink` is where its own one leads ("" without)."""
    if shape is None:
        return PATIENT
    found: dict[str, Any] = {"linear": shape.backoff_policy == "linear", "structured": shape.format == "json"}
    found["dead_letter_sink"] = dead_letter_sink
    if shape.retry is not None:
        found["retries"] = shape.retry
    elif shape.dead_letter_sink is not None:
        found["retries"] = DEFAULT_RETRIES
    for name, text in (
        ("pause_s", shape.backoff_delay),
        ("timeout_s", shape.timeout),
        ("retry_after_max_s", shape.retry_after_max),
    ):
        if text is not None:
            found[name] = parse_iso_duration(text)
    return Policy(**found)


class Accepted(msgspec.Struct, frozen=True):
    """The event is the sink's."""


class Reject(msgspec.Struct, frozen=True):
    """The sink will never take this event, or is asked no more. `status` is 0 where there was no answer."""

    status: int
    message: str
    body: bytes = b""


class RetryIn(msgspec.Struct, frozen=True):
    """Send it again after `seconds`; `reason` is why it was not accepted."""

    seconds: float
    reason: str


Decision = Accepted | Reject | RetryIn


def decide(outcome: Response | NetError, attempt: int, rng: random.Random, policy: Policy = PATIENT) -> Decision:
    """What follows from attempt number `attempt` (from 1)."""
    if isinstance(outcome, Response) and 200 <= outcome.status < 300:
        return Accepted()
    if isinstance(outcome, NetError):
        status, body, said, asked_s = 0, b"", str(outcome), 0.0
    else:
        status, body = outcome.status, outcome.body
        said = f"The sink answered {status}: {body[:200].decode('utf-8', 'replace')}"
        asked_s = _retry_after_s(outcome, policy)
        if status in _REFUSALS:
            return Reject(status, said, body)
    if policy.retries is not None and attempt > policy.retries:
        return Reject(status, f"Given up after {attempt} attempts: {said}", body)
    return RetryIn(max(_pause_s(attempt, rng, policy), asked_s), said)


def _pause_s(attempt: int, rng: random.Random, policy: Policy) -> float:
    if policy.pause_s is None:
        return RETRY_BACKOFF.delay_s(attempt, rng)
    cap_s = max(RETRY_BACKOFF.cap_s, policy.pause_s)
    if policy.linear:
        return min(policy.pause_s * attempt, cap_s) * (0.5 + 0.5 * rng.random())
    return Backoff(first_s=policy.pause_s, cap_s=cap_s).delay_s(attempt, rng)


def _retry_after_s(response: Response, policy: Policy) -> float:
    """Retry-After in seconds; its other form, a date, is passed over."""
    value = response.header(b"retry-after")
    return min(float(value), policy.retry_after_max_s) if value is not None and value.isdigit() else 0.0


class DeliveryMetrics:
    """One source's counters."""

    __slots__ = ("accepted", "dead_lettered", "refused", "retries", "waiting")

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        def outcome(word: str) -> Counter:
            help_text = "Events that a source has emitted, by what became of them"
            return metrics.counter("penstock_source_events_total", help_text, **labels, outcome=word)

        self.accepted = outcome("accepted")
        self.refused = outcome("refused")
        self.dead_lettered = outcome("dead-letter")
        retries = "Attempts to hand an event to a source's sink that failed and are made again"
        self.retries = metrics.counter("penstock_source_retries_total", retries, **labels)
        waiting = "Events of a source that its sink has not accepted yet"
        self.waiting = metrics.gauge("penstock_source_waiting_events", waiting, **labels)


class _Way(msgspec.Struct, frozen=True):
    """Where events go, and how long that is tried."""

    url: str
    target: Target
    policy: Policy


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
        policy: Policy = PATIENT,
    ) -> None:
        """`sink` is the URL in the source's status. Raises ValueError where it, or the dead-letter sink, is not one."""
        self._requester = requester
        self._sink = _Way(sink, names.target(sink), policy)
        self._dead_letters: _Way | None = None
        if policy.dead_letter_sink:
            # There is nowhere else to go from there: it is waited for.
            patient = Policy(structured=policy.structured)
            self._dead_letters = _Way(policy.dead_letter_sink, names.target(policy.dead_letter_sink), patient)
        self._extensions = dict(extensions)
        self._metrics = metrics
        self._facts = dict(facts)
        self._rng = rng
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def emit(self, event: CloudEvent) -> None:
        """Hand over one event: returns once the sink, or the dead-letter sink, has accepted it. Raises Refused."""
        self._metrics.waiting.value += 1
        try:
            async with self._slots:
                await self._hand_over(self._with_extensions(event))
        finally:
            self._metrics.waiting.value -= 1

    async def _hand_over(self, event: CloudEvent) -> None:
        rejected = await self._send(self._sink, event)
        if rejected is None:
            self._metrics.accepted.value += 1
            return
        if self._dead_letters is not None:
            letter = dead_letter(event, self._sink.url, rejected.status, rejected.body)
            self._say(logging.WARNING, "an event goes to the dead-letter sink", self._sink, event, rejected.message)
            again = await self._send(self._dead_letters, letter)
            if again is None:
                self._metrics.dead_lettered.value += 1
                return
            rejected = Reject(again.status, f"{rejected.message} The dead-letter sink: {again.message}")
        self._metrics.refused.value += 1
        raise Refused(rejected.message, status=rejected.status)

    def _with_extensions(self, event: CloudEvent) -> CloudEvent:
        if not self._extensions:
            return event
        try:
            return event.with_attributes(**self._extensions)
        except InvalidInput as error:
            raise Refused(f"spec.ceOverrides makes an invalid event: {error}", status=0) from error

    async def _send(self, way: _Way, event: CloudEvent) -> Reject | None:
        """Send it until it is accepted (None), or will not be."""
        headers, body = to_structured(event) if way.policy.structured else to_binary(event)
        headers.append((b"host", way.target.host))
        attempt = 0
        while True:
            attempt += 1
            decision = decide(await self._attempt(way, headers, body), attempt, self._rng, way.policy)
            if isinstance(decision, Accepted):
                if attempt > 1:
                    self._say(logging.INFO, "the sink has accepted an event that waited", way, event, attempt=attempt)
                return None
            if isinstance(decision, Reject):
                return decision
            self._metrics.retries.value += 1
            if attempt & (attempt - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: an outage of hours is a few lines
                message = "the sink has not accepted an event"
                self._say(logging.WARNING, message, way, event, decision.reason, attempt=attempt)
            await asyncio.sleep(decision.seconds)

    async def _attempt(self, way: _Way, headers: Headers, body: bytes) -> Response | NetError:
        target = way.target
        try:
            return await self._requester.request(
                target.address,
                b"POST",
                target.path,
                headers,
                body,
                timeout_s=way.policy.timeout_s,
                max_bytes=MAX_REPLY_BYTES,
                tls=target.tls,
            )
        except NetError as error:
            return error

    def _say(
        self, level: int, message: str, way: _Way, event: CloudEvent, reason: str = "", *, attempt: int = 0
    ) -> None:
        facts = {**self._facts, "event_id": event.id, "sink": way.url, "attempt": attempt, "reason": reason}
        _log.log(level, message, extra={"facts": facts})
