"""The broker process under test: ``python -m tests.support.chaos.process <setup as JSON>``.

It can be told to die at a moment that nobody outside could hit: it sends itself SIGKILL, which no code can see coming.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
import uvloop

from broker.log import checkpoints
from broker.log.kafka.log import KafkaLog
from broker.log.port import Record
from broker.log.redis.log import RedisLog
from broker.log.sqlite import SqliteLog
from broker.resources import TRIGGER
from core.resources import ObjectMeta, Resource
from tests.support.broker_process import broker, make_log, serve

__all__ = ["Death", "Setup", "Wanted"]

#: stored: an event is on disk, and nobody has been told. commit, checkpoint: while SQLite is in one.
Moment = Literal["stored", "commit", "checkpoint"]

#: A commit takes about a millisecond: death comes at some point of it.
WITHIN_S: Final = 0.002
#: Pages in SQLite's write-ahead log that bring a checkpoint: few, so that a short life has many.
CHECKPOINT_PAGES: Final = 64


class Death(msgspec.Struct, frozen=True):
    """At this moment's `count`-th time."""

    moment: Moment
    count: int


class Wanted(msgspec.Struct, frozen=True):
    """A Trigger: its subscriber and, where it has one, its dead-letter sink."""

    name: str
    uri: str
    letters: str | None = None
    annotations: dict[str, str] = {}


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do. `log` as for `tests.support.broker_process`."""

    log: str
    port: int
    triggers: list[Wanted]
    death: Death | None = None


class _Fate:
    """Counts the moments, and ends the process at the one that was chosen."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self._left = death.count

    def reached(self, moment: Moment, within_s: float = 0.0) -> None:
        if moment != self._death.moment:
            return
        self._left -= 1
        if self._left != 0:
            return
        if within_s:
            threading.Thread(target=self._strike, args=(random.uniform(0, within_s),), daemon=True).start()
        else:
            self._strike(0.0)

    def _strike(self, delay_s: float) -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)


class FatedLog(SqliteLog):
    """The SQLite log, whose statements are seen as they begin; it makes checkpoints more often."""

    def __init__(self, path: Path, fate: _Fate | None) -> None:
        super().__init__(path)
        self._fate = fate

    async def open(self) -> None:
        await super().open()
        if self._fate is not None:
            for connection in (self._writer, self._files.checkpointer):
                connection.set_trace_callback(self._traced)

    def _traced(self, statement: str) -> None:
        assert self._fate is not None
        if statement.startswith("COMMIT"):
            self._fate.reached("commit", WITHIN_S)
        elif "wal_checkpoint" in statement:
            self._fate.reached("checkpoint", WITHIN_S)


def fated(where: str, fate: _Fate | None) -> SqliteLog | RedisLog | KafkaLog:
    """The log, which ends the process at the moment chosen."""
    made = make_log(where)
    log = FatedLog(Path(where), fate) if isinstance(made, SqliteLog) else made
    if fate is not None:

        def stored(record: Record) -> None:
            fate.reached("stored")

        log.tail(stored)  # the first to listen, and so the first to hear
    return log


def trigger(wanted: Wanted) -> Resource:
    # More attempts than any flapping takes, and never far apart.
    delivery: dict[str, object] = {"retry": 1000, "backoffPolicy": "linear", "backoffDelay": "PT0.02S"}
    status: dict[str, object] = {"subscriberUri": wanted.uri}
    if wanted.letters is not None:
        delivery["deadLetterSink"] = {"uri": wanted.letters}
        status["deadLetterSinkUri"] = wanted.letters
    meta = ObjectMeta(
        name=wanted.name,
        namespace="default",
        uid=f"trigger-{wanted.name}",
        resource_version="1",
        # Before any event: where no position was kept yet, a Trigger begins with what arrived since.
        creation_timestamp="2026-01-01T00:00:00Z",
        annotations=wanted.annotations,
    )
    spec = {"broker": "default", "subscriber": {"uri": wanted.uri}, "delivery": delivery}
    return Resource(ref=TRIGGER, meta=meta, body={"spec": spec, "status": status})


async def main(setup: Setup) -> None:
    checkpoints.PAGES = CHECKPOINT_PAGES
    fate = _Fate(setup.death) if setup.death is not None else None
    resources = [broker(), *(trigger(wanted) for wanted in setup.triggers)]
    await serve("ingress,dispatch", fated(setup.log, fate), setup.port, resources)


if __name__ == "__main__":
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(msgspec.json.decode(sys.argv[1], type=Setup)))
