"""Which logs a broker process serves and which half of the work it does, on virtual time."""

import asyncio
from collections.abc import Mapping

import pytest

from broker.log.memory import MemoryLog
from broker.log.port import LedgerLog
from broker.node import ROLES, BrokerNode, Role
from broker.resources import BROKER, CLASS_ANNOTATION, DEFAULT_CLASS, REDIS_CLASS, TRIGGER
from broker.table import TableBuilder
from core.control.memory import MemoryStore
from core.net.names import Names
from core.resources import Key, ObjectMeta, Resource
from core.telemetry import Metrics
from tests.support.broker import Spoken, Subscribers, ask, binary, broker, trigger
from tests.support.virtual_time import VirtualClock, run_virtual

HERE = "scan.test"


class World:
    """A store, subscribers, and the nodes of as many processes as a test has."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(clock=self.clock)
        self.subscribers = Subscribers()
        self.nodes: list[BrokerNode] = []

    async def node(self, logs: Mapping[str, LedgerLog], *roles: Role) -> BrokerNode:
        node = BrokerNode(
            store=self.store,
            logs=logs,
            client=self.subscribers,
            names=Names(),
            clock=self.clock,
            metrics=Metrics(),
            roles=frozenset(roles) or ROLES,
        )
        await node.start()
        await node.synced.wait()
        self.nodes.append(node)
        return node

    async def broker(self, name: str, log_class: str = DEFAULT_CLASS) -> Resource:
        meta = ObjectMeta(name=name, namespace="default", annotations={CLASS_ANNOTATION: log_class})
        return await self.store.create(Resource(ref=BROKER, meta=meta, body={"spec": {}}))

    async def trigger(self, name: str, of: str, uri: str = f"http://{HERE}/") -> Resource:
        body = {"spec": {"broker": of, "subscriber": {"uri": uri}}}
        made = await self.store.create(
            Resource(ref=TRIGGER, meta=ObjectMeta(name=name, namespace="default"), body=body)
        )
        return await self.store.update_status(made.with_status({"subscriberUri": uri}))

    async def end(self) -> None:
        for node in self.nodes:
            await node.drain(1)
        self.store.close()


async def send(node: BrokerNode, event_id: str, to: str = "default") -> Spoken:
    exchange = ask(node.handler, f"/default/{to}", binary(event_id))
    async with asyncio.timeout(5):
        await exchange.answered.wait()
    return exchange


def page(node: BrokerNode, path: str) -> tuple[int, bytes]:
    answered = ask(node.admin_handler, path, [], b"", method="GET")
    return answered.status, answered.body


# ---- several logs


def test_each_brokers_events_are_in_the_log_of_its_class_and_come_to_its_triggers():
    async def main() -> None:
        world, standard, redis = World(), MemoryLog(), MemoryLog()
        for name, log_class in (("plain", DEFAULT_CLASS), ("other", REDIS_CLASS), ("away", "Kafka")):
            await world.broker(name, log_class)
            await world.trigger(name, name, f"http://{name}.test/")
        node = await world.node({DEFAULT_CLASS: standard, REDIS_CLASS: redis})
        assert (await send(node, "e1", "plain")).status == 202
        assert (await send(node, "e2", "other")).status == 202
        assert (await send(node, "e3", "away")).status == 404
        await asyncio.sleep(1)
        assert world.subscribers.ids("plain.test") == ["e1"]
        assert world.subscribers.ids("other.test") == ["e2"]
        assert (standard.last(), redis.last()) == (1, 1)
        assert len(standard.subscriptions()) == len(redis.subscriptions()) == 1
        assert b"penstock_broker_triggers 2" in page(node, "/metrics")[1]
        await world.end()

    run_virtual(main())


def test_a_log_that_stands_under_two_classes_serves_both_and_each_event_comes_once():
    async def main() -> None:
        world, log = World(), MemoryLog()
        await world.broker("plain")
        await world.broker("other", REDIS_CLASS)
        await world.trigger("t1", "plain")
        await world.trigger("t2", "other")
        node = await world.node({DEFAULT_CLASS: log, REDIS_CLASS: log})
        await send(node, "e1", "plain")
        await send(node, "e2", "other")
        await asyncio.sleep(1)
        assert sorted(world.subscribers.ids(HERE)) == ["e1", "e2"]
        await world.end()

    run_virtual(main())


def test_the_triggers_of_a_broker_that_is_gone_wait_with_their_positions_until_it_is_back():
    async def main() -> None:
        world, log, other = World(), MemoryLog(), MemoryLog()
        await world.broker("default")
        made = await world.trigger("t", "default")
        node = await world.node({DEFAULT_CLASS: log, REDIS_CLASS: other})
        await send(node, "e1")
        await asyncio.sleep(1)
        await world.store.delete(Key(BROKER, "default", "default"))
        await asyncio.sleep(1)
        assert tuple(log.subscriptions()) == (made.meta.uid,)
        await world.broker("default")
        await asyncio.sleep(1)
        await send(node, "e2")
        await asyncio.sleep(1)
        assert world.subscribers.ids(HERE) == ["e1", "e2"]
        assert not other.subscriptions()
        await world.end()

    run_virtual(main())


def test_the_triggers_of_a_broker_that_is_made_anew_in_another_class_go_over_to_that_log():
    async def main() -> None:
        world, log, other = World(), MemoryLog(), MemoryLog()
        await world.broker("default")
        made = await world.trigger("t", "default")
        node = await world.node({DEFAULT_CLASS: log, REDIS_CLASS: other})
        await asyncio.sleep(2)
        await send(node, "e1")
        await asyncio.sleep(1)
        await world.store.delete(Key(BROKER, "default", "default"))
        await world.broker("default", REDIS_CLASS)
        await asyncio.sleep(1)
        await send(node, "e2")
        await asyncio.sleep(1)
        assert world.subscribers.ids(HERE) == ["e1", "e2"]
        assert not log.subscriptions()
        assert tuple(other.subscriptions()) == (made.meta.uid,)
        await world.end()

    run_virtual(main())


def test_a_log_that_comes_later_serves_its_brokers_from_then_on_and_the_others_do_not_wait_for_it():
    async def main() -> None:
        world, log, later = World(), MemoryLog(), MemoryLog()
        await world.broker("plain")
        await world.broker("other", REDIS_CLASS)
        await world.trigger("t1", "plain")
        await world.trigger("t2", "other")
        node = BrokerNode(
            store=world.store,
            logs={DEFAULT_CLASS: log},
            client=world.subscribers,
            names=Names(),
            clock=world.clock,
            metrics=Metrics(),
            awaited=frozenset({REDIS_CLASS}),
        )
        await node.start()
        await node.synced.wait()
        await asyncio.sleep(2)
        assert (await send(node, "e1", "plain")).status == 202
        refused = await send(node, "e2", "other")
        assert (refused.status, refused.header(b"retry-after")) == (503, b"1")
        assert b"Redis" in refused.body
        node.add({REDIS_CLASS: later})
        assert (await send(node, "e3", "other")).status == 202
        await asyncio.sleep(1)
        assert world.subscribers.ids(HERE) == ["e1", "e3"]
        assert b"penstock_broker_triggers 2" in page(node, "/metrics")[1]
        await node.drain(1)
        node.add({"Kafka": MemoryLog()})
        await world.end()

    run_virtual(main())


def test_a_log_serves_the_triggers_of_its_brokers_and_one_without_a_broker_waits_in_whichever_log():
    redis = broker("other").with_meta(annotations={CLASS_ANNOTATION: REDIS_CLASS})
    broken = trigger("broken", filters=[{"exact": {"Type": "a"}}])
    triggers = [trigger("mine"), trigger("theirs", broker="other"), trigger("waiting", broker="none"), broken]
    table = TableBuilder().build([broker(), redis], triggers)
    uids = ("uid-mine", "uid-theirs", "uid-waiting", "uid-broken", "uid-never-was")
    assert [uid for uid in uids if table.served(uid, {DEFAULT_CLASS})] == ["uid-mine"]
    assert [uid for uid in uids if table.waits(uid)] == ["uid-waiting", "uid-broken"]


# ---- roles


def test_what_one_process_takes_another_delivers():
    async def main() -> None:
        world, log = World(), MemoryLog()
        await world.broker("default")
        await world.trigger("t", "default")
        ingress = await world.node({DEFAULT_CLASS: log}, "ingress")
        await asyncio.sleep(2)  # creation times have whole seconds
        assert (await send(ingress, "e1")).status == 202
        await asyncio.sleep(1)
        assert not world.subscribers.requests
        assert not log.subscriptions()
        dispatch = await world.node({DEFAULT_CLASS: log}, "dispatch")
        await asyncio.sleep(1)
        await send(ingress, "e2")
        await asyncio.sleep(1)
        assert world.subscribers.ids(HERE) == ["e1", "e2"]
        assert (await send(dispatch, "e3")).status == 404
        await world.end()

    run_virtual(main())


@pytest.mark.parametrize("roles", [("ingress",), ("dispatch",), ("ingress", "dispatch")])
def test_a_process_says_what_it_waits_for_whatever_it_does(roles: tuple[Role, ...]):
    async def main() -> None:
        world = World()
        node = BrokerNode(
            store=world.store,
            logs={DEFAULT_CLASS: MemoryLog()},
            client=world.subscribers,
            names=Names(),
            clock=world.clock,
            metrics=Metrics(),
            roles=frozenset(roles),
        )
        assert page(node, "/healthz") == (503, b"The Brokers are not followed.\n")
        await node.start()
        assert page(node, "/healthz") == (503, b"The Brokers are not known yet.\n")
        await node.synced.wait()
        assert page(node, "/healthz") == (200, b"ok\n")
        assert page(node, "/metrics")[0] == 200
        assert page(node, "/elsewhere")[0] == 404
        assert ask(node.admin_handler, "/metrics").status == 405
        assert ask(node.handler, "/healthz", [], b"", method="GET").status == 200
        world.store.close()
        await asyncio.sleep(60)
        assert page(node, "/healthz") == (200, b"ok\n"), "a lost API means stale, not down"
        await node.drain(1)
        assert page(node, "/healthz") == (503, b"This process is stopping.\n")

    run_virtual(main())
