"""KafkaSource on virtual time and a Kafka in memory: what is committed when, and what becomes of what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from core.errors import InvalidInput
from core.events import CloudEvent
from core.resources import ObjectMeta, Resource
from sources.checkpoints import MemoryCheckpoints
from sources.factories import FACTORIES
from sources.kafka.lane import MAX_AHEAD, UNORDERED_WINDOW
from sources.kafka.port import Reach
from sources.kafka.reading import COMMIT_EVERY_S, REVOKED_GRACE_S
from sources.kafka.records import Place
from sources.kafka.resources import KAFKA_SOURCE, KafkaSourceSpec, NetShape, SaslShape, SecretKey, SecretValue
from sources.kafka.source import CHECK_EVERY_S, RECONNECT_AFTER_S, KafkaSource
from sources.port import Refused
from tests.support import kafka_cluster
from tests.support.kafka_cluster import KafkaCluster
from tests.support.sources import Outlet, RecordingContext, Rig
from tests.support.sources import running as running_for
from tests.support.virtual_time import run_virtual

running = partial(running_for, deadline_s=86_400.0)
PLACE = Place("orders", 0)
OTHER = Place("orders", 1)


def source_of(cluster: KafkaCluster, *topics: str, **spec: object) -> Callable[[RecordingContext], KafkaSource]:
    def make(context: RecordingContext) -> KafkaSource:
        wanted = KafkaSourceSpec(bootstrap_servers=("kafka:9092",), topics=topics or ("orders",), **spec)  # type: ignore[arg-type]
        return KafkaSource(context=context, spec=wanted, key_type="string", connect=cluster.connect)

    return make


def cluster_of(partitions: int = 1) -> KafkaCluster:
    cluster = KafkaCluster()
    cluster.create("orders", partitions)
    return cluster


@asynccontextmanager
async def reading(cluster: KafkaCluster, *topics: str, **spec: object) -> AsyncIterator[Rig]:
    context = RecordingContext()
    async with running(source_of(cluster, *topics, **spec), context) as rig:
        await rig.until(lambda: "ready" in context.said)
        yield rig


def data(rig: Rig) -> list[str]:
    return [(event.data or b"").decode() for event in rig.outlet.events]


def write(cluster: KafkaCluster, first: int, last: int, place: Place = PLACE) -> None:
    for number in range(first, last + 1):
        cluster.write(place, str(number).encode())


def texts(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


def test_what_is_done_is_committed_soon_and_not_each_time() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            write(cluster, 1, 500)
            await rig.until(lambda: len(rig.outlet.events) == 500)
            await asyncio.sleep(COMMIT_EVERY_S * 2)
            assert cluster.offsets[PLACE] == 500
            assert len(cluster.commits) <= 3

    run_virtual(main())


def test_an_event_under_way_may_finish_when_its_partition_is_taken_away() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            rig.outlet.open.clear()
            write(cluster, 1, 2)
            await rig.until(lambda: rig.outlet.under_way == 1)
            taken = asyncio.create_task(cluster.rebalance())
            await asyncio.sleep(REVOKED_GRACE_S / 2)
            assert not taken.done()
            rig.outlet.open.set()
            await taken
            # Only what was under way: the next one is for whoever has the partition now.
            assert cluster.commits == [{PLACE: 1}]
            await rig.until(lambda: len(rig.outlet.events) == 2)
            assert len(rig.outlet.offered) == 2

    run_virtual(main())


def test_a_source_ends_even_where_a_failure_at_that_moment_hides_the_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        cluster, asked = cluster_of(), asyncio.Event()
        failing = asyncio.get_running_loop().create_future()

        async def reach(member: object) -> dict[Place, Reach]:
            """As the real one does: of several answers at once, a failure means that there is nothing to tell."""
            asked.set()
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(failing, asyncio.get_running_loop().create_future())
            return {}

        monkeypatch.setattr(kafka_cluster._Member, "reach", reach)
        context = RecordingContext()
        task = asyncio.create_task(source_of(cluster)(context).run(Outlet(context.changed).emit))
        await asked.wait()
        failing.set_exception(ConnectionError())
        task.cancel()
        await asyncio.wait([task], timeout=10 * CHECK_EVERY_S)
        assert task.cancelled()

    run_virtual(main())


def test_an_event_that_takes_longer_is_given_up_and_not_committed() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            rig.outlet.open.clear()
            write(cluster, 1, 1)
            await rig.until(lambda: rig.outlet.under_way == 1)
            began_s = asyncio.get_running_loop().time()
            await cluster.rebalance()
            assert asyncio.get_running_loop().time() - began_s == pytest.approx(REVOKED_GRACE_S)
            assert cluster.commits == []
            rig.outlet.open.set()
            await rig.until(lambda: len(rig.outlet.events) == 1)

    run_virtual(main())


def test_a_member_whose_partitions_are_gone_commits_nothing_of_them() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            rig.outlet.open.clear()
            write(cluster, 1, 1)
            await rig.until(lambda: rig.outlet.under_way == 1)
            cluster.offsets[PLACE] = 0
            (member,) = cluster._members
            member.ours = frozenset()  # another has it, and we have not heard yet
            rig.outlet.open.set()
            await rig.until(lambda: len(rig.outlet.events) == 1)
            await asyncio.sleep(1)
            assert cluster.offsets[PLACE] == 0

    run_virtual(main())


def test_at_the_end_what_is_done_is_committed_and_what_is_under_way_is_not_waited_for() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            write(cluster, 1, 1)
            await rig.until(lambda: len(rig.outlet.events) == 1)
            rig.outlet.open.clear()
            write(cluster, 2, 2)
            await rig.until(lambda: rig.outlet.under_way == 1)
            before_s = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() == before_s
        assert cluster.offsets[PLACE] == 1

    run_virtual(main())


def test_an_unordered_partition_has_a_bounded_number_under_way_and_ahead() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster, ordering="unordered") as rig:
            rig.outlet.holds = lambda event: event.data == b"1"
            write(cluster, 1, 2 * MAX_AHEAD)
            await asyncio.sleep(60)
            assert rig.outlet.most_under_way <= UNORDERED_WINDOW
            assert len(rig.outlet.offered) == MAX_AHEAD
            assert cluster.offsets[PLACE] == 0

    run_virtual(main())


def test_kafka_that_is_away_for_a_while_is_told_and_waited_for() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            write(cluster, 1, 1)
            await rig.until(lambda: len(rig.outlet.events) == 1)
            cluster.away = True
            await rig.until(lambda: rig.context.said[-1] == "ConnectionFailed")
            write(cluster, 2, 3)
            await asyncio.sleep(CHECK_EVERY_S)
            cluster.away = False
            cluster.change()
            await rig.until(lambda: len(rig.outlet.events) == 3)
            await rig.until(lambda: rig.context.said[-1] == "ready")
            assert cluster.connections == 1

    run_virtual(main())


def test_kafka_that_is_away_for_long_is_looked_for_anew() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            cluster.away = True
            await asyncio.sleep(RECONNECT_AFTER_S + 2 * CHECK_EVERY_S)
            cluster.away = False
            cluster.change()
            write(cluster, 1, 1)
            await rig.until(lambda: len(rig.outlet.events) == 1)
            assert cluster.connections == 2
            assert "ConnectionFailed" in rig.context.said

    run_virtual(main())


def test_a_fetch_that_fails_costs_repeated_events_and_no_record() -> None:
    async def main() -> None:
        cluster = cluster_of(partitions=2)
        async with reading(cluster) as rig:
            rig.outlet.holds = lambda event: event.data == b"held" and len(rig.outlet.offered) < 3
            cluster.write(OTHER, b"held")
            await rig.until(lambda: rig.outlet.under_way == 1)
            cluster.broken.add(PLACE)
            write(cluster, 1, 2)
            await rig.until(lambda: sorted(data(rig)) == ["1", "2", "held"])
            assert "ConnectionFailed" in rig.context.said
            assert cluster.connections == 2

    run_virtual(main())


def test_a_topic_that_is_made_anew_is_read_from_its_new_beginning() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            write(cluster, 1, 3)
            await rig.until(lambda: len(rig.outlet.events) == 3)
            await asyncio.sleep(1)
            cluster.recreate("orders")
            write(cluster, 4, 5)
            await rig.until(lambda: len(rig.outlet.events) == 5)
            await asyncio.sleep(1)
            assert cluster.offsets[PLACE] == 2

    run_virtual(main())


def test_a_group_in_use_is_told_and_waited_for() -> None:
    async def main() -> None:
        cluster, context = cluster_of(), RecordingContext()
        cluster.in_use = True
        async with running(source_of(cluster), context) as rig:
            await rig.until(lambda: context.said == ["GroupInUse"])
            cluster.in_use = False
            await rig.until(lambda: context.said[-1] == "ready")

    run_virtual(main())


def test_only_topics_that_are_seen_for_the_first_time_begin_at_their_end() -> None:
    async def main() -> None:
        cluster, checkpoints = cluster_of(), MemoryCheckpoints()
        for topics in (["orders"], ["orders", "later"], ["orders", "later"]):
            context = RecordingContext(checkpoints=checkpoints)
            async with running(source_of(cluster, *topics), context) as rig:
                await rig.until(lambda held=context: len(held.said) > 0)
            if "later" in topics:
                cluster.create("later")  # it was looked for before, and missed
            assert cluster.begun == ["orders"]
        # Kafka drops the offsets of a group that nobody uses; what it has is told again rather than skipped.
        cluster.offsets.clear()
        cluster.write(PLACE, b"meanwhile")
        context = RecordingContext(checkpoints=checkpoints)
        async with running(source_of(cluster), context) as rig:
            await rig.until(lambda: data(rig) == ["meanwhile"])

    run_virtual(main())


def test_a_secret_that_is_missing_is_told_and_waited_for() -> None:
    async def main() -> None:
        def value(key: str) -> SecretValue:
            return SecretValue(secret_key_ref=SecretKey(name="login", key=key))

        net = NetShape(sasl=SaslShape(enable=True, user=value("user"), password=value("password")))
        cluster, context = cluster_of(), RecordingContext()
        async with running(source_of(cluster, net=net), context) as rig:
            await rig.until(lambda: context.said == ["SecretMissing"])
            assert "login" in context.messages[0]
            context.secrets["login"] = {"user": b"me", "password": b"x"}
            await rig.until(lambda: context.said[-1] == "ready")

    run_virtual(main())


def test_the_lag_counts_what_is_not_delivered() -> None:
    async def main() -> None:
        cluster = cluster_of()
        async with reading(cluster) as rig:
            rig.outlet.open.clear()
            write(cluster, 1, 100)
            await asyncio.sleep(CHECK_EVERY_S + 1)
            line = 'penstock_kafka_source_lag{topic="orders",partition="0"} '
            assert line + "100" in rig.context.metrics.expose()
            rig.outlet.open.set()
            await rig.until(lambda: len(rig.outlet.events) == 100)
            await asyncio.sleep(CHECK_EVERY_S + 1)
            assert line + "0" in rig.context.metrics.expose()

    run_virtual(main())


def test_without_the_client_a_source_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sources.kafka.member", None)
    body = {"spec": {"bootstrapServers": ["kafka:9092"], "topics": ["orders"]}}
    resource = Resource(ref=KAFKA_SOURCE, meta=ObjectMeta(name="reader"), body=body)
    with pytest.raises(InvalidInput, match=r"penstock\[kafka\]"):
        FACTORIES[KAFKA_SOURCE](resource, RecordingContext())


class Simulation:
    """Two sources of one group, which stop and start by chance, over a Kafka and a sink that fail by chance."""

    def __init__(self, seed: str, ordering: str) -> None:
        self.rng = random.Random(seed)
        self.cluster = cluster_of(partitions=3)
        self.checkpoints = MemoryCheckpoints()
        self.places = sorted(self.cluster.written)
        self.done: dict[Place, set[int]] = {place: set() for place in self.places}
        self.first: dict[Place, list[int]] = {place: [] for place in self.places}
        self.complete = asyncio.Event()
        self._ordering = ordering

    async def emit(self, event: CloudEvent) -> None:
        partition, offset = (int(part) for part in str(event.subject).removeprefix("partition:").split("#"))
        place = Place("orders", partition)
        await asyncio.sleep(self.rng.expovariate(20))
        if offset not in self.done[place]:
            self.first[place].append(offset)
        self.done[place].add(offset)
        if all(len(self.done[each]) == len(self.cluster.written[each]) for each in self.places):
            self.complete.set()
        if self.rng.random() < 0.05:
            raise Refused("no", status=400)

    async def keep_reading(self, number: int) -> None:
        """A source that is stopped and started again."""
        context = RecordingContext(checkpoints=self.checkpoints, uid=f"uid-{number}")
        make = source_of(self.cluster, ordering=self._ordering, initial_offset="earliest")
        while True:
            task = asyncio.create_task(make(context).run(self.emit))
            try:
                await asyncio.wait([task], timeout=self.rng.uniform(1, 120))
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def happen(self) -> None:
        """Write a record, and perhaps break something."""
        self.complete.clear()
        self.cluster.write(self.rng.choice(self.places), b"x")
        await asyncio.sleep(self.rng.expovariate(2))
        match self.rng.randrange(20):
            case 0:
                await self.cluster.rebalance()
            case 1:
                self.cluster.broken.add(self.rng.choice(self.places))
            case 2:
                self.away(not self.cluster.away)

    def away(self, away: bool) -> None:
        self.cluster.away = away
        self.cluster.change()

    def check_commits(self) -> None:
        """Everything before a committed offset is done."""
        for place, offset in self.cluster.offsets.items():
            assert set(range(offset)) <= self.done[place], (place, offset)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ordering", ["ordered", "unordered"])
def test_whatever_happens_every_record_is_told_in_order_and_none_is_committed_before(ordering: str, seed: int) -> None:
    async def main() -> None:
        simulation = Simulation(f"{ordering} {seed}", ordering)
        async with asyncio.TaskGroup() as tasks:
            sources = [tasks.create_task(simulation.keep_reading(number)) for number in range(2)]
            for _ in range(300):
                await simulation.happen()
                simulation.check_commits()
            simulation.away(False)
            await simulation.complete.wait()
            simulation.check_commits()
            for source in sources:
                source.cancel()
        simulation.check_commits()
        if ordering == "ordered":
            for place in simulation.places:
                assert simulation.first[place] == sorted(simulation.first[place])

    run_virtual(main())
