"""What ``penstock up`` shows while it runs: each event, once it has settled or has had a moment to."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import click

from penstock.cli.api import Api
from penstock.cli.failure import Failure
from penstock.cli.settling import INTERVAL_S, Settling
from penstock.cli.story import event_line
from penstock.places import Places

__all__ = ["newest_position", "show_events"]

#: Events asked for at once; what is older than the newest so many is not shown.
PAGE: Final = 200


async def newest_position(places: Places) -> str:
    """The cursor after the newest stored event; the beginning where there is none, or nobody answers."""
    answer = await asyncio.to_thread(_ask, Api(places.api), {"limit": "1"})
    return answer["next"] if answer else "0"


async def show_events(places: Places, after: str) -> None:
    """Print the events after a cursor as they happen, until cancelled."""
    api = Api(places.api)
    settling = Settling(after)
    while True:
        await asyncio.sleep(INTERVAL_S)
        answer = await asyncio.to_thread(_ask, api, {"after": settling.position, "limit": str(PAGE)})
        if answer is None:
            continue
        for event in settling.due(answer["events"], answer["next"], time.monotonic()):
            click.echo(event_line(event))


def _ask(api: Api, query: dict[str, str]) -> dict[str, Any] | None:
    """A page of events; None while the API restarts."""
    try:
        answer: dict[str, Any] = api.request("GET", "/penstock/v1/events", query=query)
    except Failure:
        return None
    return answer
