"""The smaller form of ``make chaos``."""

import os
import random
from pathlib import Path

import pytest

from tests.support.chaos.run import Run

pytestmark = pytest.mark.e2e

KILLS = 10


async def test_no_accepted_event_is_lost_and_what_comes_again_was_in_flight_though_the_broker_is_killed_at_bad_moments(
    tmp_path: Path,
):
    seed = int(os.environ.get("PENSTOCK_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"PENSTOCK_TEST_SEED={seed}")
    outcome = await Run(str(tmp_path / "log.db"), kills=KILLS, seed=seed, say=print)()
    print("\n".join(outcome.verdict.lines()), outcome.kills)
    assert outcome.verdict.holds, outcome.verdict.lines()
    assert sum(outcome.kills.values()) == KILLS
    assert outcome.ended == 0
