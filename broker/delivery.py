"""What becomes of a delivery attempt: done, again at a later time, or to the dead-letter sink. Pure.

Source: knative/specs `eventing/data-plane.md`, the table under "Event Acknowledgement and Delivery Retry", and
`control-plane.md`, "DeliverySpec"; the arithmetic of back-off and Retry-After is that of knative/eventing
`pkg/apis/duck/v1/delivery_types.go` and `pkg/kncloudevents/retries.go`.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final, Literal

import msgspec

__all__ = ["DONE", "DeadLetter", "Decision", "Done", "Outcome", "Policy", "RetryAt", "decide"]

#: Knative Serving's request time-out by default: a function that Serving would still wait for is not sent twice.
DEFAULT_TIMEOUT_S: Final = 300.0

#: Back-off grows to this, or to the configured first delay where that is longer: past a minute, waiting longer between
#: two attempts relieves a subscriber no more, and only delays what it gets once it is back.
MAX_BACKOFF_S: Final = 60.0

#: How long a Retry-After is followed where the delivery spec sets no `retryAfterMax`.
DEFAULT_RETRY_AFTER_MAX_S: Final = 300.0

#: Retries are spread over this share on top of the delay, so that events that failed together do not come together.
JITTER: Final = 0.2

#: Codes below 500 that are worth another attempt.
_RETRIED: Final = frozenset({404, 408, 409, 429})
#: Codes whose Retry-After is followed.
_TELLS_WHEN: Final = frozenset({429, 503})


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery spec with every default filled in. Times in seconds; `retries` counts attempts after the first.
    `structured` asks for events in structured mode (``format: json``)."""

    retries: int = 10
    backoff: Literal["linear", "exponential"] = "exponential"
    delay_s: float = 0.2
    timeout_s: float = DEFAULT_TIMEOUT_S
    retry_after_max_s: float = DEFAULT_RETRY_AFTER_MAX_S
    structured: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """How one attempt ended: the answer's status, or 0 and `error` where there was no usable answer.

    `retry_after` is that header's text. `error` with a status says why an answer that looks good is not.
    """

    status: int
    retry_after: str | None = None
    error: str | None = None


class Done(msgspec.Struct, frozen=True):
    """The event is delivered."""


class RetryAt(msgspec.Struct, frozen=True):
    """Try again at this wall time, in seconds since the epoch."""

    at: float


class DeadLetter(msgspec.Struct, frozen=True):
    """No attempt is left, or none would help; `reason` is a sentence for a person."""

    reason: str


Decision = Done | RetryAt | DeadLetter
DONE: Final = Done()


def decide(outcome: Outcome, attempt: int, policy: Policy, now: float, jitter: float) -> Decision:
    """What follows from attempt number `attempt` (the first is 1) ending so at `now`; `jitter` is in [0, 1)."""
    status = outcome.status
    if 200 <= status < 300 and outcome.error is None:
        return DONE
    # An error is a sentence of its own; here it ends one.
    said = (outcome.error or f"the subscriber answered {status}").removesuffix(".")
    if not _retriable(outcome):
        return DeadLetter(f"Not retried: {said}.")
    if attempt > policy.retries:
        return DeadLetter(f"Given up after {attempt} attempts: {said}.")
    delay = max(_backoff(attempt, policy) * (1 + JITTER * jitter), _asked(outcome, policy, now))
    return RetryAt(now + delay)


def _retriable(outcome: Outcome) -> bool:
    status = outcome.status
    if outcome.error is not None:
        return True
    if 100 <= status < 200 or 300 <= status < 400:
        return False
    return status in _RETRIED if 400 <= status < 500 else True


def _backoff(attempt: int, policy: Policy) -> float:
    # The exponent is bounded so that no number of attempts overflows; the cap has long been reached by then.
    factor = attempt if policy.backoff == "linear" else 2.0 ** min(attempt - 1, 60)
    return min(policy.delay_s * factor, max(MAX_BACKOFF_S, policy.delay_s))


def _asked(outcome: Outcome, policy: Policy, now: float) -> float:
    """Seconds that the answer's Retry-After asks for, within the policy's bound; 0 where it asks nothing readable."""
    if outcome.retry_after is None or outcome.status not in _TELLS_WHEN:
        return 0.0
    text = outcome.retry_after.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:10])
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), policy.retry_after_max_s)
