"""Delivers one Trigger's events: takes them as they come or reads them from the log, sends, retries, stores replies.

Nothing here makes a task: the client calls back, and timers wait for retries. An event is in one of these places:
in the log beyond the subscription's position, `_ready` to be sent, in flight, waiting for its next attempt, or waiting
for a dead-letter sink that has no address yet. All but the first count against the limits below; when they are
reached the dispatcher stops taking and later goes on from the log, so a subscriber that is down costs bounded memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from broker.delivery import Decision, Done, Outcome, RetryAt, decide
from broker.ledger import Attempt, OutcomeName
from broker.log.port import Entry, Page, Record, Subscription
from broker.services import Services
from broker.table import TriggerSpec
from core.errors import InvalidInput, PenstockError
from core.events import CloudEvent, binary_head, dead_letter, from_http, is_event, to_structured
from core.limits import MAX_REPLY_BYTES
from core.net.names import Target
from core.net.types import ConnectionLost, Headers, NetError, Response

__all__ = ["TTL_ATTRIBUTE", "Dispatcher"]

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

#: How many more times an event may come back as a reply; Knative's name for it, taken off what is delivered.
TTL_ATTRIBUTE: Final = "knativebrokerttl"

_SENDS_REPLIES: Final = b"prefer: reply\r\n"


class _Delivery:
    """One event on its way to one subscriber."""

    __slots__ = ("attempt", "began", "dispatcher", "letter", "number", "record", "resent")

    def __init__(self, dispatcher: Dispatcher, record: Record) -> None:
        self.dispatcher = dispatcher
        self.record = record
        #: Of the present destination; `number` counts all.
        self.attempt = 0
        self.number = 0
        self.began = 0.0
        #: What goes to the dead-letter sink, once the subscriber is given up.
        self.letter: CloudEvent | None = None
        self.resent = False

    def answered(self, result: Response | NetError) -> None:
        try:
            self.dispatcher.answered(self, result)
        except Exception as error:  # boundary: a fault of ours costs this attempt, and not the Trigger its window
            logger.exception("what follows from an answer failed by a fault", extra={"facts": self.facts()})
            self.dispatcher.failed(self, error)

    def facts(self) -> dict[str, str | int]:
        return {"trigger": self.dispatcher.trigger.key, "position": self.record.seq}

    def due(self) -> None:
        self.dispatcher.due(self)


class Dispatcher:
    """One Trigger's deliveries. Made with its subscription; `begin` starts it, `stop` ends it for good."""

    __slots__ = (
        "_bytes",
        "_idle",
        "_in_flight",
        "_letters",
        "_live",
        "_loop",
        "_prefix",
        "_reading",
        "_ready",
        "_retry_read",
        "_services",
        "_sink",
        "_sink_headers",
        "_stopped",
        "_target",
        "_target_headers",
        "_waiting",
        "subscription",
        "trigger",
    )

    def __init__(self, trigger: TriggerSpec, subscription: Subscription, services: Services) -> None:
        self.subscription = subscription
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._ready: deque[_Delivery] = deque()
        self._in_flight: set[_Delivery] = set()
        self._waiting: dict[_Delivery, asyncio.TimerHandle] = {}
        self._letters: list[_Delivery] = []
        self._bytes = 0
        #: Takes events from `offer`; while False they are found in the log.
        self._live = False
        self._reading = False
        self._retry_read: asyncio.TimerHandle | None = None
        self._stopped = False
        self._idle: list[Callable[[], None]] = []
        self.trigger = trigger
        self._place(trigger)

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
        self.trigger = trigger
        self._place(trigger)
        letters, self._letters = self._letters, []
        self._ready.extend(letters)
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
        if len(self._in_flight) < PARALLELISM:
            self._pump()

    def looked_at(self, through: int, at_least: int) -> None:
        """Everything up to `through` was offered if it matched: worth keeping if that is `at_least` events on."""
        if self._live and through - self.subscription.through >= at_least:
            self.subscription.skip(through)

    def stop(self) -> None:
        """No new attempts. What is in flight goes on, so that a reply is not lost."""
        self._stopped = True
        self._live = False
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        self._ready.clear()
        self._letters.clear()
        if self._retry_read is not None:
            self._retry_read.cancel()

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call `then` once nothing is in flight, at once where that is so. After `stop`."""
        if self._in_flight:
            self._idle.append(then)
        else:
            then()

    async def drained(self) -> None:
        """Wait until nothing is in flight. After `stop`."""
        idle = asyncio.Event()
        self.when_idle(idle.set)
        await idle.wait()

    @property
    def busy(self) -> bool:
        return bool(self._in_flight)

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
        self._ready.append(_Delivery(self, record))

    def _catch_up(self) -> None:
        """Read on, if that is needed and there is room."""
        if self._live or self._reading or self._stopped or self._target is None:
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
        held = len(self._ready) + len(self._in_flight) + len(self._waiting) + len(self._letters)
        return len(self.subscription.open) > held

    def _tell_corrupt(self, page: Page) -> None:
        now = self._services.clock.now()
        for seq in page.corrupt:
            reason = "The stored bytes are not what was written."
            self._services.ledger.note(Attempt(seq, self.trigger.uid, now, 0, 0, 0.0, "corrupt", reason))
            self._services.count(self.trigger, "corrupt", 0.0)

    # ---- sending

    def _place(self, trigger: TriggerSpec) -> None:
        """Where the Trigger's events go, parsed once."""
        self._target = self._parse(trigger.subscriber_uri)
        self._sink = self._parse(trigger.dead_letter_uri)
        self._target_headers = self._headers(self._target)
        self._sink_headers = self._headers(self._sink)
        self._prefix = _SENDS_REPLIES + b"kn-namespace: %b\r\n" % trigger.namespace.encode("ascii", "replace")
        if self._target is None:
            self._live = False

    def _parse(self, uri: str | None) -> Target | None:
        if uri is None:
            return None
        try:
            return self._services.names.target(uri)
        except ValueError as error:
            facts = {"trigger": self.trigger.key, "uri": uri, "error": str(error)}
            logger.error("a Trigger's destination is not usable; its events wait", extra={"facts": facts})
            return None

    def _headers(self, target: Target | None) -> Headers:
        return [(b"host", target.host)] if target is not None else []

    def _pump(self) -> None:
        """Send what is ready, as far as the window allows."""
        ready, in_flight = self._ready, self._in_flight
        while ready and len(in_flight) < PARALLELISM and not self._stopped:
            delivery = ready[0]
            if delivery.letter is None:
                target, headers = self._target, self._target_headers
                only = delivery.record.entry.only
                if only is not None and only.uri is not None:
                    target = self._parse(only.uri)
                    headers = self._headers(target)
                if target is None:
                    return
            else:
                target, headers = self._sink, self._sink_headers
                if target is None:
                    self._letters.append(ready.popleft())
                    continue
            ready.popleft()
            try:
                self._send(delivery, target, headers)
            except Exception as error:  # boundary: as for an answer
                logger.exception("an event could not be sent by a fault", extra={"facts": delivery.facts()})
                self.failed(delivery, error)

    def failed(self, delivery: _Delivery, error: Exception) -> None:
        """An attempt ended by a fault of the platform's own: it counts as one that failed, so that others follow."""
        # In a turn of its own: whoever sends is in the middle of it.
        self._loop.call_soon(self._faulted, delivery, Outcome(0, error=f"the platform failed: {error!r}"))

    def _faulted(self, delivery: _Delivery, outcome: Outcome) -> None:
        if delivery in self._in_flight:
            self._ended(delivery, outcome, b"")

    def _send(self, delivery: _Delivery, target: Target, headers: Headers) -> None:
        delivery.attempt += 1
        delivery.number += 1
        delivery.began = self._services.clock.now()
        self._in_flight.add(delivery)
        entry = delivery.record.entry
        policy = self.trigger.policy
        if delivery.letter is None and not policy.structured:
            head, data = self._prefix + entry.head, entry.data
        else:
            head, data = self._encode(delivery.letter or entry.event(), structured=policy.structured)
        self._services.client.fetch(
            target.address,
            b"POST",
            target.path,
            headers,
            data,
            timeout_s=policy.timeout_s,
            max_bytes=MAX_REPLY_BYTES,
            then=delivery.answered,
            encoded_headers=head,
            tls=target.tls,
        )

    def _encode(self, event: CloudEvent, *, structured: bool) -> tuple[bytes, bytes]:
        if not structured:
            return self._prefix + binary_head(event), event.data or b""
        headers, body = to_structured(event)
        return self._prefix + b"".join(b"%b: %b\r\n" % header for header in headers), body

    # ---- what comes back

    def answered(self, delivery: _Delivery, result: Response | NetError) -> None:
        """One attempt ended."""
        if isinstance(result, Response):
            status = result.status
            if 200 <= status < 300:
                if delivery.letter is None and status not in (202, 204) and is_event(result.headers):
                    self._reply(delivery, result)
                    return
                self._done(delivery, status)
                return
            outcome = Outcome(status, _text(result.header(b"retry-after")))
            self._ended(delivery, outcome, result.body)
            return
        if isinstance(result, ConnectionLost) and not result.fresh and not delivery.resent and not self._stopped:
            # An idle connection that the subscriber closed just then: no attempt of its own.
            delivery.resent = True
            delivery.attempt -= 1
            delivery.number -= 1
            self._in_flight.discard(delivery)
            self._ready.appendleft(delivery)
            self._pump()
            return
        self._ended(delivery, Outcome(0, error=str(result)), b"")

    def _reply(self, delivery: _Delivery, result: Response) -> None:
        """The subscriber answered with an event: it is stored before the delivery counts as done."""
        asked = delivery.record.entry
        try:
            event = from_http(result.headers, result.body)
        except InvalidInput as error:
            said = f"the subscriber's reply is not a valid event: {error}"
            self._ended(delivery, Outcome(result.status, error=said), result.body)
            return
        if asked.ttl <= 1:
            reason = "The reply was not stored: events have come back as replies too many times in a row."
            self._give_up(delivery, 400, reason, reason.encode())
            return
        attributes = {name: value for name, value in event.attributes.items() if name != TTL_ATTRIBUTE}
        event = CloudEvent(attributes=attributes, data=event.data)
        entry = Entry(
            asked.broker,
            attributes,
            binary_head(event),
            event.data or b"",
            self._services.clock.now(),
            asked.ttl - 1,
            delivery.record.seq,
            self.trigger.uid,
        )

        def stored(result_of: Record | PenstockError) -> None:
            if isinstance(result_of, Record):
                self._done(delivery, result.status)
            else:
                said = f"the subscriber's reply could not be stored: {result_of}"
                self._ended(delivery, Outcome(503, error=said), b"")

        self._services.log.append(entry, stored)

    def _done(self, delivery: _Delivery, status: int) -> None:
        outcome: OutcomeName = "delivered" if delivery.letter is None else "dead-lettered"
        self._note(delivery, status, outcome, None)
        self._close(delivery)

    def _ended(self, delivery: _Delivery, outcome: Outcome, body: bytes) -> None:
        """An attempt failed."""
        services = self._services
        now = services.clock.now()
        decision: Decision = decide(outcome, delivery.attempt, self.trigger.policy, now, services.rng.random())
        match decision:
            case Done():
                self._done(delivery, outcome.status)
            case RetryAt():
                said = outcome.error or f"answered {outcome.status}"
                self._note(delivery, outcome.status, "retrying", said)
                self._wait(delivery, decision.at - now)
            case _:
                data = body or (outcome.error or "").encode()
                self._give_up(delivery, outcome.status, decision.reason, data)

    def _wait(self, delivery: _Delivery, delay_s: float) -> None:
        self._in_flight.discard(delivery)
        delivery.resent = False
        if not self._stopped:
            self._waiting[delivery] = self._loop.call_later(delay_s, delivery.due)
        self._after()

    def due(self, delivery: _Delivery) -> None:
        """Time for the next attempt."""
        del self._waiting[delivery]
        self._ready.append(delivery)
        self._pump()

    def _give_up(self, delivery: _Delivery, status: int, reason: str, data: bytes) -> None:
        if delivery.letter is not None:
            self._note(delivery, status, "dead", f"The dead-letter sink did not take it. {reason}")
            self._close(delivery)
        elif self.trigger.wants_sink or self._sink is not None:
            self._note(delivery, status, "retrying", f"{reason} It goes to the dead-letter sink.")
            only = delivery.record.entry.only
            uri = (only and only.uri) or self.trigger.subscriber_uri or ""
            delivery.letter = dead_letter(delivery.record.entry.event(), uri, status, data)
            delivery.attempt = 0
            self._in_flight.discard(delivery)
            if not self._stopped:
                self._ready.append(delivery)
            self._after()
        else:
            self._note(delivery, status, "dropped", f"{reason} There is no dead-letter sink.")
            self._close(delivery)

    def _note(self, delivery: _Delivery, status: int, outcome: OutcomeName, reason: str | None) -> None:
        services = self._services
        latency_s = max(0.0, services.clock.now() - delivery.began)  # the wall clock may step back
        seq, uid = delivery.record.seq, self.trigger.uid
        services.ledger.note(Attempt(seq, uid, delivery.began, delivery.number, status, latency_s, outcome, reason))
        services.count(self.trigger, outcome, latency_s)

    def _close(self, delivery: _Delivery) -> None:
        """The event is done with for good."""
        entry = delivery.record.entry
        self._in_flight.discard(delivery)
        self._bytes -= len(entry.data) + len(entry.head)
        self.subscription.ack(delivery.record.seq)
        self._after()

    def _after(self) -> None:
        """A place in the window is free."""
        if self._ready:
            self._pump()
        if not self._live:
            self._catch_up()
        if self._idle and not self._in_flight:
            waiting, self._idle = self._idle, []
            for then in waiting:
                then()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
