"""The account of every event: what was accepted, what each subscriber got, what that proves. Pure.

It shares nothing with the platform: senders and subscribers tell it what they saw, and when. Times are seconds on one
clock, of which only differences matter.

What must hold, and what each breach is called:

- lost: an event that was answered 202, or the last reply to it, never came to a subscriber.
- strange: an event came that nobody sent. damaged: its data was not what was sent.
- disordered: a subscriber that asked for order by key was given an event before an earlier one of its key was done.
- unexplained: an event came again to a subscriber that had taken it, and no crash says why. A crash explains those
  that were in flight: taken from the process that died, at most UNSETTLED_S before it did, or among the last UNSETTLED
  that the subscriber took from it: a process that gets no processor does nothing, however long it takes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Final

import msgspec

__all__ = ["FROZEN_S", "UNSETTLED", "UNSETTLED_S", "Account", "Disorder", "Missing", "Repeat", "Verdict"]

#: How long the broker may take to keep that an event is done: its flush interval is 20 ms, and a disk that is shared
#: has been seen to take more than a second for one commit.
UNSETTLED_S: Final = 3.0
#: Longer than a lease of a Trigger in any log; a process that is stopped for so long has lost what it had.
FROZEN_S: Final = 12.0
#: Twice the deliveries that the broker has under way for one subscriber.
UNSETTLED: Final = 64

_BREACHES: Final = ("lost", "strange", "damaged", "disordered", "unexplained")


class Missing(msgspec.Struct, frozen=True, order=True):
    """This event never came to this subscriber, or was not the one that was sent."""

    subscriber: str
    event: str


class Disorder(msgspec.Struct, frozen=True):
    """`later` was sent to the subscriber before `earlier` of the same key was done."""

    subscriber: str
    key: str
    later: str
    earlier: str


class Repeat(msgspec.Struct, frozen=True):
    """An event that came again although nothing explains it."""

    subscriber: str
    event: str
    why: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the account proves. `repeats` counts deliveries of what a subscriber had taken already, `worst` the most of
    them that one crash cost one subscriber."""

    accepted: int
    delivered: int
    repeats: int
    worst: int
    lost: list[Missing]
    strange: list[Missing]
    damaged: list[Missing]
    disordered: list[Disorder]
    unexplained: list[Repeat]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept, of an account that has anything in it."""
        return self.accepted > 0 and not any(getattr(self, name) for name in _BREACHES)

    def lines(self, most: int = 10) -> list[str]:
        """For a person; of each kind of breach the first `most`."""
        said = [
            f"accepted {self.accepted}, delivered {self.delivered}, "
            + ", ".join(f"{name} {len(getattr(self, name))}" for name in _BREACHES)
            + f"; delivered again {self.repeats}, at most {self.worst} of them to one subscriber by one crash"
        ]
        for name in _BREACHES:
            said += [f"{name}: {breach}" for breach in getattr(self, name)[:most]]
        return said


class _Taken(msgspec.Struct, frozen=True):
    """The request `came` before it was taken; `number` counts what the subscriber took from this process."""

    process: int
    came: float
    at: float
    number: int


class _End(msgspec.Struct, frozen=True):
    """A process's end: when, how many events each subscriber had taken from it by then, and for how long what it had
    delivered need not have been kept."""

    at: float
    counts: dict[str, int]
    unsettled_s: float


class Account:
    """Told by senders and subscribers as it happens; asked for its `verdict` at the end."""

    def __init__(self, subscribers: Collection[str], *, ordered: Collection[str] = ()) -> None:
        """`subscribers` are to get every event; those `ordered` each key's in the order in which they were sent."""
        self._subscribers = tuple(subscribers)
        self._ordered = frozenset(ordered)
        #: Of every event that may exist, its key and its place among the key's events; None where it has no key.
        self._places: dict[str, tuple[str, int] | None] = {}
        self._accepted: set[str] = set()
        #: The reply that counts: an event that is delivered again is replied to again, and its last reply was stored.
        self._replies: dict[str, str] = {}
        self._taken: dict[str, dict[str, list[_Taken]]] = {name: defaultdict(list) for name in self._subscribers}
        #: By subscriber and event, in which step of this account it was first attempted, and first taken.
        self._began: dict[str, dict[str, int]] = {name: {} for name in self._subscribers}
        self._done: dict[str, dict[str, int]] = {name: {} for name in self._subscribers}
        #: When each process died, and when one that lives lost its leases.
        self._ends: dict[int, list[_End]] = defaultdict(list)
        #: By subscriber and process, how many events were taken.
        self._counts: Counter[tuple[str, int]] = Counter()
        self._strange: set[Missing] = set()
        self._damaged: set[Missing] = set()
        self._step = 0

    # ---- what senders tell

    def sent(self, event: str, place: tuple[str, int] | None = None) -> None:
        """It is about to be sent: from now on it may exist. `place` is its key and its number among the key's."""
        self._places[event] = place

    def accepted(self, event: str) -> None:
        """It was answered 202."""
        self._accepted.add(event)

    # ---- what subscribers tell

    def attempted(self, subscriber: str, event: str, *, intact: bool = True) -> None:
        """A request with it has come."""
        self._step += 1
        if event not in self._places:
            self._strange.add(Missing(subscriber, event))
            return
        if not intact:
            self._damaged.add(Missing(subscriber, event))
        self._began[subscriber].setdefault(event, self._step)

    def taken(self, subscriber: str, event: str, process: int, at: float, *, waited_s: float = 0.0) -> None:
        """It is about to be answered with success, `waited_s` after the request came from broker process `process`."""
        self._step += 1
        self._counts[(subscriber, process)] += 1
        number = self._counts[(subscriber, process)]
        self._taken[subscriber][event].append(_Taken(process, at - waited_s, at, number))
        self._done[subscriber].setdefault(event, self._step)

    def replied(self, event: str, reply: str) -> None:
        """A subscriber is about to answer `event` with the event `reply`."""
        self._places[reply] = None
        self._replies[event] = reply

    # ---- what the killer tells

    def died(self, process: int, at: float) -> None:
        self._end(process, at, UNSETTLED_S)

    # ---- what the broker's own log tells

    def bereft(self, process: int, at: float) -> None:
        """It found that its leases had run out, as of a process that is gone: what was in flight comes again, from
        whoever has them then."""
        self._end(process, at, UNSETTLED_S + FROZEN_S)

    def _end(self, process: int, at: float, unsettled_s: float) -> None:
        counts = {name: self._counts[(name, process)] for name in self._subscribers}
        self._ends[process].append(_End(at, counts, unsettled_s))

    # ---- what it proves

    def missing(self) -> list[Missing]:
        """What is still to come, if nothing is lost."""
        replies = {self._replies[event] for event in self._accepted if event in self._replies}
        wanted = self._accepted | replies
        return sorted(Missing(name, event) for name in self._subscribers for event in wanted - self._done[name].keys())

    def verdict(self) -> Verdict:
        crashes: Counter[tuple[str, int]] = Counter()
        unexplained = []
        repeats = 0
        for subscriber, events in self._taken.items():
            for event, takings in events.items():
                for first, second in pairwise(takings):
                    repeats += 1
                    crashes[(subscriber, first.process)] += 1
                    why = self._unexplained(subscriber, first, second)
                    if why:
                        unexplained.append(Repeat(subscriber, event, why))
        return Verdict(
            accepted=len(self._accepted),
            delivered=sum(len(events) for events in self._done.values()),
            repeats=repeats,
            worst=max(crashes.values(), default=0),
            lost=self.missing(),
            strange=sorted(self._strange),
            damaged=sorted(self._damaged),
            disordered=[each for name in sorted(self._ordered) for each in self._disorders(name)],
            unexplained=unexplained,
        )

    def _unexplained(self, subscriber: str, first: _Taken, second: _Taken) -> str:
        ended = self._ends[first.process]
        if second.process == first.process:
            # The broker's word and its requests come on different ways.
            ended = [end for end in ended if first.came - UNSETTLED_S <= end.at <= second.at]
            if not ended:
                return f"process {first.process} delivered it twice"
        elif not ended:
            return f"process {second.process} delivered it, and {first.process}, which had, did not die"
        after_s, after = ended[0].at - first.at, ended[0].counts[subscriber] - first.number
        if after_s > ended[0].unsettled_s and after > UNSETTLED:
            return f"it was taken {after_s:.1f} s and {after} events before process {first.process} died"
        return ""

    def _disorders(self, subscriber: str) -> Iterable[Disorder]:
        """An event's first attempt must come after all earlier ones of its key were taken. Those delivered again are
        not judged: after a crash a key's last events may come again, in their order."""
        keys: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for event in self._began[subscriber]:
            place = self._places[event]
            if place is not None:
                keys[place[0]].append((place[1], event))
        done = self._done[subscriber]
        for key, events in keys.items():
            last, latest = 0, ""
            for _, event in sorted(events):
                if self._began[subscriber][event] < last:
                    yield Disorder(subscriber, key, event, latest)
                step = done.get(event, self._step + 1)
                if step > last:
                    last, latest = step, event
