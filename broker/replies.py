"""Reply events: what a subscriber answers with goes back into the Broker, or to a Subscription's reply destination, a
bounded number of times in a row."""

from __future__ import annotations

from typing import Final

from broker.log.port import Entry, Record
from core.events import CloudEvent, binary_head, check_head, from_http
from core.net.types import Response

__all__ = ["TTL_ATTRIBUTE", "hops_line", "is_spent", "reply_entry", "reply_to_send", "with_hops"]

#: How many more times an event may come back as a reply; Knative's name for it, taken off what is delivered.
TTL_ATTRIBUTE: Final = "knativebrokerttl"
_HOPS: Final = b"ce-" + TTL_ATTRIBUTE.encode() + b": %d\r\n"


def is_spent(asked: Entry) -> bool:
    """Whether a reply to this event would be one too many: events that answer events in a circle would never end."""
    return asked.ttl <= 1


def reply_entry(asked: Record, answer: Response, broker: str, via: str, now: float) -> Entry:
    """The entry in `broker` of the event that `answer` is, given by the subscriber of the Trigger with the uid `via`.
    Raises InvalidInput where it is not a valid event."""
    event = from_http(answer.headers, answer.body)
    attributes = {name: value for name, value in event.attributes.items() if name != TTL_ATTRIBUTE}
    event = CloudEvent(attributes=attributes, data=event.data)
    head = binary_head(event)
    check_head(event, head)
    ttl = asked.entry.ttl - 1
    return Entry(broker, attributes, head, event.data or b"", now, ttl, asked.seq, via)


def reply_to_send(asked: Record, answer: Response) -> CloudEvent:
    """The event that `answer` is, for a reply destination: with what is left of the hop limit, which Brokers and
    channels count down and take off, so that a circle of them ends. Raises InvalidInput where it is not a valid event.
    """
    event = from_http(answer.headers, answer.body)
    check_head(event, binary_head(event))
    return with_hops(event, asked.entry)


def hops_line(entry: Entry) -> bytes:
    """The header line that tells the next Broker or channel how many more times the event may come around: those that
    pass an event on to each other in a circle would never end either."""
    return _HOPS % entry.ttl


def with_hops(event: CloudEvent, entry: Entry) -> CloudEvent:
    """As `hops_line`, for what is not sent as it is stored."""
    return event.with_attributes(**{TTL_ATTRIBUTE: str(entry.ttl)})
