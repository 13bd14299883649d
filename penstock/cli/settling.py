"""When to show an event that is on its way: once it has settled, or has had a moment to. Pure.

An event that was just stored has not been delivered yet; shown at once, its line would tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["INTERVAL_S", "PATIENCE_S", "QUIET_S", "Settling", "is_settled"]

#: How often new events are asked for.
INTERVAL_S: Final = 0.3
#: An event is shown when its deliveries stayed as they are this long, or after `PATIENCE_S` whatever they are.
QUIET_S: Final = 0.6
PATIENCE_S: Final = 5.0
#: Where what becomes of events is asked for, an event that has not come to it by then is passed over.
AWAITING_S: Final = 60.0

Event = Mapping[str, Any]


def is_settled(event: Event) -> bool:
    """Whether nothing more is under way for this event, as far as is known."""
    return all(delivery["state"] not in ("pending", "retrying") for delivery in event["deliveries"])


class Settling:
    """Events after a cursor, each given out once, and only if it matches what was asked for. `position` is what to ask
    for the next page after.

    They are given out in order; where `awaits` is, as soon as they match, whatever came before.
    """

    def __init__(self, position: str, *, awaits: bool = False) -> None:
        self.position = position
        self._awaits = awaits
        self._waiting: dict[tuple[str, int], _Waiting] = {}

    def due(self, events: Iterable[Event], next_position: str, now_s: float) -> list[Event]:
        """Takes the page after `position` as it is at `now_s`, and `next_position`, up to which it reaches. Returns the
        events that are to be shown now."""
        known, self._waiting = self._waiting, {}
        for event in events:
            identity = (event["broker"], event["seq"])
            waiting = self._waiting[identity] = known.get(identity) or _Waiting(event, now_s)
            waiting.update(event, now_s)
        found: list[Event] = []
        in_front = True
        for identity, waiting in tuple(self._waiting.items()):
            if waiting.is_due(now_s, awaits=self._awaits) and not waiting.given:
                waiting.given = True
                if waiting.event.get("matches", True):
                    found.append(waiting.event)
            in_front = in_front and waiting.given
            if in_front:
                del self._waiting[identity]
                self.position = waiting.event["next"]
            elif not self._awaits:
                break
        if not self._waiting:
            self.position = next_position
        return found


class _Waiting:
    """An event that is not shown yet."""

    def __init__(self, event: Event, now_s: float) -> None:
        self.event = event
        self.given = False
        self._since_s = now_s
        self._changed_s = now_s

    def update(self, event: Event, now_s: float) -> None:
        if event["deliveries"] != self.event["deliveries"]:
            self._changed_s = now_s
        self.event = event

    def is_due(self, now_s: float, *, awaits: bool) -> bool:
        if awaits and self.event.get("matches", True):
            return True
        settled = is_settled(self.event) and now_s - self._changed_s >= QUIET_S
        return settled or now_s - self._since_s >= (AWAITING_S if awaits else PATIENCE_S)
