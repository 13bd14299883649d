"""Who dispatches for which subscription: a lease each in Redis, renewed while held, taken over when its holder is gone,
and shared out evenly among the processes that are there (`broker.log.balance`).

A lease has a fencing token that only grows. A position is kept only with the newest token (`scripts.KEEP`), so a
process that was away for longer than its lease cannot undo its successor's progress. A process that starts again under
the same owner takes over its own leases at once: its supervisor knows that the earlier one has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from broker.log.balance import Plan, plan
from broker.log.redis.connection import COMMAND_TIMEOUT_S, CONNECTION_ERRORS, Connection, ended
from broker.log.redis.layout import Keys
from broker.log.redis.scripts import CLAIM, LOOK, RELEASE

__all__ = ["LEASE_S", "Leases"]

logger = logging.getLogger(__name__)

#: What a crashed process's subscriptions wait for at most.
LEASE_S: Final = 5.0
#: Three tries in a lease's time.
RENEW_S: Final = 1.5
#: After Redis could not be asked.
RETRY_S: Final = 0.25
#: A lease's end as Redis sees it, and the rounding of times.
AFTER_END_S: Final = 0.01
#: The holder gives a lease up this long before Redis does: the two clocks need not run at the same speed.
MARGIN_S: Final = 0.5
#: Leases asked for in one script.
TOGETHER: Final = 500

NO_TOKEN: Final = "0"  # noqa: S105 - of a lease, no secret


class _Lease:
    __slots__ = ("asked", "free_since_s", "giving", "granted", "lost", "token", "until_s")

    def __init__(self, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        self.granted = granted
        self.lost = lost
        self.asked = asked
        self.token = NO_TOKEN
        #: Its holder was asked to let another process have it.
        self.giving = False
        #: On the loop's clock: since when nobody has it, as far as was seen.
        self.free_since_s: float | None = None
        #: On the loop's clock; after it somebody else may hold the lease.
        self.until_s = 0.0


class Leases:
    """The leases that this process wants; it gets its share of them. `take_up` is given the kept position before a
    grant is told."""

    def __init__(
        self, *, connection: Connection, keys: Keys, owner: str, take_up: Callable[[str, bytes], None]
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._owner = owner
        self._take_up = take_up
        self._wanted: dict[str, _Lease] = {}
        #: By uid, also of leases given back: what was acknowledged until then is still to be kept.
        self._tokens: dict[str, str] = {}
        #: Those that nobody else took although it was their turn.
        self._left: set[str] = set()
        #: Given up here, and not in Redis yet: until then they are not free, for this process as little as for others.
        self._going: set[str] = set()
        #: How many leases the others know that this process wants.
        self._told = 0
        #: Of the processes that are there, when the first one will not count any more if nothing is heard of it.
        self._next_end_s = LEASE_S
        self._changed = asyncio.Event()

    def want(self, uid: str, granted: Callable[[], None], lost: Callable[[], None], asked: Callable[[], None]) -> None:
        """Get the lease, and get it again whenever it is lost; tells at once where it is held. `asked` when another
        process should have it: then `forget` it, once nothing is under way for it."""
        held = self._wanted.get(uid)
        if held is not None:
            held.granted, held.lost, held.asked = granted, lost, asked
            if held.token != NO_TOKEN:
                granted()
            return
        self._wanted[uid] = _Lease(granted, lost, asked)
        self._changed.set()

    def look_again(self) -> None:
        """Another process came, went, or gave leases."""
        self._changed.set()

    def forget(self, uid: str) -> tuple[str, str] | None:
        """Want it no more. Its key and what it holds where it is ours, for `scripts.RELEASE`; then call `gone`."""
        held = self._wanted.pop(uid, None)
        if held is None:
            return None
        self._changed.set()  # the others are to know that it is for them
        if held.token == NO_TOKEN:
            return None
        key = self._keys.lease(uid)
        self._going.add(key)
        return key, f"{held.token} {self._owner}"

    def gone(self, released: Iterable[tuple[str, str]]) -> None:
        """What `forget` told was given back."""
        self._going.difference_update(key for key, _ in released)

    async def leave(self) -> None:
        """Give back all, so that others need not wait for their end. Raises CONNECTION_ERRORS."""
        held = [found for uid in tuple(self._wanted) if (found := self.forget(uid)) is not None]
        await self._connection.run("HDEL", self._keys.members, self._owner)
        if self._told:
            keys = [self._keys.moved, *(key for key, _ in held)]
            await self._connection.script(RELEASE, keys, *(value for _, value in held))

    def token(self, uid: str) -> str:
        """With which a position may be kept, until another process has the lease."""
        return self._tokens.get(uid, NO_TOKEN)

    def drop(self, uid: str) -> None:
        """The subscription is no more."""
        self._tokens.pop(uid, None)
        self._left.discard(uid)

    def taken(self, uid: str) -> None:
        """Another process has the lease, or may have it."""
        self._tokens.pop(uid, None)
        held = self._wanted.get(uid)
        if held is None or held.token == NO_TOKEN:
            return
        held.token = NO_TOKEN
        held.giving = False
        logger.warning("another process delivers for a Trigger from now on", extra={"facts": {"uid": uid}})
        _tell(held.lost)

    async def run(self) -> None:
        """Renew what is held and ask for the rest, until cancelled."""
        failing = False
        while True:
            self._changed.clear()
            asking = asyncio.create_task(self._ask_all(), name="event log leases asked for")
            try:
                await asyncio.wait({asking}, timeout=self._patience_s())
                self._give_up_late_ones()
            finally:
                await ended({asking})
            error = _failure(asking)
            if error is not None and not failing:
                logger.warning("leases cannot be renewed now; trying again", extra={"facts": {"error": str(error)}})
            failing = error is not None
            # A process that was silent for a while may be gone: look in the moment in which its leases end.
            pause_s = RETRY_S if failing else min(RENEW_S, self._next_end_s + AFTER_END_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _patience_s(self) -> float:
        """Until the first lease ends: its end has to be told whether Redis answers or not."""
        now_s = asyncio.get_running_loop().time()
        ends = [lease.until_s - now_s for lease in self._wanted.values() if lease.token != NO_TOKEN]
        return max(min(ends, default=COMMAND_TIMEOUT_S), 0.0)

    async def _ask_all(self) -> None:
        """Renew what is held, look who is there and who has what, and do this process's part of the sharing."""
        uids = tuple(self._wanted)
        if not uids and not self._told:
            return
        members: dict[str, int] = {}
        holders: dict[str, str] = {}
        for some in _parts(uids) or [()]:
            members = await self._look([uid for uid in some if uid in self._wanted], holders)
        decided = self._plan(members, {uid: holder for uid, holder in holders.items() if uid in self._wanted})
        for some in _parts(decided.claim):
            if now_wanted := [uid for uid in some if uid in self._wanted]:
                await self._claim(now_wanted)
        for uid in decided.give:
            lease = self._wanted.get(uid)
            if lease is not None and lease.token != NO_TOKEN and not lease.giving:
                lease.giving = True
                _tell(lease.asked)

    def _plan(self, members: Mapping[str, int], holders: dict[str, str]) -> Plan:
        now_s = asyncio.get_running_loop().time()
        going = {uid for uid in holders if self._keys.lease(uid) in self._going} if self._going else set()
        own = []
        for uid, holder in holders.items():
            lease = self._wanted[uid]
            if holder:
                lease.free_since_s = None
                if holder != self._owner:
                    self._left.discard(uid)
            elif lease.free_since_s is None:
                lease.free_since_s = now_s
            elif now_s - lease.free_since_s >= LEASE_S:
                self._left.add(uid)
            if holder == self._owner and lease.token == NO_TOKEN and uid not in going:
                own.append(uid)  # an earlier process of this owner had it
        leaving = going.union(uid for uid, lease in self._wanted.items() if lease.giving)
        decided = plan(self._owner, members, holders, leaving=leaving, left=self._left)
        return Plan(claim=(*own, *decided.claim), give=decided.give)

    async def _look(self, uids: Sequence[str], holders: dict[str, str]) -> dict[str, int]:
        """Renew those of these that are held, and put down who holds each. Answers which processes are there, and how
        many each wants."""
        wanted = len(self._wanted)
        keys, held = self._keys, [self._wanted[uid].token for uid in uids]
        sent_s = asyncio.get_running_loop().time()
        answer = await self._connection.script(
            LOOK,
            [keys.members, keys.moved, keys.fences, *(keys.lease(uid) for uid in uids)],
            self._owner,
            int(LEASE_S * 1000),
            wanted,
            *(word for pair in zip(uids, held, strict=True) for word in pair),
        )
        self._told = wanted
        for uid, before, token, holder in zip(uids, held, answer[1::2], answer[2::2], strict=True):
            lease = self._wanted.get(uid)
            if lease is None or lease.token != before:
                continue  # forgotten meanwhile; what was granted ends by itself
            holders[uid] = holder.decode()
            if before == NO_TOKEN:
                continue
            if token.decode() == NO_TOKEN:
                self.taken(uid)
            else:
                lease.until_s = sent_s + LEASE_S - MARGIN_S
        names, wants, left_ms = answer[0][::3], answer[0][1::3], answer[0][2::3]
        self._next_end_s = min(left_ms, default=LEASE_S * 1000) / 1000
        return {name.decode(): int(count) for name, count in zip(names, wants, strict=True)}

    async def _claim(self, uids: Sequence[str]) -> None:
        keys = self._keys
        sent_s = asyncio.get_running_loop().time()
        answer = await self._connection.script(
            CLAIM,
            [keys.fence, keys.fences, keys.positions, *(keys.lease(uid) for uid in uids)],
            self._owner,
            int(LEASE_S * 1000),
            *uids,
        )
        for uid, token, kept in zip(uids, answer[::2], answer[1::2], strict=True):
            lease = self._wanted.get(uid)
            if lease is None or lease.token != NO_TOKEN or token.decode() == NO_TOKEN:
                continue  # forgotten meanwhile, or somebody else was faster
            lease.until_s = sent_s + LEASE_S - MARGIN_S
            lease.token = self._tokens[uid] = token.decode()
            lease.giving, lease.free_since_s = False, None
            self._take_up(uid, kept)
            _tell(lease.granted)

    def _give_up_late_ones(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for uid, lease in tuple(self._wanted.items()):
            if lease.token != NO_TOKEN and lease.until_s <= now_s:
                self.taken(uid)


def _tell(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:  # boundary: one subscription's fault must not end the leases of the others
        logger.exception("what became of a lease could not be told")


def _parts(uids: Sequence[str]) -> list[Sequence[str]]:
    return [uids[start : start + TOGETHER] for start in range(0, len(uids), TOGETHER)]


def _failure(asking: asyncio.Task[None]) -> BaseException | None:
    """Why Redis could not be asked. Raises what is no fault of Redis."""
    error = TimeoutError("no answer in time") if asking.cancelled() else asking.exception()
    if error is not None and not isinstance(error, CONNECTION_ERRORS):
        raise error
    return error
