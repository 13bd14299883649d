"""Kafka and the tests' fake keep the promises of `sources.kafka.port`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sources.kafka.access import Access
from sources.kafka.member import connect
from sources.kafka.port import Cluster
from sources.kafka.records import Place
from tests.conformance.kafka_cluster import KafkaClusterSuite
from tests.support.kafka_cluster import KafkaCluster


class Fake:
    def __init__(self) -> None:
        self._kafka = KafkaCluster()

    async def cluster(self) -> AsyncIterator[Cluster]:
        async with self._kafka.connect(Access(servers=()), "group") as cluster:
            yield cluster

    def topic(self) -> str:
        return f"topic-{uuid.uuid4()}"

    async def create(self, topic: str, partitions: int = 1) -> None:
        self._kafka.create(topic, partitions)

    async def write(self, place: Place, *values: bytes) -> None:
        for value in values:
            self._kafka.write(place, value)


class Real:
    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._group = f"group-{uuid.uuid4()}"

    async def cluster(self) -> AsyncIterator[Cluster]:
        async with connect(Access(servers=(self._servers,)), self._group) as cluster:
            yield cluster

    def topic(self) -> str:
        return f"topic-{uuid.uuid4()}"

    async def create(self, topic: str, partitions: int = 1) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, partitions, 1)])
        finally:
            await admin.close()

    async def write(self, place: Place, *values: bytes) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._servers, acks="all")
        await producer.start()
        try:
            for value in values:
                await producer.send_and_wait(place.topic, value, partition=place.partition)
        finally:
            await producer.stop()


class TestFake(KafkaClusterSuite):
    @pytest.fixture
    def world(self) -> Fake:
        return Fake()


@pytest.mark.service("kafka")
class TestKafka(KafkaClusterSuite):
    @pytest.fixture
    def world(self, kafka_servers: str) -> Real:
        return Real(kafka_servers)
