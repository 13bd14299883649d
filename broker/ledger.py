"""The delivery ledger: what happened to each event for each Trigger, which is what ``explain`` reads.

That an event was accepted, and which event it replies to, stands in the log itself; the ledger holds the attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

__all__ = ["FINAL", "OUTCOMES", "SETTLED", "UNDELIVERED", "Attempt", "Ledger", "OutcomeName", "standing"]

OutcomeName = Literal[
    "delivered", "retrying", "dead-lettered", "dropped", "dead", "corrupt", "redriven", "discarded", "repeat"
]

#: What an attempt led to, in the order of their stored numbers: only ever append.
#: delivered: the subscriber has it · retrying: another attempt follows · dead-lettered: the dead-letter sink has it ·
#: dropped: given up, and there is no dead-letter sink · dead: the dead-letter sink would not take it either ·
#: corrupt: the stored bytes are not what was written, so nobody got it.
#: Then what a person had done with one of the last four: redriven: it was sent again, as another event · discarded:
#: nobody wants it any more.
#: repeat: not sent, because the Trigger asks for no duplicates and one of the same source and id came before it.
OUTCOMES: Final[tuple[OutcomeName, ...]] = (
    "delivered",
    "retrying",
    "dead-lettered",
    "dropped",
    "dead",
    "corrupt",
    "redriven",
    "discarded",
    "repeat",
)
FINAL: Final = frozenset(OUTCOMES) - {"retrying"}
#: Kept longer than the rest, so that they can be looked at.
UNDELIVERED: Final = frozenset({"dropped", "dead", "corrupt"})
#: What ends that, by hand.
SETTLED: Final = frozenset({"redriven", "discarded"})


class Attempt(msgspec.Struct, frozen=True):
    """One attempt to deliver the event at position `seq` for the subscription `uid` (the Trigger's).

    `at` is when it began (seconds since the epoch), `number` counts from 1, `status` is the answer's or 0 where there
    was none, `latency_s` from sending to the answer's end. `reason` says in words what went wrong. `revision` is the
    one that answered, where the gateway told it, and `cold_start_s` how long the attempt waited there because no
    instance was ready, None where it did not.

    In a row of what a person had done (`SETTLED`), `number` is for how many other subscriptions the event is still
    undelivered: with none left it is kept no longer than any other.
    """

    seq: int
    uid: str
    at: float
    number: int
    status: int
    latency_s: float
    outcome: OutcomeName
    reason: str | None = None
    revision: str | None = None
    cold_start_s: float | None = None


def standing(attempts: Sequence[Attempt]) -> Attempt:
    """The row of one event and subscription that says how it stands: what a person had done with it, or the last
    attempt. The two may be told by different clocks. `attempts` has at least one."""
    return next((attempt for attempt in reversed(attempts) if attempt.outcome in SETTLED), attempts[-1])


class Ledger(Protocol):
    """Where attempts are written. A row is durable at the log's next commit; it never delays a delivery."""

    def note(self, attempt: Attempt) -> None: ...
