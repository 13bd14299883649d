import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cesql import Expression
from broker.filters import ANYTHING, All, Any, Exact, Filter, Prefix, Suffix
from broker.implied import implied
from tests.unit.test_cesql_grammar import NODES


def exact(name: str, value: str = "") -> Exact:
    return Exact(((name, value),))


A, B = exact("type", "a"), exact("type", "b")
COLOR = exact("color")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("type = 'a'", A),
        ("'a' = type", A),
        ("type = ''", exact("type")),
        ("type LIKE 'a'", A),
        ("type LIKE 'a%'", Prefix((("type", "a"),))),
        ("type LIKE '%a'", Suffix((("type", "a"),))),
        ("color LIKE 'ab_c%d'", All((Prefix((("color", "ab"),)), Suffix((("color", "d"),))))),
        (r"color LIKE 'a\%b%_'", Prefix((("color", "a%b"),))),
        ("color LIKE '%a%'", COLOR),
        ("color NOT LIKE 'a%'", COLOR),
        ("type IN ('a', 'b')", Any((A, B))),
        ("type NOT IN ('a', 'b')", ANYTHING),
        ("color IN ('a', id)", COLOR),
        ("EXISTS color", COLOR),
        ("EXISTS type", ANYTHING),
        ("NOT EXISTS color", ANYTHING),
        ("type != 'a'", ANYTHING),
        ("color != 'a'", COLOR),
        ("INT(color) + 1 > hop", All((COLOR, exact("hop")))),
        ("NOT (color = 'a')", COLOR),
        ("type = 'a' AND color > 5", All((A, COLOR))),
        ("type = 'a' OR type = 'b'", Any((A, B))),
        ("type = 'a' XOR type = 'b'", Any((A, B))),
        ("type = 'a' OR color != 'b'", Any((A, COLOR))),
        ("color != 'b' OR NOT EXISTS hop", COLOR),
        ("type = 'a' OR TRUE", ANYTHING),
        ("TRUE", ANYTHING),
        ("SQRT(color)", COLOR),
    ],
)
def test_a_filter_says_what_an_expression_implies(text: str, wanted: Filter):
    assert implied(Expression(text)) == wanted


NAMES = st.sampled_from(["type", "color", "hop"])
VALUES = st.sampled_from(["a", "ab", "abc", "5", "true"])
PATTERNS = st.text(st.sampled_from("ab%_"), max_size=4)
#: Expressions that events often pass.
PASSABLE = st.recursive(
    st.one_of(
        st.builds("{} = '{}'".format, NAMES, VALUES),
        st.builds("'{1}' = {0}".format, NAMES, VALUES),
        st.builds("{} != '{}'".format, NAMES, VALUES),
        st.builds("{} LIKE '{}'".format, NAMES, PATTERNS),
        st.builds("{} NOT LIKE '{}'".format, NAMES, PATTERNS),
        st.builds("{} IN ('{}', {})".format, NAMES, VALUES, NAMES),
        st.builds("{} IN ('{}', '{}')".format, NAMES, VALUES, VALUES),
        st.builds("EXISTS {}".format, NAMES),
        st.builds("{} > 3".format, NAMES),
        NAMES,
    ),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR", "XOR", "="]), inner),
        st.builds("NOT {}".format, inner.map("({})".format)),
    ),
    max_leaves=5,
)
EVENTS = st.dictionaries(NAMES, VALUES).map(lambda held: {"type": "a", **held})


@given(st.one_of(PASSABLE, NODES.map(str)), st.lists(EVENTS, min_size=5, max_size=5))
def test_whatever_passes_an_expression_passes_what_it_implies(text: str, events: list[dict[str, str]]):
    expression = Expression(text)
    for event in events:
        if expression.matches(event):
            assert implied(expression).matches(event)
