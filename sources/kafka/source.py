"""KafkaSource: records are taken as a member of a consumer group, sent to the sink, and committed once it has them.

Flow: the group gives us partitions (`reading`), each with a `lane`. A lane takes records, makes events of them
(`records`) and emits them, one at a time where the source is ordered, else a bounded number at once. A record that is
done moves the partition's `progress`; what that says is committed, soon but not each time. When the group takes the
partitions away, lanes end: what is under way gets a moment to finish, what is done is committed, and the rest is the
next member's.

Where a partition begins: at the group's offset. A group without one begins at a topic's end or beginning, as the spec
says; "end" is saved before anything is read, so that no record is missed between then and the first commit. A topic
that was missing when the source looked first, a partition added later, and a group whose offsets Kafka has dropped
begin at the beginning. Which topics were seen before is in the checkpoints.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from core.control.backoff import Backoff
from core.errors import NotFound, PenstockError
from sources.kafka.access import access_of
from sources.kafka.port import Cluster, Connect, Member, Trouble
from sources.kafka.reading import Reading
from sources.kafka.records import Origin
from sources.kafka.resources import KafkaSourceSpec, KeyType
from sources.port import Emit, SourceContext, raise_if_cancelled

__all__ = ["KafkaSource"]

_log: Final = logging.getLogger(__name__)

#: Topics, lag and the connection are looked at this often.
CHECK_EVERY_S: Final = 5.0
#: After so long without an answer the connection is made anew, by the servers that the spec names: those that the
#: client knew may be gone for good.
RECONNECT_AFTER_S: Final = 60.0
#: Kafka that comes back is noticed within the cap.
CONNECT_BACKOFF: Final = Backoff(first_s=0.5, cap_s=10.0)


class KafkaSource:
    """One KafkaSource. `connect` reaches Kafka (`sources.kafka.member.connect`)."""

    def __init__(self, *, context: SourceContext, spec: KafkaSourceSpec, key_type: KeyType, connect: Connect) -> None:
        self._context = context
        self._spec = spec
        self._origin = Origin(namespace=context.namespace, name=context.name, key_type=key_type)
        self._connect = connect
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret

    async def run(self, emit: Emit) -> None:
        """Read until cancelled; Kafka, its topics and the Secrets are waited for."""
        if self._spec.consumers == 0:
            self._context.ready()
            await asyncio.get_running_loop().create_future()
        now = asyncio.get_running_loop().time
        failures = 0
        while True:
            began_s = now()
            try:
                await self._follow(emit)
            except* (Trouble, NotFound) as group:
                failures = 1 if now() - began_s > RECONNECT_AFTER_S else failures + 1
                self._fail(_first_of(group), failures)
            raise_if_cancelled()
            await asyncio.sleep(CONNECT_BACKOFF.delay_s(failures, self._rng))

    async def _follow(self, emit: Emit) -> None:
        """Connect, and read for as long as that works. Raises Trouble, NotFound, InvalidInput."""
        access = await access_of(self._spec, self._context.secret)
        async with self._connect(access, self._spec.consumer_group) as cluster:
            while True:
                missing = await cluster.missing(self._spec.topics)
                await self._begin(cluster, missing)
                present = [topic for topic in self._spec.topics if topic not in missing]
                if present:
                    await self._read(cluster, present, missing, emit)
                else:
                    self._tell(missing)
                    await asyncio.sleep(CHECK_EVERY_S)

    async def _begin(self, cluster: Cluster, missing: frozenset[str]) -> None:
        """Settle where topics that are seen for the first time begin."""
        marks = {_mark(topic): topic for topic in self._spec.topics}
        known = await self._context.marks.read(marks)
        fresh = [topic for mark, topic in marks.items() if mark not in known]
        present = [topic for topic in fresh if topic not in missing]
        if present and self._spec.initial_offset == "latest":
            await cluster.begin_at_end(present)
        await self._context.marks.write({_mark(topic): "missing" if topic in missing else "begun" for topic in fresh})

    async def _read(self, cluster: Cluster, present: list[str], missing: frozenset[str], emit: Emit) -> None:
        """Read these topics until another set of them exists."""
        async with asyncio.TaskGroup() as tasks:
            reading = Reading(self._context, self._origin, self._spec, emit, tasks)
            async with cluster.join(present, reading) as member:
                committing = tasks.create_task(reading.keep_committing(), name="commit")
                try:
                    await self._watch(cluster, member, reading, missing)
                finally:
                    committing.cancel()
                    await reading.end()

    async def _watch(self, cluster: Cluster, member: Member, reading: Reading, missing: frozenset[str]) -> None:
        """Look after the connection, the topics and the lag; returns when another set of topics exists. Raises Trouble
        where Kafka is away for long."""
        now = asyncio.get_running_loop().time
        away_since_s: float | None = None
        while True:
            try:
                if await cluster.missing(self._spec.topics) != missing:
                    return
                reading.measure(await member.reach())
                self._tell(missing)
                if away_since_s is not None:
                    _log.info("Kafka is back", extra={"facts": self._facts()})
                away_since_s = None
            except Trouble as error:
                # The client goes on trying by itself, and what is under way goes on as well.
                self._context.trouble(error.reason, str(error))
                if away_since_s is None:
                    away_since_s = now()
                    _log.warning("Kafka is away", extra={"facts": {**self._facts(), "error": str(error)}})
                elif now() - away_since_s >= RECONNECT_AFTER_S:
                    raise
            # What asks for several things at once may have answered a cancellation with the failure of one of them.
            raise_if_cancelled()
            await asyncio.sleep(CHECK_EVERY_S)

    def _fail(self, error: PenstockError, failures: int) -> None:
        """Say that reading has failed for this time in a row."""
        reason = error.reason if isinstance(error, Trouble) else "SecretMissing"
        self._context.trouble(reason, str(error))
        if failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: an outage of hours is a few lines
            facts = {**self._facts(), "error": str(error), "failures": failures}
            _log.warning("Kafka cannot be read", extra={"facts": facts})

    def _tell(self, missing: frozenset[str]) -> None:
        if not missing:
            self._context.ready()
            return
        names = ", ".join(sorted(missing))
        message = f"Kafka has no topic {names}. Create it, or correct spec.topics; it is read once it exists."
        self._context.trouble("TopicMissing", message)

    def _facts(self) -> dict[str, object]:
        return {"source": f"{self._context.namespace}/{self._context.name}"}


def _mark(topic: str) -> str:
    """The checkpoint's key for a topic that was looked at before."""
    return f"topic {topic}"


def _first_of(group: BaseExceptionGroup[PenstockError]) -> PenstockError:
    """What a task group's error is about."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
