"""Who gets which instance when: a revision's instances, their limits, and the requests that wait. Pure; no I/O.

Knative's activator and queue-proxy share this job (`pkg/activator/net`, `pkg/queue/breaker.go`); here one queue and one
count per instance do it, so that the limit is exact and the order is first come, first served.

An instance's life::

    (told) -> READY <-> ASIDE      set aside after a failure until a given time
                |         |
                +----+----+
                     v
                  LEAVING -> gone  no longer told: gets no new request, ends with its last one
                     |
                     +-> READY     told again before that: its count goes on

What is always true: no instance has more requests than the limit; where a request waits, no ready instance has a free
slot; who waits is served in order of first arrival, those that came back from a failed instance included.
"""

from __future__ import annotations

import enum
import sys
from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable
from operator import attrgetter
from typing import Final, Generic, TypeVar

from core.errors import Overloaded
from core.limits import MAX_HELD_REQUESTS
from serving.routing import Endpoint

__all__ = ["Instance", "State", "Throttler", "Waiter"]

#: How long a failed instance is left alone: first, and at most. Short, because on one machine a refused connection
#: means a process that just ended (its endpoint is about to go) or one that is about to listen again.
BACK_OFF_S: Final = 0.1
MAX_BACK_OFF_S: Final = 2.0

#: When a refused sender should come back: about one cold start.
RETRY_AFTER_S: Final = 1.0


class State(enum.Enum):
    """Where an instance is in its life (see the module's drawing)."""

    READY = "ready"
    ASIDE = "aside"
    LEAVING = "leaving"


class Waiter:
    """What asks for a slot. `ticket` is its place in the order of arrival, given at its first `acquire`."""

    __slots__ = ("ticket",)

    def __init__(self) -> None:
        self.ticket = 0


W = TypeVar("W", bound=Waiter)


class Instance:
    """One instance with the number of requests it has. Changed by its throttler only."""

    __slots__ = ("back_at_s", "endpoint", "failures", "in_flight", "state")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.in_flight = 0
        self.failures = 0
        self.back_at_s = 0.0
        self.state = State.READY

    def __repr__(self) -> str:
        return f"<Instance {self.endpoint.name or self.endpoint.address} {self.state.value} {self.in_flight}>"


class Throttler(Generic[W]):
    """The slots of one revision.

    Methods that can free a slot return the grants they made, in order: each is a waiter with the instance that it now
    holds a slot of. Each slot is given back by exactly one `release`, `retreat` or `fail`.
    """

    def __init__(self, *, limit: int = 0, max_held: int = MAX_HELD_REQUESTS) -> None:
        self._limit = limit or sys.maxsize
        self._max_held = max_held
        self._instances: dict[Endpoint, Instance] = {}
        # _levels[n] holds the ready instances with n requests, longest there first: taking the first of the lowest
        # level is least-loaded with ties going round, whatever the number of instances.
        self._levels: list[OrderedDict[Instance, None]] = [OrderedDict()]
        self._lowest = 0
        self._aside: set[Instance] = set()
        self._held: OrderedDict[W, None] = OrderedDict()
        self._returned: list[W] = []
        self._tickets = 0
        self._ready = 0
        self._in_flight = 0

    @property
    def held(self) -> int:
        """Requests that wait."""
        return len(self._held) + len(self._returned)

    @property
    def in_flight(self) -> int:
        """Requests that have a slot, those on leaving instances included."""
        return self._in_flight

    @property
    def ready(self) -> int:
        """Instances that may get requests now (though each may be full)."""
        return self._ready

    @property
    def aside(self) -> int:
        """Instances that are left alone for a while; see `due`."""
        return len(self._aside)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All instances that are told or still have requests."""
        return tuple(self._instances.values())

    def acquire(self, waiter: W) -> Instance | None:
        """A slot for `waiter`, or None: then it waits for its grant. Raises Overloaded where too many wait."""
        if not waiter.ticket:
            self._tickets += 1
            waiter.ticket = self._tickets
        instance = self._take()
        if instance is None:
            if len(self._held) + len(self._returned) >= self._max_held:
                raise Overloaded(
                    f"{self._max_held} requests already wait for an instance of this revision.", RETRY_AFTER_S
                )
            self._held[waiter] = None
        return instance

    def cancel(self, waiter: W) -> None:
        """`waiter`, which waits, goes away."""
        if self._held.pop(waiter, self) is self:
            self._returned.remove(waiter)

    def release(self, instance: Instance) -> list[tuple[W, Instance]]:
        """A request on `instance` ended as it should."""
        instance.failures = 0
        self._give_back(instance)
        return self._grant() if self._held or self._returned else []

    def retreat(self, instance: Instance) -> list[tuple[W, Instance]]:
        """A request on `instance` ended, which says nothing of the instance's health (the client hung up)."""
        self._give_back(instance)
        return self._grant()

    def fail(self, instance: Instance, now_s: float, waiter: W | None = None) -> list[tuple[W, Instance]]:
        """A request on `instance` could not reach it: set it aside for a while. `waiter` gets back in line, at the
        place that its ticket gives it, and may be among the grants."""
        if instance.state is State.READY:
            self._leave_level(instance)
            instance.state = State.ASIDE
            instance.back_at_s = now_s + min(BACK_OFF_S * 2**instance.failures, MAX_BACK_OFF_S)
            instance.failures = min(instance.failures + 1, 16)
            self._aside.add(instance)
        self._give_back(instance)
        if waiter is not None:
            insort(self._returned, waiter, key=attrgetter("ticket"))
        return self._grant()

    def due(self, now_s: float) -> list[tuple[W, Instance]]:
        """Time has passed: take back the instances that were set aside until now."""
        back = [instance for instance in self._aside if instance.back_at_s <= now_s]
        for instance in back:
            self._aside.discard(instance)
            instance.state = State.READY
            self._enter_level(instance)
        return self._grant() if back else []

    def update(self, endpoints: Iterable[Endpoint], limit: int) -> list[tuple[W, Instance]]:
        """These are the instances now, with this limit each (0 for none)."""
        self._limit = limit or sys.maxsize
        told = dict.fromkeys(endpoints)
        for endpoint, instance in list(self._instances.items()):
            if endpoint not in told and instance.state is not State.LEAVING:
                self._leave(instance)
        for endpoint in told:
            known = self._instances.get(endpoint)
            if known is None:
                known = self._instances[endpoint] = Instance(endpoint)
                self._enter_level(known)
            elif known.state is State.LEAVING:
                known.state = State.READY
                self._enter_level(known)
        return self._grant()

    def _take(self) -> Instance | None:
        """A slot of the least loaded ready instance, or None where all are full or there is none."""
        lowest = self._lowest
        if not self._ready or lowest >= self._limit:
            return None
        levels = self._levels
        instance, _ = levels[lowest].popitem(last=False)
        instance.in_flight += 1
        self._in_flight += 1
        if lowest + 1 == len(levels):
            levels.append(OrderedDict())
        levels[lowest + 1][instance] = None
        if not levels[lowest]:
            self._lowest = lowest + 1
        return instance

    def _give_back(self, instance: Instance) -> None:
        count = instance.in_flight
        if count <= 0:
            raise ValueError(f"{instance!r} has no request that could end")
        instance.in_flight = count - 1
        self._in_flight -= 1
        if instance.state is State.READY:
            del self._levels[count][instance]
            self._levels[count - 1][instance] = None
            if count <= self._lowest:
                self._lowest = count - 1
        elif count == 1 and instance.state is State.LEAVING:
            del self._instances[instance.endpoint]

    def _grant(self) -> list[tuple[W, Instance]]:
        """Give free slots to those who wait, first come, first served."""
        grants: list[tuple[W, Instance]] = []
        while self._returned or self._held:
            instance = self._take()
            if instance is None:
                break
            # A request that came back had a slot before, so it came before all that never had one.
            waiter = self._returned.pop(0) if self._returned else self._held.popitem(last=False)[0]
            grants.append((waiter, instance))
        return grants

    def _leave(self, instance: Instance) -> None:
        if instance.state is State.READY:
            self._leave_level(instance)
        self._aside.discard(instance)
        instance.state = State.LEAVING
        instance.failures = 0
        if not instance.in_flight:
            del self._instances[instance.endpoint]

    def _enter_level(self, instance: Instance) -> None:
        count = instance.in_flight
        while len(self._levels) <= count:
            self._levels.append(OrderedDict())
        self._levels[count][instance] = None
        self._lowest = count if not self._ready else min(self._lowest, count)
        self._ready += 1

    def _leave_level(self, instance: Instance) -> None:
        del self._levels[instance.in_flight][instance]
        self._ready -= 1
        if self._ready:
            while not self._levels[self._lowest]:
                self._lowest += 1
