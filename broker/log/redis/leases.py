"""Who dispatches for which subscription: a lease each in Redis, renewed while held, taken over when its holder is gone.

A lease has a fencing token that only grows. A position is kept only with the newest token (`scripts.KEEP`), so a
process that was away for longer than its lease cannot undo its successor's progress. A process that starts again under
the same owner takes over its own leases at once: its supervisor knows that the earlier one has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from broker.log.redis.connection import COMMAND_TIMEOUT_S, CONNECTION_ERRORS, Connection, ended
from broker.log.redis.layout import Keys
from broker.log.redis.scripts import CLAIM

__all__ = ["LEASE_S", "Leases"]

logger = logging.getLogger(__name__)

#: What a crashed process's subscriptions wait for at most.
LEASE_S: Final = 5.0
#: Three tries in a lease's time.
RENEW_S: Final = 1.5
#: After Redis could not be asked.
RETRY_S: Final = 0.25
#: The holder gives a lease up this long before Redis does: the two clocks need not run at the same speed.
MARGIN_S: Final = 0.5
#: Leases asked for in one script.
TOGETHER: Final = 500

NO_TOKEN: Final = "0"  # noqa: S105 - of a lease, no secret


class _Lease:
    __slots__ = ("granted", "lost", "token", "until_s")

    def __init__(self, granted: Callable[[], None], lost: Callable[[], None]) -> None:
        self.granted = granted
        self.lost = lost
        self.token = NO_TOKEN
        #: On the loop's clock; after it somebody else may hold the lease.
        self.until_s = 0.0


class Leases:
    """The leases that this process wants. `take_up` is given the kept position before a grant is told."""

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
        self._changed = asyncio.Event()

    def want(self, uid: str, granted: Callable[[], None], lost: Callable[[], None]) -> None:
        """Get the lease, and get it again whenever it is lost; tells at once where it is held."""
        held = self._wanted.get(uid)
        if held is not None:
            held.granted, held.lost = granted, lost
            if held.token != NO_TOKEN:
                granted()
            return
        self._wanted[uid] = _Lease(granted, lost)
        self._changed.set()

    def forget(self, uid: str) -> tuple[str, str] | None:
        """Want it no more. Its key and what it holds where it is ours, for `scripts.RELEASE`."""
        held = self._wanted.pop(uid, None)
        if held is None or held.token == NO_TOKEN:
            return None
        return self._keys.lease(uid), f"{held.token} {self._owner}"

    def forget_all(self) -> list[tuple[str, str]]:
        return [found for uid in tuple(self._wanted) if (found := self.forget(uid)) is not None]

    def token(self, uid: str) -> str:
        """With which a position may be kept, until another process has the lease."""
        return self._tokens.get(uid, NO_TOKEN)

    def drop(self, uid: str) -> None:
        """The subscription is no more."""
        self._tokens.pop(uid, None)

    def taken(self, uid: str) -> None:
        """Another process has the lease, or may have it."""
        self._tokens.pop(uid, None)
        held = self._wanted.get(uid)
        if held is None or held.token == NO_TOKEN:
            return
        held.token = NO_TOKEN
        logger.warning("another process delivers for a Trigger from now on", extra={"facts": {"uid": uid}})
        held.lost()

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
            pause_s = RETRY_S if failing else RENEW_S
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
        uids = tuple(self._wanted)
        for start in range(0, len(uids), TOGETHER):
            await self._ask(tuple(uid for uid in uids[start : start + TOGETHER] if uid in self._wanted))

    async def _ask(self, uids: tuple[str, ...]) -> None:
        keys, held = self._keys, [self._wanted[uid].token for uid in uids]
        sent_s = asyncio.get_running_loop().time()
        answer = await self._connection.script(
            CLAIM,
            [keys.fence, keys.fences, keys.positions, *(keys.lease(uid) for uid in uids)],
            self._owner,
            int(LEASE_S * 1000),
            *(word for pair in zip(uids, held, strict=True) for word in pair),
        )
        for number, (uid, before) in enumerate(zip(uids, held, strict=True)):
            lease = self._wanted.get(uid)
            if lease is None or lease.token != before:
                continue  # forgotten meanwhile; what was granted ends by itself
            token = answer[2 * number].decode()
            if token == NO_TOKEN:
                self.taken(uid)
                continue
            lease.until_s = sent_s + LEASE_S - MARGIN_S
            if before == NO_TOKEN:
                lease.token = self._tokens[uid] = token
                self._take_up(uid, answer[2 * number + 1])
                lease.granted()

    def _give_up_late_ones(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for uid, lease in tuple(self._wanted.items()):
            if lease.token != NO_TOKEN and lease.until_s <= now_s:
                self.taken(uid)


def _failure(asking: asyncio.Task[None]) -> BaseException | None:
    """Why Redis could not be asked. Raises what is no fault of Redis."""
    error = TimeoutError("no answer in time") if asking.cancelled() else asking.exception()
    if error is not None and not isinstance(error, CONNECTION_ERRORS):
        raise error
    return error
