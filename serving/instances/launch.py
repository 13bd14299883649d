"""Starting an instance's process, or finding it again, and learning when it serves."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from core.net.types import Address
from serving.functions.detect import NotRecognised, Program, PythonFunction, expand, recognise
from serving.functions.standalone import HOST_SCRIPT
from serving.instances.logs import LogFiles
from serving.instances.port import CannotRun, InstanceSpec, Readiness
from serving.instances.probes import wait_until_ready
from serving.instances.process import Process, boot_id, identity_of, marked_processes
from serving.instances.records import Record, Records

__all__ = ["Launcher", "Started"]

#: In the environment of every instance and of what it starts, so that processes without a record can be found.
_MARKER: Final = "PENSTOCK_INSTANCES"


class Started:
    """A started process, where it will listen, and how to learn that it does."""

    def __init__(self, process: Process, address: Address) -> None:
        self.process = process
        self.address = address

    async def wait_ready(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what `wait_ready` uses."""


class Launcher:
    """What all instances share: where their files are, what they inherit, and how sources are found.

    `images` maps image names to sources, for manifests without the annotation ``penstock.dev/source``.
    """

    def __init__(
        self, *, directory: Path, root: Path, environment: Mapping[str, str], images: Mapping[str, str], python: str
    ) -> None:
        self._root = root.resolve()
        self._marker = f"{_MARKER}={directory}"
        self._environment = {"PYTHONUNBUFFERED": "1", **environment, _MARKER: str(directory)}
        self._images = dict(images)
        self._python = python
        self._boot = boot_id()
        self.logs = LogFiles(directory / "logs")
        self.records = Records(directory / "records")

    def recognise(self, spec: InstanceSpec) -> PythonFunction | Program:
        """What the specification's source is. Raises CannotRun."""
        source = spec.source or self._images.get(spec.image, "")
        if not source:
            message = (
                f"Nothing says what the image {spec.image} is on this machine. Name a folder or a command with the "
                "annotation penstock.dev/source under spec.template.metadata.annotations."
            )
            raise CannotRun("ImageNotMapped", message)
        if spec.mounts:
            message = f"Volumes cannot be mounted on this machine, and the container mounts {', '.join(spec.mounts)}."
            raise CannotRun("VolumesNotSupported", message)
        if spec.init_containers:
            names = ", ".join(spec.init_containers)
            message = f"Init containers cannot be run on this machine, and the Revision has {names}."
            raise CannotRun("InitContainersNotSupported", message)
        path = {**self._environment, **spec.environment}.get("PATH")
        try:
            return recognise(
                source, root=self._root, command=spec.command, args=spec.args, handler=spec.handler, path=path
            )
        except NotRecognised as error:
            raise CannotRun(error.reason, str(error)) from error

    def start(self, spec: InstanceSpec, what: PythonFunction | Program, *, name: str, restarts: int) -> Started:
        """Start a process for the instance `name` and write its record. Raises OSError."""
        started = (
            self._function(spec, what, name) if isinstance(what, PythonFunction) else self._program(spec, what, name)
        )
        if spec.memory_limit:
            started.process.limit_memory(spec.memory_limit)
        identity, port = started.process.identity, started.address[1]
        self.records.write(Record(name=name, identity=identity, port=port, spec=spec, restarts=restarts))
        return started

    def is_alive(self, record: Record) -> bool:
        """Whether the very process of the record runs."""
        return identity_of(record.identity.pid, self._boot) == record.identity

    def adopt(self, record: Record, what: PythonFunction | Program) -> Started:
        """The record's process, watched from now on. Raises ProcessLookupError where it has just ended."""
        process = Process(record.identity, None)
        address = ("127.0.0.1", record.port)
        if isinstance(what, PythonFunction):
            # The pipe is gone with the process that held its other end; the port tells as much.
            return _ByProbe(process, address, Readiness(), what.folder)
        return _ByProbe(process, address, record.spec.readiness, what.folder)

    def strays(self, adopted: set[int]) -> list[int]:
        """Processes that an instance of this directory left, and that belong to none of the `adopted` sessions."""
        return [pid for pid in marked_processes(self._marker) if _session_of(pid) not in adopted]

    def _function(self, spec: InstanceSpec, function: PythonFunction, name: str) -> Started:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            address: Address = listening.getsockname()
            reading, writing = os.pipe2(os.O_CLOEXEC)
            settings = {
                "listen_fd": listening.fileno(),
                "ready_fd": writing,
                "folder": function.folder,
                "module": function.module,
                "attribute": function.attribute,
                "drain_s": spec.drain_timeout_s,
            }
            argv = [self._python, "-P", "-u", HOST_SCRIPT, json.dumps(settings)]
            inherit = (listening.fileno(), writing)
            try:
                process = self._spawn(spec, name, argv, folder=function.folder, port=address[1], inherit=inherit)
            except OSError:
                os.close(reading)
                raise
            finally:
                os.close(writing)
        return _ByPipe(process, address, reading)

    def _program(self, spec: InstanceSpec, program: Program, name: str) -> Started:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address: Address = free.getsockname()
        argv = expand(program.argv, self._environment_of(spec, address[1]))
        folder = str(Path(program.folder, spec.working_dir))
        process = self._spawn(spec, name, argv, folder=folder, port=address[1], inherit=())
        return _ByProbe(process, address, spec.readiness, folder)

    def _spawn(
        self, spec: InstanceSpec, name: str, argv: list[str], *, folder: str, port: int, inherit: tuple[int, ...]
    ) -> Process:
        log = self.logs.open(spec.namespace, spec.revision, name)
        environment = self._environment_of(spec, port)
        try:
            return Process.start(
                argv, folder=folder, environment=environment, log=log, inherit=inherit, boot=self._boot
            )
        finally:
            os.close(log)

    def _environment_of(self, spec: InstanceSpec, port: int) -> dict[str, str]:
        return {
            **self._environment,
            **spec.environment,
            "PORT": str(port),
            "K_SERVICE": spec.service,
            "K_CONFIGURATION": spec.configuration,
            "K_REVISION": spec.revision,
        }


class _ByPipe(Started):
    """Ready when the function's host writes to the pipe."""

    def __init__(self, process: Process, address: Address, reading: int) -> None:
        super().__init__(process, address)
        self._reading = reading
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(reading, self._on_readable)

    async def wait_ready(self) -> None:
        await self._told

    def close(self) -> None:
        if self._reading >= 0:
            self._loop.remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1

    def _on_readable(self) -> None:
        told = os.read(self._reading, 1)
        self.close()
        # An end without a byte means that the process is ending: that is told through its pidfd.
        if told and not self._told.done():
            self._told.set_result(None)


class _ByProbe(Started):
    """Ready when its probe succeeds."""

    def __init__(self, process: Process, address: Address, readiness: Readiness, folder: str) -> None:
        super().__init__(process, address)
        self._readiness = readiness
        self._folder = folder

    async def wait_ready(self) -> None:
        await wait_until_ready(self.address, self._readiness, self._folder)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
