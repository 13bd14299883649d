"""The fake: instances that exist only on the event loop. For tests of what stands on the port."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

from msgspec.structs import replace

from serving.instances.port import FOLLOWS, CannotRun, Instance, InstanceSpec, Listener, LogLine, Phase

__all__ = ["MemoryInstances"]


class MemoryInstances:
    """Instances appear `appear_s` seconds after they were asked for, become ready `start_s` seconds later, and take
    `drain_s` to stop.

    `restart_s` is the pause before a crashed one is started again.
    """

    def __init__(
        self, *, appear_s: float = 0.0, start_s: float = 0.0, drain_s: float = 0.0, restart_s: float = 1.0
    ) -> None:
        self._appear_s = appear_s
        self.start_s = start_s
        self._drain_s = drain_s
        self._restart_s = restart_s
        self._instances: dict[str, Instance] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._asked: dict[tuple[str, str], list[asyncio.TimerHandle]] = {}
        self._listeners: list[Listener] = []
        self._logs: dict[tuple[str, str], list[LogLine]] = {}
        self._written = asyncio.Condition()
        self._numbers = itertools.count(1)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Those that are not gone."""
        return tuple(self._instances.values())

    def watch(self, listener: Listener) -> None:
        self._listeners.append(listener)
        for instance in self._instances.values():
            listener(instance)

    async def scale(self, spec: InstanceSpec, count: int) -> None:
        if not spec.source:
            raise CannotRun("ImageNotMapped", f"Nothing says what the image {spec.image} is on this machine.")
        place = (spec.namespace, spec.revision)
        staying = [one for one in self.instances if (one.namespace, one.revision) == place and one.phase != "draining"]
        asked = self._asked.setdefault(place, [])
        missing = max(0, count - len(staying))
        while len(asked) > missing:
            asked.pop().cancel()
        for _ in range(missing - len(asked)):
            if self._appear_s:
                asked.append(asyncio.get_running_loop().call_later(self._appear_s, self._appear, place))
            else:
                self._begin(place)

    async def stop(self, namespace: str, name: str) -> None:
        if name not in self._instances or self._instances[name].namespace != namespace:
            return
        self._cancel(name)
        if self._instances[name].phase != "draining":
            self._move(name, "draining")
        await asyncio.sleep(self._drain_s)
        if name in self._instances:
            self._move(name, "gone")

    async def log(self, namespace: str, revision: str, *, tail: int | None, follow: bool) -> AsyncGenerator[LogLine]:
        lines = self._logs.setdefault((namespace, revision), [])
        position = 0 if tail is None else max(0, len(lines) - tail)
        while True:
            while position < len(lines):
                yield lines[position]
                position += 1
            if not follow:
                return
            async with self._written:
                while len(lines) == position:
                    await self._written.wait()

    # What a test does to the instances.

    def crash(self, name: str, *, exit_code: int = 1, message: str = "it crashed") -> None:
        """The instance's process ends by itself."""
        self._cancel(name)
        instance = self._instances[name]
        self._instances[name] = replace(instance, restarts=instance.restarts + 1)
        self._move(name, "waiting", reason=f"ExitCode{exit_code}", message=message)
        self._after(self._restart_s, name, "starting")

    def lose(self, name: str, *, reason: str, message: str) -> None:
        """The place where it runs gives it up."""
        self._cancel(name)
        self._move(name, "gone", reason=reason, message=message)

    async def write(self, name: str, text: str) -> None:
        """The instance writes a line."""
        instance = self._instances[name]
        self._logs.setdefault((instance.namespace, instance.revision), []).append(LogLine(name, text))
        async with self._written:
            self._written.notify_all()

    def close(self) -> None:
        """Forget every timer."""
        for asked in self._asked.values():
            while asked:
                asked.pop().cancel()
        for name in list(self._timers):
            self._cancel(name)

    def _appear(self, place: tuple[str, str]) -> None:
        self._asked[place].pop(0)
        self._begin(place)

    def _begin(self, place: tuple[str, str]) -> None:
        namespace, revision = place
        name = f"{revision}-{next(self._numbers):05d}"
        self._instances[name] = Instance(name=name, namespace=namespace, revision=revision, phase="starting")
        self._tell(self._instances[name])
        self._after(self.start_s, name, "ready")

    def _after(self, seconds: float, name: str, phase: Phase) -> None:
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(seconds, self._step, name, phase)

    def _step(self, name: str, phase: Phase) -> None:
        self._timers.pop(name, None)
        self._move(name, phase)
        if phase == "starting":
            self._after(self.start_s, name, "ready")

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _move(self, name: str, phase: Phase, *, reason: str = "", message: str = "") -> None:
        instance = self._instances[name]
        assert phase in FOLLOWS[instance.phase], f"{phase} cannot follow {instance.phase}"  # noqa: S101 - a fake
        address = ("127.0.0.1", 40_000 + int(name[-5:])) if phase in ("ready", "draining") else None
        moved = replace(instance, phase=phase, address=address, reason=reason, message=message)
        if phase == "gone":
            del self._instances[name]
        else:
            self._instances[name] = moved
        self._tell(moved)

    def _tell(self, instance: Instance) -> None:
        for listener in self._listeners:
            listener(instance)
