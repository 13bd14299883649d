"""The two ways to put load on a server, on any event loop's clock.

Closed: each connection sends its next request when it has its answer. That finds what a request costs.
Open: requests are due at fixed times whatever the server does, and each one's latency counts from the time it was due.
That finds what users would see: a server that stalls for a second delays a second's worth of requests, where a closed
loop would see one slow answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from bench.http1 import LOST, UNREADABLE, Sender

__all__ = ["ClosedLoop", "OpenLoop", "failure_name"]

#: Requests under way or waiting in an open-loop run; more are counted as failed, not sent.
MAX_OUTSTANDING: Final = 10_000
#: The first request of an open-loop run is due this long after the call, so that it is not late by the set-up.
_LEAD_S: Final = 0.01

Request = Callable[[int], bytes]


def failure_name(status: int) -> str:
    """How a report names an answer that was not the expected one."""
    return {LOST: "no answer", UNREADABLE: "unreadable answer"}.get(status, f"status {status}")


class _Loop:
    """What both loops count."""

    def __init__(self, sender: Sender, *, count: int, request: Request, expect: int) -> None:
        self._sender = sender
        self._count = count
        self._request = request
        self._expect = expect
        self._finished = 0
        self._all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failures: Counter[str] = Counter()

    async def _wait(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(self._all), timeout_s)
        except TimeoutError:
            self.failures[f"no answer within {timeout_s:g} s"] += self._count - self._finished

    def _finish(self) -> None:
        self._finished += 1
        if self._finished == self._count and not self._all.done():
            self._all.set_result(None)


class ClosedLoop(_Loop):
    """`count` requests, `width` at a time. `seconds` is what they took."""

    def __init__(self, sender: Sender, *, count: int, width: int, request: Request, expect: int) -> None:
        super().__init__(sender, count=count, request=request, expect=expect)
        self._width = width
        self._next = 0
        self.seconds = 0.0

    async def run(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(min(self._width, self._count)):
            self._send()
        await self._wait(timeout_s)
        self.seconds = loop.time() - began_s

    def _send(self) -> None:
        index = self._next
        self._next = index + 1
        self._sender.send(self._request(index), self._done)

    def _done(self, status: int) -> None:
        if status != self._expect:
            self.failures[failure_name(status)] += 1
        if self._next < self._count:
            self._send()
        self._finish()


class OpenLoop(_Loop):
    """`count` requests at `rate_per_s`. `latencies_s` are the good answers', from when each was due; `late_s` is how
    late the generator itself was with each."""

    def __init__(self, sender: Sender, *, rate_per_s: float, count: int, request: Request, expect: int) -> None:
        super().__init__(sender, count=count, request=request, expect=expect)
        self._rate_per_s = rate_per_s
        self._loop = asyncio.get_running_loop()
        self._began_s = 0.0
        self._next = 0
        self._timer: asyncio.TimerHandle
        self.latencies_s: list[float] = []
        self.late_s: list[float] = []

    async def run(self, timeout_s: float) -> None:
        """Send everything; wait at most `timeout_s` beyond the last one's time for the answers."""
        self._began_s = self._loop.time() + _LEAD_S
        self._timer = self._loop.call_at(self.due_s(0), self._tick)
        try:
            await self._wait(self.due_s(self._count) - self._loop.time() + timeout_s)
        finally:
            self._timer.cancel()

    def due_s(self, index: int) -> float:
        """When request `index` is due, on the event loop's clock."""
        return self._began_s + index / self._rate_per_s

    def _tick(self) -> None:
        while self._next < self._count:
            due_s = self.due_s(self._next)
            late_s = self._loop.time() - due_s
            if late_s < 0:
                self._timer = self._loop.call_at(due_s, self._tick)
                return
            self.late_s.append(late_s)
            self._send(self._next)
            self._next += 1

    def _send(self, index: int) -> None:
        if index - self._finished >= MAX_OUTSTANDING:
            self.failures[f"not sent: {MAX_OUTSTANDING} are under way"] += 1
            self._finish()
        else:
            self._sender.send(self._request(index), lambda status: self._done(index, status))

    def _done(self, index: int, status: int) -> None:
        if status == self._expect:
            self.latencies_s.append(self._loop.time() - self.due_s(index))
        else:
            self.failures[failure_name(status)] += 1
        self._finish()
