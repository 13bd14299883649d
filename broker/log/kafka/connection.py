"""The client's connections, as the event log uses them: plain requests by topic, errors by what to do.

The log has one partition a topic and decides itself what is sent when, so the client's producer and consumer, which
buffer and retry behind one's back, are not used: a request here is one request to the partition's leader.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    BrokerResponseError,
    KafkaConnectionError,
    KafkaError,
    KafkaStorageError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    StaleMetadata,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest, DeleteRecordsRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.structs import TopicPartition

from broker.log.kafka.address import address_of
from broker.log.kafka.sizes import DescribeLogDirs, size_in
from broker.log.port import LogFull
from core.errors import Unavailable

__all__ = [
    "CONNECTION_ERRORS",
    "EARLIEST",
    "LATEST",
    "REQUEST_TIMEOUT_S",
    "RETRY_S",
    "Connection",
    "Fetched",
    "patiently",
    "reason",
    "unavailable",
]

T = TypeVar("T")

# It says each failed attempt as an error; the log says once an outage that Kafka is away.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

#: An answer takes the replicas' time and less than a second on a busy machine; who is silent for longer is away.
REQUEST_TIMEOUT_S: Final = 5.0
#: How long what was surely not done is tried again: a partition gets a new leader in about this time.
PATIENCE_S: Final = 2.0
RETRY_S: Final = 0.05
#: Written on every replica that is in sync.
ALL: Final = -1

#: What a request raises where Kafka is away, or refuses.
CONNECTION_ERRORS: Final = (KafkaError, OSError)
#: After these nothing was done.
_NOT_DONE: Final = (
    UnknownTopicOrPartitionError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    NotEnoughReplicasError,
    KafkaStorageError,
    NodeNotReadyError,
    StaleMetadata,
)

#: In place of a time: the oldest position that is kept, and the next one to be given.
EARLIEST: Final = -2
LATEST: Final = -1


class Fetched(msgspec.Struct, frozen=True):
    """What a partition holds from an offset on: `data` are whole batches but for the last, `end` the next offset to be
    given, `start` the oldest that is kept."""

    data: bytes
    end: int
    start: int


class Connection:
    """Connections of one kind of work to a cluster: what waits on them holds up nothing else."""

    def __init__(self, servers: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Raises ValueError where `servers` cannot be read."""
        self._address = address_of(servers)
        self._timeout_s = timeout_s
        self._topics: tuple[str, ...] = ()
        self._client: AIOKafkaClient | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    # ---- requests

    async def produce(self, batches: Mapping[str, bytes]) -> dict[str, int | KafkaError | OSError]:
        """Append to each topic its one batch; answers each one's first offset, or why it has none.

        Nothing is sent twice that may have been done.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        results: dict[str, int | KafkaError | OSError] = {}
        waiting = dict(batches)
        while waiting:
            for topic, result in (await self._produce_once(waiting)).items():
                results[topic] = result
            waiting = {topic: batches[topic] for topic in waiting if isinstance(results[topic], _NOT_DONE)}
            if not waiting or loop.time() > until_s:
                break
            await self._refresh()
            await asyncio.sleep(RETRY_S)
        return results

    async def fetch(self, topics: Mapping[str, int], *, max_bytes: int, wait_s: float = 0.0) -> dict[str, Fetched]:
        """What the topics hold from these offsets on, at least one batch where there is one; waits so long for one.

        All topics must have the same leader where there is more than one; else ask for each. Raises CONNECTION_ERRORS,
        OffsetOutOfRangeError among them.
        """
        answers = [
            await self._send_to(
                node,
                FetchRequest(
                    int(wait_s * 1000),
                    1,
                    max_bytes,
                    0,
                    [(topic, [(0, topics[topic], max_bytes)]) for topic in some],
                ),
            )
            for node, some in (await self._by_leader(topics)).items()
        ]
        found = {}
        for answer in answers:
            _check(answer.error_code if hasattr(answer, "error_code") else 0)
            for topic, partitions in answer.topics:
                for _, error, end, _, start, *_, data in partitions:
                    await self._checked(error)
                    found[topic] = Fetched(bytes(data or b""), end, start)
        return found

    async def offset(self, topic: str, time_ms: int) -> int:
        """The first offset whose record has that time or a later one, -1 for none; `EARLIEST`, `LATEST`."""
        node = await self._leader(topic)
        answer = await self._send_to(node, OffsetRequest(-1, 0, [(topic, [(0, time_ms)])]))
        ((_, ((_, error, _, offset),)),) = answer.topics
        await self._checked(error)
        return int(offset)

    async def delete_before(self, topic: str, offset: int) -> None:
        """Remove all records before the offset."""
        node = await self._leader(topic)
        request = DeleteRecordsRequest([(topic, [(0, offset)])], int(self._timeout_s * 1000))
        answer = await self._send_to(node, request)
        partitions = answer.topics[0][1]
        await self._checked(partitions[0][2])

    async def topics(self) -> dict[str, int]:
        """All topics with their number of partitions."""
        metadata = await (await self._opened()).fetch_all_metadata()
        return {topic: len(metadata.partitions_for_topic(topic) or ()) for topic in metadata.topics()}

    async def size(self, topic: str) -> int:
        """How much room it takes, in bytes."""
        return size_in(await self._send_to(await self._leader(topic), DescribeLogDirs(topic)))

    async def brokers(self) -> int:
        return len((await self._opened()).cluster.brokers())

    async def create(self, topic: str, replicas: int, settings: Mapping[str, str]) -> None:
        """Make a topic of one partition. Raises TopicAlreadyExistsError among CONNECTION_ERRORS."""
        client = await self._opened()
        request = CreateTopicsRequest(
            [(topic, 1, replicas, [], list(settings.items()))],
            int(self._timeout_s * 1000),
            False,
        )
        answer = await self._send_to(client.get_random_node(), request)
        for _, error, message in answer.topic_errors:
            if error:
                raise for_code(error)(message)

    async def know(self, topics: Iterable[str]) -> None:
        """Learn who leads these topics, which must exist."""
        self._topics = tuple(topics)
        await (await self._opened()).set_topics(self._topics)

    # ---- inside

    async def _opened(self) -> AIOKafkaClient:
        async with self._opening:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> AIOKafkaClient:
        address = self._address
        client = AIOKafkaClient(
            bootstrap_servers=list(address.servers),
            client_id="penstock",
            request_timeout_ms=int(self._timeout_s * 1000),
            security_protocol=address.protocol,
            ssl_context=ssl.create_default_context() if address.protocol.endswith("SSL") else None,
            sasl_mechanism=address.mechanism,
            sasl_plain_username=address.user,
            sasl_plain_password=address.password,
        )
        try:
            await client.bootstrap()
            if self._topics:
                await client.set_topics(self._topics)
        except KafkaConnectionError as error:
            await client.close()
            raise KafkaConnectionError("none of its servers answers") from error
        except BaseException:
            await client.close()
            raise
        return client

    async def _produce_once(self, batches: Mapping[str, bytes]) -> dict[str, int | KafkaError | OSError]:
        try:
            by_leader = await self._by_leader(batches)
        except CONNECTION_ERRORS as error:
            return dict.fromkeys(batches, error)
        answers = await asyncio.gather(
            *(self._produce_to(node, {topic: batches[topic] for topic in some}) for node, some in by_leader.items())
        )
        return {topic: result for answer in answers for topic, result in answer.items()}

    async def _produce_to(self, node: int, batches: Mapping[str, bytes]) -> dict[str, int | KafkaError | OSError]:
        topics = [(topic, [(0, batch)]) for topic, batch in batches.items()]
        try:
            answer = await self._send_to(node, ProduceRequest(None, ALL, int(self._timeout_s * 1000), topics))
        except CONNECTION_ERRORS as error:
            return dict.fromkeys(batches, error)
        return {
            topic: int(offset) if error == 0 else for_code(error)()
            for topic, partitions in answer.topics
            for _, error, offset, *_ in partitions
        }

    async def _send_to(self, node: int, request: Any) -> Any:
        client = await self._opened()
        try:
            return await client.send(node, request)
        except RuntimeError as error:  # what uvloop says of a transport that was closed meanwhile
            if isinstance(error, KafkaError):
                raise
            raise KafkaConnectionError(str(error)) from error

    async def _by_leader(self, topics: Iterable[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for topic in topics:
            found.setdefault(await self._leader(topic), []).append(topic)
        return found

    async def _leader(self, topic: str) -> int:
        client = await self._opened()
        partition = TopicPartition(topic, 0)
        node = client.cluster.leader_for_partition(partition)
        if node is None or node < 0:
            await self._refresh()
            node = client.cluster.leader_for_partition(partition)
        if node is None or node < 0:
            raise LeaderNotAvailableError(f"topic {topic} has no leader")
        return int(node)

    async def _refresh(self) -> None:
        """Ask anew who leads. Where none of the brokers that were there tells, begin anew with those that are named."""
        client = await self._opened()
        try:
            async with asyncio.timeout(self._timeout_s):
                told = await client.force_metadata_update()
        except TimeoutError:
            told = False
        if not told and self._client is client:
            await self.close()

    async def _checked(self, error: int) -> None:
        """Raises what an answer says; asks anew who leads where that may have changed."""
        if error:
            raised = for_code(error)()
            if isinstance(raised, _NOT_DONE):
                await self._refresh()
            raise raised


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Its result, asked again while Kafka finds a new leader."""
    until_s = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except _NOT_DONE:
            if asyncio.get_running_loop().time() > until_s:
                raise
            await asyncio.sleep(RETRY_S)


def _check(error: int) -> None:
    if error:
        raise for_code(error)()


def unavailable(error: BaseException) -> Unavailable:
    """What the platform says of an error of CONNECTION_ERRORS."""
    if isinstance(error, Unavailable):
        return error
    if isinstance(error, KafkaStorageError):
        return LogFull(f"The event log is full, or its disk is broken: {reason(error)}.")
    return Unavailable(f"The event log cannot be used now: {reason(error)}.")


def reason(error: BaseException) -> str:
    """In words, without the names that the client puts before them."""
    said = str(error.args[0]) if error.args and error.args[0] else ""
    if isinstance(error, BrokerResponseError):
        return f"Kafka answers {error.message}" + (f" ({said.rstrip('.')})" if said else "")
    return said.rstrip(".") or type(error).__name__
