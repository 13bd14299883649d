"""The load process: ``python -m bench.loader [precise]`` takes commands on standard input (see bench.messages).

It is a process of its own so that its CPU time is not counted, and stays up over a whole benchmark so that connections
do. The plain one runs on uvloop, which costs least beside what is measured. The precise one is for open loops: uvloop
and epoll round timers to whole milliseconds, select(2) waits to the microsecond.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import sys

import msgspec
import uvloop

from bench.http1 import Pool
from bench.loops import ClosedLoop, OpenLoop
from bench.messages import (
    Answer,
    Closed,
    ClosedResult,
    Command,
    Connect,
    Connected,
    Deliveries,
    DeliveriesResult,
    Failed,
    Open,
    OpenResult,
)
from bench.sink import Sink

__all__ = ["Arrivals", "Loader", "main"]

#: Time for the last deliveries beyond the last publish.
DELIVERY_TIMEOUT_S = 15.0


class Arrivals:
    """When each numbered event arrived; `arrived` may be called by any number of sink connections."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._awaited: int | None = None
        self._complete = asyncio.Event()
        self.first_at_s: dict[int, float] = {}
        self.duplicates = 0

    def arrived(self, number: int) -> None:
        if number in self.first_at_s:
            self.duplicates += 1
            return
        self.first_at_s[number] = self._loop.time()
        if len(self.first_at_s) == self._awaited:
            self._complete.set()

    async def wait(self, count: int, timeout_s: float) -> None:
        """Until `count` different events have arrived, or the time is over."""
        self._awaited = count
        if len(self.first_at_s) >= count:
            return
        try:
            await asyncio.wait_for(self._complete.wait(), timeout_s)
        except TimeoutError:
            return


class Loader:
    """Runs commands, one at a time."""

    def __init__(self) -> None:
        self._pools: dict[str, tuple[Pool, int]] = {}
        self._arrivals: Arrivals | None = None
        self._sink: asyncio.Server

    async def start(self) -> None:
        self._sink = await asyncio.get_running_loop().create_server(lambda: Sink(self._arrived), "127.0.0.1", 0)

    async def close(self) -> None:
        self._sink.close()
        for pool, _ in self._pools.values():
            await pool.close()

    async def run(self, command: Command) -> Answer:
        try:
            match command:
                case Connect():
                    return await self._connect(command)
                case Closed():
                    return await self._closed(command)
                case Open():
                    return _open_result(await self._open(command))
                case Deliveries():
                    return await self._deliveries(command)
        except OSError as error:
            return Failed(reason=str(error))

    async def _connect(self, command: Connect) -> Connected:
        pool = Pool(command.host, command.port)
        await pool.connect(command.connections)
        self._pools[command.target] = (pool, command.connections)
        return Connected(sink=self._sink.sockets[0].getsockname()[1])

    async def _closed(self, command: Closed) -> ClosedResult:
        pool, width = self._pools[command.target]
        request, first = command.request, command.first
        loop = ClosedLoop(
            pool,
            count=command.count,
            width=width,
            request=lambda index: request.bytes_of(first + index),
            expect=command.expect,
        )
        await loop.run(command.timeout_s)
        return ClosedResult(seconds=loop.seconds, failures=dict(loop.failures))

    async def _open(self, command: Open) -> OpenLoop:
        loop = OpenLoop(
            self._pools[command.target][0],
            rate_per_s=command.rate_per_s,
            count=command.count,
            request=command.request.bytes_of,
            expect=command.expect,
        )
        await loop.run(command.timeout_s)
        return loop

    async def _deliveries(self, command: Deliveries) -> DeliveriesResult:
        self._arrivals = arrivals = Arrivals()
        published = await self._open(command.publish)
        accepted = len(published.latencies_s)
        await arrivals.wait(accepted, DELIVERY_TIMEOUT_S)
        self._arrivals = None
        return DeliveriesResult(
            publish=_open_result(published),
            latencies_s=[at_s - published.due_s(number) for number, at_s in arrivals.first_at_s.items()],
            lost=max(accepted - len(arrivals.first_at_s), 0),
            duplicates=arrivals.duplicates,
        )

    def _arrived(self, number: int) -> None:
        if self._arrivals is not None:
            self._arrivals.arrived(number)


def _open_result(loop: OpenLoop) -> OpenResult:
    return OpenResult(latencies_s=loop.latencies_s, late_s=loop.late_s, failures=dict(loop.failures))


async def _serve() -> None:
    """Commands until standard input ends, which is also how it ends when the benchmark dies."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    loader = Loader()
    await loader.start()
    decode = msgspec.json.Decoder(Command).decode
    try:
        while line := await reader.readline():
            answer = await loader.run(decode(line))
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
    finally:
        await loader.close()
        transport.close()


def main() -> None:
    gc.disable()  # its pauses would be measured as the server's; the process lives for a minute
    precise = sys.argv[1:] == ["precise"]
    with asyncio.Runner(loop_factory=_precise_loop if precise else uvloop.new_event_loop) as runner:
        runner.run(_serve())


def _precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    main()
