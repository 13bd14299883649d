"""A container's process: started in its pod's network and a file system of its own, signalled, and waited for."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.kubelet.identity import Identity
from tests.support.kubelet.rootfs import Mount, closed_folders, root_script, shared_mounts
from tests.support.kubelet.sandbox import Sandbox
from tests.support.kubelet.spec import Container

__all__ = ["Process", "start"]

_NSENTER: Final = shutil.which("nsenter") or "/usr/bin/nsenter"
_UNSHARE: Final = shutil.which("unshare") or "/usr/bin/unshare"
_SHARED: Final = shared_mounts(Path("/proc/self/mountinfo").read_text())
#: Where the checkout's Python and code are: in a home folder, often, which no container's user may enter.
_OPENED: Final = closed_folders([sys.prefix, sys.base_prefix, str(Path.cwd())], _SHARED)


@dataclass(frozen=True, kw_only=True)
class Process:
    """One run of a container."""

    spec: Container
    address: str
    number: int
    environment: Mapping[str, str]
    process: asyncio.subprocess.Process
    identity: Identity

    @property
    def container_id(self) -> str:
        return f"test://{self.spec.name}-{self.process.pid}-{self.number}"

    async def wait(self) -> int:
        """Its exit code, negative for a signal's number, once it and all that it started have ended."""
        code = await self.process.wait()
        self._signal_all(signal.SIGKILL)
        return code

    def terminate(self) -> None:
        """Only the container's first process is told, as in a real one."""
        if self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        self._signal_all(signal.SIGKILL)

    async def execute(self, command: tuple[str, ...]) -> int:
        """Run a command beside it, as an exec probe or hook does; its exit code."""
        if self.process.returncode is not None:
            return -1
        become = [f"--setuid={self.identity.user}", f"--setgid={self.identity.group}"] if self.identity.user else []
        enter = [
            _NSENTER,
            *become,
            "--target",
            str(self.process.pid),
            "--mount",
            "--net",
            "--uts",
            "--root",
            "--wd",
            "--",
        ]
        beside = await asyncio.create_subprocess_exec(
            *enter,
            *command,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return await beside.wait()
        finally:
            if beside.returncode is None:
                beside.kill()

    def _signal_all(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return


async def start(
    spec: Container,
    *,
    sandbox: Sandbox,
    folder: Path,
    log: Path,
    number: int,
    hostname: str,
    command: list[str],
    working_dir: str,
    environment: Mapping[str, str],
    mounts: list[Mount],
    files: dict[str, Path],
    identity: Identity,
) -> Process:
    """Start it; `folder` is the container's own, `log` is where its output goes, `number` counts its runs."""
    root = folder / f"root{number}"
    root.mkdir(parents=True)
    script = folder / f"start{number}.sh"
    script.write_text(
        root_script(
            root=root,
            hostname=hostname,
            mounts=mounts,
            files=files,
            shared=_SHARED,
            read_only=spec.security_context.read_only_root_filesystem,
            identity=identity,
            opened=_OPENED if identity.user else (),
        )
    )
    isolate = [_NSENTER, f"--net=/run/netns/{sandbox.name}", "--", _UNSHARE, "--mount", "--uts", "--"]
    with log.open("ab") as output:
        # A container may open its own standard output again.
        os.fchmod(output.fileno(), 0o666)
        process = await asyncio.create_subprocess_exec(
            *isolate,
            "/bin/sh",
            str(script),
            working_dir,
            *command,
            env=environment,
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Process(
        spec=spec,
        address=sandbox.address,
        number=number,
        environment=environment,
        process=process,
        identity=identity,
    )
