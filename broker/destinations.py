"""Where one Trigger's events go, and the bytes of what is sent there."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from broker.table import TriggerSpec
from core.events import CloudEvent, binary_head, to_batch, to_structured
from core.net.names import Names, Target
from core.net.served import ASKS
from core.net.types import Headers
from core.net.wire import encoded

__all__ = ["Destination", "Destinations"]

logger = logging.getLogger(__name__)

#: What the hosts of the Brokers' ingress begin with (`core.net.names`).
INGRESS_HOST: Final = b"broker-ingress."
_SENDS_REPLIES: Final = b"prefer: reply\r\n"


class Destination(msgspec.Struct, frozen=True):
    """An address to send to, parsed once, and the headers that it takes. `is_broker` tells that it is a Broker or
    channel of the platform, which is told how many more times the event may come around."""

    target: Target
    headers: Headers
    is_broker: bool = False


class Destinations:
    """A Trigger's subscriber, dead-letter sink and reply destination; None where there is none that can be used, and
    events wait."""

    __slots__ = ("_names", "_namespace", "_prefix", "_trigger", "reply", "sink", "subscriber")

    def __init__(self, trigger: TriggerSpec, names: Names) -> None:
        self._trigger = trigger
        self._names = names
        self.subscriber = self.parse(trigger.subscriber_uri)
        self.sink = self.parse(trigger.dead_letter_uri)
        self.reply = self.parse(trigger.reply_uri)
        self._namespace = b"kn-namespace: %b\r\n" % trigger.namespace.encode("ascii", "replace")
        self._prefix = _SENDS_REPLIES + self._namespace

    def parse(self, uri: str | None) -> Destination | None:
        if uri is None:
            return None
        try:
            target = self._names.target(uri)
        except ValueError as error:
            facts = {"trigger": self._trigger.key, "uri": uri, "error": str(error)}
            logger.error("a Trigger's destination is not usable; its events wait", extra={"facts": facts})
            return None
        headers = [(b"host", target.host)]
        is_broker = target.host.startswith(INGRESS_HOST)
        return Destination(target, encoded([*headers, ASKS] if target.function else headers), is_broker)

    def plain(self, head: bytes) -> bytes:
        """The header lines of a stored event in binary mode, whose encoded `head` is."""
        return self._prefix + head

    def encode_batch(self, events: Iterable[CloudEvent]) -> tuple[bytes, bytes]:
        """The header lines and the body of several events in one request, which asks for no reply."""
        headers, body = to_batch(events)
        return self._namespace + b"".join(b"%b: %b\r\n" % header for header in headers), body

    def encode(self, event: CloudEvent, *, structured: bool, replies: bool) -> tuple[bytes, bytes]:
        """The header lines and the body of an event. They say whether `replies` are taken: who asks for one that nobody
        reads has it made for nothing."""
        prefix = self._prefix if replies else self._namespace
        if not structured:
            return prefix + binary_head(event), event.data or b""
        headers, body = to_structured(event)
        return prefix + b"".join(b"%b: %b\r\n" % header for header in headers), body
