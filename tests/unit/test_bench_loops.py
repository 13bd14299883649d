"""What the load generator counts, on virtual time: latency from when a request was due, whatever held it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from bench import loops
from bench.http1 import LOST, Done
from bench.loops import ClosedLoop, OpenLoop
from tests.support.virtual_time import VirtualTimeLoop, run_virtual

EXACT = 1e-6  # floats of virtual time


class Server:
    """Answers each request `answer(index of arrival, now)` seconds after it came, with status 200 or `status`."""

    def __init__(self, answer: Callable[[int, float], float], status: Callable[[int], int] = lambda index: 200) -> None:
        self.arrivals_s: list[float] = []
        self.requests: list[bytes] = []
        self.under_way = 0
        self.most_under_way = 0
        self._answer = answer
        self._status = status

    def send(self, request: bytes, done: Done) -> None:
        loop = asyncio.get_running_loop()
        index = len(self.requests)
        self.arrivals_s.append(loop.time())
        self.requests.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        loop.call_later(self._answer(index, loop.time()), self._reply, index, done)

    def _reply(self, index: int, done: Done) -> None:
        self.under_way -= 1
        done(self._status(index))


class Silent:
    """Never answers."""

    def send(self, request: bytes, done: Done) -> None:
        return


def number(index: int) -> bytes:
    return b"%d" % index


def open_loop(sender: loops.Sender, *, rate_per_s: float, count: int) -> OpenLoop:
    return OpenLoop(sender, rate_per_s=rate_per_s, count=count, request=number, expect=200)


def test_requests_are_due_at_fixed_times_each_once_and_in_order() -> None:
    async def main() -> None:
        server = Server(lambda index, now_s: 0.001)
        loop = open_loop(server, rate_per_s=100, count=300)
        await loop.run(1)
        gaps = [after - before for before, after in zip(server.arrivals_s, server.arrivals_s[1:], strict=False)]
        assert gaps == pytest.approx([0.01] * 299)
        assert server.requests == [number(index) for index in range(300)]
        assert loop.latencies_s == pytest.approx([0.001] * 300)
        assert loop.late_s == pytest.approx([0] * 300)
        assert not loop.failures

    run_virtual(main())


def test_a_slow_server_does_not_slow_the_sending() -> None:
    async def main() -> None:
        server = Server(lambda index, now_s: 0.5)
        await open_loop(server, rate_per_s=100, count=200).run(1)
        assert server.arrivals_s[-1] - server.arrivals_s[0] == pytest.approx(1.99)
        assert server.most_under_way == pytest.approx(50, abs=1)

    run_virtual(main())


def test_a_stall_delays_everything_that_was_due_in_it() -> None:
    """The server answers nothing between 1 s and 2 s: the hundred requests due then wait from 1 s down to 0 s."""

    async def main() -> None:
        def stall(index: int, now_s: float) -> float:
            return 2.0 - now_s if 1.0 <= now_s < 2.0 else 0.0

        loop = open_loop(Server(stall), rate_per_s=100, count=300)
        await loop.run(1)
        delayed = [latency_s for latency_s in loop.latencies_s if latency_s > EXACT]
        assert len(delayed) == pytest.approx(100, abs=1)
        assert max(delayed) == pytest.approx(1.0, abs=0.011)
        assert sum(delayed) / len(delayed) == pytest.approx(0.5, abs=0.011)

    run_virtual(main())


class Laborious:
    """Answers at once, but sending takes the generator itself 50 ms."""

    def send(self, request: bytes, done: Done) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop._jumping.offset_s += 0.05
        done(200)


def test_a_generator_that_is_late_itself_says_so_and_its_latencies_have_it() -> None:
    async def main() -> None:
        loop = open_loop(Laborious(), rate_per_s=100, count=5)
        await loop.run(1)
        assert loop.late_s == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])
        assert loop.latencies_s == pytest.approx([0.05, 0.09, 0.13, 0.17, 0.21])

    run_virtual(main())


def test_unexpected_answers_are_failures_by_kind_and_have_no_latency() -> None:
    async def main() -> None:
        statuses = {3: 503, 5: 503, 7: LOST}
        loop = open_loop(
            Server(lambda index, now_s: 0.0, lambda index: statuses.get(index, 200)), rate_per_s=10, count=10
        )
        await loop.run(1)
        assert loop.failures == {"status 503": 2, "no answer": 1}
        assert len(loop.latencies_s) == 7

    run_virtual(main())


def test_answers_that_never_come_end_the_run_and_are_failures() -> None:
    async def main() -> None:
        loop = open_loop(Silent(), rate_per_s=100, count=50)
        await loop.run(2)
        assert loop.failures == {"no answer within 2.51 s": 50}
        assert asyncio.get_running_loop().time() == pytest.approx(2.51, abs=0.02)

    run_virtual(main())


def test_what_is_under_way_is_bounded_and_the_rest_is_counted_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MAX_OUTSTANDING", 10)

    async def main() -> None:
        loop = open_loop(Silent(), rate_per_s=100, count=50)
        await loop.run(1)
        assert loop.failures["not sent: 10 are under way"] == 40
        assert loop.failures.total() == 50

    run_virtual(main())


def test_a_closed_loop_keeps_as_many_under_way_as_it_is_wide_and_sends_each_once() -> None:
    async def main() -> None:
        server = Server(lambda index, now_s: 0.25)
        loop = ClosedLoop(server, count=100, width=8, request=number, expect=200)
        await loop.run(60)
        assert server.most_under_way == 8
        assert sorted(server.requests) == sorted(number(index) for index in range(100))
        assert loop.seconds == pytest.approx(13 * 0.25)  # 100 requests, 8 at a time, are 13 turns
        assert not loop.failures

    run_virtual(main())


def test_a_closed_loop_counts_failures_and_what_never_came() -> None:
    async def main() -> None:
        loop = ClosedLoop(
            Server(lambda index, now_s: 0.1, lambda index: 500 if index % 2 else 200),
            count=10,
            width=2,
            request=number,
            expect=200,
        )
        await loop.run(60)
        assert loop.failures == {"status 500": 5}
        hanging = ClosedLoop(Silent(), count=10, width=2, request=number, expect=200)
        await hanging.run(5)
        assert hanging.failures == {"no answer within 5 s": 10}

    run_virtual(main())
