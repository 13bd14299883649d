"""Makes the attempts of one Trigger's deliveries, writes each into the ledger, and says of each what follows.

Nothing here makes a task: the client calls back. When an attempt is due, and how many may be under way, is the
dispatcher's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from broker.delivery import DeadLetter, Decision, Done, Outcome, RetryAt, decide
from broker.destinations import Destination, Destinations
from broker.ledger import Attempt, OutcomeName
from broker.log.port import Entry, Record
from broker.replies import hops_line, is_spent, reply_entry, reply_to_send, with_hops
from broker.services import Services
from broker.table import TriggerSpec
from core.errors import InvalidInput, PenstockError
from core.events import CloudEvent, dead_letter, is_event
from core.limits import MAX_REPLY_BYTES
from core.net.served import Served, served_by
from core.net.types import ConnectionLost, NetError, Response

__all__ = ["Batch", "Courier", "Delivery", "Window"]

logger = logging.getLogger(__name__)

#: Before a reply that could not be stored is stored again.
STORE_RETRY_S: Final = 1.0


class Delivery:
    """One event on its way to one subscriber."""

    __slots__ = (
        "asks",
        "attempt",
        "began",
        "courier",
        "due",
        "lane",
        "letter",
        "number",
        "record",
        "reply",
        "resent",
        "served",
        "spent",
    )

    def __init__(self, courier: Courier, record: Record) -> None:
        self.courier = courier
        self.record = record
        #: Of the present destination; `number` counts all.
        self.attempt = 0
        self.number = 0
        #: Attempts for the subscriber that another process is to count as made. Where a letter or a reply goes out
        #: after them, one less: what they hold is not kept, so the subscriber is asked once more.
        self.spent = 0
        self.began = 0.0
        #: When the next attempt is due, in seconds since the epoch; 0 for at once.
        self.due = 0.0
        #: The key of the events that come one after the other with it.
        self.lane: str | None = None
        #: What goes to the dead-letter sink, once the subscriber is given up.
        self.letter: CloudEvent | None = None
        #: What goes to the reply destination, once the subscriber has answered with it.
        self.reply: CloudEvent | None = None
        self.resent = False
        #: Whether the present attempt asks the gateway who serves it, and what it told.
        self.asks = False
        self.served: Served | None = None

    def answered(self, result: Response | NetError) -> None:
        try:
            self.courier.answered(self, result)
        except Exception as error:  # boundary: a fault of ours costs this attempt, and not the Trigger its window
            logger.exception("what follows from an answer failed by a fault", extra={"facts": self.facts()})
            self.courier.failed(self, error)

    @property
    def is_for_subscriber(self) -> bool:
        """Neither a dead letter nor a reply."""
        return self.letter is None and self.reply is None

    def facts(self) -> dict[str, str | int]:
        return {"trigger": self.courier.trigger.key, "position": self.record.seq}


class Batch:
    """Several events on their way in one request. They are retried together, and given up one by one."""

    __slots__ = ("attempt", "courier", "deliveries", "resent")

    def __init__(self, deliveries: tuple[Delivery, ...]) -> None:
        self.courier = deliveries[0].courier
        self.deliveries = deliveries
        self.attempt = 0
        self.resent = False

    def answered(self, result: Response | NetError) -> None:
        try:
            self.courier.batch_answered(self, result)
        except Exception as error:  # boundary: as for one event
            logger.exception("what follows from an answer failed by a fault", extra={"facts": self.facts()})
            self.courier.failed(self, error)

    def facts(self) -> dict[str, str | int]:
        return {**self.deliveries[0].facts(), "events": len(self.deliveries)}


class Window(Protocol):
    """Whose deliveries they are. Each attempt ends with one of these calls, after it has left `Courier.under_way`."""

    def closed(self, delivery: Delivery) -> None:
        """The event is done with for good."""
        ...

    def again(self, delivery: Delivery) -> None:
        """The attempt did not count: make it again, before any other."""
        ...

    def later(self, delivery: Delivery, delay_s: float) -> None:
        """Another attempt is due after this time."""
        ...

    def batch_again(self, batch: Batch) -> None:
        """As `again`."""
        ...

    def batch_later(self, batch: Batch, delay_s: float) -> None:
        """As `later`, for all of it together."""
        ...

    def as_letter(self, delivery: Delivery) -> None:
        """The subscriber is given up, and the dead-letter sink comes next."""
        ...

    def with_reply(self, delivery: Delivery) -> None:
        """The subscriber has it, and the reply destination comes next."""
        ...


class Courier:
    """Sends what its window asks it to send."""

    __slots__ = ("_loop", "_services", "_stopped", "_window", "places", "trigger", "under_way")

    def __init__(self, trigger: TriggerSpec, services: Services, window: Window) -> None:
        self._services = services
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self.under_way: set[Delivery | Batch] = set()
        self.update(trigger)

    def update(self, trigger: TriggerSpec) -> None:
        """The Trigger changed: what is sent from now on goes by what it says now."""
        self.trigger = trigger
        self.places = Destinations(trigger, self._services.names)

    def stop(self) -> None:
        """Nothing more is sent. What is under way goes on, but waits for a log that takes nothing no longer."""
        self._stopped = True

    def place(self, delivery: Delivery) -> Destination | None:
        """Where the next attempt of this delivery goes; None where there is no usable address yet."""
        if delivery.letter is not None:
            return self.places.sink
        if delivery.reply is not None:
            if self.trigger.replies == "sent":
                return self.places.reply
            # Not wanted any more: the subscriber gets the event again, and its answer goes as the Trigger says now.
            delivery.reply = None
        only = delivery.record.entry.only
        if only is not None and only.uri is not None:
            return self.places.parse(only.uri)
        return self.places.subscriber

    # ---- sending

    def send(self, delivery: Delivery, place: Destination) -> None:
        """Make an attempt."""
        self.under_way.add(delivery)
        try:
            self._send(delivery, place)
        except Exception as error:  # boundary: as for an answer
            logger.exception("an event could not be sent by a fault", extra={"facts": delivery.facts()})
            self.failed(delivery, error)

    def _send(self, delivery: Delivery, place: Destination) -> None:
        delivery.attempt += 1
        delivery.number += 1
        delivery.began = self._services.clock.now()
        entry = delivery.record.entry
        policy = self.trigger.policy
        other = delivery.letter or delivery.reply
        if other is None and not policy.structured:
            head, data = self.places.plain(entry.head), entry.data
            if place.is_broker:
                head += hops_line(entry)
        else:
            event = other or entry.event()
            if place.is_broker:
                event = with_hops(event, entry)
            head, data = self.places.encode(event, structured=policy.structured, replies=other is None)
        delivery.asks = place.target.function
        self._fetch(place, head, data, delivery.answered)

    def send_batch(self, batch: Batch, place: Destination) -> None:
        """Make an attempt with all events of a batch."""
        self.under_way.add(batch)
        now = self._services.clock.now()
        for delivery in batch.deliveries:
            delivery.attempt += 1
            delivery.number += 1
            delivery.began = now
            delivery.asks = place.target.function
        batch.attempt = max(delivery.attempt for delivery in batch.deliveries)
        try:
            entries = [delivery.record.entry for delivery in batch.deliveries]
            events = (with_hops(entry.event(), entry) if place.is_broker else entry.event() for entry in entries)
            head, body = self.places.encode_batch(events)
            self._fetch(place, head, body, batch.answered)
        except Exception as error:  # boundary: as for an answer
            logger.exception("events could not be sent by a fault", extra={"facts": batch.facts()})
            self.failed(batch, error)

    def _fetch(self, place: Destination, head: bytes, body: bytes, then: Callable[[Response | NetError], None]) -> None:
        target = place.target
        self._services.client.fetch(
            target.address,
            b"POST",
            target.path,
            place.headers,
            body,
            timeout_s=self.trigger.policy.timeout_s,
            max_bytes=MAX_REPLY_BYTES,
            then=then,
            encoded_headers=head,
            tls=target.tls,
        )

    def refuse(self, delivery: Delivery, reason: str) -> None:
        """Give a delivery up that cannot be sent anywhere, in a turn of its own: who sends is in the middle of it."""
        delivery.number += 1
        delivery.began = self._services.clock.now()
        self.under_way.add(delivery)
        self._loop.call_soon(self._refused, delivery, reason)

    def _refused(self, delivery: Delivery, reason: str) -> None:
        if delivery in self.under_way:
            self._give_up(delivery, 0, reason, reason.encode())

    def failed(self, delivery: Delivery | Batch, error: Exception) -> None:
        """An attempt ended by a fault of the platform's own: it counts as one that failed, so that others follow."""
        # In a turn of its own: whoever sends is in the middle of it.
        self._loop.call_soon(self._faulted, delivery, Outcome(0, error=f"the platform failed: {error!r}"))

    def _faulted(self, delivery: Delivery | Batch, outcome: Outcome) -> None:
        if delivery in self.under_way:
            if isinstance(delivery, Batch):
                self._batch_ended(delivery, outcome, b"")
            else:
                self._ended(delivery, outcome, b"")

    # ---- what comes back

    def answered(self, delivery: Delivery, result: Response | NetError) -> None:
        """One attempt ended."""
        if isinstance(result, Response):
            if delivery.asks:
                delivery.served = served_by(result.headers)
            status = result.status
            if 200 <= status < 300:
                if status not in (202, 204) and is_event(result.headers) and self._may_reply(delivery):
                    self._reply(delivery, result)
                    return
                self._done(delivery, status)
                return
            outcome = Outcome(status, _text(result.header(b"retry-after")))
            self._ended(delivery, outcome, result.body)
            return
        if isinstance(result, ConnectionLost) and not result.fresh and not delivery.resent:
            # An idle connection that the subscriber closed just then: no attempt of its own.
            delivery.resent = True
            delivery.attempt -= 1
            delivery.number -= 1
            self.under_way.discard(delivery)
            self._window.again(delivery)
            return
        self._ended(delivery, Outcome(0, error=str(result)), b"")

    def batch_answered(self, batch: Batch, result: Response | NetError) -> None:
        """An attempt with a batch ended. One answer cannot say what would reply to which event, so none is a reply."""
        if isinstance(result, Response):
            for delivery in batch.deliveries:
                if delivery.asks:
                    delivery.served = served_by(result.headers)
            if 200 <= result.status < 300:
                self.under_way.discard(batch)
                for delivery in batch.deliveries:
                    self._done(delivery, result.status)
                return
            self._batch_ended(batch, Outcome(result.status, _text(result.header(b"retry-after"))), result.body)
        elif isinstance(result, ConnectionLost) and not result.fresh and not batch.resent:
            batch.resent = True
            for delivery in batch.deliveries:
                delivery.attempt -= 1
                delivery.number -= 1
            self.under_way.discard(batch)
            self._window.batch_again(batch)
        else:
            self._batch_ended(batch, Outcome(0, error=str(result)), b"")

    def _batch_ended(self, batch: Batch, outcome: Outcome, body: bytes) -> None:
        """An attempt with a batch failed."""
        services = self._services
        now = services.clock.now()
        decision = decide(outcome, batch.attempt, self.trigger.policy, now, services.rng.random())
        self.under_way.discard(batch)
        said = outcome.error or f"answered {outcome.status}"
        if isinstance(decision, RetryAt):
            batch.resent = False
            for delivery in batch.deliveries:
                self._note(delivery, outcome.status, "retrying", said)
                delivery.spent = delivery.attempt
            self._window.batch_later(batch, decision.at - now)
            return
        reason = decision.reason if isinstance(decision, DeadLetter) else said
        for delivery in batch.deliveries:
            self._give_up(delivery, outcome.status, reason, body or (outcome.error or "").encode())

    def _may_reply(self, delivery: Delivery) -> bool:
        """Whether it is the subscriber that answers, and its replies are wanted."""
        return delivery.letter is None and delivery.reply is None and self.trigger.replies != "dropped"

    def _reply(self, delivery: Delivery, result: Response) -> None:
        """The subscriber answered with an event: it is stored, or sent on, before the delivery counts as done."""
        asked, sent = delivery.record, self.trigger.replies == "sent"
        try:
            broker = self._services.home(self.trigger.reply_uri or "") if sent else asked.entry.broker
            if broker is None:
                self._send_on(delivery, result.status, reply_to_send(asked, result))
                return
            entry = reply_entry(asked, result, broker, self.trigger.uid, self._services.clock.now())
        except InvalidInput as error:
            said = f"the subscriber's reply is not a valid event: {error}"
            self._ended(delivery, Outcome(result.status, error=said), result.body)
            return
        if is_spent(asked.entry):
            reason = "The reply was not stored: events have come back as replies too many times in a row."
            self._give_up(delivery, 400, reason, reason.encode())
            return
        self._store(delivery, entry, result.status)

    def _store(self, delivery: Delivery, reply: Entry, status: int) -> None:
        def stored(result: Record | PenstockError) -> None:
            if isinstance(result, Record):
                self._done(delivery, status)
            elif self._stopped:  # the event stays open: whoever delivers it next gets the reply again
                self.under_way.discard(delivery)
                self._window.later(delivery, 0.0)
            else:
                # No fault of the subscriber's: a full disk costs the event none of its attempts.
                self._loop.call_later(STORE_RETRY_S, self._store, delivery, reply, status)

        self._services.log.append(reply, stored)

    def _send_on(self, delivery: Delivery, status: int, reply: CloudEvent) -> None:
        """The reply gets attempts of its own. A crash before it is there gives the subscriber the event again."""
        self._note(delivery, status, "retrying", f"Its reply goes to {self.trigger.reply_uri}.")
        delivery.reply = reply
        delivery.spent = delivery.attempt - 1
        delivery.attempt = 0
        delivery.resent = False
        self.under_way.discard(delivery)
        self._window.with_reply(delivery)

    def _done(self, delivery: Delivery, status: int) -> None:
        self._close(delivery, status, "delivered" if delivery.letter is None else "dead-lettered", None)

    def _ended(self, delivery: Delivery, outcome: Outcome, body: bytes) -> None:
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
                delivery.resent = False
                if delivery.letter is None and delivery.reply is None:
                    delivery.spent = delivery.attempt
                self.under_way.discard(delivery)
                self._window.later(delivery, decision.at - now)
            case _:
                data = body or (outcome.error or "").encode()
                self._give_up(delivery, outcome.status, decision.reason, data)

    def _give_up(self, delivery: Delivery, status: int, reason: str, data: bytes) -> None:
        if delivery.letter is not None:
            self._close(delivery, status, "dead", f"The dead-letter sink did not take it. {reason}")
        elif self.trigger.wants_sink or self.places.sink is not None:
            self._note(delivery, status, "retrying", f"{reason} It goes to the dead-letter sink.")
            only = delivery.record.entry.only
            uri = (only and only.uri) or self.trigger.subscriber_uri or ""
            if delivery.reply is not None:
                uri = self.trigger.reply_uri or ""
            else:
                delivery.spent = delivery.attempt - 1
            delivery.letter = dead_letter(delivery.record.entry.event(), uri, status, data)
            delivery.attempt = 0
            delivery.resent = False
            self.under_way.discard(delivery)
            self._window.as_letter(delivery)
        else:
            self._close(delivery, status, "dropped", f"{reason} There is no dead-letter sink.")

    def _close(self, delivery: Delivery, status: int, outcome: OutcomeName, reason: str | None) -> None:
        self._note(delivery, status, outcome, reason)
        self.under_way.discard(delivery)
        self._window.closed(delivery)

    def _note(self, delivery: Delivery, status: int, outcome: OutcomeName, reason: str | None) -> None:
        services = self._services
        latency_s = max(0.0, services.clock.now() - delivery.began)  # the wall clock may step back
        seq, uid = delivery.record.seq, self.trigger.uid
        revision, cold_start_s = None, None
        if delivery.served is not None:
            revision, cold_start_s = delivery.served.revision, delivery.served.cold_start_s
            delivery.served = None
        number = delivery.number
        services.ledger.note(
            Attempt(seq, uid, delivery.began, number, status, latency_s, outcome, reason, revision, cold_start_s)
        )
        services.count(self.trigger, outcome, latency_s)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
