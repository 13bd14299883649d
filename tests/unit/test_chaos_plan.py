"""Which kills a run makes."""

import random

from tests.support.chaos.run import plan


def test_a_seed_gives_the_same_kills_again_and_another_one_others():
    assert plan(50, random.Random(7), sqlite=True) == plan(50, random.Random(7), sqlite=True)
    assert plan(50, random.Random(7), sqlite=True) != plan(50, random.Random(8), sqlite=True)


def test_every_moment_comes_in_a_full_run_and_moments_of_sqlite_only_there():
    on_sqlite = {killing.moment for killing in plan(200, random.Random(1), sqlite=True)}
    elsewhere = {killing.moment for killing in plan(200, random.Random(1), sqlite=False)}
    assert on_sqlite == {"any", "starting", "accepted", "taken", "settled", "stored", "commit", "checkpoint"}
    assert elsewhere == (on_sqlite - {"commit", "checkpoint"}) | {"frozen"}
