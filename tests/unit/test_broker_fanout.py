"""Who delivers for which Trigger when several processes share a log, on virtual time."""

import asyncio
import random
from collections.abc import Callable

from broker.fanout import MAX_HANDOVER_S, Fanout
from broker.log.memory import MemoryLog
from broker.log.port import Entry, Record
from broker.resources import DEFAULT_CLASS
from broker.services import Services
from broker.table import TableBuilder
from core.errors import PenstockError
from core.events import binary_head, from_http
from core.net.names import Names
from core.resources import Resource
from tests.support.broker import Answer, Subscribers, binary, broker, trigger
from tests.support.virtual_time import VirtualClock, run_virtual

HERE = "subscriber.test"
UID = "uid-t"


class SharedLog(MemoryLog):
    """A log that others share, whose say in claims the test has."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[str, tuple[Callable[[], None], Callable[[], None], Callable[[], None]]] = {}
        self.released: list[str] = []

    def claim(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        self.claims[uid] = (granted, lost, asked)

    def release(self, uid: str) -> None:
        if self.claims.pop(uid, None) is not None:
            self.released.append(uid)

    def grant(self) -> None:
        self.claims[UID][0]()

    def lose(self) -> None:
        self.claims[UID][1]()

    def ask(self) -> None:
        self.claims[UID][2]()


class World:
    def __init__(self, *, takes_s: float = 0.01, resources: tuple[Resource, ...] = (trigger("t"),)) -> None:
        self.log = SharedLog()
        self.subscribers = Subscribers()
        self.subscribers.scripts[HERE] = lambda request, n: Answer(after_s=takes_s)
        self.fanout = Fanout(
            Services(
                log=self.log,
                ledger=self.log,
                client=self.subscribers,
                names=Names(),
                clock=VirtualClock(),
                rng=random.Random(1),
                count=lambda trigger, outcome, latency_s: None,
            ),
            {DEFAULT_CLASS},
        )
        self.apply(*resources)

    def apply(self, *resources: Resource) -> None:
        self.fanout.swap(TableBuilder().build([broker()], resources))

    async def send(self, event_id: str) -> None:
        event = from_http(binary(event_id), b"{}")
        entry = Entry("default/default", event.attributes, binary_head(event), b"{}", VirtualClock().now(), 255)
        self.log.append(entry, _stored)
        await asyncio.sleep(0)

    @property
    def ids(self) -> list[str]:
        return self.subscribers.ids(HERE)


def _stored(result: Record | PenstockError) -> None:
    assert isinstance(result, Record), result


def test_a_trigger_that_is_wanted_elsewhere_is_let_go_once_what_is_under_way_has_ended():
    async def main() -> None:
        world = World(takes_s=3.0)
        world.log.grant()
        await asyncio.sleep(1)
        assert list(world.fanout.held) == [UID]
        await world.send("e1")
        world.log.ask()
        await world.send("e2")
        await asyncio.sleep(2)
        assert world.log.released == []
        assert not world.fanout.held
        await asyncio.sleep(2)
        assert world.log.released == [UID]
        assert UID in world.log.claims, "to be there when the other one fails"
        assert world.ids == ["e1"]
        assert world.log.subscribe(UID, "", "", 0).position().low_water == 1
        world.log.grant()
        await asyncio.sleep(4)
        assert world.ids == ["e1", "e2"]

    run_virtual(main())


def test_a_trigger_is_kept_for_as_long_as_its_deliveries_may_take_so_that_no_two_processes_deliver_an_event_at_once():
    async def main() -> None:
        world = World(takes_s=290.0)
        world.log.grant()
        await asyncio.sleep(1)
        await world.send("e1")
        world.log.ask()
        await asyncio.sleep(289)
        assert world.log.released == []
        await asyncio.sleep(2)
        assert world.log.released == [UID]
        assert world.log.subscribe(UID, "", "", 0).position().low_water == 1

    run_virtual(main())


def test_how_long_a_trigger_is_kept_goes_by_its_own_time_out():
    async def main() -> None:
        world = World(takes_s=60.0, resources=(trigger("t", delivery={"timeout": "PT30S", "retry": 0}),))
        world.log.grant()
        await asyncio.sleep(1)
        await world.send("e1")
        world.log.ask()
        await asyncio.sleep(29)
        assert world.log.released == []
        await asyncio.sleep(7)
        assert world.log.released == [UID]

    run_virtual(main())


def test_a_delivery_that_may_take_hours_does_not_keep_the_trigger_and_is_made_again():
    async def main() -> None:
        world = World(takes_s=3000.0, resources=(trigger("t", delivery={"timeout": "PT1H"}),))
        world.log.grant()
        await asyncio.sleep(1)
        await world.send("e1")
        world.log.ask()
        await asyncio.sleep(MAX_HANDOVER_S - 1)
        assert world.log.released == []
        await asyncio.sleep(7)
        assert world.log.released == [UID]
        assert world.log.subscribe(UID, "", "", 0).position().open == (1,)
        await asyncio.sleep(3000)
        assert world.log.released == [UID]

    run_virtual(main())


def test_a_trigger_whose_start_is_not_known_yet_is_let_go_at_once():
    async def main() -> None:
        world = World()
        world.log.grant()
        world.log.ask()
        assert world.log.released == [UID]
        await world.send("e1")
        await asyncio.sleep(1)
        assert world.ids == []
        world.log.grant()
        await asyncio.sleep(1)
        assert world.ids == ["e1"]

    run_virtual(main())


def test_a_trigger_that_is_deleted_or_lost_while_it_is_let_go_is_not_claimed_by_that_again():
    async def main() -> None:
        world = World(takes_s=3.0)
        world.log.grant()
        await asyncio.sleep(1)
        await world.send("e1")
        world.log.ask()
        world.log.lose()
        await asyncio.sleep(5)
        assert world.log.released == [], "the log knows; the claim stays"
        world.log.grant()
        await asyncio.sleep(1)
        await world.send("e2")
        world.log.ask()
        world.apply()
        await asyncio.sleep(20)
        assert world.log.released == [UID]
        assert not world.log.claims
        assert not world.log.subscriptions()

    run_virtual(main())


def test_a_process_that_ends_lets_each_trigger_go_as_soon_as_nothing_is_under_way_for_it():
    async def main() -> None:
        world = World(takes_s=3.0, resources=(trigger("t"), trigger("idle", filter={"attributes": {"type": "none"}})))
        for granted, _, _ in tuple(world.log.claims.values()):
            granted()
        await asyncio.sleep(1)
        await world.send("e1")
        world.apply(trigger("t"), trigger("idle"), trigger("never-had"))
        draining = asyncio.create_task(world.fanout.drain(10))
        await asyncio.sleep(1)
        assert sorted(world.log.released) == ["uid-idle", "uid-never-had"]
        await draining
        assert world.log.released[-1] == UID
        assert asyncio.get_running_loop().time() < 5
        assert not world.log.claims

    run_virtual(main())
