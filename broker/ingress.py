"""The Brokers' HTTP ingress: an event is answered 202 once it is durable, or refused with the reason in plain text.

Source: knative/specs `eventing/data-plane.md` ("HTTP Verbs", "Event Acknowledgement"), the CloudEvents HTTP binding
1.0.2, and the CloudEvents webhook specification for OPTIONS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Final

from broker.directed import Directed, is_directed
from broker.log.port import Entry, EventLog, LedgerLog, LogFull, Record
from broker.replies import TTL_ATTRIBUTE
from broker.table import EMPTY, Table
from core.clock import Clock
from core.errors import InvalidInput, Overloaded, PenstockError
from core.events import (
    CloudEvent,
    TooLarge,
    UnknownFormat,
    batch_type,
    binary_head,
    check_head,
    from_batch,
    in_batch,
    with_binary_head,
)
from core.limits import MAX_BATCH_BYTES, MAX_EVENT_BYTES
from core.net.body import IGNORE, collect
from core.net.pages import HEALTH, METRICS
from core.net.types import BodySink, Exchange, Handler, Headers, RequestHead
from core.telemetry import Counter, Metrics

__all__ = ["Ingress"]

logger = logging.getLogger(__name__)

#: How many times an event may come back as a reply before that counts as a loop: Knative's default (MAX_TTL).
MAX_TTL: Final = 255

#: When a refused sender is told to come back, in seconds, where the refusal does not say it.
RETRY_AFTER_S: Final = 1.0

_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_ALLOW: Final = (b"allow", b"POST, OPTIONS")
_ACCEPTED: Final[Headers] = []
#: "*" and no rate: any origin may send, as fast as it likes (webhook specification, section 4.2). Permission is given
#: in this answer; the callback that a sender may name is never called, so that nobody can have the platform call an
#: address of theirs. Batches are solicited (HTTP binding, section 1.3) by the header that says what POST takes.
_HANDSHAKE: Final[Headers] = [
    _ALLOW,
    (b"accept-post", b"*/*, application/cloudevents+json, application/cloudevents-batch+json"),
    (b"webhook-allowed-origin", b"*"),
    (b"webhook-allowed-rate", b"*"),
]
_TTL_HEADER: Final = b"ce-" + TTL_ATTRIBUTE.encode()


class Ingress:
    """Handles ``POST /<namespace>/<broker>``; `pages` answers what the process tells about itself.

    `logs` keep the events of the Brokers of their class; where a Broker's log is not there, senders are asked to come
    back, and so they are until `swap` was called once. A log that is added counts from the next `swap` on.
    """

    def __init__(self, *, logs: Mapping[str, LedgerLog], clock: Clock, metrics: Metrics, pages: Handler) -> None:
        self._logs = logs
        self._clock = clock
        self._metrics = metrics
        self._pages = pages
        self._synced = False
        self._table: Table = EMPTY
        self._doors: dict[bytes, _Door] = {}
        self._accepted: dict[str, Counter] = {}
        self._refused: dict[int, Counter] = {}
        self._directed = Directed(desk=self, logs=logs, clock=clock, ttl=MAX_TTL)

    def swap(self, table: Table) -> None:
        """Take events for the Brokers of this table from now on."""
        doors = {}
        for path, broker in table.paths.items():
            log = self._logs.get(broker.log_class)
            if log is not None:
                doors[path] = _Door(broker.key, log)
        self._doors = doors
        self._directed.swap(table)
        self._table = table
        self._synced = True

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        """A `core.net.types.Handler`."""
        door = self._doors.get(head.target)
        if door is not None and head.method == b"POST":
            return self._receive(door, head, exchange)
        return self._other(head, exchange)

    def _receive(self, door: _Door, head: RequestHead, exchange: Exchange) -> BodySink:
        length, most = head.content_length, MAX_EVENT_BYTES
        if (length is None or length > most) and batch_type(head.headers) is not None:
            most = MAX_BATCH_BYTES
        if length is not None and length > most:
            what = "Send a reference to the data, or several batches."
            self.refuse(exchange, 413, f"The body has {length} bytes, and at most {most} bytes are taken. {what}")
            return IGNORE
        return collect(exchange, max_bytes=most, then=_Publish(self, door, head, exchange).received)

    # ---- everything but the common case

    def _other(self, head: RequestHead, exchange: Exchange) -> BodySink:
        path = head.target.partition(b"?")[0]
        if path in (HEALTH, METRICS):
            return self._pages(head, exchange)
        door = self._doors.get(path.rstrip(b"/"))
        if door is not None and head.method == b"POST":
            return self._receive(door, head, exchange)
        if not self._synced:
            self.refuse(exchange, 503, "The Brokers are not known yet. Try again in a second.", RETRY_AFTER_S)
        elif door is None and is_directed(path):
            return self._directed.handle(head, exchange)
        elif door is None and (broker := self._table.paths.get(path.rstrip(b"/"))) is not None:
            text = f"The event log of its class, {broker.log_class}, cannot be had now. Try again in a second."
            self.refuse(exchange, 503, text, RETRY_AFTER_S)
        elif door is None:
            text = f"There is no Broker at {_shown(path)}. Send events to /<namespace>/<broker> of one that exists."
            self.refuse(exchange, 404, text)
        elif head.method == b"OPTIONS":
            exchange.respond(200, _HANDSHAKE)
        else:
            self._count_refused(405)
            exchange.respond(405, [_ALLOW, _TEXT], b"Send events with POST.\n")
        return IGNORE

    # ---- publishing

    def publish(self, door: _Door, headers: Headers, body: bytes, publish: _Publish) -> None:
        """A whole request for a Broker has arrived."""
        try:
            event, encoded = with_binary_head(headers, body)
            entry = self._entry(door, event, encoded)
        except InvalidInput as error:
            content_type = batch_type(headers)
            if content_type is None:
                self.refuse(publish.exchange, _status_of(error), str(error))
            else:
                self._publish_batch(door, content_type, body, publish.exchange)
            return
        door.log.append(entry, publish.stored)

    def _entry(self, door: _Door, event: CloudEvent, encoded: bytes) -> Entry:
        """The event as it is kept. Raises InvalidInput where it may not pass."""
        ttl = MAX_TTL
        if TTL_ATTRIBUTE in event.attributes:
            event, ttl = _take_ttl(event)
            encoded = binary_head(event)
        check_head(event, encoded)
        return Entry(door.broker, event.attributes, encoded, event.data or b"", self._clock.now(), ttl)

    def _publish_batch(self, door: _Door, content_type: bytes, body: bytes, exchange: Exchange) -> None:
        """Every event of the batch is valid, or none is stored."""
        entries = []
        try:
            for event in from_batch(content_type, body):
                try:
                    entries.append(self._entry(door, event, binary_head(event)))
                except InvalidInput as error:
                    raise in_batch(len(entries), error) from error
        except InvalidInput as error:
            self.refuse(exchange, _status_of(error), str(error))
            return
        batch = _Batch(self, door.broker, len(entries), exchange)
        for entry in entries:
            door.log.append(entry, batch.stored)

    def accepted(self, broker: str) -> None:
        counter = self._accepted.get(broker)
        if counter is None:
            text = "Events that a Broker has stored and answered 202."
            counter = self._metrics.counter("penstock_broker_events_accepted_total", text, broker=broker)
            self._accepted[broker] = counter
        counter.value += 1

    def refused(self, exchange: Exchange, error: PenstockError, more: str = "") -> None:
        """The log did not take the event."""
        status = 507 if isinstance(error, LogFull) else 503
        after_s = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S
        self.refuse(exchange, status, f"{error}{more}", after_s)

    def refuse(self, exchange: Exchange, status: int, text: str, retry_after_s: float | None = None) -> None:
        self._count_refused(status)
        headers = [_TEXT] if retry_after_s is None else [_TEXT, _retry_after(retry_after_s)]
        exchange.respond(status, headers, text.encode("utf-8", "replace") + b"\n")

    def _count_refused(self, status: int) -> None:
        counter = self._refused.get(status)
        if counter is None:
            text = "Requests that the ingress refused, by status."
            counter = self._metrics.counter("penstock_broker_requests_refused_total", text, status=str(status))
            self._refused[status] = counter
        counter.value += 1


class _Door:
    """A Broker's way into its log."""

    __slots__ = ("broker", "log")

    def __init__(self, broker: str, log: EventLog) -> None:
        self.broker = broker
        self.log = log


class _Publish:
    """One POST under way."""

    __slots__ = ("_door", "_headers", "_ingress", "exchange")

    def __init__(self, ingress: Ingress, door: _Door, head: RequestHead, exchange: Exchange) -> None:
        self._ingress = ingress
        self._door = door
        self._headers = head.headers
        self.exchange = exchange

    def received(self, body: bytes) -> None:
        self._ingress.publish(self._door, self._headers, body, self)

    def stored(self, result: Record | PenstockError) -> None:
        if isinstance(result, Record):
            self._ingress.accepted(self._door.broker)
            self.exchange.respond(202, _ACCEPTED)
        else:
            self._ingress.refused(self.exchange, result)


class _Batch:
    """The events of one POST on their way into the log. It is accepted once all of them are stored."""

    __slots__ = ("_broker", "_error", "_exchange", "_ingress", "_size", "_stored", "_waits")

    def __init__(self, ingress: Ingress, broker: str, size: int, exchange: Exchange) -> None:
        self._ingress = ingress
        self._broker = broker
        self._exchange = exchange
        self._size = self._waits = size
        self._stored = 0
        self._error: PenstockError | None = None
        if not size:  # nothing to store is no error (JSON event format, section 4.3)
            exchange.respond(202, _ACCEPTED)

    def stored(self, result: Record | PenstockError) -> None:
        self._waits -= 1
        if isinstance(result, Record):
            self._stored += 1
            self._ingress.accepted(self._broker)
        elif self._error is None or isinstance(result, LogFull):
            self._error = result
        if self._waits:
            return
        if self._error is None:
            self._exchange.respond(202, _ACCEPTED)
            return
        # Delivered at least once, as ever: what is stored is delivered, and again when the sender repeats it.
        more = f" Of the batch's {self._size} events {self._stored} are stored: send the whole batch again."
        self._ingress.refused(self._exchange, self._error, more)


def _status_of(error: InvalidInput) -> int:
    if isinstance(error, UnknownFormat):
        return 415
    return 413 if isinstance(error, TooLarge) else 400


def _take_ttl(event: CloudEvent) -> tuple[CloudEvent, int]:
    """The event without its hop limit, and what is left of it: it goes down by one with every Broker it passes, and one
    that is no number counts as absent (knative/eventing `pkg/broker/ttl.go`). Raises InvalidInput where it is used up.
    """
    attributes = {name: value for name, value in event.attributes.items() if name != TTL_ATTRIBUTE}
    text = event.attributes[TTL_ATTRIBUTE]
    try:
        ttl = min(int(text), MAX_TTL) - 1
    except ValueError:
        ttl = MAX_TTL
    if ttl <= 0:
        raise InvalidInput(f"The event has passed too many Brokers: its {TTL_ATTRIBUTE} is {text}.")
    return CloudEvent(attributes=attributes, data=event.data), ttl


def _retry_after(seconds: float) -> tuple[bytes, bytes]:
    return b"retry-after", b"%d" % max(1, math.ceil(seconds))


def _shown(path: bytes) -> str:
    return path[:200].decode("ascii", "backslashreplace")
