"""What is needed of Kafka: a cluster, and a member of a consumer group in it.

The adapter is `sources.kafka.member`, the fake `tests.support.kafka_cluster`; `tests.conformance.kafka_cluster` holds
both to what is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from core.errors import Unavailable
from sources.kafka.access import Access
from sources.kafka.records import Place, Record

__all__ = ["Cluster", "Connect", "Listener", "Member", "Reach", "Trouble"]


class Trouble(Unavailable):
    """Kafka cannot be used now. `reason` is the CamelCase word for the condition; the text says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Reach(msgspec.Struct, frozen=True):
    """Where a partition is read: the next record's offset, and the one that the next record written will get."""

    position: int
    end: int


class Listener(Protocol):
    """Who is told what the group gives us. A group gives and takes all partitions at once."""

    def assigned(self, member: Member, places: Iterable[Place]) -> None:
        """These are ours from now on, and no other. Must not raise."""
        ...

    async def revoked(self) -> None:
        """None is ours any more. Returns when nothing is under way; the group waits for it. Must not raise."""
        ...


class Member(Protocol):
    """Our membership in a group. All methods raise Trouble; those that ask Kafka something do so within seconds."""

    async def take(self, place: Place, limit: int) -> Sequence[Record]:
        """The next records of a partition that is ours, up to `limit`, in order; waits for the first."""
        ...

    async def commit(self, offsets: Mapping[Place, int]) -> bool:
        """Save these offsets of partitions that are ours. False where the group has taken them from us meanwhile, and
        nothing was saved. Waits for as long as Kafka is away."""
        ...

    async def reach(self) -> Mapping[Place, Reach]:
        """Where each partition of ours is read, and ends."""
        ...


class Cluster(Protocol):
    """A connection to the brokers. All methods raise Trouble, within seconds."""

    async def missing(self, topics: Iterable[str]) -> frozenset[str]:
        """Those of the topics that do not exist; none is made by asking."""
        ...

    async def begin_at_end(self, topics: Iterable[str]) -> None:
        """Save the ends of these topics' partitions as the group's offsets, for each topic of which it has none.
        Everything that is written from now on will be read."""
        ...

    def join(self, topics: Iterable[str], listener: Listener) -> AbstractAsyncContextManager[Member]:
        """Be a member of the group while within the context; entered once the group has answered. A partition of
        which the group has no offset is read from its beginning."""
        ...


#: Connect to the brokers as a member-to-be of a group, while within the context. Entering raises Trouble.
Connect = Callable[[Access, str], AbstractAsyncContextManager[Cluster]]
