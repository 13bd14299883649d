"""One of several processes does the work: leader election by a Lease (``coordination.k8s.io/v1``).

The lifecycle of a candidate; everything that moves it is in this file::

    WAITING --the Lease is free, or its holder fell silent--> LEADING
    LEADING --not renewed in time, or somebody else has it--> the work ends --> WAITING
    LEADING --cancelled--> the work ends --> the Lease is released

Clocks of machines are not compared: how long a holder has been silent is measured by each candidate itself, from when
it saw the last renewal. A leader counts from before it sent its last renewal, and gives up `renew_s` after that; its
work then has until `lease_s` to end, before which nobody else begins. Source of the rules and the defaults: Kubernetes'
client-go, `tools/leaderelection`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from core.clock import Clock, rfc3339
from core.control.port import ResourceStore
from core.errors import Conflict, NotFound, PenstockError
from core.resources import Key, ObjectMeta, Resource
from core.telemetry import Metrics

__all__ = ["Create", "Election", "ElectionTimes", "Renew", "Seen", "Take", "Wait", "decide"]

logger = logging.getLogger(__name__)

#: Candidates wait this much longer at random than they have to, so that they do not ask all at once.
_JITTER: Final = 1.2

#: What a released Lease says of its duration: whoever looks at it next may take it (as client-go writes it).
_RELEASED_S: Final = 1

Work = Callable[[], Coroutine[Any, Any, None]]


class ElectionTimes(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds. `lease_s`: a holder that has been silent for so long has lost its Lease. `renew_s`: a leader that
    could not renew for so long stops. `retry_s`: between two attempts to get or renew it. client-go's defaults."""

    lease_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_s > self.renew_s > self.retry_s * _JITTER > 0:
            raise ValueError(
                f"A Lease of {self.lease_s} s, given up {self.renew_s} s after its last renewal, cannot be renewed "
                f"every {self.retry_s} s: each must be longer than the next."
            )


class Seen(msgspec.Struct, frozen=True):
    """A Lease (None where there is none), and since when it has looked like this to this candidate, on its own loop's
    clock."""

    lease: Resource | None
    since_s: float


class Create(msgspec.Struct, frozen=True):
    """Nobody has ever had it."""


class Take(msgspec.Struct, frozen=True):
    """It is free, or its holder fell silent."""


class Renew(msgspec.Struct, frozen=True):
    """It is ours."""


class Wait(msgspec.Struct, frozen=True):
    """It is `holder`'s until `until_s`, if nothing is heard of it before."""

    holder: str
    until_s: float


def decide(seen: Seen, identity: str, now_s: float, times: ElectionTimes) -> Create | Take | Renew | Wait:
    """What a candidate does about a Lease at its loop's time `now_s`."""
    if seen.lease is None:
        return Create()
    spec = seen.lease.spec
    holder = spec.get("holderIdentity") or ""
    if not holder:
        return Take()
    if holder == identity:
        return Renew()
    until_s = seen.since_s + float(spec.get("leaseDurationSeconds") or times.lease_s)
    return Take() if now_s >= until_s else Wait(holder, until_s)


class Election:
    """One candidate for one Lease. `identity` is this process's alone: two that share one would both lead. `abandon` is
    called where work goes on after the Lease is lost: it must end the process, as another leader is about to begin."""

    def __init__(
        self,
        store: ResourceStore,
        lease: Key,
        identity: str,
        clock: Clock,
        *,
        times: ElectionTimes | None = None,
        metrics: Metrics | None = None,
        rng: random.Random | None = None,
        abandon: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._key = lease
        self._identity = identity
        self._clock = clock
        self._times = times or ElectionTimes()
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._abandon = abandon or _end_process
        self._seen = Seen(None, 0.0)
        #: When the last successful renewal was begun, on the loop's clock.
        self._renewed_s = 0.0
        self._leading = (metrics or Metrics()).gauge(
            "penstock_leader", "Whether this process holds the Lease.", lease=f"{lease.namespace}/{lease.name}"
        )

    @property
    def leading(self) -> bool:
        return bool(self._leading.value)

    async def run(self, work: Work) -> None:
        """Do `work` whenever, and only while, the Lease is held, until cancelled; then stop it and release the Lease.

        Work that ends by itself ends this, too; what it raises is raised here, once the Lease is released.
        """
        while True:
            await self._acquire()
            logger.info("leading", extra={"facts": self._facts()})
            self._leading.value = 1
            try:
                lost = await self._lead(work)
            finally:
                self._leading.value = 0
            if not lost:
                return
            logger.warning("no longer leading", extra={"facts": self._facts()})

    async def _acquire(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._times.renew_s):
                    if await self._attempt():
                        return
                failures = 0
            except (PenstockError, TimeoutError) as error:
                failures += 1
                self._tell_failure("the Lease could not be asked for", error, failures)
            await asyncio.sleep(self._times.retry_s * self._rng.uniform(1.0, _JITTER))

    async def _attempt(self) -> bool:
        """Look at the Lease and act on it; whether it is held now. On a Conflict somebody else was faster."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await self._look()
        decision = decide(self._seen, self._identity, loop.time(), self._times)
        if isinstance(decision, Wait):
            return False
        try:
            if isinstance(decision, Create):
                written = await self._store.create(self._created())
            else:
                written = await self._store.update(self._claimed(anew=isinstance(decision, Take)))
        except Conflict:
            return False
        self._seen = Seen(written, loop.time())
        self._renewed_s = began_s
        return True

    async def _look(self) -> None:
        try:
            lease: Resource | None = await self._store.get(self._key)
        except NotFound:
            lease = None
        known = self._seen.lease
        if lease is None or known is None or lease.meta.resource_version != known.meta.resource_version:
            self._seen = Seen(lease, asyncio.get_running_loop().time())

    def _created(self) -> Resource:
        meta = ObjectMeta(name=self._key.name, namespace=self._key.namespace)
        return Resource(ref=self._key.kind, meta=meta, body={"spec": {**self._holding(), "leaseTransitions": 0}})

    def _claimed(self, *, anew: bool) -> Resource:
        """The Lease that was seen, held by this candidate from now on."""
        assert self._seen.lease is not None  # noqa: S101 - decide() says Create where there is none
        spec = self._seen.lease.spec
        held = self._holding()
        if anew:
            held["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        else:
            held["acquireTime"] = spec.get("acquireTime") or held["acquireTime"]
        return self._seen.lease.with_spec({**spec, **held})

    def _holding(self) -> dict[str, Any]:
        now = rfc3339(self._clock.now(), fraction=True)
        return {
            "holderIdentity": self._identity,
            # Whole seconds, as the API has it; rounded up, so that nobody takes it early.
            "leaseDurationSeconds": math.ceil(self._times.lease_s),
            "acquireTime": now,
            "renewTime": now,
        }

    async def _lead(self, work: Work) -> bool:
        """Do the work and renew; whether the Lease was lost. The work has ended when this returns or raises."""
        working = asyncio.create_task(work(), name=f"work of {self._key}")
        renewing = asyncio.create_task(self._renew(), name=f"renew {self._key}")
        try:
            await asyncio.wait((working, renewing), return_when=asyncio.FIRST_COMPLETED)
            lost = not working.done()
        finally:
            working.cancel()
            try:
                await self._ended(working, renewing)
            finally:
                held = not renewing.done()
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
                if held:
                    await self._release()
        if not lost:
            working.result()
        elif not working.cancelled() and (error := working.exception()) is not None:
            raise error
        return lost

    async def _renew(self) -> None:
        """Renew until the Lease is lost."""
        loop = asyncio.get_running_loop()
        failures = 0
        while (left_s := self._renewed_s + self._times.renew_s - loop.time()) > 0:
            await asyncio.sleep(min(self._times.retry_s, left_s))
            try:
                async with asyncio.timeout_at(self._renewed_s + self._times.renew_s):
                    if await self._attempt():
                        failures = 0
                        continue
            except (PenstockError, TimeoutError) as error:
                failures += 1
                self._tell_failure("the Lease could not be renewed", error, failures)
                continue
            decision = decide(self._seen, self._identity, loop.time(), self._times)
            if isinstance(decision, Wait):
                logger.warning("somebody else leads", extra={"facts": {**self._facts(), "holder": decision.holder}})
                return

    async def _ended(self, working: asyncio.Task[None], renewing: asyncio.Task[None]) -> None:
        """Until the work has ended, however often this is cancelled: what goes on untended would work beside the next
        leader. It has all the time it needs while the Lease is renewed, and else until another candidate may begin."""
        cancelled: asyncio.CancelledError | None = None
        while not working.done():
            try:
                await self._wait_for(working, renewing)
            except asyncio.CancelledError as error:
                cancelled = error
                working.cancel()
        if cancelled is not None:
            raise cancelled

    async def _wait_for(self, working: asyncio.Task[None], renewing: asyncio.Task[None]) -> None:
        if not renewing.done():
            await asyncio.wait((working, renewing), return_when=asyncio.FIRST_COMPLETED)
            return
        left_s = self._renewed_s + self._times.lease_s - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.wait((working,), timeout=left_s)
            return
        logger.critical("work goes on without its Lease", extra={"facts": self._facts()})
        self._abandon()
        await asyncio.wait((working,))

    async def _release(self) -> None:
        """Say that the Lease is free; where that fails, the others wait for it to run out."""
        lease = self._seen.lease
        if lease is None or lease.spec.get("holderIdentity") != self._identity:
            return
        now = rfc3339(self._clock.now(), fraction=True)
        freed = {"holderIdentity": "", "leaseDurationSeconds": _RELEASED_S, "renewTime": now}
        try:
            async with asyncio.timeout(self._times.retry_s):
                await self._store.update(lease.with_spec({**lease.spec, **freed}))
        except (PenstockError, TimeoutError) as error:
            self._tell_failure("the Lease could not be released", error, 1)

    def _tell_failure(self, what: str, error: Exception, failures: int) -> None:
        if failures <= 2:
            logger.warning(what, extra={"facts": {**self._facts(), "error": str(error) or "no answer in time"}})

    def _facts(self) -> dict[str, str]:
        return {"lease": str(self._key), "identity": self._identity}


def _end_process() -> None:
    os._exit(70)
