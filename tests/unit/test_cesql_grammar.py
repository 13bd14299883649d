"""Reading CloudEvents SQL: what binds how, what is refused and with which words, and printing as the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cesql import MAX_DEPTH, MAX_LENGTH, Expression, ParseError
from broker.cesql.parser import parse
from broker.cesql.syntax import (
    Arithmetic,
    Attribute,
    BooleanLiteral,
    Call,
    Comparison,
    Exists,
    In,
    IntegerLiteral,
    Like,
    Logic,
    Negate,
    Node,
    Not,
    StringLiteral,
    quoted,
)

A, B, C = Attribute("a"), Attribute("b"), Attribute("c")


@pytest.mark.parametrize(
    ("text", "node"),
    [
        pytest.param("1", IntegerLiteral(1), id="integer"),
        pytest.param("+007", IntegerLiteral(7), id="integer with a sign and zeros"),
        pytest.param("-2147483648", IntegerLiteral(-2147483648), id="the smallest integer"),
        pytest.param("2147483647", IntegerLiteral(2147483647), id="the largest integer"),
        pytest.param("true", BooleanLiteral(True), id="boolean"),
        pytest.param("'it\\'s \"x\"'", StringLiteral('it\'s "x"'), id="an escaped quote"),
        pytest.param('"it\'s \\"x\\""', StringLiteral('it\'s "x"'), id="an escaped double quote"),
        pytest.param(r"'a\b\\'", StringLiteral(r"a\b\\"), id="other backslashes stay"),
        pytest.param("'a\nb'", StringLiteral("a\nb"), id="a line feed in a string"),
        pytest.param("SourCe", Attribute("source"), id="attributes in small letters"),
        pytest.param("1st", Attribute("1st"), id="an attribute that begins with a digit"),
        pytest.param("exists SUBJECT", Exists("subject"), id="exists"),
        pytest.param("EXISTS 42", Exists("42"), id="an attribute of digits"),
        pytest.param("abs (a)", Call("ABS", (A,)), id="function"),
        pytest.param("concat_ws ( 'x' , a,b)", Call("CONCAT_WS", (StringLiteral("x"), A, B)), id="arguments"),
        pytest.param("CONCAT()", Call("CONCAT", ()), id="no arguments"),
        pytest.param("unknown(1)", Call("UNKNOWN", (IntegerLiteral(1),)), id="a function that there is not"),
        pytest.param("a like 'x%'", Like(A, "x%"), id="like"),
        pytest.param("a NOT LIKE 'x%'", Like(A, "x%", True), id="not like"),
        pytest.param("a in (b)", In(A, (B,)), id="in"),
        pytest.param("a NOT IN (b,1)", In(A, (B, IntegerLiteral(1)), True), id="not in"),
        pytest.param("-a", Negate(A), id="minus"),
        pytest.param("- 1", Negate(IntegerLiteral(1)), id="minus and an integer"),
        pytest.param("--1", Negate(IntegerLiteral(-1)), id="minus minus"),
        pytest.param("a-1", Arithmetic("-", A, IntegerLiteral(1)), id="a sign after a value is an operator"),
        pytest.param("a -1", Arithmetic("-", A, IntegerLiteral(1)), id="with a space before it, too"),
        pytest.param("a--1", Arithmetic("-", A, IntegerLiteral(-1)), id="operator and sign"),
        pytest.param("a<>b", Comparison("!=", A, B), id="the other unequal"),
        pytest.param("\t( a )\r\n", A, id="space and parentheses"),
        # what binds how
        pytest.param("NOT a = b", Comparison("=", Not(A), B), id="NOT before comparison"),
        pytest.param("NOT a LIKE 'b'", Like(Not(A), "b"), id="NOT before LIKE"),
        pytest.param("NOT EXISTS a", Not(Exists("a")), id="NOT of EXISTS"),
        pytest.param("NOT NOT a", Not(Not(A)), id="NOT NOT"),
        pytest.param("-NOT -a", Negate(Not(Negate(A))), id="unary ones"),
        pytest.param("-a LIKE '1'", Like(Negate(A), "1"), id="minus before LIKE"),
        pytest.param("a * b IN (c)", Arithmetic("*", A, In(B, (C,))), id="IN before multiplication"),
        pytest.param("a + b * c", Arithmetic("+", A, Arithmetic("*", B, C)), id="multiplication before addition"),
        pytest.param("a - b - c", Arithmetic("-", Arithmetic("-", A, B), C), id="subtraction from the left"),
        pytest.param("a / b % c", Arithmetic("%", Arithmetic("/", A, B), C), id="division from the left"),
        pytest.param("a = b + c", Comparison("=", A, Arithmetic("+", B, C)), id="addition before comparison"),
        pytest.param("a = b = c", Comparison("=", Comparison("=", A, B), C), id="comparison from the left"),
        pytest.param("a = b AND c", Logic("AND", (Comparison("=", A, B), C)), id="comparison before AND"),
        pytest.param("a OR b AND c", Logic("AND", (Logic("OR", (A, B)), C)), id="OR and AND from the left"),
        pytest.param("a AND b XOR c", Logic("XOR", (Logic("AND", (A, B)), C)), id="AND and XOR from the left"),
        pytest.param("a OR (b AND c)", Logic("OR", (A, Logic("AND", (B, C)))), id="parentheses"),
        pytest.param("a AND b AND c", Logic("AND", (A, B, C)), id="a chain is one expression"),
        pytest.param("a AND (b AND c)", Logic("AND", (A, Logic("AND", (B, C)))), id="in parentheses it is another"),
        pytest.param("a LIKE 'x' IN (b)", In(Like(A, "x"), (B,)), id="LIKE and IN as they are written"),
    ],
)
def test_an_expression_is_read_as_the_grammar_says(text: str, node: Node):
    assert parse(text) == node
    assert parse(str(node)) == node


@pytest.mark.parametrize(
    ("text", "place", "found", "expected"),
    [
        pytest.param("", "column 1", "the end", "a value, an attribute", id="nothing"),
        pytest.param("type = ", "column 8", "the end", "a value, an attribute", id="no right side"),
        pytest.param("type == 'x'", "column 7", "'='", "a value, an attribute", id="two equal signs"),
        pytest.param("type = 'x' && a", "column 12", "'&'", "AND", id="another language's AND"),
        pytest.param("!a", "column 1", "'!'", "NOT", id="another language's NOT"),
        pytest.param("type = 'x", "column 8", "a string without its end", "' after it", id="an open string"),
        pytest.param("type = 'x\\'", "column 8", "a string without its end", "' after it", id="an escaped end"),
        pytest.param("type = 'it''s'", "column 12", "a string", "written \\'", id="a doubled quote"),
        pytest.param("type LIKE 5", "column 11", "'5'", "a string in quotes after LIKE", id="LIKE of an integer"),
        pytest.param("type LIKE id", "column 11", "'id'", "a string in quotes after LIKE", id="LIKE of an attribute"),
        pytest.param("type NOT = 'x'", "column 10", "'='", "LIKE or IN after NOT", id="NOT in the middle"),
        pytest.param("type IN 'x'", "column 9", "a string", "( and the elements after IN", id="IN without a list"),
        pytest.param("type IN ()", "column 10", "')'", "a value, an attribute", id="IN of nothing"),
        pytest.param("type IN ('a', 'b'", "column 18", "the end", ") in the elements of IN", id="an open list"),
        pytest.param("ABS(1", "column 6", "the end", ") in the arguments of ABS", id="an open call"),
        pytest.param("(a", "column 3", "the end", "an operator or )", id="an open parenthesis"),
        pytest.param("a)", "column 2", "')'", "an operator or the end", id="a parenthesis too many"),
        pytest.param("a b", "column 3", "'b'", "an operator or the end", id="two values"),
        pytest.param("EXISTS 'a'", "column 8", "a string", "the name of an attribute", id="EXISTS of a string"),
        pytest.param("EXISTS in", "column 8", "'IN'", "which a keyword cannot be", id="a keyword as a name"),
        pytest.param("a_b = 1", "column 5", "'='", "( after the function a_b", id="an attribute with _"),
        pytest.param("_a(1)", "column 1", "'_a'", "a name", id="a function that begins with _"),
        pytest.param("f1(1)", "column 1", "'f1'", "which has no digits", id="a function with a digit"),
        pytest.param("+ 5", "column 1", "'+'", "a value, an attribute", id="a plus that is no sign"),
        pytest.param("2147483648", "column 1", "the integer 2147483648", "one from -2147483648", id="too large"),
        pytest.param("-2147483649", "column 1", "the integer -2147483649", "to 2147483647", id="too small"),
        pytest.param("tÿpe = 1", "column 2", "'ÿ'", "a value, a name or an operator", id="another letter"),
        pytest.param("type = 'x'\nAND source =\n", "line 3, column 1", "the end", "a value", id="several lines"),
        pytest.param("type = 'x'\nAND 5 5\n", "line 2, column 7", "'5'", "an operator", id="the second line"),
        pytest.param("type =\n", "column 8", "the end", "a value", id="a last line feed makes no second line"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place_and_what_may_stand_there(text, place, found, expected):
    with pytest.raises(ParseError) as refused:
        parse(text)
    (error,) = refused.value.errors
    assert error.rule.startswith(f"at {place}: found {found}, expected ")
    assert expected in error.rule
    assert error.value == text


# ---- limits


def nested(depth: int, begin: str, end: str) -> str:
    return begin * depth + "1" + end * depth


@pytest.mark.parametrize(
    ("begin", "end", "adds"),
    [
        pytest.param("(", ")", 1, id="parentheses"),
        pytest.param("ABS(", ")", 1, id="calls"),
        pytest.param("NOT ", "", 1, id="NOT"),
        pytest.param("- ", "", 1, id="minus"),
        pytest.param("1 + (", ")", 2, id="right operands"),
        pytest.param("", " + 1", 1, id="left operands"),
        pytest.param("", " LIKE ''", 1, id="LIKE"),
        pytest.param("", " IN (1)", 1, id="IN"),
        pytest.param("1 IN (", ")", 1, id="elements"),
        pytest.param("(", ") + 1 + 1", 2, id="both"),
        pytest.param("(", ") AND 1 OR 1", 2, id="AND and OR in turns"),
    ],
)
def test_expressions_within_each_other_have_a_limit_that_nothing_exceeds(begin: str, end: str, adds: int):
    deepest = (MAX_DEPTH - 2) // adds
    expression = Expression(nested(deepest, begin, end))
    expression.evaluate({})
    expression.refusal({})
    assert parse(str(expression)) == expression.node
    for more in (MAX_DEPTH + 1, (MAX_LENGTH - 1) // len(begin + end)):
        with pytest.raises(ParseError, match="more than 100 expressions within each other"):
            parse(nested(more, begin, end))


def test_a_chain_of_one_operator_is_one_expression_however_long():
    for operator in ("AND", "OR", "XOR"):
        text = f" {operator} ".join(["TRUE"] * 800)
        expression = Expression(text)
        assert type(expression.evaluate({}).value) is bool
        assert str(expression) == text


def test_an_expression_has_a_greatest_length():
    assert parse(f"'{'x' * (MAX_LENGTH - 2)}'")
    with pytest.raises(ParseError, match="found 8193 characters, expected at most 8192"):
        parse(f"'{'x' * (MAX_LENGTH - 1)}'")


# ---- properties


NAMES = st.sampled_from(["a", "type", "subject", "x1", "42x"])
#: What may stand between the quotes of a literal.
CONTENTS = st.lists(st.sampled_from(["a", "%", "_", "\n", "ÿ", "'", '"', "\\\\", "\\n", "\\%"]), max_size=6).map(
    "".join
)
STRINGS = CONTENTS.map(lambda content: parse("'" + content.replace("'", "\\'") + "'").value)
LITERALS = st.one_of(
    STRINGS.map(StringLiteral),
    st.integers(-(2**31), 2**31 - 1).map(IntegerLiteral),
    st.booleans().map(BooleanLiteral),
)


def logic(parts: tuple[str, list[Node]]) -> Node:
    """As the parser makes them: a first operand of the same operator is part of the chain."""
    operator, (first, *rest) = parts
    if isinstance(first, Logic) and first.operator == operator:
        return Logic(operator, (*first.operands, *rest))
    return Logic(operator, (first, *rest))


def larger(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        inner.map(Not),
        inner.map(Negate),
        st.builds(Like, inner, STRINGS, st.booleans()),
        st.builds(In, inner, several, st.booleans()),
        st.builds(Comparison, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), inner, inner),
        st.builds(Arithmetic, st.sampled_from("+-*/%"), inner, inner),
        st.tuples(st.sampled_from(["AND", "OR", "XOR"]), st.lists(inner, min_size=2, max_size=4)).map(logic),
        st.builds(Call, st.sampled_from(["ABS", "LENGTH", "CONCAT", "SUBSTRING", "NO_SUCH"]), several),
    )


NODES = st.recursive(st.one_of(LITERALS, NAMES.map(Attribute), NAMES.map(Exists)), larger, max_leaves=12)


@given(NODES)
def test_what_is_printed_is_read_as_the_same_expression(node: Node):
    assert parse(str(node)) == node


PARTS = st.sampled_from([*"ab1'\"\\%_()+-*/=<>!,. ", " NOT ", " AND ", " LIKE ", " IN ", "EXISTS ", "ABS("])


@given(st.lists(PARTS, max_size=20).map("".join))
def test_any_text_is_read_or_refused(text: str):
    try:
        node = parse(text)
    except ParseError:
        return
    assert parse(str(node)) == node


def test_a_text_that_no_literal_has_cannot_be_printed():
    with pytest.raises(ValueError, match="cannot be written as a literal"):
        quoted("a\\")
