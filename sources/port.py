"""What a source is, and how to write one.

A source is an object with one method, ``async run(emit)``. It watches something outside and calls ``await emit(event)``
for each occurrence. When `emit` returns, the sink has answered 2xx and the event is the sink's; only then may the
source acknowledge upstream or write its checkpoint. `emit` waits for as long as the sink is away, retrying with
back-off, so a source needs no retries of its own; back-pressure is simply that `emit` takes long. It raises `Refused`
where the sink says that this very event will never be accepted. Several calls may be under way at once; the harness
bounds them.

A source of one's own::

    class LineSource:
        def __init__(self, context: SourceContext, path: Path) -> None: ...

        async def run(self, emit: Emit) -> None:
            done = int((await self._context.marks.read(["line"])).get("line", "0"))
            self._context.ready()
            async for number, line in numbered_lines(self._path, after=done):
                event = new_event(id=f"line-{number}", type="example.line", source=..., data=line, now=...)
                await emit(event)
                await self._context.marks.write({"line": str(number)})

and a factory for its kind, ``(resource, context) -> Source``, given to the harness (`sources.harness.SourceRunner`)
by the composition root. The rules:

- Give an occurrence the same event id each time it is told: after a crash between `emit` and the checkpoint it is told
  again, and consumers recognise it by its id.
- Say `context.ready()` once everything that happens from now on will be told, and `context.trouble(reason, message)`
  when that stops being so; both end up in the condition Deployed.
- Ask for `context.secret(name)` when it is needed, at each connection: it may have been changed meanwhile.
- Raise when stuck: the harness logs the reason, shows it in the condition and runs the source again after a back-off.
- Tasks belong to a TaskGroup inside `run`; `run` is ended by cancellation. Who catches what a TaskGroup raises calls
  `raise_if_cancelled()` then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from core.clock import Clock
from core.errors import PenstockError
from core.events import CloudEvent
from core.resources import Resource
from core.telemetry import Counter, Gauge

__all__ = ["Emit", "Marks", "Refused", "Source", "SourceContext", "SourceFactory", "raise_if_cancelled"]

#: Hand an event to the sink: returns once it is accepted, raises Refused where it never will be.
Emit = Callable[[CloudEvent], Awaitable[None]]


class Refused(PenstockError):
    """The sink answered that it will not take this event, however often it is sent."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


class Source(Protocol):
    """Something that emits events until it is cancelled."""

    async def run(self, emit: Emit) -> None:
        """Watch and emit. Returning or raising makes the harness run it again after a back-off."""
        ...


class Marks(Protocol):
    """One source's checkpoint: small texts by key, which survive restarts (`sources.checkpoints`)."""

    async def read(self, keys: Iterable[str]) -> dict[str, str]:
        """The marks of these keys that exist."""
        ...

    async def write(self, marks: Mapping[str, str | None]) -> None:
        """Set marks, or remove those given as None; durable when it returns."""
        ...

    async def page(self, after: str, limit: int) -> list[str]:
        """Up to `limit` keys that sort after `after`, in order: all keys without holding them at once."""
        ...


class SourceContext(Protocol):
    """What the harness gives to a source. `root` is where relative paths start."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> str: ...

    @property
    def marks(self) -> Marks: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def root(self) -> Path: ...

    async def secret(self, name: str) -> Mapping[str, bytes]:
        """What a Secret of the source's namespace holds. Raises NotFound, Unavailable, and InvalidInput where it cannot
        be read."""
        ...

    def ready(self) -> None:
        """Everything that happens from now on will be told."""
        ...

    def trouble(self, reason: str, message: str) -> None:
        """Not working now: a CamelCase word and a sentence that says what to do. Ended by `ready`."""
        ...

    def counter(self, name: str, help_text: str, **labels: str) -> Counter:
        """A count of the source's own, labelled with it; it ends when the source does."""
        ...

    def gauge(self, name: str, help_text: str, **labels: str) -> Gauge:
        """A measure of the source's own, as `counter`."""
        ...

    def count(self, outcome: str, number: int = 1) -> None:
        """Count occurrences that became no event: "skipped", "unreadable" ..., a small fixed set of words."""
        ...


#: Makes the source that a resource asks for. Raises InvalidInput where it cannot.
SourceFactory = Callable[[Resource, SourceContext], Source]


def raise_if_cancelled() -> None:
    """Raise CancelledError where this task has been cancelled. A TaskGroup of which a task fails at that moment raises
    that failure instead (Python 3.11 and 3.12), and who catches it would go on for ever."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
