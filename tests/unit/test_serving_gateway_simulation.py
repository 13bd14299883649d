"""Random days of a gateway on virtual time: whatever happens, no request is lost, answered twice, or over a limit.

A failing seed is in the test's name; the same seed runs the same day again.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from core.net.types import ConnectFailed, ConnectionLost, NetError, ResponseInvalid
from serving.routing import RevisionLimits
from tests.support.gateway_world import APP, NEXT, Attempt, Outside, World
from tests.support.virtual_time import run_virtual

LIMIT = 3
TIMEOUT_S = 20.0


class Day:
    """Clients, instances and the store, all moved by one seeded generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.world = World()
        self.asked: list[Outside] = []
        self.gone: list[Outside] = []
        self.over: set[int] = set()
        self.limits = RevisionLimits(concurrency=LIMIT, timeout_s=TIMEOUT_S)
        self.world.limits = {APP: self.limits, NEXT: self.limits}

    def step(self) -> None:
        act = self.rng.choices(
            [self.ask, self.answer, self.fail, self.hang_up, self.scale, self.shift], [8, 6, 2, 1, 1, 0.3]
        )[0]
        act()
        self.check()

    def under_way(self) -> list[Attempt]:
        return [a for n, a in enumerate(self.world.attempts) if n not in self.over and not a.cancelled]

    def ask(self) -> None:
        method = self.rng.choice([b"GET", b"POST"])
        length = 0 if method == b"GET" else self.rng.choice([3, 3, None])
        outside = self.world.ask(method, length=length)
        self.asked.append(outside)
        if length != 0 and outside.sink is not None and self.rng.random() < 0.8:
            outside.sink.body(b"abc")
            outside.sink.end()

    def take(self) -> Attempt | None:
        running = self.under_way()
        if not running:
            return None
        attempt = self.rng.choice(running)
        self.over.add(self.world.attempts.index(attempt))
        return attempt

    def answer(self) -> None:
        if attempt := self.take():
            self.rng.choice([attempt.answer, attempt.answer_whole])(self.rng.choice([200, 204, 404, 500]), b"")

    def fail(self) -> None:
        errors: list[NetError] = [
            ConnectFailed("refused"),
            ConnectionLost("lost", sent=False, fresh=True),
            ConnectionLost("lost", sent=True, fresh=False),
            ConnectionLost("lost", sent=True, fresh=True),
            ResponseInvalid("no"),
        ]
        if attempt := self.take():
            if self.rng.random() < 0.3:
                attempt.listener.head(200, [], self.rng.choice([None, 10]))
            attempt.listener.failed(self.rng.choice(errors))

    def hang_up(self) -> None:
        waiting = [o for o in self.asked if not o.complete and not o.aborted and o not in self.gone]
        if waiting:
            outside = self.rng.choice(waiting)
            self.gone.append(outside)
            outside.leave()

    def scale(self) -> None:
        for key in (APP, NEXT):
            names = self.rng.sample([f"{key.name}-{letter}" for letter in "abc"], self.rng.randint(0, 3))
            self.world.instances(*names, of=key)

    def shift(self) -> None:
        """A new split; a revision without a share is deleted."""
        share = self.rng.choice([0, 50, 100])
        self.world.split = [(APP, 100 - share), (NEXT, share)]
        self.world.limits = {key: self.limits for key, percent in self.world.split if percent}
        self.world.swap()

    def check(self) -> None:
        # A deleted revision's instances may be told again while old requests end there, so twice the limit bounds it.
        loads: dict[str, int] = {}
        for attempt in self.under_way():
            loads[attempt.address[0]] = loads.get(attempt.address[0], 0) + 1
        assert all(load <= 2 * LIMIT for load in loads.values()), loads
        open_ended = [o for o in self.asked if not o.complete and not o.aborted and o not in self.gone]
        assert self.world.gateway.active == len(open_ended)

    async def settle(self) -> None:
        """Everything ends: instances answer what they have, time ends the rest."""
        self.world.split, self.world.limits = [(APP, 100)], {APP: self.limits}
        self.world.instances("last")
        while attempt := self.take():
            attempt.answer()
            self.check()
        await asyncio.sleep(TIMEOUT_S + 1)
        assert self.world.gateway.active == 0
        for outside in self.asked:
            assert outside in self.gone or outside.complete or outside.aborted


@pytest.mark.parametrize("seed", range(40))
def test_no_request_is_lost_or_answered_twice_on_a_random_day(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        day = Day(rng)
        for _ in range(250):
            day.step()
            if rng.random() < 0.2:
                await asyncio.sleep(rng.choice([0, 0.05, 0.3, 2.0]))
        await day.settle()
        held = [
            line
            for line in day.world.metrics.expose().splitlines()
            if line.startswith("penstock_gateway_held_requests{")
        ]
        assert all(line.endswith(" 0") for line in held)
        day.world.close()

    run_virtual(main())
