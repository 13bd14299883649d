"""The broker process's whole work: it follows the store, takes events, and delivers them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from typing import Final

from broker.dispatch import Sender, Services
from broker.fanout import Fanout
from broker.ingress import Ingress
from broker.ledger import Ledger, OutcomeName
from broker.log.port import EventLog
from broker.resources import BROKER, DEFAULT_CLASS, TRIGGER, class_of
from broker.table import Table, TableBuilder, TriggerSpec
from core.clock import Clock
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.errors import Unavailable
from core.net.names import Names
from core.net.types import Handler
from core.telemetry import Counter, Histogram, Metrics

__all__ = ["BrokerNode"]

logger = logging.getLogger(__name__)

#: How often positions of Triggers that rarely match are kept, and old events removed.
CHECKPOINT_INTERVAL_S: Final = 5.0
RETENTION_INTERVAL_S: Final = 60.0

_DELIVERIES: Final = "penstock_broker_deliveries_total"


class BrokerNode:
    """All Brokers and Triggers of a store. Its owner opened `log`, and closes it, `client` and `store` after `drain`.

    `ledger` is where attempts are written; every log is one as well. `classes` are the Brokers' classes that `log`
    serves; a Broker of another has no ingress here.
    """

    def __init__(  # noqa: PLR0913 - the finished collaborators of a whole process
        self,
        *,
        store: ResourceStore,
        log: EventLog,
        ledger: Ledger,
        client: Sender,
        names: Names,
        clock: Clock,
        metrics: Metrics,
        classes: frozenset[str] = frozenset({DEFAULT_CLASS}),
        rng: random.Random | None = None,
    ) -> None:
        self._log = log
        self._clock = clock
        self._classes = classes
        self._builder = TableBuilder()
        self._ingress = Ingress(log=log, clock=clock, metrics=metrics)
        self._deliveries = _Deliveries(metrics)
        self._fanout = Fanout(
            Services(
                log=log,
                ledger=ledger,
                client=client,
                names=names,
                clock=clock,
                rng=rng or random.Random(),  # noqa: S311 - jitter, not a secret
                count=self._deliveries.count,
            )
        )
        self._follower = Follower(store, (BROKER, TRIGGER), self._changed, metrics=metrics)
        self._tasks: list[asyncio.Task[None]] = []
        known = metrics.gauge("penstock_broker_triggers", "Triggers that this process delivers for.")
        known.read = lambda: float(len(self._fanout.table.triggers))
        waiting = metrics.gauge("penstock_broker_backlog_events", "Events that wait for a Trigger, over all Triggers.")
        waiting.read = lambda: float(sum(self._fanout.backlog(uid) for uid in self._fanout.table.triggers))

    @property
    def handler(self) -> Handler:
        return self._ingress.handle

    @property
    def synced(self) -> asyncio.Event:
        """Set once the Brokers and Triggers are known."""
        return self._follower.synced

    async def start(self) -> None:
        """Begin to follow the store; returns at once. Requests are asked to come back until `synced`."""
        self._tasks = [
            asyncio.create_task(self._follower.run(), name="follow Brokers and Triggers"),
            asyncio.create_task(self._keep_house(), name="broker housekeeping"),
        ]

    async def drain(self, timeout_s: float) -> None:
        """Stop delivering, let what is in flight finish within `timeout_s`, and make all progress durable."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._fanout.drain(timeout_s)
        try:
            await self._log.flush()
        except Unavailable as error:
            facts = {"error": str(error)}
            logger.error("progress was not kept; some events will be delivered again", extra={"facts": facts})

    def backlog(self, uid: str) -> int:
        """How many events wait for the Trigger of this uid, at most."""
        return self._fanout.backlog(uid)

    def _changed(self, changes: Sequence[Observed]) -> None:
        brokers = (broker for broker in self._follower.list(BROKER) if class_of(broker) in self._classes)
        table = self._builder.build(brokers, self._follower.list(TRIGGER))
        self._deliveries.forget_others(table)
        self._fanout.swap(table)
        self._ingress.swap(table)

    async def _keep_house(self) -> None:
        until_retention_s = 0.0
        while True:
            await asyncio.sleep(CHECKPOINT_INTERVAL_S)
            self._fanout.checkpoint()
            until_retention_s -= CHECKPOINT_INTERVAL_S
            if until_retention_s > 0 or not self.synced.is_set():
                continue
            until_retention_s = RETENTION_INTERVAL_S
            try:
                removed = await self._log.retain(self._clock.now())
            except Unavailable as error:
                logger.error("old events were not removed", extra={"facts": {"error": str(error)}})
            else:
                if removed:
                    logger.info("old events removed", extra={"facts": {"events": removed}})


class _Deliveries:
    """Counts attempts by Trigger and outcome."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[tuple[str, OutcomeName], Counter] = {}
        self._keys: dict[tuple[str, OutcomeName], str] = {}
        text = "From sending an event to the end of the answer."
        self._latency: Histogram = metrics.histogram("penstock_broker_delivery_latency_seconds", text)

    def count(self, trigger: TriggerSpec, outcome: OutcomeName, latency_s: float) -> None:
        counter = self._counters.get((trigger.uid, outcome))
        if counter is None:
            counter = self._first(trigger, outcome)
        counter.value += 1
        self._latency.observe(latency_s)

    def _first(self, trigger: TriggerSpec, outcome: OutcomeName) -> Counter:
        text = "Attempts to deliver an event, by what they led to."
        made = self._metrics.counter(_DELIVERIES, text, trigger=trigger.key, outcome=outcome)
        self._counters[(trigger.uid, outcome)] = made
        self._keys[(trigger.uid, outcome)] = trigger.key
        return made

    def forget_others(self, table: Table) -> None:
        """End the series of Triggers that are gone."""
        for held in [held for held in self._counters if held[0] not in table.triggers]:
            del self._counters[held]
            self._metrics.forget(_DELIVERIES, trigger=self._keys.pop(held), outcome=held[1])
