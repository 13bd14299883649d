"""One revision's way through the gateway, and the life of each request on it.

A request's life::

    (admitted) -> HELD -> SENT -> ANSWERING -> DONE
          |        ^ |     | |         |        ^
          |        | |     | +---------+--------+   answered, timed out, broken, client gone
          |        +-+-----+                    |   attempt failed, safe to repeat, no other slot free
          +--------+-+--------------------------+   refused: the queue is full; timed out; client gone

`Forward` is the side that faces the client (core.net's BodySink), `serving.answer` the side that faces one attempt at
an instance (its ResponseListener). All that moves a request through its life is in this file.

Where this gateway has no instance of a revision and another one has, the request is handed over: SENT to that gateway,
with an expectation (RFC 9110, 10.1.1). The other holds it in its own queue, and says 100 Continue when it begins; until
then nothing but the head has left here, so that whatever happens to the other the request can go elsewhere. A request
that was taken over is never handed on: where the taker has no instance any more, it gives the request back (421).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Protocol

from core.errors import Overloaded
from core.net.served import asks, telling
from core.net.types import Address, Exchange, Headers, NetError, RequestHead, ResponseListener, UpstreamRequest
from core.net.wire import ReadyHeaders
from core.telemetry import Metrics
from serving.answer import Answer, PeerAnswer, refuse
from serving.demand import DemandMeter
from serving.forwarding import Forwarded, Retry, after_failure
from serving.handover import EXPECT, MISDIRECTED, NOT_THE_OWNER, NotTheOwner, handed_headers
from serving.lane_metrics import LaneMetrics
from serving.routing import Endpoint, RevisionKey, RevisionLimits
from serving.throttler import Instance, Throttler, Waiter

__all__ = ["Forward", "Hop", "Lane", "Road", "Send"]

#: The part of a request's body that is kept so that it can be sent again: what core.net's client takes (256 KiB, and
#: one read) before a connection is there, so that only what was really sent is let go.
MAX_KEPT_BYTES: Final = 512 * 1024

#: A held request's body up to this is taken in: most events are smaller, and 10,000 of them fit into 160 MiB.
MAX_HELD_BODY_BYTES: Final = 16 * 1024


class Send(Protocol):
    """`Client.send`."""

    def __call__(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int | None,
        listener: ResponseListener,
        *,
        encoded_headers: bytes = b"",
    ) -> UpstreamRequest: ...


class Road(Protocol):
    """What all lanes share: the way out, the time, and who must be told."""

    send: Send
    monotonic: Callable[[], float]
    forwarded: Forwarded

    def rouse(self, lane: Lane) -> None:
        """A lane that had no request has one: see to its time-outs and reports."""
        ...

    def wake(self, lane: Lane) -> None:
        """A request waits although no instance is ready."""
        ...

    def reroute(self, forward: Forward) -> None:
        """The revision that this held request waits for is gone: decide anew where it goes."""
        ...


class Stage(enum.Enum):
    """Where a request is in its life (see the module's drawing)."""

    HELD = "held"
    SENT = "sent"
    ANSWERING = "answering"
    DONE = "done"


_HELD, _SENT, _ANSWERING, _DONE = Stage


class Hop(enum.IntEnum):
    """Whether two gateways have to do with a request, seen from this one. NONE is false."""

    NONE = 0
    #: Another gateway handed it over.
    TAKEN = 1
    #: It is handed over to another gateway, and counts there.
    AWAY = 2


_NONE, _TAKEN, _AWAY = Hop


class Lane:
    """One revision at this gateway: its slots, its requests, its counts."""

    __slots__ = (
        "active",
        "away",
        "endpoints",
        "key",
        "limits",
        "meter",
        "metrics",
        "own",
        "retired",
        "road",
        "taken",
        "telling",
        "throttler",
    )

    def __init__(self, *, key: RevisionKey, road: Road, metrics: Metrics) -> None:
        self.key = key
        self.road = road
        self.limits = RevisionLimits()
        self.endpoints: tuple[Endpoint, ...] = ()
        self.throttler: Throttler[Forward] = Throttler()
        self.meter = DemandMeter()
        #: Every request that is not done, in order of arrival; so the first ones are the first to time out.
        self.active: dict[Forward, None] = {}
        #: There are instances that this gateway may use itself.
        self.own = False
        #: Of the active: those that are handed over, and those that others handed over.
        self.away = 0
        self.taken = 0
        self.retired = False
        #: For those who ask who served them, where they did not wait for a cold start.
        self.telling = telling(key.name, None)
        self.metrics = LaneMetrics(metrics, key)
        self.metrics.held.read = lambda: float(self.throttler.held)
        self.metrics.in_flight.read = lambda: float(self.throttler.in_flight)

    @property
    def queued(self) -> int:
        return self.throttler.held

    @property
    def elsewhere(self) -> int:
        """Requests that came here and count at another gateway, less those that count here and came there."""
        return self.away - self.taken

    def uses(self, name: str) -> bool:
        """The instance of that name may get requests, or has some."""
        return any(held.endpoint.name == name and not held.endpoint.peer for held in self.throttler.instances)

    @property
    def idle(self) -> bool:
        """Nothing here changes by itself as time passes."""
        return not self.active and not self.throttler.aside

    def admit(self, forward: Forward) -> None:
        """Take a new request: send it, hold it, or refuse it where too many wait."""
        road = self.road
        now_s = road.monotonic()
        if not self.active:
            road.rouse(self)
        try:
            instance = self.throttler.acquire(forward)
        except Overloaded as full:
            forward.stage = _DONE
            self.metrics.requests[5].value += 1
            told = forward.told_if_asked()
            refuse(forward.exchange, 503, "queue-full", str(full), retry_after_s=full.retry_after_s, told=told)
            return
        forward.began_s = now_s
        self.active[forward] = None
        self.meter.arrive(now_s)
        if forward.hop:
            self.taken += 1
        if instance is not None:
            forward.begin(instance)
            return
        forward.hold()
        self.see_to(forward)

    def update(self, limits: RevisionLimits, endpoints: tuple[Endpoint, ...]) -> None:
        """The revision's limits and ready instances are now these."""
        if endpoints == self.endpoints and limits == self.limits:
            return
        self.limits = limits
        self.endpoints = endpoints
        is_elsewhere = bool(endpoints) and endpoints[0].peer
        self.own = bool(endpoints) and not is_elsewhere
        if not self.own:
            self.give_back()
        self.start(self.throttler.update(endpoints, 0 if is_elsewhere else limits.concurrency))

    def give_back(self) -> None:
        """What other gateways handed over and still waits goes back to them."""
        if self.taken:
            for forward in [each for each in self.active if each.hop is _TAKEN and each.stage is _HELD]:
                forward.give_back()

    def start(self, grants: list[tuple[Forward, Instance]]) -> None:
        """Send the requests that were given a slot."""
        if not grants:
            return
        now_s = self.road.monotonic()
        for forward, instance in grants:
            forward.grant(instance)
            self.metrics.hold.observe(now_s - forward.held_s)
        for forward, instance in grants:
            # Sending one may end another, because callbacks run at once; then its slot was given back already.
            if forward.stage is _SENT and forward.instance is instance:
                forward.begin(instance)

    def see_to(self, forward: Forward) -> None:
        """This request waits: ask for an instance where there is none, or send it elsewhere where none will come."""
        if self.retired:
            self.retire()
        elif not self.throttler.ready:
            if forward.cold_since_s is None:
                forward.cold_since_s = forward.held_s
            self.road.wake(self)

    def sweep(self, now_s: float) -> None:
        """Time has passed: end what is over its time, use again what was set aside."""
        limits = self.limits
        late = []
        for forward in self.active:
            if now_s - forward.began_s < limits.timeout_s:
                break
            late.append(forward)
        if limits.response_start_s:
            late += [
                forward
                for forward in self.active
                if forward.stage is not _ANSWERING and now_s - forward.began_s >= limits.response_start_s
            ]
        for forward in late:
            forward.expire()
        self.start(self.throttler.due(now_s))

    def retire(self) -> None:
        """The revision is gone: what waits goes elsewhere; what is under way at its instances may end."""
        self.retired = True
        self.give_back()
        for forward in [forward for forward in self.active if forward.stage is _HELD]:
            self.throttler.cancel(forward)
            self.leave(forward)
            forward.stage = _DONE
            self.road.reroute(forward)

    def leave(self, forward: Forward) -> float:
        """`forward` is no request of this lane any more. Returns the time."""
        now_s = self.road.monotonic()
        del self.active[forward]
        if forward.hop is _AWAY:
            self.away -= 1
            return now_s
        self.meter.leave(now_s)
        if forward.hop:
            self.taken -= 1
            self.metrics.taken.value += 1
        return now_s

    def hand_over(self, forward: Forward) -> None:
        """`forward` counts at another gateway from now on."""
        forward.hop = _AWAY
        self.away += 1
        self.meter.hand_over(self.road.monotonic())

    def take_back(self, forward: Forward) -> None:
        """It did not come to that: `forward` counts here again."""
        forward.hop = _NONE
        self.away -= 1
        self.meter.take_back(self.road.monotonic())


class Forward(Waiter):
    """One request: the receiver of its body, and what it has reached."""

    __slots__ = (
        "answer",
        "asked",
        "attempts",
        "began_s",
        "choked",
        "cold_s",
        "cold_since_s",
        "complete",
        "exchange",
        "head",
        "held_s",
        "hop",
        "instance",
        "kept",
        "kept_bytes",
        "lane",
        "offered",
        "paused",
        "stage",
        "upstream",
    )

    def __init__(self, lane: Lane, head: RequestHead, exchange: Exchange, hop: Hop = _NONE) -> None:
        self.ticket = 0
        self.hop = hop
        self.lane = lane
        self.head = head
        self.exchange = exchange
        self.stage = _HELD
        self.began_s = 0.0
        self.held_s = 0.0
        #: Since when it waits, and how long it waited until it was sent, because no instance was ready; None where
        #: that never was so.
        self.cold_since_s: float | None = None
        self.cold_s: float | None = None
        #: The client wants to be told who served it; known once it is sent.
        self.asked = False
        self.attempts = 0
        self.instance: Instance | None = None
        self.upstream: UpstreamRequest | None = None
        #: In place of `upstream`: another gateway has the head, and has not begun with the request.
        self.offered: UpstreamRequest | None = None
        self.answer: Answer | None = None
        #: What came of the body so far, as long as it may have to be sent (again); None once it is let go.
        self.kept: list[bytes] | None = []
        self.kept_bytes = 0
        #: All of the body came.
        self.complete = False
        #: Reading the body is paused.
        self.paused = False
        #: The client reads the answer too slowly.
        self.choked = False

    # --- from the client (BodySink) ---

    def body(self, chunk: bytes) -> None:
        if self.stage is _DONE:
            return
        kept = self.kept
        if kept is not None:
            kept.append(chunk)
            self.kept_bytes += len(chunk)
            if self.kept_bytes > MAX_KEPT_BYTES and self.upstream is not None:
                self.kept = None
        if self.upstream is not None:
            self.upstream.write(chunk)

    def end(self) -> None:
        self.complete = True
        if self.upstream is not None:
            self.upstream.end()

    def lost(self) -> None:
        if self.stage is not _DONE:
            self._close(0)

    def writable(self, ready: bool) -> None:
        self.choked = not ready
        if self.upstream is not None:
            if ready:
                self.upstream.resume()
            else:
                self.upstream.pause()

    # --- from the lane ---

    def hold(self) -> None:
        """Wait for a slot. A long body is not read meanwhile; a short one is, because only while a connection is read
        is it seen that its client goes away. A gateway that handed the request over waits to be told to continue."""
        self.stage = _HELD
        self.instance = self.upstream = self.answer = None
        self.held_s = self.lane.road.monotonic()
        if self.hop or self._is_long:
            self.pause()

    def grant(self, instance: Instance) -> None:
        """This request holds a slot of `instance` from now on; `begin` follows."""
        self.stage = _SENT
        self.instance = instance

    def begin(self, instance: Instance) -> None:
        """Send the request to `instance`, with what came of its body."""
        if instance.endpoint.peer:
            self.offer(instance)
            return
        head = self.head
        road = self.lane.road
        if self.hop:
            self.exchange.proceed()
            headers, encoded = head.headers, b""
        else:
            headers, encoded, self.asked = road.forwarded.headers(head)
        if self.cold_since_s is not None:
            self.cold_s = road.monotonic() - self.cold_since_s
        self.stage = _SENT
        self.instance = instance
        self.attempts += 1
        answer = self.answer = Answer(self)
        upstream = road.send(
            instance.endpoint.address,
            head.method,
            head.target,
            headers,
            head.content_length,
            answer,
            encoded_headers=encoded,
        )
        self._pour(upstream)

    def offer(self, peer: Instance) -> None:
        """Hand the request over to another gateway."""
        lane, head = self.lane, self.head
        lane.hand_over(self)
        self.stage = _SENT
        self.instance = peer
        self.attempts += 1
        answer = self.answer = PeerAnswer(self)
        headers, encoded, self.asked = lane.road.forwarded.headers(head)
        if self.cold_since_s is not None:
            self.cold_s = lane.road.monotonic() - self.cold_since_s
        self.offered = lane.road.send(
            peer.endpoint.address,
            head.method,
            head.target,
            handed_headers(headers, lane.key),
            head.content_length,
            answer,
            encoded_headers=encoded + EXPECT,
        )
        if self._is_long:
            self.pause()

    def accepted(self) -> None:
        """The other gateway begins with the request, and wants its body."""
        upstream, self.offered = self.offered, None
        if upstream is not None:
            self._pour(upstream)

    def give_back(self) -> None:
        """The gateway that handed this over finds another place for it, for there is no instance here any more."""
        lane = self.lane
        if self.stage is _HELD:
            lane.throttler.cancel(self)
        lane.leave(self)
        self.stage = _DONE
        self.upstream = self.answer = self.kept = None
        refuse(self.exchange, MISDIRECTED, NOT_THE_OWNER, f"No instance of revision {lane.key} is this gateway's.")

    def _pour(self, upstream: UpstreamRequest) -> None:
        """Send what came of the body, and what comes."""
        self.upstream = upstream
        if self.kept:
            for chunk in self.kept:
                upstream.write(chunk)
            if self.kept_bytes > MAX_KEPT_BYTES:
                self.kept = None
        if self.complete:
            upstream.end()
        if self.choked:
            upstream.pause()
        if self.paused:
            self.resume()

    def move(self, lane: Lane) -> None:
        """Start anew on another lane; only for a request that waited."""
        self.lane = lane
        self.ticket = 0
        lane.admit(self)

    def expire(self) -> None:
        """The request is over its time."""
        if self.stage is _DONE:
            return
        waited = self.stage is _HELD
        limits = self.lane.limits
        limit_s = limits.response_start_s if self._unanswered and limits.response_start_s else limits.timeout_s
        self._give_up(
            504,
            "no-instance-in-time" if waited else "no-answer-in-time",
            f"Revision {self.lane.key} "
            + ("had no free instance" if waited else "did not answer")
            + f" within {limit_s:g} seconds. Look at `penstock logs` and `penstock describe revision`.",
        )

    def abandon(self) -> None:
        """The gateway stops: no more waiting."""
        if self.stage is not _DONE:
            self._give_up(503, "stopping", "The gateway is stopping. Try again.", retry_after_s=1.0)

    def told(self) -> ReadyHeaders:
        """For a client that asks: the revision, and how long this waited for a cold start."""
        if self.stage is _HELD and self.cold_since_s is not None:
            self.cold_s = self.lane.road.monotonic() - self.cold_since_s
        cold_s = self.cold_s
        return self.lane.telling if cold_s is None else telling(self.lane.key.name, cold_s)

    def told_if_asked(self) -> ReadyHeaders | None:
        """The same for an answer of the gateway's own, before the request was looked at for it."""
        return self.told() if self.hop is not _TAKEN and asks(self.head.headers) else None

    # --- from the answer ---

    def answering(self) -> None:
        """The head of the answer is there: nothing is repeated any more."""
        self.stage = _ANSWERING
        self.kept = None

    def given_back(self) -> None:
        """The gateway that this was handed to has no instance any more."""
        upstream = self.offered or self.upstream
        self.failed(NotTheOwner())
        if upstream is not None:
            upstream.cancel()

    def answered(self, status: int) -> None:
        """The whole answer went to the client."""
        lane, instance = self.lane, self.instance
        assert instance is not None  # noqa: S101 - an answer comes from an instance
        self.stage = _DONE
        self.offered = self.upstream = self.answer = self.kept = None
        now_s = lane.leave(self)
        lane.metrics.requests[status // 100].value += 1
        lane.metrics.latency.observe(now_s - self.began_s)
        grants = lane.throttler.release(instance)
        if grants:
            lane.start(grants)

    def failed(self, error: NetError) -> None:
        """This attempt is over."""
        instance = self.instance
        assert instance is not None  # noqa: S101 - an attempt has an instance
        self.upstream = None
        step = self._step(error)
        if step is Retry.GIVE_UP:
            self._give_up(
                502,
                "broken-answer",
                f"An instance of revision {self.lane.key} did not give a whole answer: {error}",
            )
            return
        lane = self.lane
        lane.metrics.retries.value += 1
        if self.hop is _AWAY:
            lane.take_back(self)
        if step is Retry.SAME:
            self.begin(instance)
            return
        if self.hop and not lane.own:
            grants = lane.throttler.fail(instance, lane.road.monotonic())
            self.give_back()
            lane.start(grants)
            return
        self.hold()
        lane.start(lane.throttler.fail(instance, lane.road.monotonic(), self))
        if self.stage is _HELD:
            lane.see_to(self)

    def _step(self, error: NetError) -> Retry:
        """What to do after this attempt failed."""
        offered, self.offered = self.offered, None
        if offered is not None or (isinstance(error, NotTheOwner) and self.kept is not None):
            # No attempt at an instance; time bounds these.
            self.attempts -= 1
            return Retry.OTHER
        if self.stage is not _SENT:
            return Retry.GIVE_UP
        return after_failure(
            error,
            method=self.head.method,
            bodiless=self.head.content_length == 0,
            replayable=self.kept is not None,
            attempts=self.attempts,
            through_gateway=self.hop is _AWAY,
        )

    def pause(self) -> None:
        if not (self.paused or self.complete):
            self.paused = True
            self.exchange.pause()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.exchange.resume()

    @property
    def _is_long(self) -> bool:
        """The body is too long to take it in before it can be sent."""
        length = self.head.content_length
        return length is None or length > MAX_HELD_BODY_BYTES

    @property
    def _unanswered(self) -> bool:
        return self.stage is not _ANSWERING or (self.answer is not None and not self.answer.started)

    def _give_up(self, status: int, reason: str, text: str, *, retry_after_s: float | None = None) -> None:
        """End without the instance's answer: say why, or cut the connection where an answer has begun."""
        if self._unanswered:
            told = self.told_if_asked()
            self._close(status // 100)
            refuse(self.exchange, status, reason, text, retry_after_s=retry_after_s, told=told)
        else:
            self._close(0)
            self.exchange.abort()

    def _close(self, code: int) -> None:
        """End from whatever stage, and give back what was held."""
        lane, instance, upstream, stage = self.lane, self.instance, self.upstream or self.offered, self.stage
        self.stage = _DONE
        self.offered = self.upstream = self.answer = self.kept = None
        now_s = lane.leave(self)
        lane.metrics.requests[code].value += 1
        lane.metrics.latency.observe(now_s - self.began_s)
        if upstream is not None:
            upstream.cancel()
        if stage is _HELD:
            lane.throttler.cancel(self)
        elif instance is not None:
            lane.start(lane.throttler.retreat(instance))
