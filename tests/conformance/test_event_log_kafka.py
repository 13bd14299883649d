"""The EventLog suite on Apache Kafka, several processes that share a log, and what only this log can show."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.record.memory_records import MemoryRecords

from broker.ledger import Attempt
from broker.log.kafka.batch import Batch
from broker.log.kafka.connection import Connection
from broker.log.kafka.layout import FORMAT_KEY, Said, Topics, encode_batch, encode_said, member_key, stored_in
from broker.log.kafka.leases import RENEW_S
from broker.log.kafka.log import KafkaLog
from broker.log.kafka.query import KafkaReader
from broker.log.kafka.state import LEASE_S
from broker.log.port import EventLog, LogFull, Position, Retention
from broker.log.query import Slice
from core.errors import Unavailable
from tests.conformance.event_log import (
    BROKER,
    DAYS_8,
    DEADLINE_S,
    DurableLogSuite,
    EventLogSuite,
    append,
    entry,
    ids,
    pick,
    read,
)
from tests.conformance.log_query import LogQuerySuite, ask, names
from tests.conformance.shared_log import SharedLogSuite, claim, until
from tests.support.kafka.server import KafkaServer

pytestmark = pytest.mark.service("kafka")

T = TypeVar("T")

_NUMBERS = itertools.count(1)


class Logs:
    """Logs of one name in one Kafka, as several processes have them. Closes what it opened and removes the topics."""

    takeover_s = LEASE_S + 2 * RENEW_S

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.name = f"penstock-test-{os.getpid()}-{next(_NUMBERS)}"
        self.topics = Topics.of(self.name)
        self.kafka = Connection(servers)
        self._open: list[KafkaLog] = []

    async def open(self, owner: str = "first", retention: Retention | None = None) -> KafkaLog:
        log = KafkaLog(self.servers, owner=owner, name=self.name, retention=retention)
        await log.open()
        self._open.append(log)
        return log

    async def close(self, log: KafkaLog) -> None:
        self._open.remove(log)
        await log.close()

    async def start(self, name: str) -> KafkaLog:
        return await self.open(name)

    async def stop(self, log: EventLog) -> None:
        assert isinstance(log, KafkaLog)
        await self.close(log)

    async def kill(self, log: EventLog) -> None:
        assert isinstance(log, KafkaLog)
        self._open.remove(log)
        for task in (*log._tasks, *log._reads):  # what a process that is gone does: nothing more
            task.cancel()
        await asyncio.wait((*log._tasks, *log._reads))
        await log._disconnect()

    async def end(self) -> None:
        for log in tuple(self._open):
            await self.close(log)
        await self.kafka.close()
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        await admin.delete_topics([self.topics.events, self.topics.ledger, self.topics.state])
        await admin.close()


@pytest.fixture
async def logs(kafka_servers: str) -> AsyncIterator[Logs]:
    held = Logs(kafka_servers)
    yield held
    await held.end()


class TestKafkaLog(EventLogSuite, DurableLogSuite):
    @pytest.fixture
    async def log(self, logs: Logs) -> KafkaLog:
        return await logs.open()

    @pytest.fixture
    def reopen(self, logs: Logs, log: KafkaLog) -> Callable[[], Awaitable[EventLog]]:
        async def again() -> EventLog:
            await logs.close(log)
            return await logs.open()

        return again


class TestKafkaReader(LogQuerySuite):
    @pytest.fixture
    async def log(self, logs: Logs) -> KafkaLog:
        return await logs.open()

    @pytest.fixture
    def reader(self, logs: Logs, tmp_path: Path) -> Iterator[KafkaReader]:
        reader = KafkaReader(logs.servers, name=logs.name, directory=tmp_path)
        yield reader
        reader.close()

    async def test_a_log_that_nobody_made_yet_is_empty(self, logs: Logs, tmp_path: Path):
        reader = KafkaReader(logs.servers, name=f"{logs.name}-none", directory=tmp_path)
        assert await ask(lambda: reader.newest(10)) == Slice((), 0)
        await asyncio.to_thread(reader.close)

    async def test_the_copy_goes_on_where_it_was_and_loses_what_the_log_has_removed(
        self, logs: Logs, log: KafkaLog, tmp_path: Path
    ):
        before = KafkaReader(logs.servers, name=logs.name, directory=tmp_path)
        await append(log, entry("a"), entry("b", at=1000.0 + DAYS_8))
        assert names(await ask(lambda: before.newest(10))) == ["a", "b"]
        await asyncio.to_thread(before.close)
        await log.retain(1000.0 + DAYS_8)
        await append(log, entry("c"))
        after = KafkaReader(logs.servers, name=logs.name, directory=tmp_path)
        assert names(await ask(lambda: after.newest(10))) == ["b", "c"]
        assert await ask(lambda: after.by_id("a")) == ()
        await asyncio.to_thread(after.close)

    async def test_a_changed_record_is_told_as_corrupt(self, logs: Logs, log: KafkaLog, reader: KafkaReader):
        await append(log, entry("a"))
        topic = logs.topics.events
        (stored,) = stored_in((await logs.kafka.fetch({topic: 0}, max_bytes=1024 * 1024))[topic].data, 0)
        changed = (stored.value or b"").replace(b"test", b"tesT")
        await logs.kafka.produce({topic: encode_batch([(stored.key, changed, stored.time_ms)])})
        assert names(await ask(lambda: reader.newest(10))) == ["a", "corrupt"]


class TestSharing(SharedLogSuite):
    @pytest.fixture
    def processes(self, logs: Logs) -> Logs:
        return logs

    async def test_a_process_that_lost_its_claim_is_told_and_keeps_nothing_more(self, logs: Logs):
        first, second = await logs.open("first"), await logs.open("second")
        heard: list[str] = []
        claim(first, "uid-1", "first", heard)
        await until(lambda: heard == ["first"])
        await append(first, *(entry(str(n)) for n in range(3)))
        stale = first.subscribe("uid-1", BROKER, "default/one", 1)
        await first.flush()
        # As if it had said nothing for too long.
        said = encode_batch([(member_key("first"), encode_said(Said("another life")), 0)])
        await logs.kafka.produce({logs.topics.state: said})
        claim(second, "uid-1", "second", heard)
        stale.skip(2)
        await first.flush()
        await until(lambda: {"second", "first lost"} <= set(heard))
        assert heard[0] == "first"
        stale.skip(3)
        await first.flush()
        assert second.subscribe("uid-1", BROKER, "default/one", 99).position().through < 3


class TestKafkaAlone:
    """What the suite cannot ask of every log."""

    async def test_events_of_one_turn_are_one_batch(self, logs: Logs):
        log = await logs.open()
        await append(log, *(entry(str(n)) for n in range(50)))
        data = (await logs.kafka.fetch({logs.topics.events: 0}, max_bytes=1024 * 1024))[logs.topics.events].data
        batches = MemoryRecords(data)
        batches.next_batch()
        assert not batches.has_next()

    async def test_a_changed_record_is_told_as_corrupt_and_never_read(self, logs: Logs):
        log = await logs.open()
        (first,) = await append(log, entry("a"))
        topic = logs.topics.events
        (stored,) = stored_in((await logs.kafka.fetch({topic: 0}, max_bytes=1024 * 1024))[topic].data, 0)
        assert stored.value is not None
        for value in (stored.value.replace(b"test", b"tesT"), stored.value):
            await logs.kafka.produce({topic: encode_batch([(stored.key, value, stored.time_ms)])})
        await until(lambda: log.last() == first.seq + 2)
        page = await read(log)
        assert [record.seq for record in page.records] == [first.seq, first.seq + 2]
        assert page.corrupt == (first.seq + 1,)

    async def test_more_than_the_largest_size_goes_from_the_oldest_on_also_what_nobody_took(self, logs: Logs):
        log = await logs.open(retention=Retention(max_bytes=50_000))
        log.tail(lambda record: None)  # as who delivers, and forgets, does
        records = await append(log, *(entry(str(n), data=bytes(20_000)) for n in range(5)))
        log.note(Attempt(records[0].seq, "uid-1", 1000.0, 1, 500, 0.1, "dropped", "gone"))
        await log.flush()
        assert await log.retain(1000.0) == 3
        assert ids(await read(log)) == ["3", "4"]

    async def test_a_full_log_refuses_events_and_keeps_positions(self, logs: Logs):
        log = await logs.open(retention=Retention(full_bytes=100_000))
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        kept: list[str] = []
        for n in range(100):
            try:
                (record,) = await append(log, entry(str(n), data=bytes(20_000)))
            except LogFull:
                break
            kept.append(str(n))
            subscription.take(record.seq)
        assert 0 < len(kept) < 10
        assert ids(await read(log)) == kept
        subscription.ack(1)
        await log.flush()
        await logs.close(log)
        again = await logs.open()
        assert again.subscribe("uid-1", BROKER, "default/one", 99).position().open == tuple(range(2, len(kept) + 1))

    async def test_a_log_whose_writer_ended_by_a_fault_keeps_nobody_waiting(
        self, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ):
        async def fail(batch: Batch) -> None:
            raise ValueError("a fault of ours")

        log = await logs.open("other")
        monkeypatch.setattr(log, "_store", fail)
        log.subscribe("uid-1", BROKER, "default/one", 0)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Unavailable, match="ended by a fault"):
                await log.flush()
            await log.failed()
            with pytest.raises(Unavailable, match="ended by a fault"):
                await log.flush()
            await logs.close(log)

    async def test_a_log_of_another_format_is_refused(self, logs: Logs):
        await logs.close(await logs.open())
        await logs.kafka.produce({logs.topics.state: encode_batch([(FORMAT_KEY, b"99", 0)])})
        with pytest.raises(Unavailable, match="format b'99'"):
            await logs.open()

    async def test_a_topic_with_several_partitions_is_refused(self, logs: Logs):
        admin = AIOKafkaAdminClient(bootstrap_servers=logs.servers)
        await admin.start()
        await admin.create_topics([NewTopic(logs.topics.events, 3, 1)])
        await admin.close()
        with pytest.raises(Unavailable, match="3 partitions; the event log needs one"):
            await logs.open()

    async def test_a_position_beyond_the_end_of_a_log_that_lost_events_is_taken_up_at_its_end(self, logs: Logs):
        log = await logs.open()
        await append(log, entry("a"))
        log.subscribe("uid-1", BROKER, "default/one", 100)
        await log.flush()
        granted = asyncio.Event()
        again = await logs.open("second")
        again.claim("uid-1", granted.set, lambda: None, lambda: None)
        async with asyncio.timeout(DEADLINE_S):
            await granted.wait()
        assert again.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(1)

    async def test_what_is_open_is_found_by_a_process_that_had_not_heard_of_it(self, logs: Logs):
        first, second = await logs.open("first"), await logs.open("second")
        second.tail(lambda _: None)
        (follower,) = (task for task in second._tasks if task.get_name() == "event log follower")
        follower.cancel()  # as slow as can be
        await asyncio.wait([follower])
        heard: list[str] = []
        claim(first, "uid-1", "first", heard)
        await until(lambda: heard == ["first"])
        subscription = first.subscribe("uid-1", BROKER, "default/one", 0)
        for record in await append(first, entry("a"), entry("b")):
            subscription.take(record.seq)
        subscription.keep()
        await first.flush()
        first.release("uid-1")
        claim(second, "uid-1", "second", heard)
        await until(lambda: heard == ["first", "second"])
        opened = second.subscribe("uid-1", BROKER, "default/one", 0).position().open
        assert ids(await pick(second, opened)) == ["a", "b"]

    async def test_the_topics_have_the_settings_that_the_log_rests_on(self, logs: Logs):
        await logs.open()
        admin = AIOKafkaAdminClient(bootstrap_servers=logs.servers)
        await admin.start()
        told = {}
        for topic in (logs.topics.events, logs.topics.state):
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            told[topic] = {row[0]: row[1] for row in answer.resources[0][4]}
        await admin.close()
        assert told[logs.topics.events]["retention.ms"] == "-1"
        assert told[logs.topics.events]["flush.messages"] == "1", "on one broker only the disk keeps an event"
        assert told[logs.topics.events]["cleanup.policy"] == "delete"
        assert told[logs.topics.state]["cleanup.policy"] == "compact"
        assert told[logs.topics.state]["message.timestamp.type"] == "LogAppendTime"


@pytest.mark.service("kafka", own=True)
class TestLosingKafka:
    """A Kafka of the test's own, which goes away and comes back."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[KafkaServer]:
        server = KafkaServer(tmp_path / "kafka")
        server.start()
        yield server
        server.kill()

    @pytest.fixture
    async def log(self, server: KafkaServer) -> AsyncIterator[KafkaLog]:
        log = KafkaLog(server.servers, owner="first")
        await log.open()
        yield log
        await log.close()

    async def test_nothing_acknowledged_is_lost_when_kafka_is_killed_and_the_log_goes_on_after(
        self, server: KafkaServer, log: KafkaLog
    ):
        subscription = log.subscribe("uid-1", BROKER, "default/one", 0)
        (record,) = await append(log, entry("before"))
        subscription.take(record.seq)
        server.kill()
        with pytest.raises(Unavailable):
            await append(log, entry("refused"))
        with pytest.raises(Unavailable):
            await read(log)
        subscription.ack(record.seq)
        with pytest.raises(Unavailable):
            await log.flush()
        await asyncio.to_thread(server.start)
        (later,) = await _patiently(lambda: append(log, entry("after")))
        assert later.seq > record.seq
        assert ids(await read(log)) == ["before", "after"]
        await _patiently(log.flush)
        again = KafkaLog(server.servers, owner="first")
        await again.open()
        assert again.subscribe("uid-1", BROKER, "default/one", 99).position() == Position(record.seq)
        await again.close()

    async def test_a_log_whose_kafka_has_lost_events_ends_so_that_its_process_starts_anew(
        self, server: KafkaServer, log: KafkaLog
    ):
        await append(log, *(entry(str(n)) for n in range(3)))
        admin = AIOKafkaAdminClient(bootstrap_servers=server.servers)
        await admin.start()
        await admin.delete_topics([Topics.of("penstock").events])
        await admin.close()
        anew = KafkaLog(server.servers, owner="second")
        await _patiently(anew.open)
        async with asyncio.timeout(3 * DEADLINE_S):
            await log.failed()
        await anew.close()

    async def test_a_claim_is_lost_while_kafka_is_silent_and_granted_again(self, server: KafkaServer, log: KafkaLog):
        heard: list[str] = []
        claim(log, "uid-1", "granted", heard)
        await until(lambda: heard == ["granted"])
        server.pause()
        await until(lambda: "granted lost" in heard)
        server.resume()
        await until(lambda: len(heard) == 3)
        assert heard == ["granted", "granted lost", "granted"]

    async def test_without_kafka_the_log_says_what_to_do(self, server: KafkaServer):
        server.kill()
        with pytest.raises(Unavailable, match=r"Kafka at 127.0.0.1:\d+ cannot be used.*--kafka-servers"):
            await KafkaLog(server.servers, owner="first").open()


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Its result once it is not refused any more."""
    async with asyncio.timeout(3 * DEADLINE_S):
        while True:
            try:
                return await work()
            except Unavailable:
                await asyncio.sleep(0.01)
