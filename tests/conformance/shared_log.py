"""What a log that several processes share promises beyond `EventLogSuite`. An adapter's test class gives the fixture
`processes`, and the time that a crashed process's subscriptions wait for at most.
"""

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Iterable
from typing import Protocol

from broker.log.port import EventLog, Position
from tests.conformance.event_log import BROKER, OTHER, append, entry, recall

#: Beyond it, a busy machine's share in leases, handovers and reads.
PATIENCE_S = 15.0


class Processes(Protocol):
    """Processes that share one log; each is known by the name that it starts with."""

    #: What a crashed process's subscriptions wait for at most, in seconds.
    takeover_s: float

    async def start(self, name: str) -> EventLog: ...

    async def stop(self, log: EventLog) -> None:
        """It ends in order."""
        ...

    async def kill(self, log: EventLog) -> None:
        """It ends without a word, as by kill -9."""
        ...


class Dispatcher:
    """Claims subscriptions and gives those that others should have, as the dispatchers do. Notes who has what, and
    whenever two have one."""

    def __init__(self, log: EventLog, uids: Iterable[str], held_by: dict[str, "Dispatcher"], faults: list[str]) -> None:
        self.log = log
        self.held: set[str] = set()
        self.given = 0
        self._gone = False
        self._uids = tuple(uids)
        self._held_by = held_by
        self._faults = faults
        for uid in self._uids:
            self._claim(uid)

    def forget(self) -> None:
        """The process is gone."""
        self._gone = True
        for uid in self.held:
            self._held_by.pop(uid, None)
        self.held.clear()

    def end(self) -> None:
        """Deliver nothing more, and let everything go, as at the end of a drain."""
        self.forget()
        for uid in self._uids:
            self.log.release(uid)

    def _claim(self, uid: str) -> None:
        self.log.claim(uid, lambda: self._granted(uid), lambda: self._lost(uid), lambda: self._asked(uid))

    def _granted(self, uid: str) -> None:
        if self._gone:
            return
        if uid in self._held_by:
            self._faults.append(f"{uid} is granted while another has it")
        self._held_by[uid] = self
        self.held.add(uid)
        self.log.subscribe(uid, BROKER, uid, 0)

    def _lost(self, uid: str) -> None:
        self._faults.append(f"{uid} is lost although its holder is there")
        self._released(uid)

    def _asked(self, uid: str) -> None:
        self.given += 1
        self._released(uid)
        self.log.release(uid)
        self._claim(uid)

    def _released(self, uid: str) -> None:
        self.held.discard(uid)
        if self._held_by.get(uid) is self:
            del self._held_by[uid]


class Sharing:
    """Dispatchers of one set of subscriptions."""

    def __init__(self, count: int) -> None:
        self.uids = [f"uid-{n}" for n in range(count)]
        self.dispatchers: list[Dispatcher] = []
        self.faults: list[str] = []
        self._held_by: dict[str, Dispatcher] = {}

    def join(self, log: EventLog) -> Dispatcher:
        joined = Dispatcher(log, self.uids, self._held_by, self.faults)
        self.dispatchers.append(joined)
        return joined

    def leave(self, dispatcher: Dispatcher) -> None:
        self.dispatchers.remove(dispatcher)
        dispatcher.forget()

    def share(self) -> list[int]:
        """What the loads are once they are even."""
        each, above = divmod(len(self.uids), len(self.dispatchers))
        return [each + (n < above) for n in range(len(self.dispatchers))]

    def loads(self) -> list[int]:
        return sorted(len(dispatcher.held) for dispatcher in self.dispatchers)

    async def even(self, *loads: int, within_s: float = PATIENCE_S) -> None:
        """Wait until the dispatchers have so many each, and for a look at whether it stays so."""
        await until(lambda: self.loads() == sorted(loads), within_s)
        assert not self.faults
        assert set().union(*(dispatcher.held for dispatcher in self.dispatchers)) == set(self.uids)


class SharedLogSuite:
    """The promises to several processes on one log."""

    async def test_each_hears_the_others_events_in_order_of_position(self, processes: Processes):
        both = [await processes.start("first"), await processes.start("second")]
        heard: list[list[int]] = [[], []]
        for log, seqs in zip(both, heard, strict=True):
            log.tail(lambda record, seqs=seqs: seqs.append(record.seq))
        count = 60

        async def some(log: EventLog, broker: str) -> None:
            for n in range(count // 3):
                await append(log, *(entry(f"{broker}-{n}-{m}", broker) for m in range(3)))

        await asyncio.gather(some(both[0], BROKER), some(both[1], OTHER), some(both[1], BROKER))
        await until(lambda: all(len(seqs) >= 3 * count for seqs in heard))
        assert heard[0] == heard[1] == sorted(set(heard[0]))
        assert len(heard[0]) == 3 * count
        assert both[0].last() == both[1].last() == heard[0][-1]

    async def test_one_of_two_is_granted_and_the_other_goes_on_from_its_position_once_it_is_released(
        self, processes: Processes
    ):
        first, second = await processes.start("first"), await processes.start("second")
        heard: list[str] = []
        claim(first, "uid-1", "first", heard)
        await until(lambda: heard == ["first"])
        claim(second, "uid-1", "second", heard)
        await append(first, *(entry(name) for name in "abcde"))
        subscription = first.subscribe("uid-1", BROKER, "default/one", 0)
        subscription.take(3)
        subscription.take(5)
        subscription.ack(3)
        first.release("uid-1")
        await until(lambda: len(heard) > 1)
        assert heard == ["first", "second"]
        assert second.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(5, (5,))

    async def test_a_process_that_starts_again_takes_over_its_own_claims_at_once(self, processes: Processes):
        heard: list[str] = []
        before = await processes.start("same")
        claim(before, "uid-1", "before", heard)
        await until(lambda: heard == ["before"])
        await processes.kill(before)
        after = await processes.start("same")
        claim(after, "uid-1", "after", heard)
        await until(lambda: heard == ["before", "after"], processes.takeover_s / 2)

    async def test_processes_that_join_get_their_share_and_each_subscription_has_one_holder_all_along(
        self, processes: Processes
    ):
        sharing = Sharing(7)
        first = sharing.join(await processes.start("first"))
        await sharing.even(7)
        sharing.join(await processes.start("second"))
        await sharing.even(3, 4)
        sharing.join(await processes.start("third"))
        await sharing.even(2, 2, 3)
        assert first.given <= 5, "more was moved than had to be"

    async def test_what_was_acknowledged_goes_with_a_subscription_that_is_handed_over(self, processes: Processes):
        sharing = Sharing(2)
        first = sharing.join(await processes.start("first"))
        await sharing.even(2)
        await append(first.log, *(entry(str(n)) for n in range(21)))
        for n, uid in enumerate(sharing.uids):
            held = first.log.subscribe(uid, BROKER, uid, 0)
            held.take(10 + n)
            held.take(20 + n)
            held.ack(10 + n)
            first.log.remember(uid, b"of %b" % uid.encode())
        second = sharing.join(await processes.start("second"))
        await sharing.even(1, 1)
        (uid,) = second.held
        n = sharing.uids.index(uid)
        assert second.log.subscribe(uid, BROKER, uid, 0).position() == Position(20 + n, (20 + n,))
        assert await recall(second.log, uid) == b"of %b" % uid.encode()

    async def test_what_a_process_had_that_ends_in_order_goes_to_the_others_at_once(self, processes: Processes):
        sharing = Sharing(4)
        first = sharing.join(await processes.start("first"))
        sharing.join(await processes.start("second"))
        await sharing.even(2, 2)
        sharing.leave(first)
        await processes.stop(first.log)
        await sharing.even(4, within_s=processes.takeover_s / 2)

    async def test_whatever_joins_and_ends_each_subscription_has_one_holder_and_all_have_their_share_after(
        self, processes: Processes
    ):
        seed = int(os.environ.get("PENSTOCK_TEST_SEED", random.SystemRandom().randrange(10**6)))
        print(f"PENSTOCK_TEST_SEED={seed}")
        rng, names, sharing = random.Random(seed), itertools.count(1), Sharing(30)
        for _ in range(12):
            if len(sharing.dispatchers) < 2 or (len(sharing.dispatchers) < 5 and rng.random() < 0.6):
                sharing.join(await processes.start(f"process-{next(names)}"))
            else:
                ending = rng.choice(sharing.dispatchers)
                sharing.dispatchers.remove(ending)
                ending.end()
                await processes.stop(ending.log)
            if rng.random() < 0.5:
                await sharing.even(*sharing.share())
        await sharing.even(*sharing.share())

    async def test_what_a_process_had_that_is_killed_goes_to_the_others_evenly_and_in_time(self, processes: Processes):
        sharing = Sharing(6)
        dispatchers = [sharing.join(await processes.start(name)) for name in ("first", "second", "third")]
        await sharing.even(2, 2, 2)
        await processes.kill(dispatchers[1].log)
        sharing.leave(dispatchers[1])
        await sharing.even(3, 3, within_s=processes.takeover_s)


def claim(log: EventLog, uid: str, name: str, heard: list[str]) -> None:
    """Claim and note what is heard; does not give what it is asked for."""
    log.claim(uid, lambda: heard.append(name), lambda: heard.append(f"{name} lost"), lambda: None)


async def until(holds: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """What another process brings has no event to wait for here: look again after a turn of the loop."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)
