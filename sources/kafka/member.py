"""Kafka by aiokafka: the adapter of `sources.kafka.port`.

Whatever the client cannot do is a `Trouble` with what to do about it. Its own log is silenced: while a broker is away
it has several lines a second, and what they come to is said once by the source.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

from sources.kafka.access import Access
from sources.kafka.port import Listener, Reach, Trouble
from sources.kafka.records import Place, Record

__all__ = ["connect"]

#: A broker that answers nothing for so long is away. Above how long a group's other members may take to give up theirs.
REQUEST_TIMEOUT_S: Final = 20.0
#: What is asked from time to time, and what a person waits for.
ASK_WITHIN_S: Final = 10.0
#: The group answers within the session of a member that has died; an older Kafka waits for its first members, too.
JOIN_WITHIN_S: Final = 60.0
#: Brokers' own least: a member that was killed is missed after this.
SESSION_S: Final = 6.0
HEARTBEAT_S: Final = 2.0
#: Members have this long to give up their partitions: `reading.REVOKED_GRACE_S` and a commit, with room.
REBALANCE_S: Final = 15.0
#: Partitions that are added to a topic are noticed within this.
METADATA_AGE_S: Final = 15.0
#: Attempts to reach a broker that is away.
RETRY_EVERY_S: Final = 0.5
#: How long a broker keeps a fetch open that finds nothing. Meanwhile the client fetches no partition of that broker
#: that was just read empty, so this is what a record may be late by; a shorter one costs more CPU while all is quiet.
FETCH_WAIT_S: Final = 0.2
#: How long a call to the client waits for records before it looks at its errors.
TAKE_WAIT_S: Final = 5.0
#: Leaving a group is a courtesy: without it the group misses us after a session.
LEAVE_WITHIN_S: Final = 3.0
#: How long nothing may be taken before the client leaves its group by itself. A sink may be away for days while we are
#: well, which the heartbeats say.
_IDLE_MS: Final = 2_000_000_000
#: Memory for what is fetched: of one partition, and of all of one broker's. A larger record is fetched alone.
PARTITION_BYTES: Final = 1024 * 1024
BROKER_BYTES: Final = 16 * 1024 * 1024

_LOGIN: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
_DENIED: Final = (GroupAuthorizationFailedError, TopicAuthorizationFailedError)


@asynccontextmanager
async def connect(access: Access, group: str) -> AsyncIterator[_Cluster]:
    """A `sources.kafka.port.Connect`."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    await _probe(access)
    client = AIOKafkaClient(**_options(access))
    try:
        with _trouble(access):
            await client.bootstrap()
        yield _Cluster(access, group, client)
    finally:
        await client.close()


async def _probe(access: Access) -> None:
    """Raise Trouble with the reason where no server can be reached; the client itself would not tell it."""
    found: list[tuple[str, Exception]] = []
    options = _options(access)
    del options["bootstrap_servers"], options["metadata_max_age_ms"], options["retry_backoff_ms"]
    for host, port, _ in collect_hosts(list(access.servers)):
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                connection = await create_conn(host, port, **options)
        except (OSError, KafkaError, TimeoutError) as error:
            found.append((f"{host}:{port}", error))
        else:
            connection.close()
            return
    raise _translated(access, found[0][1])


class _Cluster:
    """A `sources.kafka.port.Cluster`."""

    def __init__(self, access: Access, group: str, client: AIOKafkaClient) -> None:
        self._access = access
        self._group = group
        self._client = client

    async def missing(self, topics: Iterable[str]) -> frozenset[str]:
        wanted = list(topics)
        return frozenset(wanted) - (await self._partitions(wanted)).keys()

    async def _partitions(self, topics: list[str]) -> dict[str, list[TopicPartition]]:
        """The partitions of each of the topics that exists."""
        with _trouble(self._access):
            async with asyncio.timeout(ASK_WITHIN_S):
                request = MetadataRequest(topics, allow_auto_topic_creation=False)
                answer = await self._client.send(self._client.get_random_node(), request)
            found: dict[str, list[TopicPartition]] = {}
            for code, topic, _, partitions in answer.topics:
                if for_code(code) is TopicAuthorizationFailedError:
                    raise TopicAuthorizationFailedError(topic)
                if for_code(code) is not UnknownTopicOrPartitionError:
                    found[topic] = [TopicPartition(topic, partition) for _, partition, *_ in partitions]
        return found

    async def begin_at_end(self, topics: Iterable[str]) -> None:
        partitions = await self._partitions(list(topics))
        every = [place for found in partitions.values() for place in found]
        async with self._consumer() as consumer:
            with _trouble(self._access):
                async with asyncio.timeout(ASK_WITHIN_S):
                    await consumer.start()
                    consumer.assign(every)
                    saved = await asyncio.gather(*(consumer.committed(place) for place in every))
                    has = {place.topic for place, offset in zip(every, saved, strict=True) if offset is not None}
                    fresh = [place for place in every if place.topic not in has]
                    ends = await consumer.end_offsets(fresh) if fresh else {}
                    try:
                        await consumer.commit(ends) if ends else None
                    except CommitFailedError as error:
                        message = (
                            f"The consumer group {self._group} has members already, so the end of "
                            f"{', '.join(sorted({place.topic for place in fresh}))} cannot be saved as its offset. "
                            "Stop them, or set spec.initialOffset to earliest in a new source."
                        )
                        raise Trouble("GroupInUse", message) from error

    @asynccontextmanager
    async def join(self, topics: Iterable[str], listener: Listener) -> AsyncIterator[_Member]:
        async with self._consumer() as consumer:
            member = _Member(consumer, self._access)
            consumer.subscribe(topics=list(topics), listener=_Told(member, listener))
            with _trouble(self._access):
                async with asyncio.timeout(JOIN_WITHIN_S):
                    await consumer.start()
            yield member

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **_options(self._access),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=_ms(SESSION_S),
            heartbeat_interval_ms=_ms(HEARTBEAT_S),
            rebalance_timeout_ms=_ms(REBALANCE_S),
            max_poll_interval_ms=_IDLE_MS,
            fetch_max_wait_ms=_ms(FETCH_WAIT_S),
            max_partition_fetch_bytes=PARTITION_BYTES,
            fetch_max_bytes=BROKER_BYTES,
        )
        try:
            yield consumer
        finally:
            await _stop(consumer)


class _Member:
    """A `sources.kafka.port.Member`."""

    def __init__(self, consumer: AIOKafkaConsumer, access: Access) -> None:
        self._consumer = consumer
        self._access = access

    async def take(self, place: Place, limit: int) -> Sequence[Record]:
        partition = TopicPartition(place.topic, place.partition)
        while True:
            with _trouble(self._access):
                found = await self._consumer.getmany(partition, timeout_ms=_ms(TAKE_WAIT_S), max_records=limit)
            if found:
                return [_record(place, each) for each in found[partition]]

    async def commit(self, offsets: Mapping[Place, int]) -> bool:
        wanted = {TopicPartition(place.topic, place.partition): offset for place, offset in offsets.items()}
        with _trouble(self._access):
            try:
                await self._consumer.commit(wanted)
            except (CommitFailedError, IllegalStateError):
                return False
        return True

    async def reach(self) -> Mapping[Place, Reach]:
        with _trouble(self._access):
            async with asyncio.timeout(ASK_WITHIN_S):
                self._check_fetching()
                places = list(self._consumer.assignment())
                ends = await self._consumer.end_offsets(places) if places else {}
                try:
                    positions = await asyncio.gather(*(self._consumer.position(place) for place in places))
                except IllegalStateError:
                    return {}  # the group has just taken one
        return {
            Place(place.topic, place.partition): Reach(position, ends[place])
            for place, position in zip(places, positions, strict=True)
            if place in ends
        }

    def _check_fetching(self) -> None:
        """The client does not say when its fetching has ended by an error."""
        fetching = self._consumer._fetcher.error_future  # noqa: SLF001 - there is no other way to know
        if fetching.done() and not fetching.cancelled() and fetching.exception() is not None:
            raise fetching.exception()


class _Told(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Passes on what the group gives and takes."""

    def __init__(self, member: _Member, listener: Listener) -> None:
        self._member = member
        self._listener = listener

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._listener.revoked()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._listener.assigned(self._member, [Place(each.topic, each.partition) for each in assigned])


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and close; where Kafka does not answer, without its leave."""
    try:
        async with asyncio.timeout(LEAVE_WITHIN_S):
            await consumer.stop()
    except TimeoutError:
        await _abandon(consumer)
    except KafkaError:
        pass  # what it had failed at before has been told


async def _abandon(consumer: AIOKafkaConsumer) -> None:
    """End the client's tasks, which `stop` would wait for until Kafka answers."""
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001 - it has no other way to end
    tasks = [
        getattr(owner, name, None)
        for owner, name in (
            (coordinator, "_coordination_task"),
            (coordinator, "_heartbeat_task"),
            (coordinator, "_commit_refresh_task"),
            (fetcher, "_fetch_task"),
        )
    ]
    living = [task for task in tasks if task is not None and not task.done()]
    for task in living:
        task.cancel()
    if living:
        await asyncio.wait(living, timeout=LEAVE_WITHIN_S)
    await consumer._client.close()  # noqa: SLF001 - as above


def _record(place: Place, found: Any) -> Record:
    return Record(
        place=place,
        offset=found.offset,
        timestamp_ms=found.timestamp,
        key=found.key,
        value=found.value,
        headers=tuple((name, value or b"") for name, value in found.headers),
    )


def _options(access: Access) -> dict[str, Any]:
    """What the client is given to reach the brokers."""
    protocol = ("SASL_" if access.login else "") + ("SSL" if access.tls else "PLAINTEXT")
    options: dict[str, Any] = {
        "bootstrap_servers": list(access.servers),
        "security_protocol": protocol,
        "ssl_context": access.tls,
        "request_timeout_ms": _ms(REQUEST_TIMEOUT_S),
        "metadata_max_age_ms": _ms(METADATA_AGE_S),
        "retry_backoff_ms": _ms(RETRY_EVERY_S),
        "client_id": "penstock",
    }
    if access.login is not None:
        options |= {
            "sasl_mechanism": access.login.mechanism,
            "sasl_plain_username": access.login.user,
            "sasl_plain_password": access.login.password,
        }
    return options


@contextmanager
def _trouble(access: Access) -> Iterator[None]:
    """What the client raises, as what the port promises."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise _translated(access, error) from error


def _translated(access: Access, error: Exception) -> Trouble:
    servers = ", ".join(access.servers)
    # The client's own errors begin with their name; the machine's say more with it.
    said = str(error) if isinstance(error, KafkaError) else f"{type(error).__name__}: {error}"
    said = said.rstrip(".: ")
    if isinstance(error, _LOGIN):
        who = f"as {access.login.user} ({access.login.mechanism})" if access.login else "without a login"
        return Trouble("LoginFailed", f"Kafka at {servers} refuses us {who}: {said}. Correct spec.net.sasl's Secrets.")
    if isinstance(error, _DENIED):
        message = f"Kafka at {servers} denies what spec asks for: {said}. Grant Read on the topics and the group."
        return Trouble("AccessDenied", message)
    if isinstance(error, ssl.SSLError):
        return Trouble("TlsFailed", f"TLS with Kafka at {servers} fails: {said}. Correct spec.net.tls.")
    what = "Check that it runs, and spec.bootstrapServers"
    if not access.tls:
        what += "; a listener with TLS needs spec.net.tls"
    return Trouble("ConnectionFailed", f"Kafka at {servers} cannot be reached: {said}. {what}.")


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
