"""The whole node on virtual time: a real in-memory store, an in-memory log, scripted subscribers."""

import asyncio
from typing import Any

import pytest

from broker.ledger import Attempt
from broker.log.memory import MemoryLog
from broker.log.port import Retention
from broker.node import BrokerNode
from broker.resources import BROKER, DEFAULT_CLASS, TRIGGER
from core.control.memory import MemoryStore
from core.control.port import Listing
from core.errors import Unavailable
from core.net.names import Names
from core.resources import Key, KindRef, ObjectMeta, Resource
from core.telemetry import Metrics
from tests.support.broker import Answer, Spoken, Subscribers, ask, binary, broker, trigger
from tests.support.virtual_time import VirtualClock, run_virtual

HERE = "scan.default.svc.cluster.local"


class Running:
    """A started node with everything around it."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.clock = VirtualClock()
        self.store = store or MemoryStore(clock=self.clock)
        self.log = MemoryLog(retention=Retention(max_age_s=100.0))
        self.subscribers = Subscribers()
        self.metrics = Metrics()
        self.node = BrokerNode(
            store=self.store,
            logs={DEFAULT_CLASS: self.log},
            client=self.subscribers,
            names=Names(gateway=("127.0.0.1", 8080), broker=("127.0.0.1", 8081)),
            clock=self.clock,
            metrics=self.metrics,
        )

    async def __aenter__(self) -> "Running":
        await self.node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.drain(1)
        self.store.close()

    async def broker(self, name: str = "default") -> Resource:
        resource = Resource(ref=BROKER, meta=ObjectMeta(name=name, namespace="default"), body={"spec": {}})
        return await self.store.create(resource)

    async def trigger(self, name: str, uri: str | None = f"http://{HERE}/", **spec: Any) -> Resource:
        body = {"spec": {"broker": "default", "subscriber": {"uri": "http://x/"}, **spec}}
        made = await self.store.create(
            Resource(ref=TRIGGER, meta=ObjectMeta(name=name, namespace="default"), body=body)
        )
        return made if uri is None else await self.store.update_status(made.with_status({"subscriberUri": uri}))

    async def send(self, event_id: str, **extensions: str) -> Spoken:
        exchange = ask(self.node.handler, headers=binary(event_id, **extensions))
        async with asyncio.timeout(5):
            await exchange.answered.wait()
        return exchange


def test_brokers_and_triggers_take_effect_as_they_come_change_and_go():
    async def main() -> None:
        async with Running() as running:
            assert (await running.send("too-early")).status == 503
            await running.node.synced.wait()
            assert (await running.send("no-broker")).status == 404
            await running.broker()
            trigger = await running.trigger("t")
            await asyncio.sleep(1)
            assert (await running.send("e1")).status == 202
            await asyncio.sleep(1)
            assert running.subscribers.ids(HERE) == ["e1"]
            moved = {"subscriberUri": "http://other.test/"}
            await running.store.update_status(trigger.with_status(moved).with_meta(resource_version=""))
            await asyncio.sleep(1)
            await running.send("e2")
            await asyncio.sleep(1)
            assert running.subscribers.ids("other.test") == ["e2"]
            await running.store.delete(trigger.key)
            await asyncio.sleep(1)
            await running.send("e3")
            await asyncio.sleep(1)
            assert len(running.subscribers.requests) == 2
            await running.store.delete(Key(BROKER, "default", "default"))
            await asyncio.sleep(1)
            assert (await running.send("e4")).status == 404

    run_virtual(main())


def test_events_go_on_flowing_while_the_store_is_away():
    async def main() -> None:
        async with Running() as running:
            await running.broker()
            await running.trigger("t")
            await asyncio.sleep(1)
            running.store.close()  # every watch ends
            await asyncio.sleep(60)
            assert (await running.send("e1")).status == 202
            await asyncio.sleep(1)
            assert running.subscribers.ids(HERE) == ["e1"]

    run_virtual(main())


class Away(MemoryStore):
    """A store that nobody answers for."""

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        raise Unavailable("The store is away.")


def test_a_node_that_starts_while_the_store_is_away_goes_by_what_is_known_from_elsewhere():
    async def main() -> None:
        running = Running(Away())
        known = [broker(), trigger("t", f"http://{HERE}/")]
        await running.node.start(known)
        await asyncio.sleep(2)
        assert ask(running.node.handler, "/healthz", [], b"", method="GET").status == 200
        assert (await running.send("e1")).status == 202
        await asyncio.sleep(1)
        assert running.subscribers.ids(HERE) == ["e1"]
        assert not running.node.synced.is_set()
        await running.node.drain(1)

    run_virtual(main())


def test_who_waits_until_the_brokers_are_known_finds_them_known_or_waits_no_longer_than_it_says():
    async def main() -> None:
        async with Running() as running:
            before_s = asyncio.get_running_loop().time()
            await running.node.known(2.0)
            assert asyncio.get_running_loop().time() - before_s < 1.0
            assert (await running.send("no-broker")).status == 404
        async with Running(Away()) as running:
            before_s = asyncio.get_running_loop().time()
            await running.node.known(2.0)
            assert asyncio.get_running_loop().time() - before_s == pytest.approx(2.0)
            assert (await running.send("too-early")).status == 503

    run_virtual(main())


def test_metrics_tell_deliveries_by_trigger_and_end_with_it():
    async def main() -> None:
        async with Running() as running:
            await running.broker()
            trigger = await running.trigger("t")
            running.subscribers.scripts[HERE] = lambda request, n: Answer(400 if request.event.id == "bad" else 202)
            await asyncio.sleep(1)
            await running.send("e1")
            await running.send("bad")
            await asyncio.sleep(1)
            page = running.metrics.expose()
            assert 'penstock_broker_deliveries_total{trigger="default/t",outcome="delivered"} 1' in page
            assert 'penstock_broker_deliveries_total{trigger="default/t",outcome="dropped"} 1' in page
            assert "penstock_broker_triggers 1" in page
            assert "penstock_broker_backlog_events 0" in page
            await running.store.delete(trigger.key)
            await asyncio.sleep(1)
            assert 'trigger="default/t"' not in running.metrics.expose()

    run_virtual(main())


def test_a_delivery_that_ends_after_its_trigger_leaves_no_series_behind():
    async def main() -> None:
        async with Running() as running:
            await running.broker()
            trigger = await running.trigger("t")
            running.subscribers.scripts[HERE] = lambda request, n: Answer(after_s=5)
            await asyncio.sleep(1)
            await running.send("e1")
            await running.store.delete(trigger.key)
            await asyncio.sleep(10)
            await running.trigger("other")
            await asyncio.sleep(1)
            assert 'trigger="default/t"' not in running.metrics.expose()

    run_virtual(main())


def test_housekeeping_keeps_idle_positions_and_removes_old_events():
    async def main() -> None:
        async with Running() as running:
            await running.broker()
            trigger = await running.trigger("picky", filter={"attributes": {"type": "never"}})
            await asyncio.sleep(1)
            for n in range(1200):
                await running.send(str(n))
            await asyncio.sleep(10)
            subscription = running.log.subscribe(trigger.meta.uid, "default/default", "", 0)
            assert subscription.through == 1200
            await asyncio.sleep(200)
            assert await running.log.retain(running.clock.now()) == 0
            assert running.log.last() == 1200
            page = asyncio.get_running_loop().create_future()
            running.log.read("default/default", 0, 10, page.set_result)
            assert (await page).records == []

    run_virtual(main())


def test_draining_keeps_all_progress():
    async def main() -> None:
        async with Running() as running:
            await running.broker()
            trigger = await running.trigger("t")
            await asyncio.sleep(1)
            await running.send("e1")
            began = asyncio.get_running_loop().time()
            await running.node.drain(10)
            assert asyncio.get_running_loop().time() - began < 1
            position = running.log.subscribe(trigger.meta.uid, "default/default", "", 0).position()
            assert position.low_water == pytest.approx(1)

    run_virtual(main())


class SlowToSeek(MemoryLog):
    """A log in which a new Trigger's start takes a while to find."""

    def seek(self, broker, at, then):
        asyncio.get_running_loop().call_later(0.05, super().seek, broker, at, then)


def test_what_arrives_while_a_new_triggers_start_is_looked_for_is_delivered_to_it():
    async def main() -> None:
        running = Running()
        running.log = SlowToSeek()
        running.node = BrokerNode(
            store=running.store,
            logs={DEFAULT_CLASS: running.log},
            client=running.subscribers,
            names=Names(),
            clock=running.clock,
            metrics=running.metrics,
        )
        async with running:
            await running.broker()
            await running.trigger("t", "http://new.test/")
            await running.node.synced.wait()
            await asyncio.sleep(0.01)
            assert (await running.send("early")).status == 202
            await asyncio.sleep(1)
            assert running.subscribers.ids("new.test") == ["early"]

    run_virtual(main())


def test_a_fault_in_sending_costs_that_trigger_an_attempt_and_nobody_else_anything(caplog):
    async def main() -> None:
        async with Running() as running:
            reached, faults = running.subscribers.fetch, 2

            def fetch(*args: Any, **named: Any) -> Any:
                nonlocal faults
                if args[3] == [(b"host", b"broken.test")] and faults:
                    faults -= 1
                    raise ValueError("a fault of ours")
                return reached(*args, **named)

            running.subscribers.fetch = fetch
            await running.broker()
            for name in ("broken", "fine", "also-fine"):
                await running.trigger(name, f"http://{name}.test/")
            await asyncio.sleep(1)
            assert (await running.send("e1")).status == 202
            await asyncio.sleep(0.05)
            assert running.subscribers.ids("fine.test") == ["e1"]
            assert running.subscribers.ids("also-fine.test") == ["e1"]
            assert running.subscribers.ids("broken.test") == []
            await asyncio.sleep(5)
            assert running.subscribers.ids("broken.test") == ["e1"]
            tried = [attempt for attempt in running.log.attempts if attempt.outcome == "retrying"]
            assert [attempt.reason for attempt in tried] == ["the platform failed: ValueError('a fault of ours')"] * 2

    run_virtual(main())
    assert "an event could not be sent by a fault" in caplog.text


def test_a_fault_in_what_follows_an_answer_costs_an_attempt_too():
    async def main() -> None:
        async with Running() as running:
            noted, faults = running.log.note, 1

            def note(attempt: Attempt) -> None:
                nonlocal faults
                if faults:
                    faults -= 1
                    raise ValueError("a fault of ours")
                noted(attempt)

            running.log.note = note  # type: ignore[method-assign]
            await running.broker()
            trigger = await running.trigger("t")
            await asyncio.sleep(1)
            await running.send("e1")
            await asyncio.sleep(5)
            assert running.subscribers.ids(HERE) == ["e1", "e1"]
            assert running.log.subscribe(trigger.meta.uid, "", "", 0).position().low_water == 1

    run_virtual(main())


class FaultyLists(MemoryStore):
    """Its listings raise what no store may raise."""

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        raise RuntimeError("a fault")


def test_a_node_whose_following_or_housekeeping_ends_by_a_fault_says_so(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        async with Running(FaultyLists()) as running:
            await asyncio.wait_for(running.node.failed(), 1)
            assert running.node.problem() == "The Brokers are not followed."
        async with Running() as running:
            broken = asyncio.ensure_future(running.node.failed())
            await asyncio.sleep(60)
            assert not broken.done()
            running.log.retain = fault  # type: ignore[method-assign]
            await asyncio.wait_for(broken, 120)

    async def fault(now: float) -> int:
        raise RuntimeError(f"a fault at {now}")

    run_virtual(main())
    parts = [record.facts["part"] for record in caplog.records if record.levelname == "CRITICAL"]  # type: ignore[attr-defined]
    assert parts == ["follow Brokers and Triggers", "broker housekeeping"]


def test_a_node_that_drains_has_not_failed():
    async def main() -> None:
        async with Running() as running:
            broken = asyncio.ensure_future(running.node.failed())
            await running.node.drain(1)
            await asyncio.sleep(1)
            assert not broken.done()
            broken.cancel()

    run_virtual(main())
