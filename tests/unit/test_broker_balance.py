"""How subscriptions are shared out: pure, and played through with processes that each do their part."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.balance import Plan, plan


def holders(**counts: int) -> dict[str, str]:
    """So many subscriptions of each holder; `free` of nobody."""
    return {
        f"{holder}-{n}": "" if holder == "free" else holder for holder, count in counts.items() for n in range(count)
    }


def all_of(members: Iterable[str], held: dict[str, str]) -> dict[str, int]:
    """Processes that want everything."""
    return dict.fromkeys(members, len(held))


def plans(members: Iterable[str], held: dict[str, str]) -> dict[str, Plan]:
    return {member: plan(member, all_of(members, held), held) for member in members}


@pytest.mark.parametrize(
    ("held", "claims", "gives"),
    [
        pytest.param(holders(free=5), {"a": 3, "b": 2}, {"a": 0, "b": 0}, id="all are free"),
        pytest.param(holders(a=4), {"a": 0, "b": 0}, {"a": 2, "b": 0}, id="one has all"),
        pytest.param(holders(a=3, b=2), {"a": 0, "b": 0}, {"a": 0, "b": 0}, id="even but for one"),
        pytest.param(holders(a=3, free=1), {"a": 0, "b": 1}, {"a": 1, "b": 0}, id="a free one goes to who has least"),
        pytest.param(holders(gone=4), {"a": 0, "b": 0}, {"a": 0, "b": 0}, id="of a process that just ended"),
        pytest.param({}, {"a": 0, "b": 0}, {"a": 0, "b": 0}, id="nothing"),
    ],
)
def test_each_does_its_part_of_the_sharing(held: dict[str, str], claims: dict[str, int], gives: dict[str, int]):
    found = plans(["a", "b"], held)
    assert {member: len(found[member].claim) for member in found} == claims
    assert {member: len(found[member].give) for member in found} == gives


def test_one_that_is_alone_claims_everything_and_one_that_is_not_listed_yet_counts_itself():
    assert len(plan("a", {"a": 9}, holders(free=9)).claim) == 9
    assert len(plan("a", {"b": 6}, holders(b=4, free=2)).claim) == 2


def test_what_is_being_given_goes_before_others_and_is_not_given_twice():
    held = holders(a=4)
    first = plan("a", all_of(["a", "b"], held), held)
    assert len(first.give) == 2
    assert set(plan("a", all_of(["a", "b"], held), held, leaving=("a-3", "a-2")).give) == {"a-2", "a-3"}


def test_what_others_left_is_claimed_out_of_turn_and_given_last():
    held = holders(a=3, free=1)
    assert plan("a", all_of(["a", "b"], held), held).claim == ()
    assert plan("a", all_of(["a", "b"], held), held, left={"free-0"}).claim == ("free-0",)
    assert plan("a", all_of("ab", held), {**held, "free-0": "a"}, left={"free-0"}).give == ("a-0", "a-1")


@given(
    counts=st.dictionaries(st.sampled_from(["a", "b", "c", "d", "gone", "free"]), st.integers(0, 12)),
    seed=st.integers(0, 1000),
)
def test_however_it_begins_all_have_about_as_many_in_the_end_and_nothing_moves_any_more(
    counts: dict[str, int], seed: int
):
    members, held, rng = ["a", "b", "c", "d"], holders(**counts), random.Random(seed)
    for _ in range(40):
        me = rng.choice(members)
        decided = plan(me, all_of(members, held), held)
        held |= dict.fromkeys(decided.claim, me)
        held |= dict.fromkeys(decided.give, "")
        held |= {uid: "" for uid, holder in held.items() if holder == "gone"}  # its leases end
    for me in (*members, *members):
        decided = plan(me, all_of(members, held), held)
        held |= dict.fromkeys(decided.claim, me)
        held |= dict.fromkeys(decided.give, "")
    for me in (*members, *members):
        held |= dict.fromkeys(plan(me, all_of(members, held), held).claim, me)
    loads = [sum(holder == member for holder in held.values()) for member in members]
    assert max(loads) - min(loads) <= 1
    assert sum(loads) == len(held)
    assert all(found == Plan() for found in plans(members, held).values())


def test_no_more_is_moved_than_has_to_be_when_one_joins():
    held = holders(a=4, b=4)
    found = plans(["a", "b", "c"], held)
    assert sum(len(each.give) for each in found.values()) == 2


def test_a_process_that_ends_gets_nothing_more_and_what_it_gave_goes_to_the_others():
    held = holders(a=2, b=2, free=2)
    wants = {"a": 6, "b": 2, "c": 6}
    assert [len(plan(me, wants, held).claim) for me in wants] == [0, 0, 2]
    assert len(plan("a", {"a": 6, "b": 1}, holders(a=2, b=1, free=3)).claim) == 3


def test_ten_thousand_are_shared_out_at_once():
    held = holders(a=10_000)
    assert len(plan("a", all_of("abcdefgh", held), held).give) == 8_750
