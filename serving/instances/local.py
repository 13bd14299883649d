"""Instances as local processes.

Each instance's process leads its own session, so that a crash of the control process leaves it serving; the next
control process adopts it (`LocalProcesses.start`) by the record that was written when it was started, and ends what it
finds without a record. On an orderly end (`close`) every instance is drained and stopped. After a crash of the whole
platform the instances go on until it is started again, which adopts them, or until the machine goes down.

A Python function gets a listening socket that was bound here, and says through a pipe when it serves it
(`serving/functions/host.py`). A program gets a free port in ``$PORT`` and is probed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from core.net.types import Address
from serving.functions.detect import Program, PythonFunction
from serving.instances.launch import Launcher, Started
from serving.instances.port import CannotRun, Instance, InstanceSpec, Listener, LogLine, Phase
from serving.instances.process import Process

__all__ = ["LocalProcesses"]

_log = logging.getLogger(__name__)

#: The pause before the first restart, doubled for each one up to the longest. Kubernetes' 10 s to 5 min suit a cluster;
#: on one's own machine a mistake is corrected in seconds.
FIRST_RESTART_S: Final = 0.1
LONGEST_RESTART_S: Final = 30.0

#: An instance that was ready for this long starts with the first pause again.
HEALTHY_AFTER_S: Final = 10.0

#: How many of the last log lines a failure quotes, and how much of them.
QUOTED_LINES: Final = 3
QUOTED_CHARS: Final = 1000

#: How often log files are held against their limit.
ROTATE_EVERY_S: Final = 10.0

#: How long stopping everything may take by default: a person has pressed Ctrl-C and waits.
CLOSE_WITHIN_S: Final = 10.0

#: Instances on this machine, of all Revisions: about 2 GB of Python functions. A surge without max-scale may ask for a
#: thousand processes at once.
MAX_INSTANCES: Final = 64

_NAME_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"


class LocalProcesses:
    """Implements `serving.instances.port.Instances`.

    `directory` holds logs and records; `root` is what relative sources are relative to; `environment` is what every
    instance inherits; `images` maps image names to sources for manifests without ``penstock.dev/source``;
    `max_instances` bounds how many there are of all Revisions together.
    """

    def __init__(
        self,
        *,
        directory: Path,
        root: Path,
        environment: Mapping[str, str],
        images: Mapping[str, str] | None = None,
        python: str = sys.executable,
        max_instances: int = MAX_INSTANCES,
    ) -> None:
        self._launcher = Launcher(
            directory=directory.resolve(), root=root, environment=environment, images=images or {}, python=python
        )
        self._max_instances = max_instances
        self._lives: dict[str, _Life] = {}
        self._listeners: list[Listener] = []
        self._rotating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Adopt what an earlier control process left running, and end what cannot be adopted."""
        launcher, adopted = self._launcher, set()
        for record in launcher.records.read():
            try:
                if not launcher.is_alive(record):
                    raise ProcessLookupError
                what = launcher.recognise(record.spec)
                started = launcher.adopt(record, what)
            except (ProcessLookupError, CannotRun):
                # It ended, or its folder is gone: then it ends with the other strays.
                launcher.records.remove(record.name)
                continue
            life = self._life(record.spec, what, record.name, restarts=record.restarts)
            self._tell(life.instance)
            life.begin(started)
            adopted.add(record.identity.pid)
        for pid in launcher.strays(adopted):
            _log.warning("ended a function's process that nobody remembers", extra={"facts": {"pid": pid}})
            _kill(pid)
        running = {(life.instance.namespace, life.instance.revision) for life in self._lives.values()}
        launcher.logs.prune_revisions(running)
        self._rotating = asyncio.create_task(self._rotate())

    async def close(self, *, within_s: float = CLOSE_WITHIN_S) -> None:
        """Drain and stop every instance; those that take longer than `within_s` are killed."""
        if self._rotating is not None:
            self._rotating.cancel()
            await asyncio.gather(self._rotating, return_exceptions=True)
        stopping = [asyncio.create_task(life.stop()) for life in list(self._lives.values())]
        if not stopping:
            return
        await asyncio.wait(stopping, timeout=within_s)
        for life in list(self._lives.values()):
            life.kill()
        await asyncio.gather(*stopping)

    def watch(self, listener: Listener) -> None:
        self._listeners.append(listener)
        for life in self._lives.values():
            listener(life.instance)

    async def scale(self, spec: InstanceSpec, count: int) -> None:
        what = self._launcher.recognise(spec)
        missing = count - self._staying(spec)
        free = max(0, self._max_instances - len(self._lives))
        if missing > free:
            facts = {"revision": spec.revision, "asked": missing, "limit": self._max_instances, "making": free}
            _log.warning("the machine's limit of instances is reached", extra={"facts": facts})
        for _ in range(min(missing, free)):
            life = self._life(spec, what, self._new_name(spec.revision))
            self._tell(life.instance)
            life.begin()

    def _staying(self, spec: InstanceSpec) -> int:
        """How many instances of the Revision nobody asked to stop."""
        place = (spec.namespace, spec.revision)
        lives = [life for life in self._lives.values() if (life.instance.namespace, life.instance.revision) == place]
        return sum(1 for life in lives if not life.is_stopping)

    async def stop(self, namespace: str, name: str) -> None:
        life = self._lives.get(name)
        if life is not None and life.instance.namespace == namespace:
            await life.stop()

    def log(self, namespace: str, revision: str, *, tail: int | None, follow: bool) -> AsyncGenerator[LogLine]:
        return self._launcher.logs.read(namespace, revision, tail=tail, follow=follow)

    def _life(self, spec: InstanceSpec, what: PythonFunction | Program, name: str, *, restarts: int = 0) -> _Life:
        instance = Instance(
            name=name, namespace=spec.namespace, revision=spec.revision, phase="starting", restarts=restarts
        )
        life = _Life(self._launcher, spec, what, instance, on_change=self._on_change)
        self._lives[name] = life
        return life

    def _new_name(self, revision: str) -> str:
        while True:
            name = f"{revision}-{''.join(secrets.choice(_NAME_LETTERS) for _ in range(5))}"
            if name not in self._lives:
                return name

    def _on_change(self, instance: Instance) -> None:
        if instance.phase == "gone":
            del self._lives[instance.name]
            self._launcher.records.remove(instance.name)
            self._launcher.logs.prune(instance.namespace, instance.revision, set(self._lives))
        self._tell(instance)

    def _tell(self, instance: Instance) -> None:
        for listener in self._listeners:
            listener(instance)

    async def _rotate(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_EVERY_S)
            for instance in [life.instance for life in self._lives.values()]:
                place = (instance.namespace, instance.revision, instance.name)
                await asyncio.to_thread(self._launcher.logs.rotate, *place)


class _Failure(msgspec.Struct, frozen=True):
    """Why a process is not running any more, or never was."""

    reason: str
    message: str


class _Life:
    """One instance: a task that starts its process, watches it, starts it again when it ends, and ends it."""

    def __init__(
        self,
        launcher: Launcher,
        spec: InstanceSpec,
        what: PythonFunction | Program,
        instance: Instance,
        *,
        on_change: Callable[[Instance], None],
    ) -> None:
        self._launcher = launcher
        self._spec = spec
        self._what = what
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self.instance = instance

    def begin(self, started: Started | None = None) -> None:
        """Start the process now, or go on with one that was adopted, and live on as a task."""
        self._task = asyncio.create_task(self._live(started or self._start()))

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    def kill(self) -> None:
        """End its process without waiting for what it is doing."""
        if self._process is not None:
            self._process.kill()

    async def _live(self, started: Started | _Failure) -> None:
        try:
            while True:
                failure = started if isinstance(started, _Failure) else await self._serve(started)
                if failure is None or self._stopping.is_set():
                    return
                pause_s = min(FIRST_RESTART_S * 2.0 ** min(self._failures, 20), LONGEST_RESTART_S)
                self._failures += 1
                self._move("waiting", failure=failure, restarts=self.instance.restarts + 1)
                if await self._stopped_within(pause_s):
                    return
                self._move("starting", failure=failure)
                started = self._start()
        except Exception:  # noqa: BLE001 - boundary: one instance's trouble must not end the others
            _log.exception("an instance was given up", extra={"facts": {"instance": self.instance.name}})
        finally:
            self._move("gone")

    def _start(self) -> Started | _Failure:
        name, restarts = self.instance.name, self.instance.restarts
        try:
            return self._launcher.start(self._spec, self._what, name=name, restarts=restarts)
        except OSError as error:
            return _Failure("StartError", f"Its process cannot be started: {error}.")

    async def _serve(self, started: Started) -> _Failure | None:
        """Watch a process to its end. None where it was asked to stop."""
        self._process = started.process
        ready = asyncio.create_task(started.wait_ready())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            failure = await self._watch(started, ready, stopping)
            if stopping.done() and not started.process.ended.done():
                await self._drain(started.process)
            return None if stopping.done() else failure
        finally:
            for task in (ready, stopping):
                task.cancel()
            await asyncio.gather(ready, stopping, return_exceptions=True)
            started.close()

    async def _watch(self, started: Started, ready: asyncio.Task[None], stopping: asyncio.Task[Any]) -> _Failure | None:
        """Until the process ended (why), or the instance is to be stopped (None)."""
        ended = started.process.ended
        await _first(ready, ended, stopping, timeout_s=self._spec.start_timeout_s)
        if ready.done() and not ended.done() and not stopping.done():
            self._move("ready", address=started.address)
            since = asyncio.get_running_loop().time()
            await _first(ended, stopping)
            if asyncio.get_running_loop().time() - since >= HEALTHY_AFTER_S:
                self._failures = 0
        if ended.done():
            return self._explain(ended.result())
        if stopping.done():
            return None
        started.process.kill()
        await ended
        return _Failure("StartTimeout", f"It was not ready within {self._spec.start_timeout_s:g} s.")

    async def _drain(self, process: Process) -> None:
        self._move("draining", address=self.instance.address)
        process.ask_to_stop()
        await _first(process.ended, timeout_s=self._spec.drain_timeout_s)
        if not process.ended.done():
            facts = {"instance": self.instance.name, "timeout_s": self._spec.drain_timeout_s}
            _log.warning("killed an instance that did not finish in time", extra={"facts": facts})
            process.kill()
            await process.ended

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _explain(self, code: int | None) -> _Failure:
        instance = self.instance
        lines = self._launcher.logs.last_lines(instance.namespace, instance.revision, instance.name, QUOTED_LINES)
        quoted = "\n".join(lines)[-QUOTED_CHARS:]
        if code is None:
            return _Failure("Crashed", quoted or "It ended, and wrote nothing.")
        return _Failure(f"ExitCode{code}", quoted or f"It ended with exit code {code}, and wrote nothing.")

    def _move(
        self,
        phase: Phase,
        *,
        address: Address | None = None,
        failure: _Failure | None = None,
        restarts: int | None = None,
    ) -> None:
        self.instance = msgspec.structs.replace(
            self.instance,
            phase=phase,
            address=address,
            restarts=self.instance.restarts if restarts is None else restarts,
            reason=failure.reason if failure else "",
            message=failure.message if failure else "",
        )
        self._on_change(self.instance)


async def _first(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
