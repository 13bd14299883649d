"""Delivers one Trigger's events: takes them as they come or has them read from the log, and has each attempt made in
time.

Nothing here makes a task: the courier calls back, and timers wait for retries. An event is in one of these places:
in the log beyond the subscription's position, held back by the gate for its delay or its key's order, `_ready` to be
sent, in flight, waiting for its next attempt, or waiting for a dead-letter sink or a reply destination that has no
address yet. All but the first count against the limits below; when they are reached the dispatcher stops taking and
later goes on from the log, so a subscriber that is down costs bounded memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from broker.courier import Batch, Courier, Delivery
from broker.flow.gate import Gate
from broker.flow.gathering import Gathering
from broker.flow.rate import Bucket
from broker.flow.repeats import LookBack, Repeats
from broker.flow.settings import PLAIN, Flow
from broker.intake import Intake
from broker.ledger import Attempt
from broker.log.port import Record, Subscription
from broker.memo import KEEP_AFTER_S, Memo, Planned, encode_memo, fingerprint
from broker.services import Services
from broker.table import TriggerSpec

__all__ = ["Dispatcher"]

#: Events of one Trigger in memory, in whatever state; one that is refused for this long is read from the log again.
MAX_OUTSTANDING: Final = 1024
#: The same where events are ordered: those that stand behind one of their key must not keep other keys' out for long.
MAX_OUTSTANDING_ORDERED: Final = 4 * MAX_OUTSTANDING
MAX_OUTSTANDING_BYTES: Final = 32 * 1024 * 1024
#: Reading goes on when there is room for this many: not for every single one that is done.
RESUME_ROOM: Final = MAX_OUTSTANDING // 2


class Dispatcher:
    """One Trigger's deliveries. Made with its subscription; `begin` starts it, `stop` ends it for good."""

    __slots__ = (
        "_alarm",
        "_bucket",
        "_bytes",
        "_courier",
        "_flow",
        "_gate",
        "_gathering",
        "_idle",
        "_intake",
        "_keeping",
        "_loop",
        "_most",
        "_planned",
        "_ready",
        "_repeats",
        "_services",
        "_since",
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
        self._waiting: dict[Delivery | Batch, asyncio.TimerHandle] = {}
        #: Letters and replies without an address to send them to.
        self._unplaced: list[Delivery] = []
        self._bytes = 0
        self._stopped = False
        self._idle: list[Callable[[], None]] = []
        self._courier = Courier(trigger, services, self)
        self._intake = Intake(services, self)
        # What an earlier process left word of, by position, and the timer that has that kept for the next one.
        self._planned: dict[int, Planned] = {}
        self._keeping: asyncio.TimerHandle | None = None
        # Where repeats are not wanted: what has arrived, and after which position all was looked at with this filter.
        self._repeats: Repeats | None = None
        self._since: int | None = None
        # What the Trigger's annotations ask for; the timer for what they hold back.
        self._flow: Flow = PLAIN
        self._gate: Gate | None = None
        self._bucket: Bucket | None = None
        self._gathering: Gathering | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._shape(trigger.flow)

    # ---- what its owner calls

    def begin(self) -> None:
        """Take up what an earlier process left open, then what came since."""
        self._intake.begin()

    def update(self, trigger: TriggerSpec) -> None:
        """The Trigger changed: whatever was not sent yet goes by what it says now."""
        before = self.trigger
        self._courier.update(trigger)
        if trigger.flow != self._flow:
            self._shape(trigger.flow)
        if self._repeats is not None and (self._since is None or trigger.filter != before.filter):
            self._since = self.subscription.through
            self._keep()
        elif self._repeats is None and before.flow.window_s:
            self._keep()  # what is looked at from now on is not told apart by filter: a later window must not go by it
        if self.is_halted():
            self._intake.live = False
        unplaced, self._unplaced = self._unplaced, []
        for delivery in unplaced:
            self._line_up(delivery)
        self._pump()
        self._intake.catch_up()

    def offer(self, record: Record) -> None:
        """A new event that the filter matches."""
        if not self._intake.live or record.seq <= self.subscription.through:
            return
        if self.is_full():
            self._intake.live = False
            return
        self.take(record)
        if len(self._courier.under_way) < self._flow.parallelism:
            self._pump()

    def mend(self) -> None:
        """A fault kept an event from being offered or taken: it is found in the log instead."""
        self._intake.mend()

    def looked_at(self, through: int, at_least: int) -> None:
        """Everything up to `through` was offered if it matched: worth keeping if that is `at_least` events on."""
        if self._intake.live and through - self.subscription.through >= at_least:
            self.subscription.skip(through)

    def stop(self) -> None:
        """No new attempts. What is in flight goes on, so that a reply is not lost."""
        if not self._stopped and self._keeping is not None:
            self._keep()
        self._stopped = True
        self._courier.stop()
        self._intake.stop()
        for timer in (*self._waiting.values(), self._alarm, self._keeping):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        self._ready.clear()
        self._unplaced.clear()
        self._gate = None
        self._gathering = None

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
        unread = 0 if self._intake.live else self._services.log.last() - self.subscription.through
        return len(self.subscription.open) + max(unread, 0)

    # ---- taking (`broker.intake.Taker`)

    def is_halted(self) -> bool:
        return self._flow.paused or self._courier.places.subscriber is None

    def is_full(self) -> bool:
        return len(self.subscription.open) >= self._most or self._bytes >= MAX_OUTSTANDING_BYTES

    def is_crowded(self) -> bool:
        return len(self.subscription.open) > self._most - RESUME_ROOM or self._bytes > MAX_OUTSTANDING_BYTES // 2

    def remembers(self) -> bool:
        return self._repeats is not None

    def recalled(self, memo: Memo) -> None:
        # Neither what has ended since it was kept, nor, after a fault, what is in memory and knows it better.
        subscription, held = self.subscription, self.held()
        self._planned = {
            seq: planned
            for seq, planned in memo.by_seq().items()
            if seq > subscription.through or (seq in subscription.open and seq not in held)
        }
        if memo.filtered == fingerprint(self.trigger.filter):
            self._since = memo.since

    def look_back(self) -> LookBack | None:
        if self._repeats is None:
            return None
        if self._since is None:
            self._since = self.subscription.through
        self._keep_soon()
        services = self._services
        now = services.clock.now()
        return LookBack(self._repeats, services.log, self.trigger, self.subscription, self._since, now)

    def take(self, record: Record) -> None:
        if self._repeats is not None and record.entry.only is None and self._repeats.is_repeat(record):
            self._pass_over(record)
            return
        self.subscription.take(record.seq)
        self._bytes += len(record.entry.data) + len(record.entry.head)
        delivery = Delivery(self._courier, record)
        if self._planned and (planned := self._planned.pop(record.seq, None)) is not None:
            delivery.number, delivery.due = planned.number, planned.due
            delivery.attempt = delivery.spent = planned.attempt
        elif self._gate is None and self._gathering is None:
            self._ready.append(delivery)
            return
        if self._gate is None or self._gate.admit(delivery, self._services.clock.now()):
            self._go(delivery)

    def _pass_over(self, record: Record) -> None:
        """A repeat, which is not wanted."""
        services, trigger = self._services, self.trigger
        self.subscription.take(record.seq)
        self.subscription.ack(record.seq)
        reason = f"An event of its source and id came within {self._flow.window_s:g} s before it."
        services.ledger.note(Attempt(record.seq, trigger.uid, services.clock.now(), 0, 0, 0.0, "repeat", reason))
        services.count(trigger, "repeat", 0.0)

    def taken(self) -> None:
        self._pump()

    def held(self) -> set[int]:
        return {delivery.record.seq for delivery in self._all()}

    # ---- order and flow control

    def _shape(self, flow: Flow) -> None:
        """Go by these settings from now on: what waits is lined up anew, and what is on its way stays so."""
        gathered = self._gathering.held() if self._gathering is not None else ()
        waiting = [*self._ready, *gathered, *(self._gate.held() if self._gate is not None else ())]
        self._gathering = Gathering(flow.batch, flow.batch_wait_s) if flow.batch > 1 else None
        if not flow.window_s:
            self._repeats, self._since = None, None
        elif self._repeats is None:
            # It begins with what comes from now on, or with what `look_back` finds.
            self._repeats, self._since = Repeats(flow.window_s), None
        else:
            self._repeats.window_s = flow.window_s
        self._gate = Gate.of(flow)
        if flow.rate is None:
            self._bucket = None
        elif self._bucket is None or self._bucket.rate != flow.rate:
            self._bucket = Bucket(flow.rate, self._loop.time())
        self._flow = flow
        self._most = MAX_OUTSTANDING if flow.order_by is None else MAX_OUTSTANDING_ORDERED
        for delivery in _each((*self._courier.under_way, *self._waiting, *self._unplaced)):
            if self._gate is not None:
                self._gate.join(delivery)
            else:
                delivery.lane = None
        self._ready.clear()
        now = self._services.clock.now()
        for delivery in sorted(waiting, key=lambda delivery: delivery.record.seq):
            delivery.lane = None
            if self._gate is None or self._gate.admit(delivery, now):
                self._go(delivery)

    def _go(self, delivery: Delivery) -> None:
        """Nothing holds it back but that an attempt may not be due yet."""
        delay_s = delivery.due - self._services.clock.now() if delivery.due else 0.0
        if delay_s > 0:
            self._waiting[delivery] = self._loop.call_later(delay_s, self._due, delivery)
        else:
            self._line_up(delivery)

    def _line_up(self, delivery: Delivery) -> None:
        """An attempt is due. Letters and replies do not wait for the rate, which is the subscriber's, and go alone, as
        does what goes elsewhere."""
        if not delivery.is_for_subscriber:
            if self._bucket is not None:
                self._ready.appendleft(delivery)
                return
        elif self._gathering is not None:
            only = delivery.record.entry.only
            if only is None or only.uri is None:
                self._gathering.add(delivery, self._loop.time())
                return
        self._ready.append(delivery)

    def _wake_in(self, delay_s: float) -> None:
        if self._alarm is not None:
            if self._alarm.when() <= self._loop.time() + delay_s:
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_later(delay_s, self._rung)

    def _rung(self) -> None:
        self._alarm = None
        self._pump()

    # ---- sending

    def _pump(self) -> None:
        """Send what is ready, as far as the window and the Trigger's settings allow."""
        if self._flow.paused or self._stopped:
            return
        if self._gate is not None:
            self._mature(self._gate)
        ready, courier, bucket = self._ready, self._courier, self._bucket
        under_way, parallelism = courier.under_way, self._flow.parallelism
        while ready and len(under_way) < parallelism:
            delivery = ready[0]
            place = courier.place(delivery)
            if place is None:
                if not delivery.is_for_subscriber:
                    ready.popleft()
                    if delivery.letter is not None and not self.trigger.wants_sink:
                        courier.refuse(delivery, "The Trigger has none any more.")
                    else:
                        self._unplaced.append(delivery)
                    continue
                only = delivery.record.entry.only
                if only is None or only.uri is None:
                    return
                ready.popleft()
                courier.refuse(delivery, f"{only.uri} is no address that can be sent to.")
                continue
            if bucket is not None and delivery.is_for_subscriber and (wait_s := bucket.take(self._loop.time())) > 0:
                self._wake_in(wait_s)
                return
            ready.popleft()
            courier.send(delivery, place)
        if self._gathering is not None:
            self._pump_batches(self._gathering)

    def _pump_batches(self, gathering: Gathering) -> None:
        courier, place = self._courier, self._courier.places.subscriber
        while place is not None and len(courier.under_way) < self._flow.parallelism:
            now = self._loop.time()
            count = gathering.count(now)
            if not count:
                at = gathering.next_at()
                if at is not None:
                    self._wake_in(max(at - now, 0.0))
                return
            if self._bucket is not None and (wait_s := self._bucket.take(now, count)) > 0:
                self._wake_in(wait_s)
                return
            courier.send_batch(gathering.take(count), place)

    def _mature(self, gate: Gate) -> None:
        now = self._services.clock.now()
        for delivery in gate.matured(now):
            self._line_up(delivery)
        at = gate.next_at()
        if at is not None:
            self._wake_in(max(at - now, 0.0))

    # ---- what follows from an attempt (`broker.courier.Window`)

    def closed(self, delivery: Delivery) -> None:
        entry = delivery.record.entry
        self._bytes -= len(entry.data) + len(entry.head)
        self.subscription.ack(delivery.record.seq)
        if delivery.lane is not None and self._gate is not None:
            following = self._gate.leave(delivery)
            if following is not None:
                self._go(following)
        self._after()

    def again(self, delivery: Delivery) -> None:
        if not self._stopped:
            self._ready.appendleft(delivery)
        self._after()

    def later(self, delivery: Delivery, delay_s: float) -> None:
        if not self._stopped:
            delivery.due = self._services.clock.now() + delay_s
            self._waiting[delivery] = self._loop.call_later(delay_s, self._due, delivery)
            self._keep_soon()
        self._after()

    def batch_again(self, batch: Batch) -> None:
        self._batch_due(batch)
        self._after()

    def batch_later(self, batch: Batch, delay_s: float) -> None:
        if not self._stopped:
            due = self._services.clock.now() + delay_s
            for delivery in batch.deliveries:
                delivery.due = due
            self._waiting[batch] = self._loop.call_later(delay_s, self._batch_waited, batch)
            self._keep_soon()
        self._after()

    def _batch_waited(self, batch: Batch) -> None:
        del self._waiting[batch]
        self._batch_due(batch)
        self._pump()

    def _batch_due(self, batch: Batch) -> None:
        if self._gathering is not None:
            self._gathering.again.append(batch)
        elif not self._stopped:  # batches are not asked for any more
            for delivery in batch.deliveries:
                self._line_up(delivery)

    def as_letter(self, delivery: Delivery) -> None:
        if not self._stopped:
            delivery.due = 0.0
            self._line_up(delivery)
            self._keep_soon()
        self._after()

    with_reply = as_letter

    def _due(self, delivery: Delivery) -> None:
        """Time for the next attempt."""
        del self._waiting[delivery]
        self._line_up(delivery)
        self._pump()

    def _after(self) -> None:
        """A place in the window is free."""
        # What the gate delays came perhaps while there was no place, and nothing else looks when its time is.
        if self._ready or self._gathering is not None or self._gate is not None:
            self._pump()
        if not self._intake.live:
            self._intake.catch_up()
        if self._idle and not self._courier.under_way:
            waiting, self._idle = self._idle, []
            for then in waiting:
                self._loop.call_soon(then)  # the events of a batch are done with one by one, in this turn

    # ---- for the next process

    def _all(self) -> Iterator[Delivery]:
        yield from _each(self._courier.under_way)
        yield from _each(self._waiting)
        yield from self._ready
        yield from self._unplaced
        if self._gate is not None:
            yield from self._gate.held()
        if self._gathering is not None:
            yield from self._gathering.held()

    def _keep_soon(self) -> None:
        if self._keeping is None:
            self._keeping = self._loop.call_later(KEEP_AFTER_S, self._keep)

    def _keep(self) -> None:
        """Have kept how far the retries are."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        under_way = set(_each(self._courier.under_way))
        planned = [
            Planned(delivery.record.seq, number, delivery.spent, delivery.due)
            for delivery in self._all()
            if (number := delivery.number - (delivery in under_way)) > 0
        ]
        planned += self._planned.values()  # not taken again yet
        filtered = fingerprint(self.trigger.filter) if self._since is not None else 0
        # What is planned is looked for where the kept position says that something is open.
        self.subscription.keep()
        self._services.log.remember(self.trigger.uid, encode_memo(planned, self._since, filtered))


def _each(items: Iterable[Delivery | Batch]) -> Iterator[Delivery]:
    for item in items:
        if isinstance(item, Batch):
            yield from item.deliveries
        else:
            yield item
