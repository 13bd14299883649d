"""Startup, readiness and liveness probes, and hooks, which do the same things once."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import aiohttp

from tests.support.kubelet.spec import Container, Handler, HttpGet, Probe, TcpSocket

__all__ = ["Runner", "Verdict", "attempt", "judge"]


class Runner(Protocol):
    """What can be asked of a container: where it listens, and to run a command in it."""

    @property
    def address(self) -> str: ...

    @property
    def spec(self) -> Container: ...

    async def execute(self, command: tuple[str, ...]) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a run of equal results means so far: `passing` changes once enough of them came in a row."""

    passing: bool
    streak: int = 0

    def after(self, probe: Probe, success: bool) -> Verdict:
        if success == self.passing:
            return Verdict(passing=self.passing)
        needed = probe.success_threshold if success else probe.failure_threshold
        if self.streak + 1 >= needed:
            return Verdict(passing=success)
        return Verdict(passing=self.passing, streak=self.streak + 1)


async def judge(
    runner: Runner,
    probe: Probe,
    start: Verdict,
    changed: Callable[[bool], Awaitable[bool]],
    client: aiohttp.ClientSession,
) -> None:
    """Probe for as long as `changed`, told of each change of the verdict, says to go on."""
    verdict = start
    await asyncio.sleep(probe.initial_delay_seconds)
    while True:
        after = verdict.after(probe, await attempt(runner, probe.handler, probe.timeout_seconds, client))
        if after.passing != verdict.passing and not await changed(after.passing):
            return
        verdict = after
        await asyncio.sleep(probe.period_seconds)


async def attempt(runner: Runner, handler: Handler, timeout_s: float, client: aiohttp.ClientSession) -> bool:
    """Do it once; whether it went well in time."""
    try:
        async with asyncio.timeout(timeout_s):
            if handler.http_get is not None:
                return await _get(runner, handler.http_get, client)
            if handler.tcp_socket is not None:
                return await _connect(runner, handler.tcp_socket)
            if handler.exec is not None:
                return await runner.execute(handler.exec.command) == 0
            if handler.sleep is not None:
                await asyncio.sleep(handler.sleep.seconds)
            return True
    except (OSError, TimeoutError, aiohttp.ClientError):
        return False


async def _get(runner: Runner, what: HttpGet, client: aiohttp.ClientSession) -> bool:
    host = what.host or runner.address
    url = f"{what.scheme.lower()}://{host}:{_port(runner.spec, what.port)}/{what.path.lstrip('/')}"
    headers = {"User-Agent": "kube-probe/1.34", "Connection": "close"}
    headers |= {header.name: header.value for header in what.http_headers}
    async with client.get(url, headers=headers, allow_redirects=False, ssl=_UNCHECKED) as response:
        return 200 <= response.status < 400


async def _connect(runner: Runner, what: TcpSocket) -> bool:
    _, writer = await asyncio.open_connection(what.host or runner.address, _port(runner.spec, what.port))
    writer.close()
    return True


def _port(container: Container, port: int | str) -> int:
    if isinstance(port, int):
        return port
    return next((one.container_port for one in container.ports if one.name == port), 0)


def _unchecked() -> ssl.SSLContext:
    """A kubelet does not check the certificate of what it probes."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


_UNCHECKED: Final = _unchecked()
