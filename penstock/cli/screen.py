"""What ``penstock up`` shows while it runs: each event, once it has settled or has had a moment to."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import click

from penstock.cli.api import Api
from penstock.cli.failure import Failure
from penstock.cli.story import event_line, is_settled
from penstock.places import Places

__all__ = ["newest_position", "show_events"]

#: How often new events are asked for.
INTERVAL_S: Final = 0.3
#: An event is shown when its deliveries stayed as they are this long, or after `PATIENCE_S` whatever they are.
QUIET_S: Final = 0.6
PATIENCE_S: Final = 5.0
#: Events asked for at once; what is older than the newest so many is not shown.
PAGE: Final = 200


class _Waiting:
    """An event that is not shown yet."""

    def __init__(self, event: dict[str, Any], now_s: float) -> None:
        self.event = event
        self.since_s = now_s
        self.changed_s = now_s

    def update(self, event: dict[str, Any], now_s: float) -> None:
        if event["deliveries"] != self.event["deliveries"]:
            self.changed_s = now_s
        self.event = event

    def is_due(self, now_s: float) -> bool:
        if now_s - self.since_s >= PATIENCE_S:
            return True
        tried = bool(self.event["deliveries"])
        return tried and is_settled(self.event) and now_s - self.changed_s >= QUIET_S


async def newest_position(places: Places) -> int:
    """The position of the newest stored event; 0 where there is none, or nobody answers."""
    answer = await asyncio.to_thread(_ask, Api(places.api), {"limit": "1"})
    return answer["next"] if answer else 0


async def show_events(places: Places, after: int) -> None:
    """Print the events after a position as they happen, until cancelled."""
    api = Api(places.api)
    shown = after
    waiting: dict[int, _Waiting] = {}
    while True:
        await asyncio.sleep(INTERVAL_S)
        answer = await asyncio.to_thread(_ask, api, {"after": str(shown), "limit": str(PAGE)})
        if answer is None:
            continue
        now_s = time.monotonic()
        for event in answer["events"]:
            held = waiting.setdefault(event["seq"], _Waiting(event, now_s))
            held.update(event, now_s)
        for seq in sorted(waiting):
            if not waiting[seq].is_due(now_s):
                break
            click.echo(event_line(waiting.pop(seq).event))
            shown = seq


def _ask(api: Api, query: dict[str, str]) -> dict[str, Any] | None:
    """A page of events; None while the API restarts."""
    try:
        answer: dict[str, Any] = api.request("GET", "/penstock/v1/events", query=query)
    except Failure:
        return None
    return answer
