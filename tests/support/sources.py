"""What a source under test is given, and what it hands out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from core.clock import Clock, SystemClock
from core.errors import NotFound
from core.events import CloudEvent
from core.telemetry import Metrics, metrics
from sources.checkpoints import Checkpoints, MemoryCheckpoints, SourceMarks
from sources.port import Source

#: A generous bound: what is waited for takes milliseconds unless it is broken.
DEADLINE_S = 20.0


class RecordingContext:
    """A `sources.port.SourceContext` that keeps what the source says of itself."""

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        checkpoints: Checkpoints | None = None,
        clock: Clock | None = None,
        uid: str = "uid-1",
    ) -> None:
        self.namespace = "default"
        self.name = "under-test"
        self.uid = uid
        self.checkpoints = checkpoints or MemoryCheckpoints()
        self.marks = SourceMarks(self.checkpoints, uid)
        self.clock = clock or SystemClock()
        self.root = root
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.metrics = Metrics()
        self.said: list[str] = []
        self.messages: list[str] = []
        self.counted: Counter[str] = Counter()
        self.changed = asyncio.Event()

    async def secret(self, name: str) -> Mapping[str, bytes]:
        if name not in self.secrets:
            raise NotFound(f'Secret "{name}" does not exist.')
        return self.secrets[name]

    def counter(self, name: str, help_text: str, **labels: str) -> metrics.Counter:
        return self.metrics.counter(name, help_text, **labels)

    def gauge(self, name: str, help_text: str, **labels: str) -> metrics.Gauge:
        return self.metrics.gauge(name, help_text, **labels)

    def ready(self) -> None:
        self.said.append("ready")
        self.changed.set()

    def trouble(self, reason: str, message: str) -> None:
        self.said.append(reason)
        self.messages.append(message)
        self.changed.set()

    def count(self, outcome: str, number: int = 1) -> None:
        self.counted[outcome] += number
        self.changed.set()


class Outlet:
    """An `emit` that keeps events, and can be told to be away (`open` cleared) or to raise."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.events: list[CloudEvent] = []
        self.offered: list[CloudEvent] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        #: Events that are kept waiting for as long as the test runs.
        self.holds: Callable[[CloudEvent], bool] = lambda event: False
        self.under_way = 0
        self.most_under_way = 0
        self._changed = changed

    async def emit(self, event: CloudEvent) -> None:
        self.offered.append(event)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self._changed.set()
        try:
            if self.holds(event):
                await asyncio.get_running_loop().create_future()
            await self.open.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.under_way -= 1
        self.events.append(event)
        self._changed.set()

    @property
    def subjects(self) -> list[str | None]:
        return [event.subject for event in self.events]


class Rig:
    """A running source with its context and outlet."""

    def __init__(self, context: RecordingContext, deadline_s: float = DEADLINE_S) -> None:
        self.context = context
        self._deadline_s = deadline_s
        self.outlet = Outlet(context.changed)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the source said, counted or emitted makes `condition` true."""
        async with asyncio.timeout(self._deadline_s):
            while not condition():
                self.context.changed.clear()
                await self.context.changed.wait()

    async def until_subjects(self, *keys: str) -> None:
        """Wait for these events; any others fail the test."""
        await self.until(lambda: len(self.outlet.events) >= len(keys))
        assert sorted(str(subject) for subject in self.outlet.subjects) == sorted(keys)


@asynccontextmanager
async def running(
    make: Callable[[RecordingContext], Source], context: RecordingContext, *, deadline_s: float = DEADLINE_S
) -> AsyncIterator[Rig]:
    """Run the source that `make` builds until the block ends. What the source raises fails the test."""
    rig = Rig(context, deadline_s)
    task = asyncio.create_task(make(context).run(rig.outlet.emit))
    task.add_done_callback(lambda _: context.changed.set())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
