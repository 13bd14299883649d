"""Learns EventTypes from what flows: the first event of a type from a source makes one, with the Broker's reference.

The dispatching process hears each event of its logs once anyway; asking a set whether it is a new one costs less than
any reading of the log would. In a cluster several processes hear the same event: the name says that it is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final

import msgspec

from broker.event_types import EVENT_TYPE, make_event_type, readable_references
from broker.log.port import Record
from broker.messaging import IN_MEMORY_CHANNEL
from broker.resources import AUTO_CREATE_ANNOTATION, BROKER, DISABLED
from core.control.port import ResourceStore
from core.errors import AlreadyExists, InvalidInput, NotFound, PenstockError
from core.resources import Key

__all__ = ["MAX_TYPES", "EventTypeLearner"]

logger = logging.getLogger(__name__)

#: EventTypes that are made for one Broker or channel: a source for each device must not fill the store.
MAX_TYPES: Final = 200
#: New ones that wait while the store is away; what comes beyond them is learned from a later event.
MAX_PENDING: Final = 1000
#: After this, everything counts as new once more: an EventType that somebody deleted comes back with the next event.
FORGET_S: Final = 600.0
#: After the store could not be asked.
RETRY_S: Final = 5.0


class _New(msgspec.Struct, frozen=True):
    """What has not been heard before. `giver` is the Broker's or channel's name in the log."""

    giver: str
    type: str
    source: str
    schema: str | None


class EventTypeLearner:
    """Hears events by `hear`, and makes EventTypes while `run` is run."""

    def __init__(self, store: ResourceStore) -> None:
        self._store = store
        #: Types and sources by Broker or channel.
        self._seen: dict[str, set[tuple[str, str]]] = {}
        self._pending: deque[_New] = deque()
        self._wake = asyncio.Event()
        #: By namespace, the EventTypes that there are by name, each with the key of what it refers to.
        self._held: dict[str, dict[str, Key | None]] = {}

    def hear(self, record: Record) -> None:
        """An event is durable. Called for every one."""
        entry = record.entry
        seen = self._seen.get(entry.broker)
        if seen is None or (entry.attributes["type"], entry.attributes["source"]) not in seen:
            self._note(record)

    def _note(self, record: Record) -> None:
        entry = record.entry
        seen = self._seen.setdefault(entry.broker, set())
        if len(seen) >= MAX_TYPES or len(self._pending) >= MAX_PENDING:
            return
        new = _New(
            entry.broker, entry.attributes["type"], entry.attributes["source"], entry.attributes.get("dataschema")
        )
        seen.add((new.type, new.source))
        self._pending.append(new)
        self._wake.set()

    async def run(self) -> None:
        """Make EventTypes until cancelled."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time() + FORGET_S
        while True:
            try:
                async with asyncio.timeout_at(forget_at):
                    await self._wake.wait()
            except TimeoutError:
                self._seen.clear()
                self._held.clear()
                forget_at = loop.time() + FORGET_S
                continue
            while self._pending:
                try:
                    await self._learn(self._pending[0])
                except InvalidInput as error:
                    facts = {"broker": self._pending[0].giver, "error": str(error)}
                    logger.warning("no EventType was made of an event", extra={"facts": facts})
                except PenstockError as error:
                    facts = {"error": str(error)}
                    logger.warning("EventTypes cannot be made now; trying again", extra={"facts": facts})
                    await asyncio.sleep(RETRY_S)
                    continue
                self._pending.popleft()
            self._wake.clear()

    async def _learn(self, new: _New) -> None:
        namespace, _, name = new.giver.partition("/")
        channel = name.partition("/")
        key = Key(IN_MEMORY_CHANNEL, namespace, channel[2]) if channel[1] else Key(BROKER, namespace, name)
        try:
            giver = await self._store.get(key)
        except NotFound:
            return
        if giver.meta.annotations.get(AUTO_CREATE_ANNOTATION) == DISABLED:
            return
        held = await self._there(namespace)
        wanted = make_event_type(giver, new.type, new.source, new.schema)
        if wanted.meta.name in held:
            return
        if sum(reference == key for reference in held.values()) >= MAX_TYPES:
            facts = {"broker": str(key), "type": new.type, "source": new.source, "most": MAX_TYPES}
            logger.warning("a Broker has as many EventTypes as are made for it", extra={"facts": facts})
            return
        with contextlib.suppress(AlreadyExists):  # another process was faster
            await self._store.create(wanted)
        held[wanted.meta.name] = key

    async def _there(self, namespace: str) -> dict[str, Key | None]:
        held = self._held.get(namespace)
        if held is None:
            listed = (await self._store.list(EVENT_TYPE, namespace)).items
            held = dict.fromkeys((each.meta.name for each in listed), None)
            held |= {each.meta.name: reference for each, reference in readable_references(listed)}
            self._held[namespace] = held
        return held
