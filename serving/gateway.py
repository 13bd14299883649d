"""The gateway: Host -> route -> revision -> a slot of an instance (or a place in line) -> forward.

One hop between a client and a function; Knative's Route, activator and queue-proxy are this hop's work. The table comes
from `serving.node`; this module has no I/O of its own beside what the server and the client that it is handed do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from core.errors import NotFound
from core.net.body import IGNORE
from core.net.types import Address, BodySink, Exchange, RequestHead
from core.telemetry import Metrics
from serving.answer import refuse
from serving.demand import DemandReporter
from serving.forwarding import Forwarded, continued
from serving.handover import MISDIRECTED, NOT_THE_OWNER, revision_of, taken_head
from serving.lane import Forward, Hop, Lane, Send
from serving.routing import Endpoint, Return, RevisionKey, RevisionLimits, RouteTarget, RoutingTable, Snapshot

__all__ = ["Gateway"]

#: How often time-outs and back-offs are looked at while there are requests: one timer for all of them.
SWEEP_EVERY_S: Final = 0.1

#: A publisher's request to the broker that takes longer is answered 504, and the publisher tries again.
BROKER_LIMITS: Final = RevisionLimits(timeout_s=60.0)
_BROKER_PREFIX: Final = b"broker-ingress."
_BROKER_KEY: Final = RevisionKey("knative-eventing", "broker-ingress")

#: Host headers that are remembered as they came; the whole memory is dropped when full.
MAX_REMEMBERED_HOSTS: Final = 4096

#: Until the first table is there: how long a control process takes to start.
NOT_SYNCED_RETRY_S: Final = 1.0


class Gateway:
    """The data plane's handler, and the lanes that it sends requests along.

    `send` is `Client.send`; `monotonic` gives seconds on the running loop's time base; `broker` is where hosts
    ``broker-ingress.*`` lead (None: they are unknown).
    """

    def __init__(
        self,
        *,
        send: Send,
        reporter: DemandReporter,
        metrics: Metrics,
        rng: random.Random,
        monotonic: Callable[[], float],
        broker: Address | None = None,
    ) -> None:
        self.send = send
        self.monotonic = monotonic
        self.forwarded = Forwarded()
        self._reporter = reporter
        self._metrics = metrics
        self._rng = rng
        self._source: RoutingTable[RevisionKey] | None = None
        self._table: RoutingTable[Lane] | None = None
        #: Host headers as they come (with ports, mostly) and what they lead to in the present table.
        self._ways: dict[bytes, RouteTarget[Lane]] = {}
        self._lanes: dict[RevisionKey, Lane] = {}
        self._busy: dict[Lane, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()
        #: The hosts of all gateways, and what this one is asked to give back.
        self._peers: frozenset[str] = frozenset()
        self._returns: frozenset[Return] = frozenset()
        self._unknown = metrics.counter(
            "penstock_gateway_unrouted_requests_total", "Requests whose host leads to no revision."
        )
        self._broker: Lane | None = None
        if broker is not None:
            self._broker = Lane(key=_BROKER_KEY, road=self, metrics=metrics)
            self._broker.update(BROKER_LIMITS, (Endpoint("broker", broker),))

    @property
    def synced(self) -> bool:
        """A table has been swapped in."""
        return self._table is not None

    @property
    def hosts(self) -> frozenset[bytes]:
        """The hosts that the present table leads somewhere, the broker's aside."""
        return frozenset(self._table.hosts) if self._table is not None else frozenset()

    @property
    def active(self) -> int:
        """Requests that are not done."""
        return sum(len(lane.active) for lane in self._busy)

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        """core.net's Handler."""
        target = self._ways.get(head.host)
        if target is None:
            key = revision_of(head.host)
            if key is not None:
                return self._take(key, head, exchange)
            target = self._find(head.host, exchange)
            if target is None:
                return IGNORE
        choices = target.choices
        lane = choices[0] if len(choices) == 1 else target.pick(self._rng)
        forward = Forward(lane, head, exchange)
        lane.admit(forward)
        return forward

    def _take(self, key: RevisionKey, head: RequestHead, exchange: Exchange) -> BodySink:
        """A request that another gateway hands over: given back where no instance of the revision is this gateway's.

        Anybody can name a revision so. Then it is a client's request like others, whose origin is told by us.
        """
        lane = self._lanes.get(key)
        if lane is None or not lane.own:
            refuse(exchange, MISDIRECTED, NOT_THE_OWNER, f"No instance of revision {key} is this gateway's.")
            return IGNORE
        head = taken_head(head)
        if head.peer not in self._peers:
            head = replace(head, headers=continued(head))
        forward = Forward(lane, head, exchange, Hop.TAKEN)
        lane.admit(forward)
        return forward

    def swap(self, snapshot: Snapshot) -> None:
        """Go over to a new snapshot at once. Requests under way stay where they are; what waits for a revision that is
        gone is routed anew."""
        gone = self._relay(snapshot) if snapshot.table is not self._source else []
        for key, lane in self._lanes.items():
            # A revision that a route names before it is known gets no instance: its limit is not known either.
            limits = snapshot.limits.get(key)
            if limits is not None:
                lane.update(limits, snapshot.endpoints.get(key, ()))
            else:
                lane.update(RevisionLimits(), ())
        for lane in gone:
            lane.update(lane.limits, ())
            lane.retire()
            lane.metrics.forget()
        self._peers = snapshot.peers
        self._returns = snapshot.returns
        self._give_back()

    def _give_back(self) -> None:
        """Tell of the instances that are asked back and have no request from here any more."""
        lanes = self._lanes
        self._reporter.give_back(
            frozenset(each for each in self._returns if each.key not in lanes or not lanes[each.key].uses(each.name))
        )

    def _relay(self, snapshot: Snapshot) -> list[Lane]:
        """Lay lanes for the snapshot's revisions; the lanes of revisions that are gone."""
        wanted = set(snapshot.limits)
        for target in snapshot.table.hosts.values():
            wanted.update(target.choices)
        gone = [self._lanes.pop(key) for key in sorted(self._lanes.keys() - wanted)]
        for key in sorted(wanted - self._lanes.keys()):
            self._lanes[key] = Lane(key=key, road=self, metrics=self._metrics)
        self._source = snapshot.table
        self._table = snapshot.table.map(self._lanes.__getitem__)
        self._ways.clear()
        return gone

    async def drain(self, timeout_s: float) -> None:
        """Wait until no request is left; after `timeout_s` seconds, answer those that wait and cut the rest off."""
        if self.active:
            self._quiet.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._quiet.wait()
            except TimeoutError:
                for lane in tuple(self._busy):
                    lane.give_back()
                    for forward in tuple(lane.active):
                        forward.abandon()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what lanes ask of their road ---

    def rouse(self, lane: Lane) -> None:
        self._busy[lane] = None
        if lane is not self._broker:
            self._reporter.watch(lane)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def wake(self, lane: Lane) -> None:
        if lane is not self._broker:
            self._reporter.wake(lane)

    def reroute(self, forward: Forward) -> None:
        target = self._find(forward.head.host, forward.exchange)
        if target is not None:
            forward.move(target.pick(self._rng))

    def _find(self, host: bytes, exchange: Exchange) -> RouteTarget[Lane] | None:
        """What `host` leads to, remembered for the next request; None where it leads nowhere and that was answered."""
        if self._broker is not None and host.startswith(_BROKER_PREFIX):
            target = RouteTarget.of("broker", [(self._broker, 1)])
        elif self._table is None:
            text = "The gateway has not read its routes yet. Try again in a second."
            refuse(exchange, 503, "not-synced", text, retry_after_s=NOT_SYNCED_RETRY_S)
            return None
        else:
            try:
                target = self._table.lookup(host)
            except NotFound as unknown:
                self._unknown.value += 1
                refuse(exchange, 404, "unknown-host", str(unknown))
                return None
            if not target.choices:
                namespace, _, name = target.route.partition("/")
                told = f"`penstock describe route {name} -n {namespace}` says why"
                text = f"Route {target.route} has no ready revision yet; {told}."
                refuse(exchange, 503, "no-revision", text, retry_after_s=NOT_SYNCED_RETRY_S)
                return None
        if len(self._ways) >= MAX_REMEMBERED_HOSTS:
            self._ways.clear()
        self._ways[host] = target
        return target

    def _sweep(self) -> None:
        self._timer = None
        now_s = self.monotonic()
        for lane in tuple(self._busy):
            lane.sweep(now_s)
            if lane.idle:
                del self._busy[lane]
        if self._returns:
            self._give_back()
        if self._busy:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)
        if not self.active:
            self._quiet.set()
