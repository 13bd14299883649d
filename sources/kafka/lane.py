"""One partition that is ours: takes its records, emits them in its order or at once, and knows how far it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from sources.kafka.port import Member, Reach
from sources.kafka.progress import Progress
from sources.kafka.records import Place, Record

__all__ = ["MAX_AHEAD", "TAKE", "UNORDERED_WINDOW", "Lane"]

#: Records of one partition taken at once: enough to keep a fast sink busy, few enough to hold in memory.
TAKE: Final = 64
#: Events of one partition under way at once where order does not matter.
UNORDERED_WINDOW: Final = 32
#: Records that may be done ahead of one that is not: what a crash repeats.
MAX_AHEAD: Final = 1_000


class Lane:
    """Takes from `member` until ended. `deliver` returns once a record is done; `done` is called after each.

    Its tasks belong to `tasks`: what `take` or `deliver` raises ends the group.
    """

    def __init__(
        self,
        *,
        place: Place,
        member: Member,
        window: int,
        deliver: Callable[[Record], Awaitable[None]],
        done: Callable[[], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.progress = Progress()
        self._place = place
        self._member = member
        self._window = window
        self._deliver = deliver
        self._done = done
        self._tasks = tasks
        self._under_way: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._taking = tasks.create_task(self._take(), name=f"take {place}")

    async def end(self, within_s: float) -> None:
        """Take nothing more; what is under way may finish within this time, and is given up then."""
        self._taking.cancel()
        if self._under_way and within_s > 0:
            await asyncio.wait(self._under_way, timeout=within_s)
        left = [self._taking, *self._under_way]
        for task in left:
            task.cancel()
        await asyncio.wait(left)

    def lag(self, reach: Reach) -> int:
        """Records from the first that is not done to the newest, counted by offsets as Kafka's tools do."""
        return max(0, reach.end - self.progress.first_undone(reach.position))

    async def _take(self) -> None:
        while True:
            for record in await self._member.take(self._place, TAKE):
                while len(self._under_way) >= self._window or self.progress.ahead >= MAX_AHEAD:
                    await self._one_less()
                if self.progress.is_past(record.offset):
                    # The topic was made anew, or Kafka has lost its newest records: offsets begin again.
                    while self._under_way:
                        await self._one_less()
                    self.progress = Progress()
                self.progress.start(record.offset)
                task = self._tasks.create_task(self._handle(record), name=f"deliver {self._place}")
                self._under_way.add(task)
                task.add_done_callback(self._free)

    async def _one_less(self) -> None:
        """Wait until one that is under way is done."""
        self._freed.clear()
        await self._freed.wait()

    async def _handle(self, record: Record) -> None:
        await self._deliver(record)
        self.progress.finish(record.offset)
        self._done()

    def _free(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._freed.set()
