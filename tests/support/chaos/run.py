"""One run: senders, subscribers, and a broker process that is killed again and again at moments drawn from the seed."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from broker.flow.settings import FLOW_GROUP
from tests.support.chaos.account import FROZEN_S, Account, Verdict
from tests.support.chaos.http import Server, publish
from tests.support.chaos.process import Death, Moment, Setup, Wanted
from tests.support.chaos.subscribers import NAMES, ORDERED, REFUSING, Subscribers, data_of, headers_of

__all__ = ["Chaos", "Killing", "Outcome", "Run", "free_port", "plan"]

ROOT: Final = Path(__file__).resolve().parents[3]
#: Each has a key of its own and sends its events one after the other, so that their order is known.
SENDERS: Final = 12
#: The most that a sender waits between two events: more than a slow subscriber bears would only pile up.
PAUSE_S: Final = 0.08
#: Starts and last deliveries of a busy machine take less.
DEADLINE_S: Final = 60.0
#: What the Trigger asks that wants its events in order.
ORDER: Final = {f"{FLOW_GROUP}/order": "ordered"}
#: What a broker process logs whose lease of a Trigger ran out; only logs on servers have leases.
LEASE_LOST: Final = b"another process delivers for a Trigger from now on"
#: A moment that a process was to die at and that does not come: it is killed then.
PATIENCE_S: Final = 4.0

#: Where in its life a process dies. any: at some time. starting: before it is ready. accepted: the instant that a
#: sender has its 202. taken: the instant that a subscriber has taken an event, and the broker does not know it yet.
#: settled: after some seconds, so that what was done long before must not come again. frozen: some time after it was
#: stopped for longer than its leases last, and went on. The others: see `Moment`.
Chaos = Literal["any", "starting", "accepted", "taken", "settled", "stored", "commit", "checkpoint", "frozen"]
#: How often each is drawn, of those that every log has, that only SQLite's has, and that only those on servers have.
_WEIGHTS: Final[dict[Chaos, int]] = {"any": 6, "starting": 2, "accepted": 4, "taken": 4, "settled": 1, "stored": 4}
_SQLITE_WEIGHTS: Final[dict[Chaos, int]] = {"commit": 4, "checkpoint": 4}
_SERVER_WEIGHTS: Final[dict[Chaos, int]] = {"frozen": 1}


class Killing(msgspec.Struct, frozen=True):
    """When to kill one process: at the `count`-th such moment, or `after_s` seconds from ready (from its start, where
    it is not to become ready)."""

    moment: Chaos
    count: int
    after_s: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run showed. `kills` by moment; `missed` counts those whose moment did not come in time, and which were
    killed all the same."""

    verdict: Verdict
    kills: dict[str, int]
    missed: int
    #: Of the process that was left alive: whether it ended in order.
    ended: int


def plan(kills: int, rng: random.Random, *, sqlite: bool) -> list[Killing]:
    """The same for the same seed."""
    weights = {**_WEIGHTS, **(_SQLITE_WEIGHTS if sqlite else _SERVER_WEIGHTS)}
    moments = rng.choices(list(weights), list(weights.values()), k=kills)
    return [_killing(moment, rng) for moment in moments]


def _killing(moment: Chaos, rng: random.Random) -> Killing:
    longest_s = {"any": 0.8, "starting": 0.5, "settled": 6.0, "frozen": 3.0}.get(moment, 0.0)
    shortest_s = 4.0 if moment == "settled" else 0.0
    # Checkpoints are fewer than events.
    most = 6 if moment == "checkpoint" else 40
    return Killing(moment, rng.randint(1, most), rng.uniform(shortest_s, longest_s))


class Run:
    """`log` is what `tests.support.broker_process` is told; `say` gets a line of progress for a person."""

    def __init__(self, log: str, *, kills: int, seed: int, say: Callable[[str], None]) -> None:
        self._log = log
        self._say = say
        rng = random.Random(seed)
        self._plan = plan(kills, rng, sqlite="#" not in log)
        self._rng = rng
        self._account = Account(NAMES, ordered=ORDERED)
        self._accepted = 0
        self._awaited = 0
        self._waits_for: Chaos | None = None
        self._reached = asyncio.Event()
        self._numbers = itertools.count(1)
        self._stop = asyncio.Event()

    async def __call__(self) -> Outcome:
        """Raises TimeoutError where a process does not become ready."""
        subscribers = Subscribers(self._account, self._rng, lambda: self._moment("taken"))
        done: Counter[str] = Counter()
        missed = 0
        async with Server(subscribers.handle) as server, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._subscribers_port = server.port
            self._port = free_port()
            senders = [tasks.create_task(self._send(f"k{n}")) for n in range(SENDERS)]
            for number, killing in enumerate(self._plan, 1):
                missed += not await self._live(killing)
                done[killing.moment] += 1
                if number % 10 == 0:
                    self._say(f"{number} of {len(self._plan)} kills, {self._accepted} events accepted")
            last = await self._start(next(self._numbers), None)
            await _ready(last)
            self._stop.set()
            await asyncio.wait(senders)
            subscribers.well = True
            await self._all_delivered()
            last.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                ended = await last.wait()
        return Outcome(verdict=self._account.verdict(), kills=dict(done), missed=missed, ended=ended)

    async def _all_delivered(self) -> None:
        """Until nothing is missing, or nothing more comes."""
        clock = asyncio.get_running_loop()
        missing = len(self._account.missing())
        until = clock.time() + DEADLINE_S
        while missing and clock.time() < until:
            await asyncio.sleep(0.2)
            left = len(self._account.missing())
            if left < missing:
                missing, until = left, clock.time() + DEADLINE_S

    # ---- lives of the broker process

    async def _live(self, killing: Killing) -> bool:
        """Start a process and end it as said; whether it came to that moment."""
        number = next(self._numbers)
        death = Death(killing.moment, killing.count) if killing.moment in get_args(Moment) else None
        self._reached.clear()
        process = await self._start(number, death)
        came = True
        if killing.moment == "starting":
            await asyncio.sleep(killing.after_s)
        else:
            self._waits_for, self._awaited = killing.moment, killing.count
            came = await self._until(killing, process)
            self._waits_for = None
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()
        assert process.returncode == -signal.SIGKILL, f"a broker process ended by itself with {process.returncode}"
        self._account.died(number, asyncio.get_running_loop().time())
        return came

    async def _until(self, killing: Killing, process: asyncio.subprocess.Process) -> bool:
        """Until the moment has come, or it takes too long."""
        if not await _ready(process):
            return True  # it met its fate while it started
        if killing.moment == "frozen":
            await self._freeze(process)
        if killing.moment in ("any", "settled", "frozen"):
            await asyncio.sleep(killing.after_s)
            return True
        event = self._reached.wait() if killing.moment in ("accepted", "taken") else process.wait()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await event
        except TimeoutError:
            return False
        return True

    async def _freeze(self, process: asyncio.subprocess.Process) -> None:
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        process.send_signal(signal.SIGCONT)

    async def _start(self, number: int, death: Death | None) -> asyncio.subprocess.Process:
        base = f"http://127.0.0.1:{self._subscribers_port}/{number}"
        triggers = [
            Wanted(name, f"{base}/{name}", annotations=ORDER if name in ORDERED else {})
            for name in NAMES
            if name != "letters"
        ]
        triggers.append(Wanted(REFUSING, f"{base}/{REFUSING}", f"{base}/letters"))
        setup = msgspec.json.encode(Setup(log=self._log, port=self._port, triggers=triggers, death=death))
        command = [sys.executable, "-m", "tests.support.chaos.process", setup.decode()]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
        self._tasks.create_task(self._listen(number, process))
        return process

    async def _listen(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Pass on what the process says; that it lost its leases explains what comes again."""
        assert process.stderr is not None
        async for line in process.stderr:
            sys.stderr.write(f"process {number}: {line.decode(errors='replace')}")
            if LEASE_LOST in line:
                self._account.bereft(number, asyncio.get_running_loop().time())

    def _moment(self, moment: Chaos) -> None:
        """Something happened that a process may be waiting for to die of."""
        if moment == self._waits_for:
            self._awaited -= 1
            if self._awaited <= 0:
                self._reached.set()

    # ---- senders

    async def _send(self, key: str) -> None:
        """One event after the other; one that is not answered is not sent again, so that each is one or none."""
        rng = random.Random(self._rng.random())
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for number in itertools.count(1):
            if self._stop.is_set():
                break
            event = f"{key}-{number}"
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                self._account.sent(event, (key, number))
                status = await publish(connection, "/default/default", headers_of(event, key=key), data_of(event))
            except (OSError, asyncio.IncompleteReadError):
                if connection is not None:
                    connection[1].transport.abort()
                connection = None
                await asyncio.sleep(0.01)  # the process is down: do not spin
                continue
            if status == 202:
                self._accepted += 1
                self._account.accepted(event)
                self._moment("accepted")
            await asyncio.sleep(rng.uniform(0, PAUSE_S))
        if connection is not None:
            connection[1].transport.abort()


async def _ready(process: asyncio.subprocess.Process) -> bool:
    """Whether it became ready, or died first."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        line = await process.stdout.readline()
    return line.startswith(b"ready")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
