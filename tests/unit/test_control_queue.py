"""The lifecycle of a key, on virtual time: the test is the worker."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given
from hypothesis import strategies as st

from core.control.queue import PARK_LIMIT_S, WorkQueue
from core.resources import Key, KindRef
from tests.support.virtual_time import run_virtual

KIND = KindRef("test.penstock.dev", "v1", "Flow")
A, B, C, D = (Key(KIND, "default", name) for name in "abcd")


class Bench:
    """A queue whose started keys pile up in `started`, over a cache that has seen `version`."""

    def __init__(self, parallel: int = 2) -> None:
        self.started: list[Key] = []
        self.version = 0
        self.queue = WorkQueue(self.started.append, parallel=parallel, seen=lambda kind: self.version)

    def done(self, key: Key, again_in_s: float | None = None, written: int = 0) -> None:
        self.queue.done(key, again_in_s=again_in_s, written={KIND: written} if written else {})

    def caught_up(self, version: int) -> None:
        self.version = version
        self.queue.advance()


@contextmanager
def bench(parallel: int = 2) -> Iterator[Bench]:
    one = Bench(parallel)
    yield one
    one.queue.close()


def test_keys_run_side_by_side_up_to_the_limit_in_the_order_of_their_touch():
    async def main() -> None:
        with bench(parallel=2) as one:
            for key in (A, B, C, D):
                one.queue.touch(key)
            assert one.started == [A, B]
            assert len(one.queue) == 2
            one.done(B)
            assert one.started == [A, B, C]
            one.done(A)
            assert one.started == [A, B, C, D]
            assert len(one.queue) == 0

    run_virtual(main())


def test_touches_of_a_waiting_key_count_once():
    async def main() -> None:
        with bench(parallel=1) as one:
            one.queue.touch(A)
            for _ in range(5):
                one.queue.touch(B)
            one.done(A)
            one.done(B)
            assert one.started == [A, B]

    run_virtual(main())


def test_a_touch_during_the_run_leads_to_exactly_one_more_and_never_to_two_at_a_time():
    async def main() -> None:
        with bench() as one:
            one.queue.touch(A)
            for _ in range(3):
                one.queue.touch(A)
            assert one.started == [A]
            one.done(A)
            assert one.started == [A, A]
            one.done(A)
            assert one.started == [A, A]

    run_virtual(main())


def test_a_key_that_wrote_waits_until_the_cache_has_seen_it():
    async def main() -> None:
        with bench() as one:
            one.queue.touch(A)
            one.done(A, written=7)
            one.queue.touch(A)
            assert one.started == [A]
            one.caught_up(6)
            assert one.started == [A]
            one.caught_up(7)
            assert one.started == [A, A]

    run_virtual(main())


def test_a_parked_key_that_nobody_touched_stays_quiet_afterwards():
    async def main() -> None:
        with bench() as one:
            one.queue.touch(A)
            one.done(A, written=7)
            one.caught_up(7)
            await asyncio.sleep(100)
            assert one.started == [A]

    run_virtual(main())


def test_a_cache_that_never_catches_up_holds_a_key_only_for_a_while():
    async def main() -> None:
        with bench() as one:
            one.queue.touch(A)
            one.done(A, again_in_s=0.5, written=7)
            await asyncio.sleep(PARK_LIMIT_S - 0.1)
            assert one.started == [A]
            await asyncio.sleep(0.2)
            assert one.started == [A, A]

    run_virtual(main())


def test_again_in_counts_from_the_end_of_the_run_and_a_touch_brings_it_forward():
    async def main() -> None:
        with bench() as one:
            one.queue.touch(A)
            one.done(A, again_in_s=60)
            await asyncio.sleep(59.9)
            assert one.started == [A]
            await asyncio.sleep(0.2)
            assert one.started == [A, A]
            one.done(A, again_in_s=60)
            await asyncio.sleep(1)
            one.queue.touch(A)
            assert one.started == [A, A, A]
            one.done(A)
            await asyncio.sleep(1000)
            assert one.started == [A, A, A]

    run_virtual(main())


def test_again_in_survives_being_parked():
    async def main() -> None:
        with bench() as one:
            one.queue.touch(A)
            one.done(A, again_in_s=5, written=7)
            await asyncio.sleep(1)
            one.caught_up(7)
            assert one.started == [A]
            await asyncio.sleep(3.9)
            assert one.started == [A]
            await asyncio.sleep(0.2)
            assert one.started == [A, A]

    run_virtual(main())


def test_closing_drops_what_waits_and_every_timer():
    async def main() -> None:
        with bench(parallel=1) as one:
            one.queue.touch(A)
            one.done(A, again_in_s=5)
            one.queue.touch(B)
            one.queue.touch(C)
            one.queue.close()
            await asyncio.sleep(100)
            assert one.started == [A, B]

    run_virtual(main())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["touch", "touch", "done", "write", "again", "see", "wait"]), st.sampled_from([A, B, C, D])
    ),
    max_size=60,
)


@given(STEPS)
def test_no_touch_is_lost_and_no_key_runs_twice_at_a_time(steps: list[tuple[str, Key]]):
    """Whatever happens in whatever order: once all is done and seen, each key ran after its last touch."""

    async def main() -> None:
        with bench(parallel=2) as one:
            running: set[Key] = set()
            stale: set[Key] = set()
            taken = version = 0

            def take_started() -> None:
                nonlocal taken
                for key in one.started[taken:]:
                    assert key not in running
                    running.add(key)
                    stale.discard(key)
                taken = len(one.started)
                assert len(running) <= 2

            for step, key in steps:
                if step == "touch":
                    stale.add(key)
                    one.queue.touch(key)
                elif step == "see":
                    one.caught_up(version)
                elif step == "wait":
                    await asyncio.sleep(1)
                elif key in running:
                    running.discard(key)
                    version += 1
                    written = version if step == "write" else 0
                    one.done(key, again_in_s=2.0 if step == "again" else None, written=written)
                take_started()
            one.caught_up(version)
            take_started()
            while running:
                one.done(running.pop())
                take_started()
            assert stale == set()

    run_virtual(main())
