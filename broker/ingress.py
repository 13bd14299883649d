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
from broker.dispatch import TTL_ATTRIBUTE
from broker.log.port import Entry, EventLog, LogFull, Record
from broker.table import EMPTY, Table
from core.clock import Clock
from core.errors import InvalidInput, Overloaded, PenstockError
from core.events import CloudEvent, binary_head, with_binary_head
from core.limits import MAX_EVENT_BYTES
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
_TTL_HEADER: Final = b"ce-" + TTL_ATTRIBUTE.encode()


class Ingress:
    """Handles ``POST /<namespace>/<broker>``; `pages` answers what the process tells about itself.

    `logs` keep the events of the Brokers of their class; where a Broker's log is not there, senders are asked to come
    back, and so they are until `swap` was called once. A log that is added counts from the next `swap` on.
    """

    def __init__(self, *, logs: Mapping[str, EventLog], clock: Clock, metrics: Metrics, pages: Handler) -> None:
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
            publish = _Publish(self, door, head, exchange)
            return collect(exchange, max_bytes=MAX_EVENT_BYTES, then=publish.received, head=head)
        return self._other(head, exchange)

    # ---- everything but the common case

    def _other(self, head: RequestHead, exchange: Exchange) -> BodySink:
        path = head.target.partition(b"?")[0]
        if path in (HEALTH, METRICS):
            return self._pages(head, exchange)
        door = self._doors.get(path.rstrip(b"/"))
        if door is not None and head.method == b"POST":
            publish = _Publish(self, door, head, exchange)
            return collect(exchange, max_bytes=MAX_EVENT_BYTES, then=publish.received, head=head)
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
            # "*" and no rate: any origin may send, as fast as it likes (webhook specification, section 4.2).
            allowed = [_ALLOW, (b"webhook-allowed-origin", b"*"), (b"webhook-allowed-rate", b"*")]
            exchange.respond(200, allowed)
        else:
            self._count_refused(405)
            exchange.respond(405, [_ALLOW, _TEXT], b"Send events with POST.\n")
        return IGNORE

    # ---- publishing

    def publish(self, door: _Door, headers: Headers, body: bytes, publish: _Publish) -> None:
        """A whole request for a Broker has arrived."""
        try:
            event, encoded = with_binary_head(headers, body)
            ttl = MAX_TTL
            if TTL_ATTRIBUTE in event.attributes:
                event, ttl = _take_ttl(event)
                encoded = binary_head(event)
        except InvalidInput as error:
            status = 415 if _is_other_format(headers) else 400
            self.refuse(publish.exchange, status, str(error))
            return
        entry = Entry(door.broker, event.attributes, encoded, event.data or b"", self._clock.now(), ttl)
        door.log.append(entry, publish.stored)

    def accepted(self, broker: str) -> None:
        counter = self._accepted.get(broker)
        if counter is None:
            text = "Events that a Broker has stored and answered 202."
            counter = self._metrics.counter("penstock_broker_events_accepted_total", text, broker=broker)
            self._accepted[broker] = counter
        counter.value += 1

    def refused(self, exchange: Exchange, error: PenstockError) -> None:
        """The log did not take the event."""
        status = 507 if isinstance(error, LogFull) else 503
        after_s = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S
        self.refuse(exchange, status, str(error), after_s)

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


def _is_other_format(headers: Headers) -> bool:
    """Whether the body is a CloudEvent in a format or mode that is not taken here."""
    for name, value in headers:
        if name == b"content-type":
            media = value.partition(b";")[0].strip().lower()
            return media.startswith(b"application/cloudevents") and media != b"application/cloudevents+json"
    return False


def _retry_after(seconds: float) -> tuple[bytes, bytes]:
    return b"retry-after", b"%d" % max(1, math.ceil(seconds))


def _shown(path: bytes) -> str:
    return path[:200].decode("ascii", "backslashreplace")
