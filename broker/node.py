"""A broker process's whole work: it follows the store, and takes events, delivers them, or both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal

from broker.dispatching import Dispatching
from broker.ingress import Ingress
from broker.log.port import LedgerLog, Record
from broker.services import Sender
from broker.table import GIVERS, TAKERS, Table, TableBuilder
from core.clock import Clock
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.errors import Unavailable
from core.net.names import Names
from core.net.pages import HEALTH, Pages
from core.net.types import Handler
from core.resources import Resource
from core.telemetry import Metrics

__all__ = ["FOLLOWED", "ROLES", "BrokerNode", "Role"]

logger = logging.getLogger(__name__)

#: The kinds that a broker process reads.
FOLLOWED: Final = (*GIVERS, *TAKERS)

#: ingress: takes events and stores them · dispatch: delivers stored events to the Triggers that it can get of those
#: that all processes on a log share among them.
Role = Literal["ingress", "dispatch"]
ROLES: Final[frozenset[Role]] = frozenset({"ingress", "dispatch"})


class BrokerNode:
    """All Brokers and Triggers of a store, channels and Subscriptions among them, in the `roles` that this process has.

    `logs` are the event logs by class of Broker; a log may stand under several, and a Broker of a class that is not
    among them has no ingress here. Logs of the classes `awaited` come later, by `add`; until then publishers to their
    Brokers are asked to come back. A process that dispatches tells `hear` every event of its logs. The node's owner
    opened all logs, and closes them, `client` and `store` after `drain`. It gives `handler` a listener where the
    process is an ingress, and `admin_handler` one where it is not.
    """

    def __init__(  # noqa: PLR0913 - the finished collaborators of a whole process
        self,
        *,
        store: ResourceStore,
        logs: Mapping[str, LedgerLog],
        client: Sender,
        names: Names,
        clock: Clock,
        metrics: Metrics,
        awaited: frozenset[str] = frozenset(),
        roles: frozenset[Role] = ROLES,
        rng: random.Random | None = None,
        hear: Callable[[Record], None] | None = None,
    ) -> None:
        self._logs = dict(logs)
        self._hear = hear if "dispatch" in roles else None
        self._classes = awaited.union(logs)
        self._builder = TableBuilder(self._classes)
        #: The next change is the first, or an earlier one was not taken in to its end: all is looked at.
        self._anew = True
        self._pages = Pages(metrics=metrics, checks={HEALTH: self.problem})
        self._ingress: Ingress | None = None
        self._dispatching: Dispatching | None = None
        if "ingress" in roles:
            self._ingress = Ingress(logs=self._logs, clock=clock, metrics=metrics, pages=self._pages.handle)
        if "dispatch" in roles:
            self._dispatching = Dispatching(
                logs=self._logs,
                client=client,
                names=names,
                clock=clock,
                metrics=metrics,
                rng=rng or random.Random(),  # noqa: S311 - jitter, not a secret
            )
        self._tail(logs)
        self._follower = Follower(store, FOLLOWED, self._changed, metrics=metrics)
        self._told = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._broken = asyncio.Event()
        self._table: Table | None = None
        self._draining = False

    @property
    def handler(self) -> Handler:
        """Serves the Brokers' addresses, and the pages of `admin_handler`; those alone where this is no ingress."""
        return self._pages.handle if self._ingress is None else self._ingress.handle

    @property
    def admin_handler(self) -> Handler:
        """Serves ``/healthz``, with the reason where this process should get nothing to do, and ``/metrics``."""
        return self._pages.handle

    @property
    def synced(self) -> asyncio.Event:
        """Set once the Brokers and Triggers are known."""
        return self._follower.synced

    async def start(self, known: Sequence[Resource] = ()) -> None:
        """Begin to follow the store; returns at once. Until `synced` the node goes by the Brokers and Triggers that are
        `known` from elsewhere; where there are none, requests are asked to come back."""
        if known:
            self._go_by(
                [resource for resource in known if resource.ref in GIVERS],
                [resource for resource in known if resource.ref in TAKERS],
            )
        self._following = asyncio.create_task(self._follower.run(), name="follow Brokers and Triggers")
        if self._dispatching is not None:
            work = self._dispatching.keep_house(self.synced.is_set)
            self._housekeeping = asyncio.create_task(work, name="broker housekeeping")
        for task in (self._following, self._housekeeping):
            if task is not None:
                task.add_done_callback(self._must_go_on)

    async def failed(self) -> None:
        """Return once a part of it has ended by itself, which is a fault. Its owner then ends the process: without the
        one it goes by old Brokers and Triggers, without the other nothing is removed from the log."""
        await self._broken.wait()

    def add(self, logs: Mapping[str, LedgerLog]) -> None:
        """Serve Brokers of these classes from now on."""
        if self._draining:
            return
        self._logs.update(logs)
        self._tail(logs)
        if self._dispatching is not None:
            self._dispatching.add(logs)
        if self._table is not None:
            self._swap(self._table)

    async def known(self, patience_s: float) -> None:
        """Wait until the Brokers are known, no longer than this: then publishers are asked to come back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._told.wait()

    async def drain(self, timeout_s: float) -> None:
        """Stop delivering, let what is in flight finish within `timeout_s`, and make all progress durable."""
        self._draining = True
        tasks = [task for task in (self._following, self._housekeeping) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._dispatching is not None:
            await self._dispatching.drain(timeout_s)
        for log in {id(log): log for log in self._logs.values()}.values():
            try:
                await log.flush()
            except Unavailable as error:
                facts = {"error": str(error)}
                logger.error("progress was not kept; some events will be delivered again", extra={"facts": facts})

    def problem(self) -> str:
        """Why this process should get nothing to do, "" where it should."""
        if self._draining:
            return "This process is stopping."
        if self._following is None or self._following.done():
            return "The Brokers are not followed."
        return "The Brokers are not known yet." if self._table is None else ""

    def backlog(self, uid: str) -> int:
        """How many events wait for the Trigger of this uid in this process, at most."""
        return 0 if self._dispatching is None else self._dispatching.backlog(uid)

    def _tail(self, logs: Mapping[str, LedgerLog]) -> None:
        if self._hear is not None:
            for log in {id(log): log for log in logs.values()}.values():
                log.tail(self._hear)

    def _must_go_on(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            facts = {"part": task.get_name()}
            logger.critical("part of the broker ended", exc_info=task.exception(), extra={"facts": facts})
            self._broken.set()

    def _changed(self, changes: Sequence[Observed]) -> None:
        if self._anew:
            self._go_by(
                chain.from_iterable(map(self._follower.list, GIVERS)),
                chain.from_iterable(map(self._follower.list, TAKERS)),
            )
        else:
            self._anew = True
            changed = self._builder.update(changes)
            self._swap(self._builder.table, changed)
        self._anew = False

    def _go_by(self, brokers: Iterable[Resource], triggers: Iterable[Resource]) -> None:
        self._swap(self._builder.build(brokers, triggers))

    def _swap(self, table: Table, changed: Collection[str] | None = None) -> None:
        """Go by this table. `changed` are the uids of the Triggers that are not as they were in the last one; None
        where that is not known."""
        if table is self._table and changed is not None:
            return
        self._table = table
        self._told.set()
        if self._dispatching is not None:  # first: a new Trigger hears what arrives from now on
            self._dispatching.swap(table, changed)
        if self._ingress is not None:
            self._ingress.swap(table)
