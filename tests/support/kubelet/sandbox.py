"""What keeps pods apart: a network namespace for each."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from dataclasses import dataclass
from typing import Final

from tests.support.netns import BRIDGE, BRIDGE_ADDRESS

__all__ = ["DNS_ADDRESS", "Network", "Sandbox"]

#: Where a pod's name server is: the stand-in for the cluster's DNS.
DNS_ADDRESS: Final = "10.96.0.10"


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


async def _run(*command: str, given: str = "") -> str:
    given_pipe = asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=given_pipe, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate(given.encode() or None)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {err.decode().strip()}")
    return out.decode()
