"""Whose an instance is: the rules of sharing, of absence, and of what is written and read."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core.net.types import RequestHead
from core.resources import ObjectMeta, Resource
from core.resources.builtin import ENDPOINT_SLICE
from serving.gateways import GONE_REST_S, SILENT_REST_S, Absences, Gateway, Holding, Standing, holding, noted
from serving.handover import handed_headers, is_given_back, revision_of, taken_head
from serving.routing import RevisionKey
from serving.sharing import Sharing, share

READY, ENDING, SILENT = Standing.READY, Standing.ENDING, Standing.SILENT


def sharing(
    holdings: dict[str, Holding],
    *,
    standings: dict[str, Standing],
    need: dict[str, float] | None = None,
    lost: set[str] | None = None,
    released: set[str] | None = None,
    limit: int = 1,
) -> Sharing:
    listed = {id_: Gateway(id=id_, address=(id_, 80), standing=standing) for id_, standing in standings.items()}
    return Sharing(
        holdings=holdings,
        gateways=listed,
        need=need or {},
        lost=lost or set(),
        released=released or set(),
        limit=limit,
    )


FREE = Holding()
A, B, C = Holding(owner="a"), Holding(owner="b"), Holding(owner="c")
BACK_A = Holding(before="a")
TWO = {"a": READY, "b": READY}

CASES = {
    "a new one goes to the gateway with most to do for each": (
        sharing({"1": A, "2": FREE}, standings=TWO, need={"a": 3.0, "b": 2.0}),
        {"1": A, "2": B},
    ),
    "and to the one that has fewest where nobody has anything to do": (
        sharing({"1": A, "2": FREE, "3": FREE}, standings=TWO),
        {"1": A, "2": B, "3": A},
    ),
    "nobody gets one where no gateway is ready": (
        sharing({"1": FREE, "2": A}, standings={"a": SILENT}),
        {"1": FREE, "2": A},
    ),
    "what a gateway has it keeps, though others have as much to do": (
        sharing({"1": A, "2": A, "3": B}, standings=TWO, need={"a": 2.0, "b": 2.0}),
        {"1": A, "2": A, "3": B},
    ),
    "one is asked back where requests wait at another and its own can do without": (
        sharing({"1": A, "2": A, "3": B}, standings=TWO, need={"a": 0.2, "b": 2.0}),
        {"1": A, "2": BACK_A, "3": B},
    ),
    "not where the other's own can take them": (
        sharing({"1": A, "2": A, "3": B}, standings=TWO, need={"a": 0.2, "b": 2.0}, limit=5),
        {"1": A, "2": A, "3": B},
    ),
    "and not while one is asked back already": (
        sharing({"1": A, "2": BACK_A, "3": A, "4": B}, standings=TWO, need={"b": 9.0}),
        {"1": A, "2": BACK_A, "3": A, "4": B},
    ),
    "and not so soon after the last move": (
        replace(sharing({"1": A, "2": A, "3": B}, standings=TWO, need={"b": 9.0}), settled=False),
        {"1": A, "2": A, "3": B},
    ),
    "one that is asked back waits until it is given back": (
        sharing({"1": BACK_A, "2": B}, standings=TWO),
        {"1": BACK_A, "2": B},
    ),
    "and goes on then": (
        sharing({"1": BACK_A, "2": A}, standings=TWO, released={"1"}),
        {"1": B, "2": A},
    ),
    "or when who had it is lost": (
        sharing({"1": BACK_A, "2": A}, standings={"b": READY}, lost={"a"}),
        {"1": B, "2": B},
    ),
    "a gateway that is not there is waited for until it is lost": (
        sharing({"1": A, "2": Holding(owner="gone")}, standings=TWO),
        {"1": A, "2": Holding(owner="gone")},
    ),
    "one that is being ended is asked for everything": (
        sharing({"1": A, "2": B}, standings={"a": ENDING, "b": READY}),
        {"1": BACK_A, "2": B},
    ),
    "unless there is no other": (
        sharing({"1": A}, standings={"a": ENDING}),
        {"1": A},
    ),
    "a gateway alone has everything": (
        sharing({"1": FREE, "2": FREE}, standings={"a": READY}, need={"a": 9.0}),
        {"1": A, "2": A},
    ),
}


@pytest.mark.parametrize(("now", "expected"), CASES.values(), ids=CASES.keys())
def test_whose_each_instance_is_to_be(now: Sharing, expected: dict[str, Holding]) -> None:
    assert share(now) == expected


IDS = st.sampled_from(["a", "b", "c", "d"])
HOLDINGS = st.one_of(st.just(FREE), st.builds(Holding, IDS), st.builds(Holding, st.just(""), IDS))
ANY = st.builds(
    sharing,
    st.dictionaries(st.text("0123456789", min_size=1, max_size=2), HOLDINGS, max_size=20),
    standings=st.dictionaries(IDS, st.sampled_from(Standing)),
    need=st.dictionaries(IDS, st.floats(0, 1000)),
    lost=st.sets(IDS),
    released=st.sets(st.text("0123456789", min_size=1, max_size=2)),
    limit=st.integers(1, 100),
)


@given(ANY)
def test_an_instance_never_goes_from_one_gateway_to_another_that_may_have_requests_there(now: Sharing) -> None:
    for name, after in share(now).items():
        before = now.holdings[name]
        held_by = before.owner or before.before
        if held_by and held_by not in now.lost and not (before.before and name in now.released):
            assert after in (before, Holding(before=held_by))


@given(ANY)
def test_only_gateways_that_are_ready_get_instances_and_none_is_left_over(now: Sharing) -> None:
    said = share(now)
    assert said.keys() == now.holdings.keys()
    ready = {id_ for id_, gateway in now.gateways.items() if gateway.standing is READY}
    for name, after in said.items():
        if after.owner != now.holdings[name].owner and after.owner:
            assert after.owner in ready
        if ready:
            assert after.owner or after.before


@given(ANY)
def test_deciding_again_moves_nothing_more_until_what_is_asked_back_was_given_back(now: Sharing) -> None:
    once = share(now)
    again = share(sharing(once, standings={i: g.standing for i, g in now.gateways.items()}, limit=now.limit))
    if any(whose.before for whose in once.values()):
        assert again == once


@given(st.integers(1, 40), st.dictionaries(IDS, st.floats(0, 50), min_size=1), st.integers(1, 4))
def test_moving_comes_to_an_end(count: int, need: dict[str, float], limit: int) -> None:
    """With the same need everywhere, all moves are made after a while, and no gateway idles while another is short."""
    standings = dict.fromkeys(need, READY)
    said: dict[str, Holding] = {f"{number:02}": Holding(owner=min(need)) for number in range(count)}
    for _ in range(count * 2 + 2):
        released = {name for name, whose in said.items() if whose.before}
        before, said = said, share(sharing(said, standings=standings, need=need, released=released, limit=limit))
    assert said == before
    counts = Counter(whose.owner for whose in said.values())
    idle = [id_ for id_ in need if counts[id_] > 1 and not need[id_]]
    short = [id_ for id_, wanted in need.items() if wanted > counts[id_] * limit]
    assert not (idle and short)


LISTED = {
    "ready": Gateway(id="ready", address=("h", 1), standing=READY),
    "ending": Gateway(id="ending", address=("h", 2), standing=ENDING),
    "silent": Gateway(id="silent", address=("h", 3), standing=SILENT),
}


@pytest.mark.parametrize(
    ("holder", "rest_s"), [("ready", None), ("ending", 300.0), ("silent", SILENT_REST_S), ("gone", GONE_REST_S)]
)
def test_a_gateway_is_lost_once_none_of_its_requests_can_be_under_way(holder: str, rest_s: float | None) -> None:
    absences = Absences()
    first = absences.lost({holder}, LISTED, timeout_s=300.0, now=1000.0)
    assert first == (frozenset(), rest_s)
    if rest_s is not None:
        assert absences.lost({holder}, LISTED, timeout_s=300.0, now=999.9 + rest_s)[0] == frozenset()
        assert absences.lost({holder}, LISTED, timeout_s=300.0, now=1000.0 + rest_s) == ({holder}, None)


def test_a_gateway_that_comes_back_is_missed_anew_the_next_time() -> None:
    absences, silent = Absences(), {"a": Gateway(id="a", address=("h", 1), standing=SILENT)}
    absences.lost({"a"}, silent, timeout_s=300.0, now=0.0)
    absences.relist({"a": Gateway(id="a", address=("h", 1), standing=READY)}, now=9.0)
    assert absences.lost({"a"}, silent, timeout_s=300.0, now=11.0) == (frozenset(), SILENT_REST_S)


@pytest.mark.parametrize("whose", [None, FREE, A, BACK_A])
def test_whose_an_instance_is_can_be_read_as_it_was_written(whose: Holding | None) -> None:
    held = Resource(ref=ENDPOINT_SLICE, meta=ObjectMeta(name="x", annotations=noted(whose)), body={})
    assert holding(held) == whose


def test_a_request_that_was_handed_over_reaches_the_function_as_it_came() -> None:
    headers = [(b"host", b"App.shop.localhost:8080"), (b"x", b"1"), (b"penstock-host", b"forged"), (b"x", b"2")]
    head = RequestHead(b"POST", b"/?a", b"app.shop.localhost:8080", headers, 3, "10.0.0.9")
    key = RevisionKey("shop", "app-1")
    handed = handed_headers(head.headers, key)
    host = dict(handed)[b"host"]
    assert revision_of(host) == key
    taken = taken_head(RequestHead(head.method, head.target, host, handed, 3, "10.0.0.2"))
    assert taken.host == head.host
    kept = [field for field in headers if field[0] != b"penstock-host"]
    assert sorted(taken.headers) == sorted(kept)
    assert [field for field in taken.headers if field[0] == b"x"] == [(b"x", b"1"), (b"x", b"2")]


@pytest.mark.parametrize("host", [b"app.shop.localhost", b".revision.penstock.internal", b"", b"x.penstock.internal"])
def test_other_hosts_name_no_revision(host: bytes) -> None:
    assert revision_of(host) is None


def test_only_the_gateways_own_refusal_gives_a_request_back() -> None:
    assert is_given_back(421, [(b"penstock-reason", b"not-the-owner")])
    assert not is_given_back(421, [])
    assert not is_given_back(503, [(b"penstock-reason", b"not-the-owner")])
