"""PingSource: an event with a fixed payload at each tick of a cron schedule.

Attributes are Knative's (knative/eventing `pkg/adapter/mtping/runner.go`), but for the id: ours is made of the source's
uid and the tick, so that a tick told twice is recognised.

Missed ticks: a tick that is noticed more than `LATE_LIMIT_S` late is not sent. That is what becomes of ticks while the
platform was not running or the machine slept. They are counted as "missed", and one log line says how many and when. A
tick that came in time is an event, and waits for a sink that is away; up to `MAX_WAITING` wait in order, those beyond
count as missed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from core.clock import rfc3339
from core.events import CloudEvent, new_event
from sources.cron import Schedule
from sources.port import Emit, Refused, SourceContext

__all__ = ["LATE_LIMIT_S", "MAX_WAITING", "PING", "PingSource", "ping_source_of"]

_log: Final = logging.getLogger(__name__)

PING: Final = "dev.knative.sources.ping"

#: Timers stand still while a machine sleeps: the wall clock is looked at this often.
LOOK_EVERY_S: Final = 5.0
#: Later than this a tick is missed; above `LOOK_EVERY_S`, so that a tick right after a sleep is not.
LATE_LIMIT_S: Final = 10.0
#: Ticks that wait for the sink: an hour of a schedule by the minute.
MAX_WAITING: Final = 60
#: Missed ticks counted one by one at most, so that a year's absence costs no long search.
MAX_COUNTED: Final = 10_000


def ping_source_of(namespace: str, name: str) -> str:
    """The events' source attribute."""
    return f"/apis/v1/namespaces/{namespace}/pingsources/{name}"


class PingSource:
    """One PingSource. `data` and `content_type` ("" for none) are the event's."""

    def __init__(self, *, context: SourceContext, schedule: Schedule, data: bytes | None, content_type: str) -> None:
        self._context = context
        self._schedule = schedule
        self._data = data
        self._content_type = content_type
        self._waiting: asyncio.Queue[float] = asyncio.Queue(MAX_WAITING)
        # The last tick told, by schedule: after a change of the schedule the old one's ticks were not missed.
        self._mark = f"tick {schedule.expression} {schedule.zone}"

    async def run(self, emit: Emit) -> None:
        """Tick until cancelled."""
        mark = (await self._context.marks.read([self._mark])).get(self._mark)
        now = self._context.clock.now()
        after = now if mark is None else self._skip(float(mark), now)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick(after))
            tasks.create_task(self._send(emit))

    async def _tick(self, previous: float) -> None:
        self._context.ready()
        while True:
            due = self._schedule.next_after(previous)
            if due is None:
                message = "The schedule has no tick left. Correct spec.schedule."
                self._context.trouble("NoTicksLeft", message)
                await asyncio.get_running_loop().create_future()
                return
            now = await self._until(due)
            if now - due > LATE_LIMIT_S:
                previous = self._skip(previous, now)
                continue
            previous = due
            if self._waiting.full():
                self._miss(1, due, due)
            else:
                self._waiting.put_nowait(due)

    async def _until(self, due: float) -> float:
        """The wall clock's time once it has reached `due`."""
        while True:
            now = self._context.clock.now()
            if now >= due:
                return now
            await asyncio.sleep(min(due - now, LOOK_EVERY_S))

    def _skip(self, after: float, now: float) -> float:
        """Say which ticks later than `after` are too late by `now`; the moment after which ticks are still sent."""
        until = max(after, now - LATE_LIMIT_S)
        number, first, last = 0, 0.0, 0.0
        tick = self._schedule.next_after(after)
        while tick is not None and tick < until and number < MAX_COUNTED:
            number, first, last = number + 1, first or tick, tick
            tick = self._schedule.next_after(tick)
        if number:
            self._miss(number, first, last)
        return until

    def _miss(self, number: int, first: float, last: float) -> None:
        self._context.count("missed", number)
        facts = {
            "source": self._context.name,
            "namespace": self._context.namespace,
            "missed": number,
            "first": rfc3339(first),
            "last": rfc3339(last),
        }
        _log.warning("ticks were missed and are not sent", extra={"facts": facts})

    async def _send(self, emit: Emit) -> None:
        while True:
            tick = await self._waiting.get()
            try:
                await emit(self._event(tick))
            except Refused as error:
                facts = {"source": self._context.name, "tick": rfc3339(tick), "reason": str(error)}
                _log.error("the sink refused a tick's event; it is not sent again", extra={"facts": facts})
            await self._context.marks.write({self._mark: repr(tick)})

    def _event(self, tick: float) -> CloudEvent:
        return new_event(
            id=f"{self._context.uid}-{tick:.0f}",
            type=PING,
            source=ping_source_of(self._context.namespace, self._context.name),
            now=tick,
            data=self._data,
            content_type=self._content_type or None,
        )
