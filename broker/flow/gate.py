"""Holds events back before their first attempt, as `delay` and `order` ask. Pure: times are given, in wall seconds."""

from __future__ import annotations

from collections import deque

from broker.courier import Delivery
from broker.flow.order import Lanes, key_of
from broker.flow.settings import Flow

__all__ = ["Gate"]


class Gate:
    """Events come in log order, and so they leave: an event that is not due yet is waited for by those after it."""

    __slots__ = ("_delay_s", "_delayed", "_lanes", "_order_by")

    def __init__(self, flow: Flow) -> None:
        self._delay_s = flow.delay_s
        self._order_by = flow.order_by
        self._delayed: deque[Delivery] = deque()
        self._lanes: Lanes[Delivery] = Lanes()

    @classmethod
    def of(cls, flow: Flow) -> Gate | None:
        """None where nothing is held back."""
        return cls(flow) if flow.delay_s or flow.order_by is not None else None

    def admit(self, delivery: Delivery, now: float) -> bool:
        """Whether an event that was taken may go on now. One that was tried before is not delayed again."""
        if self._delay_s and not delivery.number and (self._delayed or self._due(delivery) > now):
            self._delayed.append(delivery)
            return False
        return self._line_up(delivery)

    def matured(self, now: float) -> list[Delivery]:
        """Those that may go on, now that their delay has passed."""
        found = []
        while self._delayed and self._due(self._delayed[0]) <= now:
            delivery = self._delayed.popleft()
            if self._line_up(delivery):
                found.append(delivery)
        return found

    def next_at(self) -> float | None:
        """When `matured` has something new."""
        return self._due(self._delayed[0]) if self._delayed else None

    def leave(self, delivery: Delivery) -> Delivery | None:
        """The event is done with for good: the one that waited for it, if one did."""
        return self._lanes.leave(delivery.lane) if delivery.lane is not None else None

    def join(self, delivery: Delivery) -> None:
        """An event that is on its way already."""
        delivery.lane = self._key(delivery)
        if delivery.lane is not None:
            self._lanes.join(delivery.lane)

    def held(self) -> list[Delivery]:
        """All that it holds back."""
        return [*self._delayed, *self._lanes.held()]

    def _line_up(self, delivery: Delivery) -> bool:
        delivery.lane = self._key(delivery)
        return delivery.lane is None or self._lanes.enter(delivery.lane, delivery)

    def _key(self, delivery: Delivery) -> str | None:
        return key_of(delivery.record.entry.attributes, self._order_by) if self._order_by is not None else None

    def _due(self, delivery: Delivery) -> float:
        return delivery.record.entry.at + self._delay_s
