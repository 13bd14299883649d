"""The dispatching half of a broker process: the Triggers of every log, what is counted of them, and keeping house."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from typing import Final

from broker.fanout import Fanout
from broker.ledger import OUTCOMES, OutcomeName
from broker.log.port import LedgerLog
from broker.services import Sender, Services
from broker.table import EMPTY, Table, TriggerSpec
from core.clock import Clock
from core.errors import Unavailable
from core.net.names import Names
from core.telemetry import Counter, Histogram, Metrics

__all__ = ["Dispatching"]

logger = logging.getLogger(__name__)

#: How often positions of Triggers that rarely match are kept, and old events removed.
CHECKPOINT_INTERVAL_S: Final = 5.0
RETENTION_INTERVAL_S: Final = 60.0

_DELIVERIES: Final = "penstock_broker_deliveries_total"


class Dispatching:
    """Delivers the events of `logs`, by class of Broker, to the Triggers that this process holds of each."""

    def __init__(
        self,
        *,
        logs: Mapping[str, LedgerLog],
        client: Sender,
        names: Names,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._client = client
        self._names = names
        self._clock = clock
        self._rng = rng
        self._deliveries = _Deliveries(metrics)
        self._parts: list[_Part] = []
        self.add(logs)
        known = metrics.gauge("penstock_broker_triggers", "Triggers that this process delivers for.")
        known.read = lambda: float(sum(len(part.fanout.held) for part in self._parts))
        waiting = metrics.gauge("penstock_broker_backlog_events", "Events that wait for a Trigger, over all Triggers.")
        waiting.read = lambda: float(sum(part.fanout.whole_backlog() for part in self._parts))

    def add(self, logs: Mapping[str, LedgerLog]) -> None:
        """Deliver the events of these logs as well, from the next `swap` on."""
        for log, classes in _classes_by_log(logs).items():
            services = Services(
                log=log,
                ledger=log,
                client=self._client,
                names=self._names,
                clock=self._clock,
                rng=self._rng,
                count=self._deliveries.count,
            )
            self._parts.append(_Part(log, Fanout(services, classes)))

    def swap(self, table: Table, changed: Collection[str] | None = None) -> None:
        """Go by this table from now on, as `Fanout.swap`."""
        self._deliveries.forget_others(table, changed)
        for part in self._parts:
            part.fanout.swap(table, changed)

    def backlog(self, uid: str) -> int:
        """How many events wait for the Trigger of this uid, at most."""
        return sum(part.fanout.backlog(uid) for part in self._parts)

    async def keep_house(self, ready: Callable[[], bool]) -> None:
        """Keep positions and remove old events, until cancelled. Nothing is removed before `ready` says that all
        Triggers are known."""
        until_retention_s = 0.0
        while True:
            await asyncio.sleep(CHECKPOINT_INTERVAL_S)
            for part in self._parts:
                part.fanout.checkpoint()
            until_retention_s -= CHECKPOINT_INTERVAL_S
            if until_retention_s > 0 or not ready():
                continue
            until_retention_s = RETENTION_INTERVAL_S
            for part in self._parts:
                await self._retain(part.log)

    async def _retain(self, log: LedgerLog) -> None:
        try:
            removed = await log.retain(self._clock.now())
        except Unavailable as error:
            logger.error("old events were not removed", extra={"facts": {"error": str(error)}})
        else:
            if removed:
                logger.info("old events removed", extra={"facts": {"events": removed}})

    async def drain(self, timeout_s: float) -> None:
        """Stop delivering, and let what is in flight finish within `timeout_s`."""
        await asyncio.gather(*(part.fanout.drain(timeout_s) for part in self._parts))


class _Part:
    """One log, and what delivers its events."""

    def __init__(self, log: LedgerLog, fanout: Fanout) -> None:
        self.log = log
        self.fanout = fanout


def _classes_by_log(logs: Mapping[str, LedgerLog]) -> dict[LedgerLog, frozenset[str]]:
    return {log: frozenset(name for name, held in logs.items() if held is log) for log in logs.values()}


class _Deliveries:
    """Counts attempts by Trigger and outcome."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[tuple[str, OutcomeName], Counter] = {}
        self._keys: dict[tuple[str, OutcomeName], str] = {}
        self._table: Table = EMPTY
        text = "From sending an event to the end of the answer."
        self._latency: Histogram = metrics.histogram("penstock_broker_delivery_latency_seconds", text)

    def count(self, trigger: TriggerSpec, outcome: OutcomeName, latency_s: float) -> None:
        counter = self._counters.get((trigger.uid, outcome))
        if counter is None and trigger.uid in self._table.triggers:  # not where one that is gone ends its last attempts
            counter = self._first(trigger, outcome)
        if counter is not None:
            counter.value += 1
        self._latency.observe(latency_s)

    def _first(self, trigger: TriggerSpec, outcome: OutcomeName) -> Counter:
        text = "Attempts to deliver an event, by what they led to."
        made = self._metrics.counter(_DELIVERIES, text, trigger=trigger.key, outcome=outcome)
        self._counters[(trigger.uid, outcome)] = made
        self._keys[(trigger.uid, outcome)] = trigger.key
        return made

    def forget_others(self, table: Table, changed: Collection[str] | None) -> None:
        """End the series of Triggers that are gone; of all, or of those that changed."""
        self._table = table
        uids = {uid for uid, _ in self._counters} if changed is None else changed
        for uid in uids:
            if uid in table.triggers:
                continue
            for outcome in OUTCOMES:
                if self._counters.pop((uid, outcome), None) is not None:
                    self._metrics.forget(_DELIVERIES, trigger=self._keys.pop((uid, outcome)), outcome=outcome)
