"""Takes one subscription's events from the log: those left open by an earlier process, and those that were not taken as
they came."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

from broker.flow.repeats import LookBack
from broker.ledger import Attempt
from broker.log.port import Page, Record, Subscription
from broker.memo import Memo, decode_memo
from broker.services import Services
from broker.table import TriggerSpec
from core.errors import PenstockError

__all__ = ["READ_EVENTS", "READ_RETRY_S", "Intake", "Taker"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Events asked from the log at once.
READ_EVENTS: Final = 128
#: After the log could not be read.
READ_RETRY_S: Final = 1.0


class Taker(Protocol):
    """Whose events they are."""

    subscription: Subscription

    @property
    def trigger(self) -> TriggerSpec: ...

    def is_halted(self) -> bool:
        """Whether nothing can be sent now: then nothing is taken either."""
        ...

    def is_full(self) -> bool:
        """Whether there is no room for another event."""
        ...

    def is_crowded(self) -> bool:
        """Whether there is too little room for reading on to be worth it."""
        ...

    def remembers(self) -> bool:
        """Whether it wants to know what an earlier process left word of, though that left nothing open."""
        ...

    def recalled(self, memo: Memo) -> None:
        """What an earlier process left word of; before anything is taken."""
        ...

    def look_back(self) -> LookBack | None:
        """What is to be read back before anything is taken."""
        ...

    def take(self, record: Record) -> None: ...

    def taken(self) -> None:
        """What was read was given to `take`."""
        ...

    def held(self) -> Collection[int]:
        """The positions of all events that were given to `take` and are not done with."""
        ...


class Intake:
    """Made with its taker; `begin` starts it, `stop` ends it for good."""

    __slots__ = ("_looked_back", "_loop", "_reading", "_recalled", "_retry", "_services", "_stopped", "_taker", "live")

    def __init__(self, services: Services, taker: Taker) -> None:
        self._services = services
        self._taker = taker
        self._loop = asyncio.get_running_loop()
        #: Events are taken as they come; while False they are found in the log.
        self.live = False
        self._recalled = False
        self._looked_back = False
        self._reading = False
        self._retry: asyncio.TimerHandle | None = None
        self._stopped = False

    def begin(self) -> None:
        """Take up what an earlier process left open, then what came since."""
        self._retry = None
        if self._stopped:
            return
        if self._reading:  # a fault came in between: look again after that
            self.mend()
            return
        taker = self._taker
        if not self._recalled and (taker.subscription.open or taker.remembers()):
            self._reading = True
            self._services.log.recall(taker.trigger.uid, self._guarded(self._memo_read))
        elif not self._looked_back and (back := taker.look_back()) is not None:
            self._reading = True
            back.start(self._guarded(self._seen))
        elif missing := self._missing():
            self._reading = True
            self._services.log.pick(taker.trigger.broker, missing, self._guarded(partial(self._reopened, missing)))
        else:
            self.catch_up()

    def mend(self) -> None:
        """A fault kept an event from being taken: find in the log, after a while, what is missing."""
        self.live = False
        if self._retry is None and not self._stopped:
            self._retry = self._loop.call_later(READ_RETRY_S, self.begin)

    def catch_up(self) -> None:
        """Read on, if that is needed and there is room."""
        taker = self._taker
        if self.live or self._reading or self._stopped or self._retry is not None or taker.is_halted():
            return
        if taker.is_crowded():
            return
        log, through = self._services.log, taker.subscription.through
        if through >= log.last():
            self.live = True
            return
        self._reading = True
        log.read(taker.trigger.broker, through, READ_EVENTS, self._guarded(self._read))

    def stop(self) -> None:
        self._stopped = True
        self.live = False
        if self._retry is not None:
            self._retry.cancel()

    # ---- inside

    def _guarded(self, then: Callable[[T], None]) -> Callable[[T | PenstockError], None]:
        """A reader that goes on after a failure of the log, and after a fault of its own."""

        def read(result: T | PenstockError) -> None:
            self._reading = False
            if self._stopped:
                return
            if isinstance(result, PenstockError):
                facts = {"trigger": self._taker.trigger.key, "error": str(result)}
                logger.error("a Trigger's events could not be read from the log; trying again", extra={"facts": facts})
                self.mend()
                return
            try:
                then(result)
            except Exception:  # boundary: a fault of ours costs these events a while, and not the Trigger its events
                facts = {"trigger": self._taker.trigger.key}
                logger.exception("a Trigger's events could not be taken; trying again", extra={"facts": facts})
                self.mend()

        return read

    def _memo_read(self, stored: bytes) -> None:
        self._recalled = True
        self._taker.recalled(decode_memo(stored))
        self.begin()

    def _seen(self, _: None) -> None:
        self._looked_back = True
        self.begin()

    def _missing(self) -> list[int]:
        """What is open and not in memory."""
        opened = self._taker.subscription.open
        held = self._taker.held()
        # Not told by how many there are: what is held may be done with already, by an attempt from before a hand-over.
        return sorted(opened.difference(held))

    def _reopened(self, asked: Sequence[int], page: Page) -> None:
        subscription = self._taker.subscription
        found = set()
        for record in sorted(page.records, key=lambda record: record.seq):
            found.add(record.seq)
            self._taker.take(record)
        for seq in asked:
            if seq not in found and (seq <= page.through or not page.more):
                subscription.ack(seq)  # corrupt, or no longer kept
        self._tell_corrupt(page)
        self._taker.taken()
        if page.more and self._retry is None:
            self.begin()  # the page was too small for all of them
        else:
            self.catch_up()

    def _read(self, page: Page) -> None:
        taker = self._taker
        for record in page.records:
            if self._is_wanted(record):
                if taker.is_full():
                    taker.subscription.skip(record.seq - 1)
                    break
                taker.take(record)
        else:
            taker.subscription.skip(page.through)
        self._tell_corrupt(page)
        taker.taken()
        self.catch_up()

    def _is_wanted(self, record: Record) -> bool:
        trigger, only = self._taker.trigger, record.entry.only
        if only is not None:
            return only.uid == trigger.uid
        return trigger.filter.matches(record.entry.attributes)

    def _tell_corrupt(self, page: Page) -> None:
        services, trigger = self._services, self._taker.trigger
        now = services.clock.now()
        for seq in page.corrupt:
            reason = "The stored bytes are not what was written."
            services.ledger.note(Attempt(seq, trigger.uid, now, 0, 0, 0.0, "corrupt", reason))
            services.count(trigger, "corrupt", 0.0)
