"""Repeats: events whose source and id another one had, that arrived not long before.

Whether an event is one follows from the log alone, so that a restart finds the same ones: what arrived within the
window is read back from it (`LookBack`). CloudEvents call an event a duplicate of one with the same source and id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final, TypeVar

from broker.log.port import EventLog, Page, Record, Subscription
from broker.table import TriggerSpec
from core.errors import PenstockError, Unavailable

__all__ = ["MAX_REMEMBERED", "LookBack", "Repeats"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Of one Trigger, some 15 MB; the oldest go before their time where more arrive within the window.
MAX_REMEMBERED: Final = 100_000
#: Events asked from the log at once while looking back.
LOOK_BACK_EVENTS: Final = 256


class Repeats:
    """What arrived within the window, by source and id. Pure: times are the events' arrivals."""

    __slots__ = ("_seen", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        #: The newest of each, in the order in which they arrived.
        self._seen: dict[bytes, tuple[float, int]] = {}

    def is_repeat(self, record: Record) -> bool:
        """Whether one of the same source and id came at most the window before; the event counts as seen from now
        on."""
        entry = record.entry
        key = _key(entry.attributes)
        found = self._seen.get(key)
        if found is not None:
            if found[1] >= record.seq:  # itself, or an older one that is taken late
                return False
            del self._seen[key]
        self._seen[key] = (entry.at, record.seq)
        self._forget(entry.at)
        return found is not None and entry.at - found[0] <= self.window_s

    def _forget(self, now: float) -> None:
        seen = self._seen
        while len(seen) > 1:
            oldest = next(iter(seen))
            if len(seen) <= MAX_REMEMBERED and now - seen[oldest][0] <= self.window_s:
                return
            del seen[oldest]

    def __len__(self) -> int:
        return len(self._seen)


class LookBack:
    """Reads back what a subscription has looked at within the window before the first event that it has not.

    `since` is the position after which all was looked at with the present filter: an event from before was perhaps
    never offered, and makes none after it a repeat.
    """

    def __init__(
        self,
        repeats: Repeats,
        log: EventLog,
        trigger: TriggerSpec,
        subscription: Subscription,
        since: int,
        now: float,
    ) -> None:
        self._repeats = repeats
        self._log = log
        self._trigger = trigger
        self._through = subscription.through
        self._since = since
        self._now = now

    def start(self, done: Callable[[PenstockError | None], None]) -> None:
        """Begin; `done` hears when all is known."""
        self._done = done
        if self._since >= self._through:
            done(None)
            return
        self._log.read(self._trigger.broker, self._through, 1, self._safely(self._next_found))

    def _safely(self, then: Callable[[T], None]) -> Callable[[T], None]:
        def call(result: T) -> None:
            try:
                then(result)
            except Exception:  # boundary: whoever waits is told, and looks again
                logger.exception("a Trigger's earlier events could not be looked at by a fault")
                self._done(Unavailable("The earlier events could not be looked at."))

        return call

    def _next_found(self, page: Page | PenstockError) -> None:
        """When the first event arrived that is yet to be judged: the window ends there."""
        if isinstance(page, PenstockError):
            self._done(page)
            return
        first_at = page.records[0].entry.at if page.records else self._now
        self._log.seek(self._trigger.broker, first_at - self._repeats.window_s, self._safely(self._start_found))

    def _start_found(self, start: int | PenstockError) -> None:
        if isinstance(start, PenstockError):
            self._done(start)
        else:
            self._read_on(max(start, self._since))

    def _read_on(self, after: int) -> None:
        if after >= self._through:
            self._done(None)
        else:
            self._log.read(self._trigger.broker, after, LOOK_BACK_EVENTS, self._safely(self._read))

    def _read(self, page: Page | PenstockError) -> None:
        if isinstance(page, PenstockError):
            self._done(page)
            return
        wanted = self._trigger.filter
        for record in page.records:
            if record.seq <= self._through and record.entry.only is None and wanted.matches(record.entry.attributes):
                self._repeats.is_repeat(record)
        self._read_on(page.through)


def _key(attributes: Mapping[str, str]) -> bytes:
    """Of a fixed size, whatever the attributes hold; two that differ do not have the same one."""
    source, event_id = attributes["source"], attributes["id"]
    text = f"{len(source)}:{source}{event_id}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
