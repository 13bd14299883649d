"""One stretch of membership in a group: a lane for each partition that is ours, and what they have done, committed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from core.telemetry import Gauge
from sources.kafka.lane import UNORDERED_WINDOW, Lane
from sources.kafka.port import Member, Reach, Trouble
from sources.kafka.records import Origin, Place, Record, event_of
from sources.kafka.resources import KafkaSourceSpec
from sources.port import Emit, Refused, SourceContext

__all__ = ["COMMIT_EVERY_S", "LAST_COMMIT_S", "REVOKED_GRACE_S", "Reading"]

_log: Final = logging.getLogger(__name__)

#: Offsets are saved this often at most: a crash repeats what was done since, and Kafka stores each save.
COMMIT_EVERY_S: Final = 0.2
#: How long events that are under way may finish when the group takes a partition away; the other members wait for it.
REVOKED_GRACE_S: Final = 5.0
#: What is done is saved within this time when partitions are given up; without Kafka it is repeated later.
LAST_COMMIT_S: Final = 2.0


class Reading:
    """The lanes of the partitions that are ours: `sources.kafka.port.Listener`. Its tasks belong to `tasks`."""

    def __init__(
        self, context: SourceContext, origin: Origin, spec: KafkaSourceSpec, emit: Emit, tasks: asyncio.TaskGroup
    ) -> None:
        self._context = context
        self._origin = origin
        self._window = 1 if spec.ordering == "ordered" else UNORDERED_WINDOW
        self._emit = emit
        self._tasks = tasks
        self._member: Member | None = None
        self._lanes: dict[Place, Lane] = {}
        self._ended = False
        self._done = asyncio.Event()
        self._committing = asyncio.Lock()
        help_text = "Records that claim to be CloudEvents and cannot be read as such, told as plain records"
        self._unreadable = context.counter("penstock_kafka_source_unreadable_records_total", help_text)

    def assigned(self, member: Member, places: Iterable[Place]) -> None:
        if self._ended:
            return
        self._member = member
        self._lanes = {
            place: Lane(
                place=place,
                member=member,
                window=self._window,
                deliver=self._deliver,
                done=self._done.set,
                tasks=self._tasks,
            )
            for place in places
        }

    async def revoked(self, grace_s: float = REVOKED_GRACE_S) -> None:
        lanes = list(self._lanes.values())
        await asyncio.gather(*(lane.end(grace_s) for lane in lanes))
        try:
            async with asyncio.timeout(LAST_COMMIT_S):
                await self._commit()
        except (TimeoutError, Trouble) as error:
            facts = {**self._facts(), "error": str(error) or f"no answer within {LAST_COMMIT_S:g} s"}
            _log.warning(
                "offsets could not be saved; events since the last ones are sent again", extra={"facts": facts}
            )
        for place in self._lanes:
            self._lag(place).value = 0
        self._lanes = {}

    async def end(self) -> None:
        """Give up what is under way, save what is done, and take nothing more."""
        self._ended = True
        await self.revoked(0.0)

    async def keep_committing(self) -> None:
        """Save what is done, soon after it is. Ended by cancellation. Raises Trouble."""
        while True:
            await self._done.wait()
            self._done.clear()
            await self._commit()
            await asyncio.sleep(COMMIT_EVERY_S)

    def measure(self, reach: Mapping[Place, Reach]) -> None:
        """Show how far behind the partitions are."""
        for place, lane in self._lanes.items():
            if place in reach:
                self._lag(place).value = lane.lag(reach[place])

    async def _commit(self) -> None:
        async with self._committing:
            offsets = {
                place: offset for place, lane in self._lanes.items() if (offset := lane.progress.unsaved) is not None
            }
            if self._member is None or not offsets:
                return
            if not await self._member.commit(offsets):
                _log.info("the group has given partitions to other members", extra={"facts": self._facts()})
                return
            for place, offset in offsets.items():
                if place in self._lanes:
                    self._lanes[place].progress.saved(offset)

    async def _deliver(self, record: Record) -> None:
        read = event_of(record, self._origin)
        facts = {**self._facts(), "partition": str(record.place), "offset": record.offset, "event_id": read.event.id}
        if read.flaw:
            self._unreadable.value += 1
            number = int(self._unreadable.value)
            if number & (number - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a topic full of them is a few lines
                message = "a record is no CloudEvent as it claims, and is sent as a plain record"
                _log.warning(message, extra={"facts": {**facts, "reason": read.flaw, "so_far": number}})
        try:
            await self._emit(read.event)
        except Refused as error:
            # Waiting would not help, and those behind it wait: it counts as done.
            facts |= {"status": error.status, "reason": str(error)}
            _log.error("the sink refused a record's event; it is not sent again", extra={"facts": facts})

    def _lag(self, place: Place) -> Gauge:
        help_text = "Records of a partition that are not delivered yet, by offsets"
        labels = {"topic": place.topic, "partition": str(place.partition)}
        return self._context.gauge("penstock_kafka_source_lag", help_text, **labels)

    def _facts(self) -> dict[str, object]:
        return {"source": f"{self._context.namespace}/{self._context.name}"}
