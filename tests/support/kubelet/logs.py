"""The kubelet's own server, which the API server asks for ``kubectl logs``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from tests.support.kubelet.pod import log_path

__all__ = ["serve"]

#: How often a followed log is looked at.
_POLL_S: Final = 0.1
_CHUNK: Final = 64 * 1024


async def serve(
    folder: Path, runs: Callable[[str, str, str], bool], *, address: str, certificate: Path, key: Path
) -> tuple[web.AppRunner, int]:
    """Serve the logs under `folder`; `runs` says whether a container (namespace, pod, name) may still write.

    Who asks is not checked: nothing but the test's own machine reaches it. The port is a free one.
    """

    async def container_logs(request: web.Request) -> web.StreamResponse:
        namespace, pod, name = (request.match_info[part] for part in ("namespace", "pod", "container"))
        home = log_path(folder, namespace, pod, name, 0).parent
        numbers = sorted(int(path.stem) for path in home.glob("*.log"))
        if request.query.get("previous") == "true":
            numbers = numbers[:-1]
        if not numbers:
            raise web.HTTPNotFound(text=f"no log of {name} in {namespace}/{pod}")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        follow = request.query.get("follow") == "true"
        stamp = _Stamp(numbers[-1]) if request.query.get("timestamps") == "true" else bytes
        await _copy(home / f"{numbers[-1]}.log", response, request.query.get("tailLines", ""), follow and _still, stamp)
        return response

    def _still(path: Path) -> bool:
        namespace, pod, name = path.parts[-4:-1]
        return runs(namespace, pod, name)

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", container_logs)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, address, 0, ssl_context=context)
    await site.start()
    port: int = runner.addresses[0][1]
    return runner, port


async def _copy(
    path: Path,
    response: web.StreamResponse,
    tail: str,
    still: Callable[[Path], bool] | bool,
    stamp: Callable[[bytes], bytes],
) -> None:
    with path.open("rb") as log:
        if tail:
            lines = [stamp(line) for line in log.readlines()]
            kept = lines[-int(tail) :] if int(tail) else []
            await response.write(b"".join(kept))
        while True:
            last = not still or not still(path)  # type: ignore[operator]
            while chunk := log.read(_CHUNK):
                await response.write(stamp(chunk))
            if last:
                return
            await asyncio.sleep(_POLL_S)


class _Stamp:
    """Puts a time before each line. Nobody wrote down the real ones; these sort as they would, over restarts too."""

    def __init__(self, run: int) -> None:
        self._next = run * 1_000_000
        self._begins = True

    def __call__(self, chunk: bytes) -> bytes:
        stamped = []
        for line in chunk.splitlines(keepends=True):
            if self._begins:
                stamped.append(b"2026-01-01T00:00:00.%09dZ " % self._next)
                self._next += 1
            self._begins = line.endswith(b"\n")
            stamped.append(line)
        return b"".join(stamped)
