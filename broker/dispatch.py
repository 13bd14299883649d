"""Delivers one Trigger's events: takes them as they come or reads them from the log, and has each attempt made in time.

Nothing here makes a task: the courier calls back, and timers wait for retries. An event is in one of these places:
in the log beyond the subscription's position, `_ready` to be sent, in flight, waiting for its next attempt, or waiting
for a dead-letter sink or a reply destination that has no address yet. All but the first count against the limits below;
when they are reached the dispatcher stops taking and later goes on from the log, so a subscriber that is down costs
bounded memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from broker.courier import Courier, Delivery
from broker.ledger import Attempt
from broker.log.port import Page, Record, Subscription
from broker.services import Services
from broker.table import TriggerSpec
from core.errors import PenstockError

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

#: Deliveries of one Trigger under way at a time.
PARALLELISM: Final = 32
#: Events of one Trigger in memory, in whatever state; one that is refused for this long is read from the log again.
MAX_OUTSTANDING: Final = 1024
MAX_OUTSTANDING_BYTES: Final = 32 * 1024 * 1024
#: Reading goes on when this few are left: not for every single one that is done.
RESUME_OUTSTANDING: Final = MAX_OUTSTANDING // 2
#: Events asked from the log at once.
READ_EVENTS: Final = 128
#: After the log could not be read.
READ_RETRY_S: Final = 1.0


class Dispatcher:
    """One Trigger's deliveries. Made with its subscription; `begin` starts it, `stop` ends it for good."""

    __slots__ = (
        "_bytes",
        "_courier",
        "_idle",
        "_live",
        "_loop",
        "_reading",
        "_ready",
        "_retry_read",
        "_services",
        "_stopped",
        "_unplaced",
        "_waiting",
        "subscription",
    )

    def __init__(self, trigger: TriggerSpec, subscription: Subscription, services: Services) -> None:
        self.subscription = subscription
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Delivery] = deque()
        self._waiting: dict[Delivery, asyncio.TimerHandle] = {}
        #: Letters and replies without an address to send them to.
        self._unplaced: list[Delivery] = []
        self._bytes = 0
        #: Takes events from `offer`; while False they are found in the log.
        self._live = False
        self._reading = False
        self._retry_read: asyncio.TimerHandle | None = None
        self._stopped = False
        self._idle: list[Callable[[], None]] = []
        self._courier = Courier(trigger, services, self)

    # ---- what its owner calls

    def begin(self) -> None:
        """Take up what an earlier process left open, then what came since."""
        seqs = self.subscription.position().open
        if not seqs:
            self._catch_up()
            return
        self._reading = True
        self._services.log.pick(self.trigger.broker, seqs, self._reopened)

    def update(self, trigger: TriggerSpec) -> None:
        """The Trigger changed: whatever was not sent yet goes by what it says now."""
        self._courier.update(trigger)
        if self._courier.places.subscriber is None:
            self._live = False
        unplaced, self._unplaced = self._unplaced, []
        self._ready.extend(unplaced)
        self._pump()
        self._catch_up()

    def offer(self, record: Record) -> None:
        """A new event that the filter matches."""
        if not self._live or record.seq <= self.subscription.through:
            return
        if self._full():
            self._live = False
            return
        self._take(record)
        if len(self._courier.under_way) < PARALLELISM:
            self._pump()

    def looked_at(self, through: int, at_least: int) -> None:
        """Everything up to `through` was offered if it matched: worth keeping if that is `at_least` events on."""
        if self._live and through - self.subscription.through >= at_least:
            self.subscription.skip(through)

    def stop(self) -> None:
        """No new attempts. What is in flight goes on, so that a reply is not lost."""
        self._stopped = True
        self._courier.stop()
        self._live = False
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        self._ready.clear()
        self._unplaced.clear()
        if self._retry_read is not None:
            self._retry_read.cancel()

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call `then` once nothing is in flight, at once where that is so. After `stop`."""
        if self._courier.under_way:
            self._idle.append(then)
        else:
            then()

    async def drained(self) -> None:
        """Wait until nothing is in flight. After `stop`."""
        idle = asyncio.Event()
        self.when_idle(idle.set)
        await idle.wait()

    @property
    def trigger(self) -> TriggerSpec:
        return self._courier.trigger

    @property
    def busy(self) -> bool:
        return bool(self._courier.under_way)

    @property
    def backlog(self) -> int:
        """Events taken and not done, and an upper bound of those not yet read."""
        unread = 0 if self._live else self._services.log.last() - self.subscription.through
        return len(self.subscription.open) + max(unread, 0)

    # ---- taking

    def _full(self) -> bool:
        return len(self.subscription.open) >= MAX_OUTSTANDING or self._bytes >= MAX_OUTSTANDING_BYTES

    def _take(self, record: Record) -> None:
        self.subscription.take(record.seq)
        self._bytes += len(record.entry.data) + len(record.entry.head)
        self._ready.append(Delivery(self._courier, record))

    def _catch_up(self) -> None:
        """Read on, if that is needed and there is room."""
        if self._live or self._reading or self._stopped or self._courier.places.subscriber is None:
            return
        held = self.subscription
        if len(held.open) > RESUME_OUTSTANDING or self._bytes > MAX_OUTSTANDING_BYTES // 2:
            return
        log = self._services.log
        if held.through >= log.last():
            self._live = True
            return
        self._reading = True
        log.read(self.trigger.broker, held.through, READ_EVENTS, self._read)

    def _read(self, page: Page | PenstockError) -> None:
        self._reading = False
        if self._stopped:
            return
        if isinstance(page, PenstockError):
            self._read_failed(page)
            return
        wanted, uid = self.trigger.filter, self.trigger.uid
        for record in page.records:
            only = record.entry.only
            if wanted.matches(record.entry.attributes) if only is None else only.uid == uid:
                if self._full():
                    self.subscription.skip(record.seq - 1)
                    break
                self._take(record)
        else:
            self.subscription.skip(page.through)
        self._tell_corrupt(page)
        self._pump()
        self._catch_up()

    def _reopened(self, page: Page | PenstockError) -> None:
        self._reading = False
        if self._stopped:
            return
        if isinstance(page, PenstockError):
            self._read_failed(page)
            return
        for record in page.records:
            self._take(record)
        found = {record.seq for record in page.records}
        for seq in [seq for seq in self.subscription.open if seq not in found]:
            self.subscription.ack(seq)  # corrupt, or no longer kept
        self._tell_corrupt(page)
        self._pump()
        self._catch_up()

    def _read_failed(self, error: PenstockError) -> None:
        facts = {"trigger": self.trigger.key, "error": str(error)}
        logger.error("a Trigger's events could not be read from the log; trying again", extra={"facts": facts})
        again = self._catch_up if self._live or not self._untaken() else self.begin
        self._retry_read = self._loop.call_later(READ_RETRY_S, again)

    def _untaken(self) -> bool:
        """Whether events left open by an earlier process are still to be read."""
        held = len(self._ready) + len(self._courier.under_way) + len(self._waiting) + len(self._unplaced)
        return len(self.subscription.open) > held

    def _tell_corrupt(self, page: Page) -> None:
        now = self._services.clock.now()
        for seq in page.corrupt:
            reason = "The stored bytes are not what was written."
            self._services.ledger.note(Attempt(seq, self.trigger.uid, now, 0, 0, 0.0, "corrupt", reason))
            self._services.count(self.trigger, "corrupt", 0.0)

    # ---- sending

    def _pump(self) -> None:
        """Send what is ready, as far as the window allows."""
        ready, courier = self._ready, self._courier
        under_way = courier.under_way
        while ready and len(under_way) < PARALLELISM and not self._stopped:
            delivery = ready[0]
            place = courier.place(delivery)
            if place is None:
                if delivery.letter is None and delivery.reply is None:
                    return
                self._unplaced.append(ready.popleft())
                continue
            ready.popleft()
            courier.send(delivery, place)

    # ---- what follows from an attempt (`broker.courier.Window`)

    def closed(self, delivery: Delivery) -> None:
        entry = delivery.record.entry
        self._bytes -= len(entry.data) + len(entry.head)
        self.subscription.ack(delivery.record.seq)
        self._after()

    def again(self, delivery: Delivery) -> None:
        if not self._stopped:
            self._ready.appendleft(delivery)
        self._after()

    def later(self, delivery: Delivery, delay_s: float) -> None:
        if not self._stopped:
            self._waiting[delivery] = self._loop.call_later(delay_s, self._due, delivery)
        self._after()

    def as_letter(self, delivery: Delivery) -> None:
        if not self._stopped:
            self._ready.append(delivery)
        self._after()

    with_reply = as_letter

    def _due(self, delivery: Delivery) -> None:
        """Time for the next attempt."""
        del self._waiting[delivery]
        self._ready.append(delivery)
        self._pump()

    def _after(self) -> None:
        """A place in the window is free."""
        if self._ready:
            self._pump()
        if not self._live:
            self._catch_up()
        if self._idle and not self._courier.under_way:
            waiting, self._idle = self._idle, []
            for then in waiting:
                then()
