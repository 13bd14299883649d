"""Finding out that an instance is ready: quick tries with a growing pause, until it answers as its probe asks.

The pauses follow Knative's queue-proxy, which probes aggressively while an instance starts, because a request waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from core.net.types import Address
from serving.instances.port import Readiness

__all__ = ["wait_until_ready"]

#: The pause after the first failed try, and the longest; it grows by half each time.
FIRST_PAUSE_S: Final = 0.005
LONGEST_PAUSE_S: Final = 0.1

#: A status line that is longer is no HTTP.
MAX_STATUS_LINE: Final = 1024


async def wait_until_ready(address: Address, readiness: Readiness, folder: str) -> None:
    """Return once the probe succeeded as often in a row as it asks. The caller sets the limit to how long it waits."""
    await asyncio.sleep(readiness.initial_delay_s)
    successes, pause_s = 0, FIRST_PAUSE_S
    while True:
        if await _try(address, readiness, folder):
            successes += 1
            if successes >= readiness.successes:
                return
            continue
        successes = 0
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)


async def _try(address: Address, readiness: Readiness, folder: str) -> bool:
    try:
        async with asyncio.timeout(readiness.timeout_s):
            if readiness.kind == "exec":
                return await _exec(readiness, folder)
            reader, writer = await asyncio.open_connection(*address)
            try:
                return readiness.kind == "tcp" or await _get(reader, writer, address, readiness)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        return False


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, readiness: Readiness
) -> bool:
    given = {name.lower() for name, _ in readiness.headers}
    lines = [f"GET {readiness.path or '/'} HTTP/1.1"]
    if "host" not in given:
        lines.append(f"Host: {address[0]}:{address[1]}")
    if "user-agent" not in given:
        lines.append("User-Agent: penstock-probe")
    lines += [f"{name}: {value}" for name, value in readiness.headers]
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
    words = (await reader.readline())[:MAX_STATUS_LINE].split()
    return len(words) >= 2 and words[0].startswith(b"HTTP/") and words[1][:1] in (b"2", b"3")


async def _exec(readiness: Readiness, folder: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *readiness.command, cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
