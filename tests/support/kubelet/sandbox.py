"""What keeps pods apart: a network namespace for each pod, a file system for each container."""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.kubelet.identity import ROOT, Identity
from tests.support.netns import BRIDGE, BRIDGE_ADDRESS

__all__ = ["Mount", "Network", "Sandbox", "root_script"]

#: Where a pod's name server is: the stand-in for the cluster's DNS.
DNS_ADDRESS: Final = "10.96.0.10"
#: What a container may write outside its volumes. It is in memory.
_SCRATCH: Final = "256m"
#: Parts of the machine that a container does not see as they are.
_NOT_SHARED: Final = ("/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/etc")


@dataclass(frozen=True, kw_only=True)
class Mount:
    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A pod's network: the namespace's name, and the pod's address."""

    name: str
    address: str


class Network:
    """Makes pods' networks on the bridge; an address is used once."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    async def create(self) -> Sandbox:
        number = next(self._numbers)
        name, address = f"pod{number}", f"10.244.{1 + number // 250}.{1 + number % 250}"
        await _run("ip", "netns", "add", name)
        await _run("ip", "link", "add", f"v{name}", "master", BRIDGE, "type", "veth", "peer", "eth0", "netns", name)
        commands = (
            f"link set lo up\nlink set eth0 up\naddr add {address}/16 dev eth0\nroute add default via {BRIDGE_ADDRESS}"
        )
        await _run("ip", "-n", name, "-batch", "-", given=commands)
        await _run("ip", "link", "set", f"v{name}", "up")
        return Sandbox(name=name, address=address)

    async def destroy(self, sandbox: Sandbox) -> None:
        """End whatever still runs in it, and take it away."""
        for pid in (await _run("ip", "netns", "pids", sandbox.name)).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        await _run("ip", "netns", "del", sandbox.name)


def root_script(
    *,
    root: Path,
    hostname: str,
    mounts: list[Mount],
    files: dict[str, Path],
    shared: list[str],
    read_only: bool,
    identity: Identity = ROOT,
    opened: Sequence[str] = (),
) -> str:
    """A shell script that makes the container's file system at `root`, and runs "$@" in it.

    It runs in a mount namespace of its own. $1 is the working directory. `files` are copied in; `shared` are the
    machine's own file systems that it sees, `opened` the folders that only root can enter there and everybody here.
    """
    top = root / "root"
    lines = [
        "set -e",
        f"hostname {shlex.quote(hostname)}",
        f"mount -t tmpfs -o size={_SCRATCH} tmpfs {_quoted(root)}",
        f"mkdir {_quoted(root / 'upper')} {_quoted(root / 'work')} {_quoted(top)}",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={root / 'upper'},workdir={root / 'work'} {_quoted(top)}",
    ]
    if opened:
        lines.append(f"chmod a+rx {' '.join(_inside(top, path) for path in opened)}")
    lines += [f"mount --rbind {_quoted(path)} {_inside(top, path)}" for path in ("/proc", "/sys", "/dev", *shared)]
    for target, source in files.items():
        lines += [f"rm -f {_inside(top, target)}", f"cp {_quoted(source)} {_inside(top, target)}"]
    # Outer mount points first, so that they do not hide inner ones.
    for mount in sorted(mounts, key=lambda one: one.target):
        # Links are the machine's own, and absolute ones lead out of the container's root: /var/run is one.
        target = _inside(top, os.path.realpath(mount.target))
        make = f"mkdir -p {target}" if mount.source.is_dir() else f"mkdir -p $(dirname {target}); : >> {target}"
        lines += [make, f"mount --bind {_quoted(mount.source)} {target}"]
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro {target}")
    if read_only:
        lines.append(f"mount -o remount,ro {_quoted(top)}")
    become = f"--userspec={identity.user}:{identity.group}"
    if identity.groups:
        become += f" --groups={','.join(map(str, identity.groups))}"
    lines.append(
        f'exec chroot {become if identity != ROOT else ""} {_quoted(top)} /bin/sh -c \'cd "$0" && exec "$@"\' "$@"'
    )
    return "\n".join(lines) + "\n"


def shared_mounts(mountinfo: str) -> list[str]:
    """The machine's outermost file systems besides `/` that hold programs or a checkout, from /proc/self/mountinfo."""
    points = sorted({line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines()} - {"/"})
    kept: list[str] = []
    for point in points:
        outer = (*_NOT_SHARED, *kept)
        if not any(point == one or point.startswith(one + "/") for one in outer):
            kept.append(point)
    return kept


def closed_folders(wanted: Iterable[str], shared: Sequence[str]) -> list[str]:
    """Those on the way to what is wanted that others than their owner cannot enter; `shared` stay as they are."""
    ways = {str(way) for path in wanted for way in (Path(path), *Path(path).parents)}
    ways = {way for way in ways if not any(way == one or way.startswith(one + "/") for one in shared)}
    return sorted(way for way in ways if Path(way).is_dir() and Path(way).stat().st_mode & 0o005 != 0o005)


async def _run(*command: str, given: str = "") -> str:
    given_pipe = asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=given_pipe, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate(given.encode() or None)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {err.decode().strip()}")
    return out.decode()


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _inside(top: Path, path: str) -> str:
    return shlex.quote(f"{top}/{path.lstrip('/')}")
