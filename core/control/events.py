"""Events: what happened to a resource, for ``kubectl describe``. Told by the control loop, written as core/v1 Events.

What is told follows from the condition that sums a resource's others up (Ready, Succeeded): it became True, or False,
or False for another reason. The same told again within minutes is counted, not repeated, and a resource that has much
to tell is soon told only now and then. Nobody's work waits for an Event or fails with it. Source of the shape and of
the limits: the Kubernetes API reference and client-go's `tools/record`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from core.clock import Clock, parse_rfc3339, rfc3339
from core.control.port import ResourceStore
from core.errors import Conflict, NotFound, PenstockError
from core.resources import ObjectMeta, Resource
from core.resources.builtin import EVENT
from core.telemetry import Metrics

__all__ = ["EventRecorder", "EventSweeper", "Note", "notes"]

logger = logging.getLogger(__name__)

#: Happy conditions: those that sum up the others.
_HAPPY: Final = ("Ready", "Succeeded")

#: The same told within this time is one Event with a higher count.
_SAME_S: Final = 600.0

#: Events of one resource at once, and how long until it may have one more (client-go's spam filter).
_BURST: Final = 25
_REFILL_S: Final = 300.0

#: Resources and Events remembered for the two limits above (client-go's cache).
_REMEMBERED: Final = 4_096

#: Events that wait to be written; what comes on top is dropped and counted.
_MAX_WAITING: Final = 1_000

#: A message is cut here, as the newer Events API demands.
_MAX_MESSAGE: Final = 1_024

#: How long a store keeps Events (the API server's --event-ttl), and how often a store that does not is swept.
_KEEP_S: Final = 3_600.0
_SWEEP_S: Final = 300.0


class Note(msgspec.Struct, frozen=True):
    """One thing to tell of a resource. `reason` is a CamelCase word."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def notes(before: Resource, after: Resource) -> Iterator[Note]:
    """What a change of status is worth telling."""
    old, new = _happy(before.status), _happy(after.status)
    if new is None:
        return
    now, then = _outcome(new), _outcome(old or {})
    kind = after.ref.kind
    if new.get("status") == "True" and then[0] != "True":
        yield Note("Normal", str(new["type"]), f"{kind} is {str(new['type']).lower()}.")
    elif new.get("status") == "False" and now != then:
        reason = str(new.get("reason") or f"Not{new['type']}")
        yield Note("Warning", reason, str(new.get("message") or f"{kind} is not {str(new['type']).lower()}."))


def _happy(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") in _HAPPY:
            found: Mapping[str, Any] = condition
            return found
    return None


def _outcome(condition: Mapping[str, Any]) -> tuple[str, str]:
    return str(condition.get("status", "")), str(condition.get("reason", ""))


class _Allowance:
    """How many Events a resource may still have; it grows back with time."""

    __slots__ = ("_at_s", "_left")

    def __init__(self, now_s: float) -> None:
        self._left = float(_BURST)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        self._left = min(float(_BURST), self._left + max(0.0, now_s - self._at_s) / _REFILL_S)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class EventRecorder:
    """Writes Events of `component` in its own time. `run` it in a task; what is told before that waits."""

    def __init__(
        self,
        store: ResourceStore,
        clock: Clock,
        component: str,
        *,
        metrics: Metrics | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._component = component
        self._rng = rng or random.Random()  # noqa: S311 - ends of names, not secrets
        self._waiting: asyncio.Queue[tuple[Resource, Note]] = asyncio.Queue(_MAX_WAITING)
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._written: OrderedDict[tuple[str, Note], Resource] = OrderedDict()
        self._dropped = (metrics or Metrics()).counter(
            "penstock_events_dropped_total", "Events that were too many, or could not be written."
        )

    def status_changed(self, before: Resource, after: Resource) -> None:
        """Told by the control loop of every status that it wrote."""
        for note in notes(before, after):
            self.tell(after, note)

    def tell(self, about: Resource, note: Note) -> None:
        """Have an Event written, unless there are too many. Never waits."""
        allowance = self._allowances.setdefault(about.meta.uid, _Allowance(self._clock.now()))
        _forget_oldest(self._allowances, about.meta.uid)
        if allowance.take(self._clock.now()) and not self._waiting.full():
            self._waiting.put_nowait((about, note))
        else:
            self._dropped.value += 1

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            about, note = await self._waiting.get()
            try:
                await self._write(about, note)
            except PenstockError as error:
                self._dropped.value += 1
                facts = {"key": str(about.key), "reason": note.reason, "error": str(error)}
                logger.warning("an Event could not be written", extra={"facts": facts})

    async def _write(self, about: Resource, note: Note) -> None:
        now = self._clock.now()
        known = self._written.get((about.meta.uid, note))
        if known is not None and now - parse_rfc3339(known.body["lastTimestamp"]) <= _SAME_S:
            counted = {**known.body, "count": known.body["count"] + 1, "lastTimestamp": rfc3339(now)}
            try:
                written = await self._store.update(msgspec.structs.replace(known, body=counted))
            except (NotFound, Conflict):
                # Swept, or somebody else's now: begin a new one.
                written = await self._store.create(self._event(about, note, now))
        else:
            written = await self._store.create(self._event(about, note, now))
        self._written[(about.meta.uid, note)] = written
        _forget_oldest(self._written, (about.meta.uid, note))

    def _event(self, about: Resource, note: Note, now: float) -> Resource:
        involved = {
            "apiVersion": about.ref.api_version,
            "kind": about.ref.kind,
            "namespace": about.meta.namespace,
            "name": about.meta.name,
            "uid": about.meta.uid,
            "resourceVersion": about.meta.resource_version,
        }
        body = {
            "involvedObject": involved,
            "reason": note.reason,
            "message": note.message[:_MAX_MESSAGE],
            "type": note.type,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": rfc3339(now),
            "lastTimestamp": rfc3339(now),
            "count": 1,
        }
        name = f"{about.meta.name}.{self._rng.getrandbits(64):016x}"
        # Of what lives in no namespace, Events are kept where Kubernetes keeps them.
        return Resource(ref=EVENT, meta=ObjectMeta(name=name, namespace=about.meta.namespace or "default"), body=body)


class EventSweeper:
    """Deletes old Events from a store that keeps them for ever, as the embedded API server's does."""

    def __init__(self, store: ResourceStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Sweep every few minutes until cancelled."""
        while True:
            try:
                await self._sweep()
            except PenstockError as error:
                logger.warning("old Events could not be deleted", extra={"facts": {"error": str(error)}})
            await asyncio.sleep(_SWEEP_S)

    async def _sweep(self) -> None:
        oldest = self._clock.now() - _KEEP_S
        for event in (await self._store.list(EVENT)).items:
            if _last_seen(event) >= oldest:
                continue
            try:
                await self._store.delete(event.key, uid=event.meta.uid)
            except (NotFound, Conflict):
                continue


def _last_seen(event: Resource) -> float:
    """When it happened last, or was written where a foreign Event does not say so readably."""
    for text in (event.body.get("lastTimestamp"), event.meta.creation_timestamp):
        try:
            return parse_rfc3339(str(text))
        except ValueError:
            continue
    return 0.0


def _forget_oldest(held: OrderedDict[Any, Any], used: object) -> None:
    """Keep what was used last."""
    held.move_to_end(used)
    if len(held) > _REMEMBERED:
        held.popitem(last=False)
