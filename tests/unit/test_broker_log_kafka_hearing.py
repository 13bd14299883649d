"""What a process hears and reads of a Kafka whose new leader does not tell yet all that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from aiokafka.errors import LeaderNotAvailableError, OffsetOutOfRangeError

from broker.log.encoding import encode_entry
from broker.log.kafka import reading
from broker.log.kafka.connection import EARLIEST, Connection, Fetched
from broker.log.kafka.hearing import Hearing
from broker.log.kafka.layout import encode_batch
from broker.log.kafka.retention import Sizes
from broker.log.port import Appended, Entry, Record, Retention
from core.errors import PenstockError
from tests.conformance.event_log import BROKER, entry
from tests.support.virtual_time import run_virtual

TOPIC = "events"


class Partition(Connection):
    """A partition of eight events, 1 to 8; its leader tells those up to `told`, and keeps those after `start`."""

    def __init__(self) -> None:
        super().__init__("localhost:9092")
        self.told = 8
        self.start = 0
        #: Refuses as out of range what it does not tell, as a leader does that has not even got it.
        self.refuses = False

    async def fetch(self, topics: Mapping[str, int], *, max_bytes: int, wait_s: float = 0.0) -> dict[str, Fetched]:
        offset = topics[TOPIC]
        if offset < self.start or (self.refuses and offset >= self.told):
            raise OffsetOutOfRangeError
        data = encode_batch(stored(seq) for seq in range(1, self.told + 1)) if offset < self.told else b""
        return {TOPIC: Fetched(data, self.told, self.start)}

    async def offset(self, topic: str, time_ms: int) -> int:
        return self.start if time_ms == EARLIEST else self.told


def stored(seq: int) -> tuple[bytes, bytes, int]:
    return BROKER.encode(), encode_entry(entry(str(seq))), 1000


@pytest.fixture
def partition() -> Partition:
    return Partition()


class Process:
    """A process that has heard positions 1 to 5, with what its listener and its senders are told from then on."""

    def __init__(self, partition: Partition, *, listens: bool = True) -> None:
        self.heard: list[int] = []
        self.answered: list[int] = []
        self.hearing = Hearing("localhost:9092", partition, TOPIC, Retention())
        self.hearing.sizes = Sizes(start=0, end=5, size=0, largest=1000)
        self.hearing.last = 5
        if listens:
            self.hearing.tell(lambda record: self.heard.append(record.seq))

    async def append(self, seq: int) -> None:
        """Tell of an event of its own that got this position."""
        events: list[tuple[Entry, Appended]] = [(entry(str(seq)), self._answer)]
        async with self.hearing.lock:
            await self.hearing.tell_own(events, seq)

    def _answer(self, result: Record | PenstockError) -> None:
        assert isinstance(result, Record)
        self.answered.append(result.seq)


@pytest.mark.parametrize("refuses", [False, True])
def test_what_others_appended_before_is_heard_later_where_a_new_leader_does_not_tell_it_yet(
    partition: Partition, refuses: bool
):
    async def main() -> None:
        process = Process(partition)
        partition.told, partition.refuses = 5, refuses
        await process.append(7)
        assert process.answered == [7]  # it is stored, whatever else is heard
        assert (process.heard, process.hearing.last) == ([], 5)
        partition.told = 7
        await process.append(8)
        assert process.answered == [7, 8]
        assert process.heard == [6, 7, 8]

    run_virtual(main())


@pytest.mark.parametrize("listens", [True, False])
def test_the_events_sizes_are_counted_where_events_are_heard_and_forgotten_and_not_where_they_are_only_taken(
    partition: Partition, listens: bool
):
    async def main() -> None:
        process = Process(partition, listens=listens)
        await process.append(6)
        assert process.answered == [6]
        assert (process.hearing.sizes.after(5) > 0) is listens

    run_virtual(main())


def test_what_is_told_after_a_moment_is_waited_for(partition: Partition):
    async def main() -> None:
        process = Process(partition)
        partition.told = 6
        asyncio.get_running_loop().call_later(0.2, setattr, partition, "told", 7)
        await process.append(8)
        assert process.heard == [6, 7, 8]

    run_virtual(main())


def test_what_was_removed_before_it_was_heard_is_passed(partition: Partition):
    async def main() -> None:
        process = Process(partition)
        partition.start = 6
        await process.append(8)
        assert process.heard == [7, 8]

    run_virtual(main())


@pytest.mark.parametrize("refuses", [False, True])
def test_an_event_that_is_not_told_now_is_not_taken_for_one_that_is_gone(partition: Partition, refuses: bool):
    async def main() -> None:
        partition.told, partition.refuses = 5, refuses
        with pytest.raises(LeaderNotAvailableError):
            await reading.pick(partition, TOPIC, BROKER, (4, 6), 8)
        with pytest.raises(LeaderNotAvailableError):
            await reading.page(partition, TOPIC, BROKER, 5, 10, 8)
        partition.told, partition.start = 8, 4
        assert [record.seq for record in (await reading.pick(partition, TOPIC, BROKER, (4, 6), 8)).records] == [6]

    run_virtual(main())
