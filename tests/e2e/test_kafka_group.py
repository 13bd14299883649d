"""KafkaSource on a real Kafka: what is told, from where on, in which order, and what a restart of either side costs."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from sources.checkpoints import MemoryCheckpoints
from sources.kafka.member import LEAVE_WITHIN_S, connect
from sources.kafka.reading import LAST_COMMIT_S
from sources.kafka.resources import KafkaSourceSpec
from sources.kafka.source import KafkaSource
from sources.port import Refused
from tests.support.kafka.server import KafkaServer
from tests.support.sources import RecordingContext, Rig, running

pytestmark = [pytest.mark.e2e, pytest.mark.service("kafka")]
#: Kafka's own pauses: a member that was killed is missed after six seconds, a broker is back after some.
DEADLINE_S = 90.0


class Bench:
    """A Kafka, and names in it that no other test uses."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.group = f"group-{uuid.uuid4()}"
        self.checkpoints = MemoryCheckpoints()

    def topic(self) -> str:
        return f"topic-{uuid.uuid4()}"

    async def create(self, partitions: int = 1) -> str:
        topic = self.topic()
        await self.create_named(topic, partitions)
        return topic

    async def create_named(self, topic: str, partitions: int = 1) -> None:
        async with self.admin() as admin:
            await admin.create_topics([NewTopic(topic, partitions, 1)])

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def produce(self, topic: str, *values: bytes, partition: int = 0, headers: Iterable[Any] = ()) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.servers, acks="all")
        await producer.start()
        try:
            for value in values:
                await producer.send_and_wait(topic, value, partition=partition, headers=list(headers))
        finally:
            await producer.stop()

    async def committed(self, topic: str, partition: int = 0) -> int | None:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.servers, group_id=self.group, enable_auto_commit=False)
        await consumer.start()
        try:
            found: int | None = await consumer.committed(TopicPartition(topic, partition))
            return found
        finally:
            await consumer.stop()

    def source(self, *topics: str, **spec: Any) -> Any:
        """What `running` needs to make a source of these topics."""
        wanted = KafkaSourceSpec(bootstrap_servers=(self.servers,), topics=topics, consumer_group=self.group, **spec)

        def make(context: RecordingContext) -> KafkaSource:
            return KafkaSource(context=context, spec=wanted, key_type="string", connect=connect)

        return make

    @asynccontextmanager
    async def reading(self, *topics: str, **spec: Any) -> AsyncIterator[Rig]:
        """A source of these topics that has said that it is ready."""
        context = RecordingContext(checkpoints=self.checkpoints)
        async with running(self.source(*topics, **spec), context, deadline_s=DEADLINE_S) as rig:
            await rig.until(lambda: "ready" in context.said)
            yield rig


@pytest.fixture
def bench(kafka_servers: str) -> Bench:
    return Bench(kafka_servers)


def values(rig: Rig) -> list[bytes | None]:
    return [event.data for event in rig.outlet.events]


def numbers(first: int, last: int) -> list[bytes]:
    return [str(number).encode() for number in range(first, last + 1)]


async def test_records_of_every_form_are_told_in_order(bench: Bench) -> None:
    topic = await bench.create()
    async with bench.reading(topic) as rig:
        await bench.produce(topic, b"plain", headers=[("trace", b"t1")])
        binary = {"ce_specversion": "1.0", "ce_id": "b", "ce_source": "/s", "ce_type": "binary"}
        await bench.produce(topic, b"binary", headers=[(name, text.encode()) for name, text in binary.items()])
        structured = {"specversion": "1.0", "id": "s", "source": "/s", "type": "structured", "data": {"n": 1}}
        content_type = ("content-type", b"application/cloudevents+json")
        await bench.produce(topic, json.dumps(structured).encode(), b"no event", headers=[content_type])
        await rig.until(lambda: len(rig.outlet.events) == 4)
    assert [event.type for event in rig.outlet.events] == [
        "dev.knative.kafka.event",
        "binary",
        "structured",
        "dev.knative.kafka.event",
    ]
    assert rig.outlet.events[0].attributes["kafkaheadertrace"] == "t1"
    assert rig.outlet.events[3].data == b"no event"
    assert "penstock_kafka_source_unreadable_records_total 1" in rig.context.metrics.expose()


async def test_a_source_begins_at_the_end_and_goes_on_where_it_was(bench: Bench) -> None:
    topic = await bench.create()
    await bench.produce(topic, b"before")
    async with bench.reading(topic) as rig:
        await bench.produce(topic, *numbers(1, 3))
        await rig.until(lambda: len(rig.outlet.events) == 3)
    assert await bench.committed(topic) == 4
    await bench.produce(topic, *numbers(4, 5))
    async with bench.reading(topic) as again:
        await again.until(lambda: len(again.outlet.events) == 2)
    assert values(rig) + values(again) == numbers(1, 5)


async def test_a_source_may_begin_at_the_beginning(bench: Bench) -> None:
    topic = await bench.create()
    await bench.produce(topic, *numbers(1, 3))
    async with bench.reading(topic, initial_offset="earliest") as rig:
        await rig.until(lambda: len(rig.outlet.events) == 3)
    assert values(rig) == numbers(1, 3)


async def test_what_is_written_between_ready_and_the_first_delivery_survives_a_stop(bench: Bench) -> None:
    topic = await bench.create()
    async with bench.reading(topic) as rig:
        rig.outlet.open.clear()
        await bench.produce(topic, *numbers(1, 2))
        await rig.until(lambda: len(rig.outlet.offered) == 1)
    assert values(rig) == []
    assert await bench.committed(topic) == 0
    async with bench.reading(topic) as again:
        await again.until(lambda: len(again.outlet.events) == 2)
    assert values(again) == numbers(1, 2)


async def test_a_partition_is_in_order_one_at_a_time_and_others_do_not_wait_for_it(bench: Bench) -> None:
    topic = await bench.create(partitions=3)
    async with bench.reading(topic) as rig:
        rig.outlet.open.clear()
        for partition in range(3):
            await bench.produce(topic, *numbers(1, 5), partition=partition)
        await rig.until(lambda: rig.outlet.under_way == 3)
        rig.outlet.open.set()
        await rig.until(lambda: len(rig.outlet.events) == 15)
        assert rig.outlet.most_under_way == 3
    for partition in range(3):
        told = [e.data for e in rig.outlet.events if str(e.subject).startswith(f"partition:{partition}#")]
        assert told == numbers(1, 5)


async def test_an_unordered_source_tells_what_is_behind_a_slow_event_and_saves_no_offset_beyond_it(
    bench: Bench,
) -> None:
    topic = await bench.create()
    async with bench.reading(topic, ordering="unordered") as rig:
        rig.outlet.holds = lambda event: event.data == b"3"
        await bench.produce(topic, *numbers(1, 40))
        await rig.until(lambda: len(rig.outlet.events) == 39)
    assert await bench.committed(topic) == 2
    async with bench.reading(topic, ordering="unordered") as again:
        await again.until(lambda: len(again.outlet.events) == 38)
    assert await bench.committed(topic) == 40
    assert set(values(rig)) | set(values(again)) == set(numbers(1, 40))


async def test_an_event_that_the_sink_refuses_does_not_hold_up_its_partition(bench: Bench) -> None:
    topic = await bench.create()
    async with bench.reading(topic) as rig:
        rig.outlet.error = Refused("no", status=400)
        await bench.produce(topic, b"refused")
        await rig.until(lambda: len(rig.outlet.offered) == 1)
        rig.outlet.error = None
        await bench.produce(topic, b"taken")
        await rig.until(lambda: len(rig.outlet.events) == 1)
    assert values(rig) == [b"taken"]
    assert await bench.committed(topic) == 2


async def test_a_topic_that_appears_later_is_told_from_its_beginning_also_after_a_stop(bench: Bench) -> None:
    there, missing = await bench.create(), bench.topic()
    context = RecordingContext(checkpoints=bench.checkpoints)
    async with running(bench.source(there, missing), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: "TopicMissing" in context.said)
        assert missing in context.messages[-1]
        await bench.produce(there, b"meanwhile")
        await rig.until(lambda: len(rig.outlet.events) == 1)
    await bench.create_named(missing)
    await bench.produce(missing, b"first")
    async with bench.reading(there, missing) as again:
        await again.until(lambda: len(again.outlet.events) == 1)
    assert values(rig) + values(again) == [b"meanwhile", b"first"]


async def test_a_topic_that_appears_while_the_source_runs_is_told_from_its_beginning(bench: Bench) -> None:
    missing = bench.topic()
    context = RecordingContext(checkpoints=bench.checkpoints)
    async with running(bench.source(missing), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: "TopicMissing" in context.said)
        await bench.create_named(missing)
        await bench.produce(missing, *numbers(1, 3))
        await rig.until(lambda: len(rig.outlet.events) == 3)
        await rig.until(lambda: context.said[-1] == "ready")
    assert values(rig) == numbers(1, 3)


async def test_partitions_that_are_added_are_told_from_their_beginning(bench: Bench) -> None:
    topic = await bench.create()
    async with bench.reading(topic) as rig:
        async with bench.admin() as admin:
            await admin.create_partitions({topic: NewPartitions(2)})
        await bench.produce(topic, *numbers(1, 3), partition=1)
        await rig.until(lambda: len(rig.outlet.events) == 3)
    assert values(rig) == numbers(1, 3)


async def test_members_share_the_partitions_and_tell_every_record(bench: Bench) -> None:
    topic = await bench.create(partitions=4)
    async with bench.reading(topic) as one, bench.reading(topic) as two:
        for partition in range(4):
            await bench.produce(topic, *numbers(1, 10), partition=partition)
        await both(one, two, 40)
        assert len(one.outlet.events) == len(two.outlet.events) == 20
    told = [(event.subject, event.data) for event in (*one.outlet.events, *two.outlet.events)]
    assert len(set(told)) == 40


async def test_what_a_member_had_under_way_when_it_left_is_told_by_the_other(bench: Bench) -> None:
    topic = await bench.create(partitions=2)
    async with bench.reading(topic) as stays:
        async with bench.reading(topic) as leaves:
            leaves.outlet.open.clear()
            for partition in range(2):
                await bench.produce(topic, *numbers(1, 5), partition=partition)
            await stays.until(lambda: len(stays.outlet.events) == 5)
            await leaves.until(lambda: len(leaves.outlet.offered) == 1)
        await stays.until(lambda: len(stays.outlet.events) == 10)
    assert leaves.outlet.events == []


async def test_servers_that_cannot_be_reached_are_named_with_what_to_do(bench: Bench) -> None:
    topic = bench.topic()
    bench.servers = "127.0.0.1:1"
    context = RecordingContext()
    async with running(bench.source(topic), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: "ConnectionFailed" in context.said)
    assert "127.0.0.1:1" in context.messages[0]
    assert "bootstrapServers" in context.messages[0]


async def test_a_source_of_no_consumers_takes_nothing(bench: Bench) -> None:
    topic = await bench.create()
    async with bench.reading(topic, consumers=0):
        await bench.produce(topic, b"x")
    assert await bench.committed(topic) is None


@pytest.mark.service("kafka", own=True)
async def test_kafka_may_be_killed_and_come_back_and_a_source_ends_soon_though_it_answers_nothing(
    tmp_path: Path,
) -> None:
    server = KafkaServer(tmp_path / "kafka")
    await asyncio.to_thread(server.start)
    try:
        bench = Bench(server.servers)
        topic = await bench.create(partitions=2)
        async with bench.reading(topic) as rig:
            for partition in range(2):
                await bench.produce(topic, *numbers(1, 20), partition=partition)
            await rig.until(lambda: len(rig.outlet.events) > 3)
            await asyncio.to_thread(server.kill)
            await rig.until(lambda: len(rig.context.said) > 1)
            assert rig.context.said[-1] == "ConnectionFailed"
            await asyncio.to_thread(server.start)
            for partition in range(2):
                await bench.produce(topic, *numbers(21, 40), partition=partition)
            await rig.until(lambda: len({event.subject for event in rig.outlet.events}) == 80)
            await rig.until(lambda: rig.context.said[-1] == "ready")
            server.pause()
            began_s = asyncio.get_running_loop().time()
        # It gives up; how soon on a busy machine is another matter.
        assert asyncio.get_running_loop().time() - began_s < 10 * (LEAVE_WITHIN_S + LAST_COMMIT_S)
        for partition in range(2):
            told = [e.data for e in rig.outlet.events if str(e.subject).startswith(f"partition:{partition}#")]
            assert list(dict.fromkeys(told)) == numbers(1, 40)
    finally:
        await asyncio.to_thread(server.kill)


async def both(one: Rig, two: Rig, number: int) -> None:
    """Wait until the two have told so many events."""
    async with asyncio.TaskGroup() as tasks:
        enough = lambda: len(one.outlet.events) + len(two.outlet.events) >= number  # noqa: E731 - one condition
        first = tasks.create_task(one.until(enough))
        second = tasks.create_task(two.until(enough))
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        one.context.changed.set()
        two.context.changed.set()
