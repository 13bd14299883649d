"""A Kafka in memory for `sources.kafka.port`: topics, groups that rebalance, and an end of answering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from sources.kafka.access import Access
from sources.kafka.port import Listener, Reach, Trouble
from sources.kafka.records import Place, Record


class KafkaCluster:
    """One cluster with one group."""

    def __init__(self) -> None:
        self.written: dict[Place, list[Record]] = {}
        self.offsets: dict[Place, int] = {}
        self.commits: list[dict[Place, int]] = []
        self.connections = 0
        self.begun: list[str] = []
        #: While set, nothing is answered that asks, and what waits goes on waiting.
        self.away = False
        #: The next `take` of each of these raises Trouble.
        self.broken: set[Place] = set()
        #: Members of others in the group, so that nothing can be saved from outside.
        self.in_use = False
        self._members: list[_Member] = []
        self._rebalancing = asyncio.Lock()
        self._changed = asyncio.Event()

    def create(self, topic: str, partitions: int = 1) -> None:
        for partition in range(partitions):
            self.written.setdefault(Place(topic, partition), [])

    def write(self, place: Place, value: bytes) -> None:
        records = self.written[place]
        offset = records[-1].offset + 1 if records else 0
        records.append(Record(place=place, offset=offset, value=value))
        self.change()

    def recreate(self, topic: str) -> None:
        """Delete the topic and make it anew; its offsets begin again, and readers are at the new beginning."""
        for place, records in self.written.items():
            if place.topic == topic:
                records.clear()
                for member in self._members:
                    member.positions.pop(place, None)
                self.offsets.pop(place, None)

    def change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    def end(self, place: Place) -> int:
        records = self.written[place]
        return records[-1].offset + 1 if records else 0

    def answer(self) -> None:
        if self.away:
            raise Trouble("ConnectionFailed", "The cluster is away.")

    @asynccontextmanager
    async def connect(self, access: Access, group: str) -> AsyncIterator[KafkaCluster]:
        self.answer()
        self.connections += 1
        yield self

    async def missing(self, topics: Iterable[str]) -> frozenset[str]:
        self.answer()
        return frozenset(topics) - {place.topic for place in self.written}

    async def begin_at_end(self, topics: Iterable[str]) -> None:
        self.answer()
        if self.in_use or self._members:
            raise Trouble("GroupInUse", "The group has members.")
        for topic in topics:
            self.begun.append(topic)
            places = [place for place in self.written if place.topic == topic]
            if not any(place in self.offsets for place in places):
                self.offsets |= {place: self.end(place) for place in places}

    @asynccontextmanager
    async def join(self, topics: Iterable[str], listener: Listener) -> AsyncIterator[_Member]:
        self.answer()
        member = _Member(self, frozenset(topics), listener)
        await self.rebalance(joining=member)
        try:
            yield member
        finally:
            if member in self._members:
                self._members.remove(member)
                member.ours = frozenset()
                await self.rebalance()

    async def rebalance(self, joining: _Member | None = None) -> None:
        """Take all partitions from their members and give them out anew, one time after the other."""
        async with self._rebalancing:
            await asyncio.gather(*(member.listener.revoked() for member in self._members))
            if joining is not None:
                self._members.append(joining)
            for member in self._members:
                member.ours = frozenset()
            for number, place in enumerate(sorted(self.written)):
                wanting = [member for member in self._members if place.topic in member.topics]
                if wanting:
                    owner = wanting[number % len(wanting)]
                    owner.ours |= {place}
            for member in self._members:
                member.positions = {place: self.offsets.get(place, 0) for place in member.ours}
                member.listener.assigned(member, sorted(member.ours))


class _Member:
    """A member of the group."""

    def __init__(self, cluster: KafkaCluster, topics: frozenset[str], listener: Listener) -> None:
        self.cluster = cluster
        self.topics = topics
        self.listener = listener
        self.ours: frozenset[Place] = frozenset()
        self.positions: dict[Place, int] = {}

    async def take(self, place: Place, limit: int) -> Sequence[Record]:
        while True:
            if place in self.cluster.broken:
                self.cluster.broken.discard(place)
                raise Trouble("ConnectionFailed", "The fetch failed.")
            position = self.positions.get(place, 0)
            found = [record for record in self.cluster.written[place] if record.offset >= position][:limit]
            if found and not self.cluster.away:
                self.positions[place] = found[-1].offset + 1
                return found
            await self.cluster.changed()

    async def commit(self, offsets: Mapping[Place, int]) -> bool:
        while self.cluster.away:
            await self.cluster.changed()
        if not offsets.keys() <= self.ours:
            return False
        self.cluster.offsets |= offsets
        self.cluster.commits.append(dict(offsets))
        return True

    async def reach(self) -> Mapping[Place, Reach]:
        self.cluster.answer()
        return {place: Reach(self.positions.get(place, 0), self.cluster.end(place)) for place in self.ours}
