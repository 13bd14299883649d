"""Who dispatches for which subscription, as one process lives it: it says every now and then that it is there and what
it has, asks for its share (`broker.log.balance`) of what is free, and gives what others should have.

What it says goes into the state topic, whose order settles who gets what (`state.py`). A process that cannot say that
it is there gives everything up before the others may ask for it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from broker.log.balance import Plan, plan
from broker.log.kafka.connection import CONNECTION_ERRORS, REQUEST_TIMEOUT_S
from broker.log.kafka.layout import Kept, Said
from broker.log.kafka.state import LEASE_S, NO_TOKEN, State
from core.errors import Unavailable

__all__ = ["Leases"]

logger = logging.getLogger(__name__)

#: Three tries in a lease's time.
RENEW_S: Final = 1.5
#: Who wants more than it has looks this often whether something is free.
LOOK_S: Final = 0.25
#: A process gives up this long before others may ask: the clocks need not run at the same speed.
MARGIN_S: Final = 0.5


class _Lease:
    __slots__ = ("asked", "free_since_s", "giving", "granted", "lost", "token")

    def __init__(self, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        self.granted = granted
        self.lost = lost
        self.asked = asked
        self.token = NO_TOKEN
        #: Its holder was asked to let another process have it.
        self.giving = False
        #: On the loop's clock: since when nobody has it, as far as was seen.
        self.free_since_s: float | None = None


class Leases:
    """The subscriptions that this process wants; it gets its share of them.

    `say` has `statement` written and answers its offset; `catch_up` brings `state` through an offset, or to the end of
    the topic; `take_up` is given the kept position before a grant is told.
    """

    def __init__(
        self,
        *,
        owner: str,
        state: State,
        say: Callable[[], Awaitable[int]],
        catch_up: Callable[[int | None], Awaitable[None]],
        take_up: Callable[[str, Kept | None], Awaitable[None]],
    ) -> None:
        self._owner = owner
        self._life = uuid.uuid4().hex
        self._state = state
        self._say = say
        self._catch_up = catch_up
        self._take_up = take_up
        self._wanted: dict[str, _Lease] = {}
        #: By uid, also of leases given back: what was acknowledged until then is still to be kept.
        self._tokens: dict[str, int] = {}
        #: Those that nobody else took although it was their turn.
        self._left: set[str] = set()
        self._changed = asyncio.Event()
        self._asking: tuple[str, ...] = ()
        self._said_s: float | None = None
        #: How many the others know that this process wants.
        self._told = 0
        #: On the loop's clock; after it somebody else may have what this process has.
        self._until_s = 0.0

    def want(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        """Get it, and get it again whenever it is lost; tells at once where it is held. `asked` when another process
        should have it: then `forget` it, once nothing is under way for it."""
        held = self._wanted.get(uid)
        if held is not None:
            held.granted, held.lost, held.asked = granted, lost, asked
            if held.token != NO_TOKEN:
                granted()
            return
        self._wanted[uid] = _Lease(granted, lost, asked)
        self._changed.set()

    def forget(self, uid: str) -> bool:
        """Want it no more; whether it was held, so that `statement` has to be written."""
        held = self._wanted.pop(uid, None)
        if held is not None:
            self._changed.set()  # the others are to know that it is for them
        return held is not None and held.token != NO_TOKEN

    def token(self, uid: str) -> int:
        """With which a position may be kept, until another process has the lease."""
        return self._tokens.get(uid, NO_TOKEN)

    def drop(self, uid: str) -> None:
        """The subscription is no more."""
        self._tokens.pop(uid, None)
        self._left.discard(uid)

    def statement(self) -> Said:
        """What is to be said now. What it asks for, it asks for once."""
        asks, self._asking = self._asking, ()
        self._told = len(self._wanted)
        holds = {uid: lease.token for uid, lease in self._wanted.items() if lease.token != NO_TOKEN}
        return Said(self._life, self._told, holds, tuple(uid for uid in asks if uid in self._wanted))

    @property
    def has_spoken(self) -> bool:
        return self._said_s is not None

    async def run(self) -> None:
        """Say what is to be said and look at what others say, until cancelled."""
        failing = False
        while True:
            self._changed.clear()
            round_ = asyncio.create_task(self._round(), name="event log leases looked at")
            try:
                await asyncio.wait({round_}, timeout=self._patience_s())
                self._give_up_late_ones()
            finally:
                round_.cancel()
                await asyncio.wait({round_})
            error = _failure(round_)
            if error is not None and not failing:
                logger.warning("leases cannot be renewed now; trying again", extra={"facts": {"error": str(error)}})
            failing = error is not None
            content = all(lease.token != NO_TOKEN for lease in self._wanted.values())
            try:
                async with asyncio.timeout(RENEW_S if content and not failing else LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _patience_s(self) -> float:
        """Until the leases end: that has to be told whether Kafka answers or not."""
        if all(lease.token == NO_TOKEN for lease in self._wanted.values()):
            return 2 * REQUEST_TIMEOUT_S
        return max(self._until_s - asyncio.get_running_loop().time(), 0.0)

    async def _round(self) -> None:
        if not self._wanted and not self._told:
            return
        loop = asyncio.get_running_loop()
        await self._catch_up(None)
        self._settle(None)
        asks = self._plan().claim
        now_s = loop.time()
        if asks or self._said_s is None or self._told != len(self._wanted) or now_s - self._said_s >= RENEW_S:
            self._asking = asks
            offset = await self._say()
            self._said_s = now_s
            self._until_s = now_s + LEASE_S - MARGIN_S
            await self._catch_up(offset)
            await self._grant(self._settle(offset))
        for uid in self._plan().give:
            lease = self._wanted.get(uid)
            if lease is not None and lease.token != NO_TOKEN and not lease.giving:
                lease.giving = True
                _tell(lease.asked)

    def _plan(self) -> Plan:
        now_s = asyncio.get_running_loop().time()
        own: list[str] = []
        leaving: list[str] = []
        holders: dict[str, str] = {}
        for uid, lease in self._wanted.items():
            found = self._state.holder(uid)
            holders[uid] = holder = found.owner if found is not None else ""
            if holder:
                lease.free_since_s = None
                if holder != self._owner:
                    self._left.discard(uid)
            elif lease.free_since_s is None:
                lease.free_since_s = now_s
            elif now_s - lease.free_since_s >= LEASE_S:
                self._left.add(uid)
            if holder == self._owner and self._said_s is None:
                own.append(uid)  # an earlier process of this owner had it
            elif lease.giving or (holder == self._owner and lease.token == NO_TOKEN):
                leaving.append(uid)  # given back, and not read yet
        decided = plan(self._owner, self._state.members(), holders, leaving=leaving, left=self._left)
        return Plan(claim=(*own, *decided.claim), give=decided.give)

    def _settle(self, offset: int | None) -> dict[str, int]:
        """Give up what others have; which were granted by what was said at `offset`, with their tokens."""
        ours = self._said_s is None or self._state.life(self._owner) == self._life
        granted = {}
        for uid, lease in tuple(self._wanted.items()):
            found = self._state.holder(uid)
            token = found.token if ours and found is not None and found.owner == self._owner else NO_TOKEN
            if lease.token not in (NO_TOKEN, token):
                self._taken(uid)
            elif lease.token == NO_TOKEN and offset is not None and token == offset + 1:
                granted[uid] = token
        return granted

    async def _grant(self, granted: dict[str, int]) -> None:
        for uid, token in granted.items():
            lease = self._wanted.get(uid)
            if lease is None:
                continue
            # Before the position is taken up, so that what is said meanwhile holds it.
            lease.token = self._tokens[uid] = token
            lease.giving, lease.free_since_s = False, None
            try:
                await self._take_up(uid, self._state.kept(uid))
            except BaseException:
                lease.token = NO_TOKEN  # what is said next gives it back
                raise
            if self._wanted.get(uid) is lease:
                _tell(lease.granted)

    def _taken(self, uid: str) -> None:
        """Another process has it, or may have it."""
        self._tokens.pop(uid, None)
        held = self._wanted.get(uid)
        if held is None or held.token == NO_TOKEN:
            return
        held.token = NO_TOKEN
        held.giving = False
        logger.warning("another process delivers for a Trigger from now on", extra={"facts": {"uid": uid}})
        _tell(held.lost)

    def _give_up_late_ones(self) -> None:
        if self._until_s <= asyncio.get_running_loop().time():
            for uid in tuple(self._wanted):
                self._taken(uid)


def _tell(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:  # boundary: one subscription's fault must not end the leases of the others
        logger.exception("what became of a lease could not be told")


def _failure(round_: asyncio.Task[None]) -> BaseException | None:
    """Why Kafka could not be asked. Raises what is no fault of Kafka."""
    error = TimeoutError("no answer in time") if round_.cancelled() else round_.exception()
    if error is not None and not isinstance(error, (*CONNECTION_ERRORS, Unavailable)):
        raise error
    return error
