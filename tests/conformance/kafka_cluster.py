"""What every `sources.kafka.port.Cluster` does. An adapter's test class gives the `world` fixture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import pytest

from sources.kafka.port import Cluster, Member, Reach, Trouble
from sources.kafka.records import Place, Record

#: Kafka's own pauses, on a machine that is busy with something else.
DEADLINE_S = 60.0


class World(Protocol):
    """A Kafka with what is not the port's: topics are made and records written. Names are nobody else's."""

    def cluster(self) -> AsyncIterator[Cluster]: ...

    def topic(self) -> str: ...

    async def create(self, topic: str, partitions: int = 1) -> None: ...

    async def write(self, place: Place, *values: bytes) -> None: ...


class Recorder:
    """A `Listener` that keeps what it is told."""

    def __init__(self) -> None:
        self.ours: frozenset[Place] = frozenset()
        self.taken = 0
        self.changed = asyncio.Event()

    def assigned(self, member: Member, places: Iterable[Place]) -> None:
        self.ours = frozenset(places)
        self.changed.set()

    async def revoked(self) -> None:
        self.ours = frozenset()
        self.taken += 1

    async def until_ours(self, number: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.ours) != number:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def joined(cluster: Cluster, *topics: str) -> AsyncIterator[tuple[Member, Recorder]]:
    recorder = Recorder()
    async with cluster.join(topics, recorder) as member:
        yield member, recorder


async def taken(member: Member, place: Place, number: int) -> list[Record]:
    """That many of the next records."""
    found: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < number:
            found += await member.take(place, number - len(found))
    return found


class KafkaClusterSuite:
    """The promises of `sources.kafka.port`."""

    async def test_topics_that_do_not_exist_are_told_and_none_is_made_by_asking(self, world: World):
        there, absent = world.topic(), world.topic()
        await world.create(there)
        async with asynccontextmanager(world.cluster)() as cluster:
            for _ in range(2):
                assert await cluster.missing([there, absent]) == {absent}

    async def test_a_member_takes_its_partitions_records_in_order_up_to_a_limit(self, world: World):
        topic = world.topic()
        await world.create(topic, partitions=2)
        one, two = Place(topic, 0), Place(topic, 1)
        await world.write(one, b"a", b"b", b"c")
        await world.write(two, b"x")
        async with asynccontextmanager(world.cluster)() as cluster, joined(cluster, topic) as (member, recorder):
            assert recorder.ours == {one, two}
            async with asyncio.timeout(DEADLINE_S):
                first = await member.take(one, 2)
            assert [(record.offset, record.value) for record in first] == [(0, b"a"), (1, b"b")][: len(first)]
            rest = await taken(member, one, 3 - len(first))
            assert [record.value for record in (*first, *rest)] == [b"a", b"b", b"c"]
            assert [record.value for record in await taken(member, two, 1)] == [b"x"]

    async def test_who_takes_what_is_not_there_yet_waits_for_it(self, world: World):
        topic = world.topic()
        await world.create(topic)
        place = Place(topic, 0)
        async with asynccontextmanager(world.cluster)() as cluster, joined(cluster, topic) as (member, _):
            taking = asyncio.create_task(taken(member, place, 1))
            await world.write(place, b"late")
            (record,) = await taking
            assert record.value == b"late"
            assert record.place == place

    async def test_the_next_member_goes_on_after_what_was_committed(self, world: World):
        topic = world.topic()
        await world.create(topic)
        place = Place(topic, 0)
        await world.write(place, b"a", b"b", b"c")
        async with asynccontextmanager(world.cluster)() as cluster:
            async with joined(cluster, topic) as (member, _):
                await taken(member, place, 3)
                assert await member.commit({place: 1})
            async with joined(cluster, topic) as (member, _):
                assert [record.value for record in await taken(member, place, 2)] == [b"b", b"c"]

    async def test_what_is_not_ours_is_not_committed(self, world: World):
        topic = world.topic()
        await world.create(topic)
        async with asynccontextmanager(world.cluster)() as cluster, joined(cluster, topic) as (member, _):
            assert not await member.commit({Place(topic, 7): 1})

    async def test_a_group_begins_at_the_end_where_that_was_said_and_only_once(self, world: World):
        topic = world.topic()
        await world.create(topic)
        place = Place(topic, 0)
        await world.write(place, b"before")
        async with asynccontextmanager(world.cluster)() as cluster:
            await cluster.begin_at_end([topic])
            await world.write(place, b"between")
            await cluster.begin_at_end([topic])
            async with joined(cluster, topic) as (member, _):
                assert [record.value for record in await taken(member, place, 1)] == [b"between"]

    async def test_the_end_is_not_saved_over_the_head_of_a_member(self, world: World):
        topic, other = world.topic(), world.topic()
        await world.create(topic)
        await world.create(other)
        async with asynccontextmanager(world.cluster)() as cluster, joined(cluster, topic):
            with pytest.raises(Trouble) as raised:
                await cluster.begin_at_end([other])
            assert raised.value.reason == "GroupInUse"

    async def test_members_share_the_partitions_and_one_that_leaves_gives_its_own_back(self, world: World):
        topic = world.topic()
        await world.create(topic, partitions=2)
        async with asynccontextmanager(world.cluster)() as cluster, joined(cluster, topic) as (_, stays):
            assert len(stays.ours) == 2
            async with joined(cluster, topic) as (_, leaves):
                await stays.until_ours(1)
                await leaves.until_ours(1)
                assert not stays.ours & leaves.ours
                assert stays.taken >= 1
            await stays.until_ours(2)

    async def test_a_member_knows_where_its_partitions_are_read_and_end(self, world: World):
        topic = world.topic()
        await world.create(topic)
        place = Place(topic, 0)
        await world.write(place, b"a", b"b", b"c")
        async with asynccontextmanager(world.cluster)() as cluster, joined(cluster, topic) as (member, _):
            await taken(member, place, 1)
            assert await member.reach() == {place: Reach(1, 3)}
