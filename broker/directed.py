"""Takes events for one Trigger or Subscription alone: ``POST /<namespace>/<broker>/triggers/<trigger>``, where a
channel's name is ``channels/<name>`` and a Subscription's ``subscriptions/<name>``, as in `broker.table`.

A replay, or a dead letter that is sent again, reaches the Trigger by this path, whatever its filter says; the event is
stored, delivered, retried and explained as any other, and its replies go to the whole Broker. Who may publish to the
Broker may use it. The query may name `revision`, which gets the event instead of the Trigger's subscriber, and `cause`,
the position of the event that this one repeats. With `of`, a subscription's uid, and `left`, the number of others for
which that event stays undelivered, it is noted as sent again for that subscription; and
``DELETE /<namespace>/<broker>/undelivered/<position>?of=&left=`` notes an undelivered event as dropped by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol
from urllib.parse import parse_qsl

import msgspec

from broker.ledger import Attempt, OutcomeName
from broker.log.direction import Direction
from broker.log.port import Entry, LedgerLog, Record
from broker.table import EMPTY, BrokerSpec, Table, TriggerSpec
from core.clock import Clock
from core.errors import InvalidInput, NotFound, PenstockError, Unavailable
from core.events import with_binary_head
from core.limits import MAX_EVENT_BYTES
from core.net.body import IGNORE, collect
from core.net.names import revision_host
from core.net.types import BodySink, Exchange, Headers, RequestHead

__all__ = ["POSITION_HEADER", "Desk", "Directed", "Wish", "is_directed", "parse_wish"]

_TRIGGERS: Final = b"triggers"
_UNDELIVERED: Final = b"undelivered"
_CHANNELS: Final = b"channels"
_REVISION: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_POSITION: Final = re.compile(r"[0-9]{1,18}\Z")
_UID: Final = re.compile(r"[-A-Za-z0-9]{1,64}\Z")
_METHODS: Final = {_TRIGGERS: b"POST", _UNDELIVERED: b"DELETE"}
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
    of: str | None = None
    left: int = 0


def is_directed(path: bytes) -> bool:
    """Whether a path is of this module."""
    return _split(path) is not None


def _split(path: bytes) -> tuple[str, str, bytes, str] | None:
    """The namespace, the Broker's name, which of the two paths it is, and what comes after that."""
    parts = path.split(b"/")
    for at in (4, 3) if parts[2:3] == [_CHANNELS] else (3,):
        if len(parts) > at + 1 and parts[at] in _METHODS:
            words = path.decode("latin-1").split("/")
            return words[1], "/".join(words[2:at]), parts[at], "/".join(words[at + 1 :])
    return None


_RULES: Final = {
    "revision": (_REVISION, "must be the name of a Revision of the Trigger's namespace"),
    "cause": (_POSITION, "must be the position of a stored event, a number"),
    "of": (_UID, "must be the uid of a Trigger"),
    "left": (_POSITION, "must be a number of Triggers"),
}


def parse_wish(query: bytes) -> Wish:
    """Raises InvalidInput that names the parameter, its rule and its value."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in _RULES:
            raise InvalidInput(f"{name[:100]!r} is no parameter of this path; there are {', '.join(_RULES)}.")
        rule, text = _RULES[name]
        if not rule.match(value):
            raise InvalidInput(f"{name}={value[:100]!r} {text}.")
        found[name] = value
    cause = int(found["cause"]) if "cause" in found else None
    return Wish(found.get("revision"), cause, found.get("of"), int(found.get("left", "0")))


class Directed:
    """The path's handler. `logs` are those of the ingress; `swap` gives it each new table. `ttl` is how many times an
    event may come back as a reply."""

    def __init__(self, *, desk: Desk, logs: Mapping[str, LedgerLog], clock: Clock, ttl: int) -> None:
        self.desk = desk
        self._logs = logs
        self.clock = clock
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
        split = _split(path)
        assert split is not None  # noqa: S101 - `is_directed` said so; tells the type checker
        namespace, name, what, last = split
        method = _METHODS[what]
        if head.method != method:
            exchange.respond(405, [(b"allow", method), _TEXT], b"The method here is %b.\n" % method)
            return IGNORE
        try:
            wish = parse_wish(query)
            broker, log = self._broker(namespace, name)
            if method == b"DELETE":
                self._discard(log, _position(last), wish, exchange)
                return IGNORE
            trigger = self._trigger(namespace, last, broker)
        except PenstockError as error:
            status = 400 if isinstance(error, InvalidInput) else 404 if isinstance(error, NotFound) else 503
            self.desk.refuse(exchange, status, str(error), 1.0 if status == 503 else None)
            return IGNORE
        uri = None if wish.revision is None else f"http://{revision_host(namespace, wish.revision)}/"
        blank = Entry(broker.key, {}, b"", b"", 0.0, self._ttl, wish.cause, only=Direction(trigger.uid, uri))
        taken = _Taken(self, log, blank, wish, head.headers, exchange)
        return collect(exchange, max_bytes=MAX_EVENT_BYTES, then=taken.received, head=head)

    def settle(self, log: LedgerLog, seq: int, wish: Wish, outcome: OutcomeName, reason: str) -> None:
        """Note what was done by hand with an undelivered event."""
        log.note(Attempt(seq, wish.of or "", self.clock.now(), wish.left, 0, 0.0, outcome, reason))

    def _discard(self, log: LedgerLog, seq: int, wish: Wish, exchange: Exchange) -> None:
        if wish.of is None:
            raise InvalidInput("The parameter 'of' is missing: it must be the uid of a Trigger.")
        self.settle(log, seq, wish, "discarded", "Dropped by hand.")
        exchange.respond(202, [])

    def _broker(self, namespace: str, name: str) -> tuple[BrokerSpec, LedgerLog]:
        broker = self._table.brokers.get(f"{namespace}/{name}")
        if broker is None:
            raise NotFound(f"There is no Broker {name[:100]!r} in the namespace {namespace[:100]!r}.")
        log = self._logs.get(broker.log_class)
        if log is None:
            raise Unavailable(
                f"The event log of its class, {broker.log_class}, cannot be had now. Try again in a second."
            )
        return broker, log

    def _trigger(self, namespace: str, name: str, broker: BrokerSpec) -> TriggerSpec:
        trigger = self._table.triggers.get(self._uid(f"{namespace}/{name}"))
        if trigger is None:
            raise NotFound(f"There is no Trigger {name[:100]!r} in the namespace {namespace[:100]!r}.")
        if trigger.broker != broker.key:
            raise NotFound(f"The Trigger {trigger.key} is of the Broker {trigger.broker}, not of {broker.key}.")
        return trigger

    def _uid(self, key: str) -> str:
        if self._uids is None:
            self._uids = {trigger.key: uid for uid, trigger in self._table.triggers.items()}
        return self._uids.get(key, "")


def _position(text: str) -> int:
    if not _POSITION.match(text):
        raise NotFound(f"There is no position {text[:100]!r}: it is a number.")
    return int(text)


class _Taken:
    """One POST under way. `blank` is all that is known of the entry before its event has come."""

    def __init__(
        self, directed: Directed, log: LedgerLog, blank: Entry, wish: Wish, headers: Headers, exchange: Exchange
    ) -> None:
        self._directed = directed
        self._log = log
        self._blank = blank
        self._wish = wish
        self._headers = headers
        self._exchange = exchange

    def received(self, body: bytes) -> None:
        try:
            event, encoded = with_binary_head(self._headers, body)
        except InvalidInput as error:
            self._directed.desk.refuse(self._exchange, 400, str(error))
            return
        entry = msgspec.structs.replace(
            self._blank,
            attributes=event.attributes,
            head=encoded,
            data=event.data or b"",
            at=self._directed.clock.now(),
        )
        self._log.append(entry, self._stored)

    def _stored(self, result: Record | PenstockError) -> None:
        desk, wish = self._directed.desk, self._wish
        if not isinstance(result, Record):
            desk.refused(self._exchange, result)
            return
        if wish.of is not None and wish.cause is not None:
            reason = f"Sent again by hand, as the event at position {result.seq}."
            self._directed.settle(self._log, wish.cause, wish, "redriven", reason)
        desk.accepted(self._blank.broker)
        self._exchange.respond(202, [(POSITION_HEADER, b"%d" % result.seq)])
