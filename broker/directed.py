"""Takes events for one Trigger alone: ``POST /<namespace>/<broker>/triggers/<trigger>``.

A replay, or a dead letter that is sent again, reaches the Trigger by this path, whatever its filter says; the event is
stored, delivered, retried and explained as any other, and its replies go to the whole Broker. Who may publish to the
Broker may use it. The query may name `revision`, which gets the event instead of the Trigger's subscriber, and `cause`,
the position of the event that this one repeats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol
from urllib.parse import parse_qsl

import msgspec

from broker.log.direction import Direction
from broker.log.port import Entry, EventLog, Record
from broker.table import EMPTY, Table
from core.clock import Clock
from core.errors import InvalidInput, PenstockError
from core.events import with_binary_head
from core.limits import MAX_EVENT_BYTES
from core.net.body import IGNORE, collect
from core.net.names import revision_host
from core.net.types import BodySink, Exchange, Headers, RequestHead

__all__ = ["Desk", "Directed", "Wish", "is_directed", "parse_wish"]

_TRIGGERS: Final = b"triggers"
_REVISION: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_POSITION: Final = re.compile(r"[0-9]{1,18}\Z")
_ALLOW: Final = (b"allow", b"POST")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
#: Of the answer: the position that the event has got.
POSITION_HEADER: Final = b"penstock-position"


class Desk(Protocol):
    """What the ingress answers with."""

    def accepted(self, broker: str) -> None: ...

    def refused(self, exchange: Exchange, error: PenstockError) -> None: ...

    def refuse(self, exchange: Exchange, status: int, text: str, retry_after_s: float | None = None) -> None: ...


class Wish(msgspec.Struct, frozen=True):
    """What the query asks for."""

    revision: str | None = None
    cause: int | None = None


def is_directed(path: bytes) -> bool:
    """Whether a path is of this module: ``/<namespace>/<broker>/triggers/<trigger>``."""
    parts = path.split(b"/")
    return len(parts) == 5 and parts[3] == _TRIGGERS


def parse_wish(query: bytes) -> Wish:
    """Raises InvalidInput that names the parameter, its rule and its value."""
    revision: str | None = None
    cause: int | None = None
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "revision":
            if not _REVISION.match(value):
                raise InvalidInput(
                    f"revision={value[:100]!r} must be the name of a Revision of the Trigger's namespace."
                )
            revision = value
        elif name == "cause":
            if not _POSITION.match(value):
                raise InvalidInput(f"cause={value[:100]!r} must be the position of a stored event, a number.")
            cause = int(value)
        else:
            raise InvalidInput(f"{name[:100]!r} is no parameter of this path; there are revision and cause.")
    return Wish(revision, cause)


class Directed:
    """The path's handler. `logs` are those of the ingress; `swap` gives it each new table. `ttl` is how many times an
    event may come back as a reply."""

    def __init__(self, *, desk: Desk, logs: Mapping[str, EventLog], clock: Clock, ttl: int) -> None:
        self._desk = desk
        self._logs = logs
        self._clock = clock
        self._ttl = ttl
        self._table: Table = EMPTY
        #: Triggers' uids by ``namespace/name``, made when the first event for one comes: most tables never need it.
        self._uids: dict[str, str] | None = None

    def swap(self, table: Table) -> None:
        self._table = table
        self._uids = None

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        """A request for a path that `is_directed`."""
        path, _, query = head.target.partition(b"?")
        _, namespace, broker, _, name = path.decode("latin-1").split("/")
        if head.method != b"POST":
            exchange.respond(405, [_ALLOW, _TEXT], b"Send an event for this Trigger with POST.\n")
            return IGNORE
        spec = self._table.brokers.get(f"{namespace}/{broker}")
        log = self._logs.get(spec.log_class) if spec is not None else None
        trigger = self._table.triggers.get(self._uid(f"{namespace}/{name}"))
        try:
            wish = parse_wish(query)
        except InvalidInput as error:
            self._desk.refuse(exchange, 400, str(error))
            return IGNORE
        if spec is None:
            self._desk.refuse(
                exchange, 404, f"There is no Broker {broker[:100]!r} in the namespace {namespace[:100]!r}."
            )
        elif trigger is None:
            self._desk.refuse(
                exchange, 404, f"There is no Trigger {name[:100]!r} in the namespace {namespace[:100]!r}."
            )
        elif trigger.broker != spec.key:
            text = f"The Trigger {trigger.key} is of the Broker {trigger.broker}, not of {spec.key}."
            self._desk.refuse(exchange, 404, text)
        elif log is None:
            text = f"The event log of its class, {spec.log_class}, cannot be had now. Try again in a second."
            self._desk.refuse(exchange, 503, text, 1.0)
        else:
            uri = None if wish.revision is None else f"http://{revision_host(namespace, wish.revision)}/"
            blank = Entry(spec.key, {}, b"", b"", 0.0, self._ttl, wish.cause, only=Direction(trigger.uid, uri))
            taken = _Taken(self._desk, log, self._clock, blank, head.headers, exchange)
            return collect(exchange, max_bytes=MAX_EVENT_BYTES, then=taken.received, head=head)
        return IGNORE

    def _uid(self, key: str) -> str:
        if self._uids is None:
            self._uids = {trigger.key: uid for uid, trigger in self._table.triggers.items()}
        return self._uids.get(key, "")


class _Taken:
    """One POST under way. `blank` is all that is known of the entry before its event has come."""

    def __init__(
        self, desk: Desk, log: EventLog, clock: Clock, blank: Entry, headers: Headers, exchange: Exchange
    ) -> None:
        self._desk = desk
        self._log = log
        self._clock = clock
        self._blank = blank
        self._headers = headers
        self._exchange = exchange

    def received(self, body: bytes) -> None:
        try:
            event, encoded = with_binary_head(self._headers, body)
        except InvalidInput as error:
            self._desk.refuse(self._exchange, 400, str(error))
            return
        entry = msgspec.structs.replace(
            self._blank,
            attributes=event.attributes,
            head=encoded,
            data=event.data or b"",
            at=self._clock.now(),
        )
        self._log.append(entry, self._stored)

    def _stored(self, result: Record | PenstockError) -> None:
        if isinstance(result, Record):
            self._desk.accepted(self._blank.broker)
            self._exchange.respond(202, [(POSITION_HEADER, b"%d" % result.seq)])
        else:
            self._desk.refused(self._exchange, result)
