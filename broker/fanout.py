"""From an event to the dispatchers of the Triggers that want it: holds the table, and a dispatcher for each Trigger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import msgspec

from broker.dispatch import Dispatcher
from broker.index import FilterIndex
from broker.log.port import Record
from broker.services import Services
from broker.table import EMPTY, Table, TriggerSpec
from core.errors import PenstockError

__all__ = ["Fanout"]

logger = logging.getLogger(__name__)

#: A Trigger that matches nothing has its position kept when it is this many events behind: what it looks at again
#: after a crash.
CHECKPOINT_EVERY: Final = 1000

#: Before a new Trigger's start is looked for again in a log that could not be read.
_SEEK_RETRY_S: Final = 1.0

#: A Trigger that another process should have is kept until what is under way for it has ended: for the time-out of its
#: deliveries, and at most for so long. It gets no new ones meanwhile, so one that may take hours must not keep it; this
#: is the longest that a function may take. What has not ended by then is delivered again.
MAX_HANDOVER_S: Final = 600.0
#: Beyond the time-out: for a last answer's event to be stored.
_STORE_S: Final = 5.0


class Fanout:
    """Hears each stored event, and offers it to the dispatchers that want it. Used on the loop's thread."""

    def __init__(self, services: Services, classes: Collection[str]) -> None:
        """`classes` are those of the Brokers whose events the log keeps."""
        self._services = msgspec.structs.replace(services, home=self._home)
        self._classes = classes
        self._table: Table = EMPTY
        self._dispatchers: dict[str, Dispatcher] = {}
        self._leaving: set[Dispatcher] = set()
        #: By uid, what still runs for Triggers that other processes should have.
        self._handing: dict[str, _Handover] = {}
        #: The uids of the Triggers that this process delivers for; others that share the log have the rest.
        self._held: set[str] = set()
        self._closed = False
        #: This log's Triggers, by uid, and by Broker the index of what they want.
        self._triggers: dict[str, TriggerSpec] = {}
        self._takers: dict[str, FilterIndex[str]] = {}
        services.log.tail(self.publish)

    def _home(self, uri: str) -> str | None:
        """The Broker or channel of this log whose address that is: what is sent there can be stored here."""
        broker = self._table.paths.get(urlsplit(uri).path.encode())
        mine = broker is not None and broker.address == uri and broker.log_class in self._classes
        return broker.key if broker is not None and mine else None

    def publish(self, record: Record) -> None:
        """A new event is durable."""
        index = self._takers.get(record.entry.broker)
        if index is None:
            return
        dispatchers = self._dispatchers
        only = record.entry.only
        try:
            uids = index.match(record.entry.attributes) if only is None else (only.uid,)
        except Exception:  # boundary: who wants the event is found out Trigger by Trigger, from the log
            logger.exception("no filter could be asked by a fault", extra={"facts": {"position": record.seq}})
            for held in dispatchers.values():
                if held.trigger.broker == record.entry.broker:
                    held.mend()
            return
        for uid in uids:
            dispatcher = dispatchers.get(uid)
            if dispatcher is None:
                continue
            try:
                dispatcher.offer(record)
            except Exception:  # boundary: one Trigger's fault must not keep the event from the others
                facts = {"trigger": dispatcher.trigger.key, "position": record.seq}
                logger.exception("a Trigger could not take an event; it is looked for again", extra={"facts": facts})
                dispatcher.mend()

    def swap(self, table: Table, changed: Collection[str] | None = None) -> None:
        """Go by this table from now on. `changed` are the uids of the Triggers that are not as they were in the last
        one, or whose Broker is not; None where that is not known. A Trigger that is not in the table was deleted, and
        its position goes; or it cannot be read, and its position stays."""
        self._table = table
        if self._closed:
            return
        log, uids = self._services.log, changed
        if uids is None:
            uids = dict.fromkeys((*self._triggers, *log.subscriptions(), *table.triggers))
        here: list[TriggerSpec] = []
        for uid in uids:
            trigger = table.served(uid, self._classes)
            if trigger is not None:
                here.append(trigger)
                continue
            self._leave(uid)
            if uid in log.subscriptions() and not table.waits(uid):
                log.unsubscribe(uid)
        for trigger in here:
            self._put(trigger)

    def _put(self, trigger: TriggerSpec) -> None:
        """The Trigger is new, or changed, or as it was."""
        before = self._triggers.get(trigger.uid)
        if before == trigger:
            return
        if before is not None and before.broker != trigger.broker:
            self._unfile(before)
        self._triggers[trigger.uid] = trigger
        self._takers.setdefault(trigger.broker, FilterIndex()).put(trigger.uid, trigger.filter)
        if before is None:
            self._claim(trigger.uid)
        elif (dispatcher := self._dispatchers.get(trigger.uid)) is not None:
            dispatcher.update(trigger)

    def _leave(self, uid: str) -> None:
        """The Trigger is not one of this log's any more, if it was."""
        trigger = self._triggers.pop(uid, None)
        if trigger is None:
            return
        self._unfile(trigger)
        dispatcher = self._dispatchers.pop(uid, None)
        if dispatcher is not None:
            self._end(dispatcher)
        self._held.discard(uid)
        self._stop_handing(uid)
        self._services.log.release(uid)

    def _unfile(self, trigger: TriggerSpec) -> None:
        takers = self._takers[trigger.broker]
        takers.drop(trigger.uid)
        if not takers:
            del self._takers[trigger.broker]

    def _claim(self, uid: str) -> None:
        log = self._services.log
        log.claim(
            uid, partial(self._granted, uid, log.last()), partial(self._lost, uid), partial(self._wanted_elsewhere, uid)
        )

    def _granted(self, uid: str, newest: int) -> None:
        """This process is to deliver for the Trigger."""
        trigger = self._triggers.get(uid)
        if trigger is not None and not self._closed:
            self._held.add(uid)
            self._enter(trigger, newest)

    def _lost(self, uid: str) -> None:
        """Another process delivers for the Trigger."""
        self._held.discard(uid)
        self._stop_handing(uid)
        dispatcher = self._dispatchers.pop(uid, None)
        if dispatcher is not None:
            self._end(dispatcher)

    def _wanted_elsewhere(self, uid: str) -> None:
        """Another process should deliver for the Trigger: make no more attempts, and let it go once those under way
        have ended."""
        self._held.discard(uid)
        dispatcher = self._dispatchers.pop(uid, None)
        if dispatcher is None:  # where it begins is still being looked for
            self._let_go(uid)
            return
        dispatcher.looked_at(self._services.log.last(), 1)
        dispatcher.stop()
        patience_s = min(dispatcher.trigger.policy.timeout_s, MAX_HANDOVER_S) + _STORE_S
        timer = asyncio.get_running_loop().call_later(patience_s, self._handed, uid, dispatcher)
        self._handing[uid] = _Handover(dispatcher, timer)
        dispatcher.when_idle(partial(self._handed, uid, dispatcher))

    def _handed(self, uid: str, dispatcher: Dispatcher) -> None:
        """What was under way has ended, or took too long."""
        handover = self._handing.get(uid)
        if handover is not None and handover.dispatcher is dispatcher:
            self._stop_handing(uid)
            self._let_go(uid)

    def _stop_handing(self, uid: str) -> None:
        handover = self._handing.pop(uid, None)
        if handover is not None:
            handover.timer.cancel()
            self._end(handover.dispatcher)

    def _let_go(self, uid: str) -> None:
        """Let another process have it, and take it again if that one fails."""
        self._services.log.release(uid)
        if uid in self._triggers and not self._closed:
            self._claim(uid)

    def _enter(self, trigger: TriggerSpec, newest: int) -> None:
        """A Trigger that has no dispatcher yet. Its kept position counts; a new one starts where the log was when it
        was created, even if this process hears of it later: what arrived since is what its Ready promises. Kubernetes
        cuts creation times to whole seconds, so it may get what came up to a second before it; to miss what came in
        that second after it would be worse. What arrives after `newest`, the log's end when it was heard of, is
        offered to it in any case."""
        log = self._services.log
        if trigger.uid in log.subscriptions() or trigger.created_at is None:
            self._begin(trigger.uid, newest)
            return

        def found(start: int | PenstockError) -> None:
            if isinstance(start, PenstockError):
                facts = {"trigger": trigger.key, "error": str(start)}
                logger.error("a new Trigger's start is not known yet; looking again", extra={"facts": facts})
                asyncio.get_running_loop().call_later(_SEEK_RETRY_S, self._seek_again, trigger.uid, newest)
            else:
                self._begin(trigger.uid, min(start, newest))

        log.seek(trigger.broker, trigger.created_at, found)

    def _seek_again(self, uid: str, newest: int) -> None:
        trigger = self._triggers.get(uid)
        if trigger is not None and uid not in self._dispatchers and not self._closed:
            self._enter(trigger, newest)

    def _begin(self, uid: str, start: int) -> None:
        trigger = self._triggers.get(uid)
        if trigger is None or uid not in self._held or uid in self._dispatchers or self._closed:
            return  # deleted, another process has it, or this one drains
        subscription = self._services.log.subscribe(uid, trigger.broker, trigger.key, start)
        dispatcher = self._dispatchers[uid] = Dispatcher(trigger, subscription, self._services)
        dispatcher.begin()

    def _end(self, dispatcher: Dispatcher) -> None:
        dispatcher.stop()
        self._leaving = {leaving for leaving in self._leaving if leaving.busy}
        if dispatcher.busy:
            self._leaving.add(dispatcher)

    def checkpoint(self) -> None:
        """Keep how far the Triggers are that rarely match; called now and then."""
        last = self._services.log.last()
        for dispatcher in self._dispatchers.values():
            dispatcher.looked_at(last, CHECKPOINT_EVERY)

    @property
    def held(self) -> Collection[str]:
        """The uids of the Triggers that this process delivers for."""
        return self._held

    def whole_backlog(self) -> int:
        """How many events wait for this process's Triggers, at most."""
        return sum(dispatcher.backlog for dispatcher in self._dispatchers.values())

    def backlog(self, uid: str) -> int:
        """How many events wait for a Trigger, at most."""
        dispatcher = self._dispatchers.get(uid)
        return dispatcher.backlog if dispatcher is not None else 0

    async def drain(self, timeout_s: float) -> None:
        """No new attempts; wait for those under way. Their events are delivered again after a restart if they take
        longer than `timeout_s`. Other processes have each Trigger as soon as nothing is under way for it here."""
        self._closed = True
        log = self._services.log
        last = log.last()
        for uid in self._triggers:
            if uid not in self._dispatchers and uid not in self._handing:
                log.release(uid)
        for uid, dispatcher in self._dispatchers.items():
            dispatcher.looked_at(last, 1)
            dispatcher.stop()
            dispatcher.when_idle(partial(log.release, uid))
        handing = [handover.dispatcher for handover in self._handing.values()]
        dispatchers = [*self._dispatchers.values(), *handing, *self._leaving]
        try:
            async with asyncio.timeout(timeout_s):
                for dispatcher in dispatchers:
                    await dispatcher.drained()
        except TimeoutError:
            count = sum(dispatcher.busy for dispatcher in dispatchers)
            facts = {"triggers": count}
            logger.warning("deliveries did not end in time; they will be made again", extra={"facts": facts})


class _Handover:
    """What is still under way for a Trigger that another process should have."""

    __slots__ = ("dispatcher", "timer")

    def __init__(self, dispatcher: Dispatcher, timer: asyncio.TimerHandle) -> None:
        self.dispatcher = dispatcher
        self.timer = timer
