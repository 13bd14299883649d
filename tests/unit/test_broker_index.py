"""The index of filters: it finds what walking all filters finds, through changes, and does not walk."""

import random
from collections.abc import Mapping
from typing import Final

import pytest

from broker.cesql import Expression
from broker.filters import ANYTHING, All, Any, Cesql, Exact, Filter, Not, Prefix, Suffix
from broker.index import Access, FilterIndex, Predicate, access

#: Comparisons of the index with walking all filters, each of one filter with one event.
PAIRS: Final = 400_000
TAKERS: Final = 60
EVENTS: Final = 10

NAMES: Final = ("type", "source", "subject", "specversion", "id", "color", "größe")
#: What begins and ends with one another, is empty, and takes more than one byte or code point a character.
VALUES: Final = (
    "",
    "a",
    "ab",
    "abc",
    "abcd",
    "b",
    "bc",
    "cd",
    "d",
    "a.b.c",
    "é",
    "e\u0301",
    "ß",
    "日本",
    "日",
    "本",
    "😀",
    "a😀",
)

EXPRESSIONS: Final = tuple(
    Cesql(Expression(text))
    for text in (
        "type = 'a'",
        "'ab' = subject AND EXISTS color",
        "source IN ('a', 'b', '日本') OR type = 'd'",
        "source IN ('a', 'b') XOR source = 'b'",
        "type = 'a' AND type = 'b'",
        "type LIKE 'abc' AND NOT (subject = 'a')",
        "subject LIKE 'a%'",
        "type != 'a'",
        "NOT EXISTS subject",
        "id = ''",
        "TRUE",
    )
)


def some_pairs(rng: random.Random) -> tuple[tuple[str, str], ...]:
    names = rng.sample(NAMES, rng.choice((1, 1, 2, 3)))
    return tuple((name, rng.choice(VALUES)) for name in sorted(names))


def some_filter(rng: random.Random, depth: int = 3) -> Filter:
    kinds = ("exact", "prefix", "suffix") * 2 + ("cesql",) + (("all", "any", "not") if depth else ())
    match rng.choice(kinds):
        case "exact":
            return Exact(some_pairs(rng))
        case "prefix":
            return Prefix(some_pairs(rng))
        case "suffix":
            return Suffix(some_pairs(rng))
        case "cesql":
            return rng.choice(EXPRESSIONS)
        case "not":
            return Not(some_filter(rng, depth - 1))
        case "all":
            return All(tuple(some_filter(rng, depth - 1) for _ in range(rng.randrange(4))))
        case _:
            return Any(tuple(some_filter(rng, depth - 1) for _ in range(rng.randrange(4))))


def some_event(rng: random.Random) -> dict[str, str]:
    return {name: rng.choice(VALUES) for name in rng.sample(NAMES, rng.randrange(len(NAMES) + 1))}


def change(rng: random.Random, index: FilterIndex[int], wanted: dict[int, Filter]) -> None:
    """A taker comes, wants something else (or the same), or goes."""
    taker = rng.randrange(TAKERS)
    if rng.random() < 0.3:
        index.drop(taker)
        wanted.pop(taker, None)
    else:
        wanted[taker] = wanted[taker] if taker in wanted and rng.random() < 0.1 else some_filter(rng)
        index.put(taker, wanted[taker])


def test_the_index_finds_what_walking_all_filters_finds_while_takers_come_change_and_go():
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    index: FilterIndex[int] = FilterIndex()
    wanted: dict[int, Filter] = {}
    pairs, matches = 0, 0
    while pairs < PAIRS:
        for _ in range(rng.choice((1, 5, TAKERS))):
            change(rng, index, wanted)
        assert len(index) == len(wanted)
        for _ in range(EVENTS):
            event = some_event(rng)
            naive = sorted(taker for taker, each in wanted.items() if each.matches(event))
            assert sorted(index.match(event)) == naive, (seed, event, wanted)
            pairs += len(wanted)
            matches += len(naive)
    assert PAIRS // 20 < matches < PAIRS // 2, "neither side of the comparison is trivial"


def test_an_index_whose_takers_are_gone_holds_nothing():
    rng = random.Random(1)
    index: FilterIndex[int] = FilterIndex()
    for taker in range(500):
        index.put(taker, some_filter(rng))
    for taker in range(500):
        index.drop(taker)
    index.drop(1)
    assert len(index) == 0
    assert not index._attributes
    assert not index._groups
    assert not index._walked


def settle(wanted: Filter) -> Access | None:
    return access(wanted, lambda predicate: 2 if predicate.how == "is" else 3)


def one(attribute: str, how: str, value: str, *, settles: bool = True) -> Access:
    return Access(frozenset((Predicate(attribute, how, value),)), settles)  # type: ignore[arg-type]


A: Final = Exact((("type", "a"),))
B: Final = Prefix((("source", "b"),))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param(ANYTHING, None, id="anything"),
        pytest.param(A, one("type", "is", "a"), id="exact"),
        pytest.param(Exact((("color", ""),)), one("color", "starts", ""), id="presence"),
        pytest.param(Exact((("source", "s"), ("type", "a"))), one("source", "is", "s", settles=False), id="two pairs"),
        pytest.param(B, one("source", "starts", "b"), id="prefix"),
        pytest.param(Suffix((("subject", ".jpg"),)), one("subject", "ends", ".jpg"), id="suffix"),
        pytest.param(Prefix((("subject", ""),)), None, id="an empty prefix, which what is missing has too"),
        pytest.param(All((B, A, Not(B))), one("type", "is", "a", settles=False), id="all: the cheapest"),
        pytest.param(All((All((A,)),)), one("type", "is", "a"), id="all of one"),
        pytest.param(Any((A, Not(B))), None, id="any with one that may always match"),
        pytest.param(Any(()), Access(frozenset(), settles=True), id="any of none"),
        pytest.param(
            Any((A, Any((B, A)))),
            Access(frozenset((Predicate("type", "is", "a"), Predicate("source", "starts", "b"))), settles=True),
            id="any",
        ),
        pytest.param(Not(A), None, id="not"),
        pytest.param(
            Cesql(Expression("type = 'a' AND color IN ('b', 'c')")), one("type", "is", "a", settles=False), id="cesql"
        ),
        pytest.param(
            Cesql(Expression("type LIKE 'a%'")), one("type", "starts", "a", settles=False), id="cesql with a pattern"
        ),
        pytest.param(Cesql(Expression("NOT EXISTS color")), None, id="cesql that implies nothing"),
        pytest.param(Not(Cesql(Expression("type = 'a'"))), None, id="not cesql"),
        pytest.param(Not(Not(A)), one("type", "is", "a"), id="not not"),
        pytest.param(Not(Any((Not(A), B))), one("type", "is", "a", settles=False), id="not any"),
        pytest.param(Not(All((Not(A), Not(B)))), settle(Any((A, B))), id="not all"),
    ],
)
def test_the_access_to_a_filter_is_what_it_implies_of_the_attributes(wanted: Filter, found: Access | None):
    assert settle(wanted) == found


class Counted(dict[str, str]):
    """An event that counts how often filters ask it, beyond the index's own look at each attribute."""

    asked = 0

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked += 1
        return super().get(name, default)


def looked_at(index: FilterIndex[int], event: Mapping[str, str]) -> int:
    counted = Counted(event)
    index.match(counted)
    return counted.asked


@pytest.mark.parametrize(
    ("wanted", "event"),
    [
        pytest.param(lambda n: Exact((("type", f"t{n}"),)), {"type": "t7"}, id="a type each"),
        pytest.param(
            lambda n: Exact((("subject", f"s{n}"), ("type", "same"))), {"type": "same", "subject": "s7"}, id="a subject"
        ),
        pytest.param(
            lambda n: All((Exact((("type", "same"),)), Prefix((("subject", f"tenants/{n}/"),)))),
            {"type": "same", "subject": "tenants/7/orders"},
            id="a prefix beside a type that all have",
        ),
        pytest.param(
            lambda n: All((Not(Exact((("type", "t"),))), Suffix((("subject", f"-{n}.jpg"),)))),
            {"type": "same", "subject": "tenants-7.jpg"},
            id="a suffix beside a negation",
        ),
        pytest.param(
            lambda n: Any((Exact((("type", f"t{n}"),)), Exact((("source", f"s{n}"),)))),
            {"type": "t7", "source": "s7"},
            id="either of two",
        ),
    ],
)
def test_of_many_filters_an_event_meets_only_those_that_its_values_lead_to(wanted, event):
    index: FilterIndex[int] = FilterIndex()
    for number in range(1000):
        index.put(number, wanted(number))
    assert index.match(event) == [7]
    assert looked_at(index, event) < 10


def test_takers_that_want_the_same_are_found_by_one_look():
    index: FilterIndex[int] = FilterIndex()
    for number in range(1000):
        index.put(number, All((A, Not(B))))
    assert index.match({"type": "a"}) == list(range(1000))
    assert looked_at(index, {"type": "a"}) < 4
