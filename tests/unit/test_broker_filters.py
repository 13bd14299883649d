import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cesql import Expression
from broker.filters import ANYTHING, All, Any, Cesql, Exact, Filter, Not, Prefix, Suffix, Verdict, explain

EVENT = {"specversion": "1.0", "id": "1", "source": "/a/b", "type": "com.example.made", "subject": "cat.png"}


def exact(**pairs: str) -> Exact:
    return Exact(tuple(sorted(pairs.items())))


def prefix(**pairs: str) -> Prefix:
    return Prefix(tuple(sorted(pairs.items())))


def suffix(**pairs: str) -> Suffix:
    return Suffix(tuple(sorted(pairs.items())))


def cesql(text: str) -> Cesql:
    return Cesql(Expression(text))


@pytest.mark.parametrize(
    ("wanted", "matched"),
    [
        pytest.param(ANYTHING, True, id="no filter"),
        pytest.param(exact(type="com.example.made"), True, id="exact"),
        pytest.param(exact(type="com.example.MADE"), False, id="exact is case-sensitive"),
        pytest.param(exact(type="com.example.made", source="/a"), False, id="exact needs every pair"),
        pytest.param(exact(dataschema="x"), False, id="exact on an absent attribute"),
        pytest.param(exact(subject=""), True, id="any value of a present attribute"),
        pytest.param(exact(dataschema=""), False, id="any value of an absent attribute"),
        pytest.param(prefix(type="com."), True, id="prefix"),
        pytest.param(prefix(type="org."), False, id="wrong prefix"),
        pytest.param(prefix(dataschema="x"), False, id="prefix of an absent attribute"),
        pytest.param(suffix(subject=".png"), True, id="suffix"),
        pytest.param(suffix(subject=".jpg"), False, id="wrong suffix"),
        pytest.param(suffix(dataschema="x"), False, id="suffix of an absent attribute"),
        pytest.param(All((prefix(type="com."), suffix(type=".made"))), True, id="all"),
        pytest.param(All((prefix(type="com."), suffix(type=".lost"))), False, id="not all"),
        pytest.param(Any((prefix(type="org."), suffix(type=".made"))), True, id="any"),
        pytest.param(Any((prefix(type="org."), suffix(type=".lost"))), False, id="none of any"),
        pytest.param(Not(exact(type="other")), True, id="not"),
        pytest.param(Not(exact(type="com.example.made")), False, id="not what is there"),
        pytest.param(Not(exact(dataschema="x")), True, id="not of an absent attribute"),
        pytest.param(Not(Any((exact(type="a"), Not(exact(source="/a/b"))))), True, id="nested"),
        pytest.param(cesql("subject LIKE '%.png' AND NOT EXISTS dataschema"), True, id="cesql"),
        pytest.param(cesql("subject LIKE '%.jpg'"), False, id="cesql that is false"),
        pytest.param(cesql("dataschema != 'x'"), False, id="cesql that fails"),
        pytest.param(cesql("type = 'x' OR dataschema = 'x' OR TRUE"), False, id="cesql that fails on the way to TRUE"),
        pytest.param(cesql("LENGTH(subject)"), False, id="cesql that gives an Integer"),
        pytest.param(cesql("subject"), False, id="cesql that gives a String"),
        pytest.param(Not(cesql("dataschema = 'x'")), True, id="not of cesql that fails"),
    ],
)
def test_a_filter_matches_as_its_dialect_says(wanted: Filter, matched: bool):
    assert wanted.matches(EVENT) is matched
    assert explain(wanted, EVENT).matched is matched


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [
        pytest.param(
            exact(subject="dog.png", type="com.example.made"),
            Verdict(
                matched=False, clause="filter.attributes", attribute="subject", wanted="is 'dog.png'", value="cat.png"
            ),
            id="filter.attributes",
        ),
        pytest.param(
            exact(dataschema=""),
            Verdict(matched=False, clause="filter.attributes", attribute="dataschema", wanted="is present"),
            id="absent",
        ),
        pytest.param(
            All((prefix(type="com."), suffix(subject=".jpg"))),
            Verdict(
                matched=False,
                clause="filters[1].suffix",
                attribute="subject",
                wanted="ends with '.jpg'",
                value="cat.png",
            ),
            id="the second of filters",
        ),
        pytest.param(
            All((Any((exact(type="a"), prefix(source="/x"))),)),
            Verdict(
                matched=False,
                clause="filters[0].any",
                attribute="type",
                wanted="is 'a' or source starts with '/x'",
                value="com.example.made",
            ),
            id="none of any",
        ),
        pytest.param(
            All((Not(exact(type="com.example.made")),)),
            Verdict(
                matched=False,
                clause="filters[0].not",
                attribute="type",
                wanted="does not match exact",
                value="com.example.made",
            ),
            id="not",
        ),
        pytest.param(
            All((exact(type="com.example.made"), cesql("source LIKE '/a/%' AND (id > 5 OR subject = 'dog.png')"))),
            Verdict(
                matched=False,
                clause="filters[1].cesql",
                attribute="id",
                wanted="in `id > 5 OR subject = 'dog.png'`, which is false (subject is 'cat.png')",
                value="1",
            ),
            id="cesql: the operand of AND that is false",
        ),
        pytest.param(
            All((cesql("type LIKE 'com.%' AND INT(subject) > 5"),)),
            Verdict(
                matched=False,
                clause="filters[0].cesql",
                attribute="subject",
                wanted="in `INT(subject)`, which fails: 'cat.png' is not an integer of 32 bits",
                value="cat.png",
            ),
            id="cesql: a cast that fails",
        ),
        pytest.param(
            All((cesql("id = '1' AND dataschema LIKE 'x%'"),)),
            Verdict(
                matched=False,
                clause="filters[0].cesql",
                attribute="dataschema",
                wanted="in `dataschema LIKE 'x%'`, which fails: the event has no attribute dataschema",
            ),
            id="cesql: an attribute that the event does not have",
        ),
        pytest.param(
            All((cesql("CONCAT(subject, id)"),)),
            Verdict(
                matched=False,
                clause="filters[0].cesql",
                attribute="subject",
                wanted="in `CONCAT(subject, id)`, which gives the String 'cat.png1', and a filter needs a Boolean"
                " (id is '1')",
                value="cat.png",
            ),
            id="cesql: no Boolean",
        ),
        pytest.param(
            All((cesql("1 = 2"),)),
            Verdict(matched=False, clause="filters[0].cesql", wanted="in `1 = 2`, which is false"),
            id="cesql: no attribute",
        ),
    ],
)
def test_an_explanation_names_the_clause_that_fails_and_the_value_it_met(wanted: Filter, verdict: Verdict):
    assert explain(wanted, EVENT) == verdict


NAMES = st.sampled_from(["type", "source", "subject", "color"])
VALUES = st.sampled_from(["a", "ab", "abc", "b", "bc"])
PAIRS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=3).map(lambda pairs: tuple(sorted(pairs.items())))
EXPRESSIONS = st.sampled_from(
    [
        "type = 'a' OR type = 'b'",
        "type IN ('a', 'ab') AND subject LIKE 'a%'",
        "'abc' = type XOR color = 'a'",
        "NOT (type = 'a')",
        "type LIKE 'ab' AND EXISTS color",
        "type = 'a' AND type = 'b' OR color != 'a'",
        "LENGTH(type) < 3",
    ]
)
LEAVES = st.one_of(PAIRS.map(Exact), PAIRS.map(Prefix), PAIRS.map(Suffix), EXPRESSIONS.map(cesql))
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda nested: All(tuple(nested))),
        st.lists(inner, min_size=1, max_size=3).map(lambda nested: Any(tuple(nested))),
        inner.map(Not),
    ),
    max_leaves=6,
)
EVENTS = st.dictionaries(NAMES, VALUES, max_size=4).map(lambda held: {"type": "a", **held})


@given(FILTERS, EVENTS)
def test_an_explanation_agrees_with_the_match(one: Filter, event: dict[str, str]):
    wanted = All((one,))  # as a Trigger's `filters` are compiled
    verdict = explain(wanted, event)
    assert verdict.matched is wanted.matches(event)
    if not verdict.matched:
        assert verdict.clause
        assert verdict.wanted
        assert verdict.value == event.get(verdict.attribute)
