"""Evaluating CloudEvents SQL: the tables of the specification (1.0.0, chapter 3), and what holds of any expression."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cesql import ErrorKind, Expression
from broker.cesql.functions import FUNCTIONS, MAX_STRING_LENGTH
from broker.cesql.values import MAX_INTEGER, MIN_INTEGER, CastFailed, to_boolean, to_integer, to_string, type_of
from tests.unit.test_cesql_grammar import NODES

EVENT = {
    "specversion": "1.0",
    "id": "42",
    "source": "/shop",
    "type": "order.created",
    "subject": "Grüße",
    "hop": "5",
    "ttl": "10",
    "yes": "True",
    "number": 7,
    "flag": False,
}

MATH, CAST = ErrorKind.MATH, ErrorKind.CAST
ATTRIBUTE, FUNCTION, UNKNOWN = ErrorKind.MISSING_ATTRIBUTE, ErrorKind.FUNCTION_EVALUATION, ErrorKind.MISSING_FUNCTION


def same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # values
        ("'a'", "a"),
        ("-5", -5),
        ("TRUE", True),
        ("type", "order.created"),
        ("number", 7),
        ("flag", False),
        # logic (3.4.1, 3.4.2)
        ("NOT FALSE", True),
        ("NOT yes", False),
        ("NOT number", False),
        ("NOT (5 - 5)", True),
        ("TRUE AND 'true'", True),
        ("TRUE AND 0", False),
        ("FALSE OR -1", True),
        ("FALSE OR FALSE OR FALSE", False),
        ("TRUE AND TRUE AND TRUE", True),
        ("TRUE XOR TRUE", False),
        ("TRUE XOR TRUE XOR TRUE", True),
        ("FALSE XOR TRUE", True),
        ("FALSE AND TRUE OR TRUE", True),
        ("TRUE OR FALSE AND FALSE", False),
        ("FALSE AND missing", False),
        ("TRUE OR 1 / 0 = 1", True),
        ("FALSE OR TRUE OR missing", True),
        # comparisons
        ("'a' = 'a'", True),
        ("'a' = 'A'", False),
        ("'a' != 'b'", True),
        ("'a' <> 'a'", False),
        ("TRUE = FALSE", False),
        ("1 = 1", True),
        ("hop = 5", True),
        ("5 = hop", True),
        ("'05' = 5", True),
        ("5 = '05'", False),
        ("TRUE = 'true'", True),
        ("TRUE = 'TRUE'", False),
        ("'TRUE' = TRUE", True),
        ("1 = TRUE", True),
        ("2 = TRUE", True),
        ("TRUE = 2", False),
        ("number = '7'", True),
        ("number != '7'", False),
        ("flag = 'false'", True),
        ("hop < ttl", True),
        ("'10' < '9'", False),
        ("ttl <= 10", True),
        ("ttl > 10", False),
        ("ttl >= '+10'", True),
        ("TRUE > FALSE", True),
        # arithmetic
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("7 / -2", -3),
        ("-7 / -2", 3),
        ("7 % 2", 1),
        ("-7 % 2", -1),
        ("7 % -2", 1),
        ("-7 % -2", -1),
        ("2 + 3 * 4", 14),
        ("10 - 2 - 3", 5),
        ("hop + ttl", 15),
        ("TRUE + TRUE", 2),
        ("-hop", -5),
        ("-TRUE", -1),
        ("-flag", 0),
        ("2147483646 + 1", MAX_INTEGER),
        ("-2147483647 - 1", MIN_INTEGER),
        # EXISTS
        ("EXISTS subject", True),
        ("EXISTS dataschema", False),
        ("NOT EXISTS dataschema", True),
        # IN
        ("type IN ('order.paid', 'order.created')", True),
        ("type NOT IN ('order.paid', 'order.created')", False),
        ("hop IN (4, 5)", True),
        ("'05' IN (5)", False),
        ("5 IN ('05')", True),
        ("number IN ('7')", True),
        ("number NOT IN ('8', '9')", True),
        ("TRUE IN ('True')", True),
        ("id IN (hop, 42)", True),
        ("id IN (42, missing)", True),
        # LIKE
        ("type LIKE 'order.%'", True),
        ("type NOT LIKE 'order.%'", False),
        ("number LIKE '_'", True),
        ("flag LIKE 'f%e'", True),
        ("subject LIKE 'Gr__e'", True),
        # functions (3.5)
        ("LENGTH(subject)", 5),
        ("length(1234)", 4),
        ("CONCAT()", ""),
        ("CONCAT('a', 1, TRUE)", "a1true"),
        ("CONCAT_WS('-', 'a', 'b', 3)", "a-b-3"),
        ("CONCAT_WS('-')", ""),
        ("CONCAT_WS(1, 2, 3)", "213"),
        ("LOWER('ÄB')", "äb"),
        ("UPPER('äb')", "ÄB"),
        ("TRIM(' \u2003\u00a0a b\t\n')", "a b"),
        ("TRIM('\u001ca\u200b')", "\u001ca\u200b"),
        ("LEFT('abc', 2)", "ab"),
        ("LEFT('abc', 0)", ""),
        ("LEFT('abc', 9)", "abc"),
        ("RIGHT('abc', 2)", "bc"),
        ("RIGHT('abc', 0)", ""),
        ("RIGHT('abc', '9')", "abc"),
        ("SUBSTRING('abcdef', 3)", "cdef"),
        ("SUBSTRING('abcdef', -2)", "ef"),
        ("SUBSTRING('abcdef', 6)", "f"),
        ("SUBSTRING('abcdef', -6)", "abcdef"),
        ("SUBSTRING('abcdef', 0)", ""),
        ("SUBSTRING('abcdef', 2, 3)", "bcd"),
        ("SUBSTRING('abcdef', -3, 2)", "de"),
        ("SUBSTRING('abcdef', 5, 99)", "ef"),
        ("SUBSTRING('abcdef', 5, 0)", ""),
        ("SUBSTRING('abcdef', 0, 3)", ""),
        ("ABS(-5)", 5),
        ("ABS('-5')", 5),
        ("ABS(-2147483647)", MAX_INTEGER),
        # casts by name
        ("INT('-007')", -7),
        ("INT(TRUE)", 1),
        ("BOOL('fAlSe')", False),
        ("BOOL(-1)", True),
        ("STRING(-5)", "-5"),
        ("STRING(flag)", "false"),
        ("IS_INT('12')", True),
        ("IS_INT('1.2')", False),
        ("IS_INT(TRUE)", True),
        ("IS_BOOL(yes)", True),
        ("IS_BOOL('1')", False),
        ("LENGTH(hop + 10) = 2", True),
    ],
)
def test_an_expression_has_the_value_of_the_specification(text: str, value: object):
    outcome = Expression(text).evaluate(EVENT)
    assert outcome.error is None
    assert same(outcome.value, value)


@pytest.mark.parametrize(
    ("text", "value", "kind", "detail"),
    [
        # the zero value of what stands around (3.2)
        ("missing", False, ATTRIBUTE, "the event has no attribute missing"),
        ("(missing)", False, ATTRIBUTE, "missing"),
        ("missing = 'x'", False, ATTRIBUTE, "missing"),
        ("'x' != missing", False, ATTRIBUTE, "missing"),
        ("NOT missing", False, ATTRIBUTE, "missing"),
        ("missing NOT LIKE 'x'", False, ATTRIBUTE, "missing"),
        ("missing NOT IN ('x')", False, ATTRIBUTE, "missing"),
        ("'x' NOT IN (missing)", False, ATTRIBUTE, "missing"),
        ("missing OR TRUE", False, ATTRIBUTE, "missing"),
        ("missing * 5", 0, ATTRIBUTE, "missing"),
        ("1 / missing", 0, ATTRIBUTE, "missing"),
        ("missing / 0", 0, ATTRIBUTE, "missing"),
        ("-missing", 0, ATTRIBUTE, "missing"),
        ("UPPER(missing)", "", ATTRIBUTE, "missing"),
        ("LENGTH(missing)", 0, ATTRIBUTE, "missing"),
        ("NOT (missing = 'x')", False, ATTRIBUTE, "missing"),
        # arithmetic
        ("5 / 0", 0, MATH, "5 cannot be divided by zero"),
        ("5 % 0", 0, MATH, "zero"),
        ("1 != 1 / 0", False, MATH, "zero"),
        ("2147483647 + 1", 0, MATH, "2147483648 is not an integer of 32 bits"),
        ("-2147483648 - 1", 0, MATH, "32 bits"),
        ("65536 * 65536", 0, MATH, "32 bits"),
        ("-2147483648 / -1", 0, MATH, "32 bits"),
        ("--2147483648", 0, MATH, "32 bits"),
        ("ABS(-2147483648)", MAX_INTEGER, MATH, "32 bits"),
        ("LENGTH(ABS(-2147483648))", 0, MATH, "32 bits"),
        # casts
        ("INT('x')", 0, CAST, "'x' is not an integer of 32 bits"),
        ("INT('')", 0, CAST, "'' is not an integer"),
        ("INT(' 1')", 0, CAST, "' 1' is not an integer"),
        ("INT('2147483648')", 0, CAST, "32 bits"),
        ("INT('1_0')", 0, CAST, "32 bits"),
        ("BOOL('yes')", False, CAST, "'yes' is neither true nor false"),
        ("type = 5", False, CAST, "'order.created' is not an integer"),
        ("type != TRUE", False, CAST, "neither true nor false"),
        ("type < 5", False, CAST, "not an integer"),
        ("5 > type", False, CAST, "not an integer"),
        ("5 IN ('x', 5)", False, CAST, "'x' is not an integer"),
        ("type + 1", 0, CAST, "not an integer"),
        ("-type", 0, CAST, "not an integer"),
        ("NOT type", False, CAST, "neither true nor false"),
        ("NOT type = 'x'", False, CAST, "neither true nor false"),
        ("NOT 7", True, CAST, "7 is neither true nor false"),
        ("type AND TRUE", False, CAST, "neither true nor false"),
        ("TRUE XOR type", False, CAST, "neither true nor false"),
        ("LEFT('abc', 'x')", "", CAST, "'x' is not an integer"),
        # functions
        ("LEFT('abc', -1)", "abc", FUNCTION, "LEFT cannot take -1 characters"),
        ("RIGHT('abc', -1)", "abc", FUNCTION, "RIGHT cannot take -1 characters"),
        ("LOWER(LEFT('abc', -1))", "", FUNCTION, "LEFT"),
        ("SUBSTRING('abc', 4)", "", FUNCTION, "SUBSTRING cannot begin at 4 of 3 characters"),
        ("SUBSTRING('abc', -4)", "", FUNCTION, "begin at -4"),
        ("SUBSTRING('abc', 4, 1)", "", FUNCTION, "begin at 4"),
        ("SUBSTRING('abc', 1, -1)", "", FUNCTION, "SUBSTRING cannot take -1 characters"),
        ("SUBSTRING('', 1)", "", FUNCTION, "begin at 1 of 0"),
        ("SQRT(4)", False, UNKNOWN, "there is no function SQRT with 1 arguments"),
        ("ABS(1, 2)", False, UNKNOWN, "ABS with 2 arguments"),
        ("CONCAT_WS()", False, UNKNOWN, "CONCAT_WS with 0 arguments"),
        ("SQRT(4) = 2", False, UNKNOWN, "SQRT"),
    ],
)
def test_an_error_gives_the_zero_value_of_what_stands_around_it(text: str, value: object, kind: ErrorKind, detail: str):
    outcome = Expression(text).evaluate(EVENT)
    assert outcome.error is not None
    assert outcome.error.kind is kind
    assert detail in str(outcome.error)
    assert same(outcome.value, value)


def test_the_required_attributes_exist_whatever_is_given():
    for name in ("id", "source", "specversion", "type"):
        assert Expression(f"EXISTS {name}").evaluate({}).value is True


def test_a_text_that_functions_make_has_a_greatest_length():
    long = {"subject": "x" * (MAX_STRING_LENGTH // 2)}
    assert Expression("LENGTH(CONCAT(subject, subject))").evaluate(long).value == MAX_STRING_LENGTH
    outcome = Expression("CONCAT_WS('-', subject, subject)").evaluate(long)
    assert outcome.value == ""
    assert outcome.error is not None
    assert outcome.error.kind is FUNCTION


def test_every_function_is_in_the_tables_above():
    tables = (
        test_an_expression_has_the_value_of_the_specification,
        test_an_error_gives_the_zero_value_of_what_stands_around_it,
    )
    texts = [case[0].upper() for table in tables for case in table.pytestmark[0].args[1]]
    assert not [name for name in FUNCTIONS if not any(f"{name}(" in text for text in texts)]


@pytest.mark.parametrize(
    ("text", "doubts"),
    [
        ("type = 'a' AND (NOT (id = 'b') OR NOT EXISTS hop)", []),
        ("NOT flag", []),
        ("NOT EXISTS flag = TRUE", []),
        ("(a OR b) AND c", []),
        ("a OR (b AND c)", []),
        ("a OR b OR c", []),
        ("type", ["gives a String, and a filter needs a Boolean: no event passes"]),
        ("1 + hop", ["gives an Integer, and a filter needs a Boolean: no event passes"]),
        ("NOT type = 'a'", ["is read as `(NOT type) = 'a'`: NOT binds first, so put parentheses"]),
        ("a AND NOT type LIKE 'a%'", ["is read as `(NOT type) LIKE 'a%'`: NOT binds first, so put parentheses"]),
        ("NOT id IN ('a')", ["is read as `(NOT id) IN ('a')`: NOT binds first, so put parentheses"]),
        ("a OR b AND c", ["is read as `(a OR b) AND c`: put parentheses where AND, OR and XOR are mixed"]),
        ("(a AND b OR c) = d", ["is read as `(a AND b) OR c`: put parentheses where AND, OR and XOR are mixed"]),
    ],
)
def test_what_hardly_anybody_means_is_doubted(text: str, doubts: list[str]):
    assert list(Expression(text).doubts()) == doubts


def test_expressions_are_the_same_however_they_are_spelled():
    one, other = Expression("TYPE = 'a' and (b)"), Expression('type = "a" AND b')
    assert one == other
    assert hash(one) == hash(other)
    assert one != Expression("type = 'a' AND c")
    assert one != "type = 'a' AND b"
    assert repr(one) == "Expression(\"TYPE = 'a' and (b)\")"


# ---- what holds of any expression

VALUES = st.one_of(st.sampled_from(["", "a", "5", "-7", "true", "x"]), st.integers(-3, 3), st.booleans())
EVENTS = st.dictionaries(st.sampled_from(["a", "type", "subject", "x1", "42x"]), VALUES)


@given(NODES, EVENTS)
def test_evaluation_ends_with_a_value_and_says_no_as_it_explains(node: object, event: dict[str, object]):
    expression = Expression(str(node))
    outcome = expression.evaluate(event)
    kind = type_of(outcome.value)
    if kind.value == "Integer":
        assert MIN_INTEGER <= outcome.value <= MAX_INTEGER
    passes = outcome.value is True and outcome.error is None
    assert expression.matches(event) is passes
    refusal = expression.refusal(event)
    assert (refusal is None) is passes
    if refusal is not None:
        assert refusal.part in str(expression)
        assert Expression(refusal.part).refusal(event) is not None
    assert expression.evaluate(event).value == outcome.value


@given(
    st.one_of(st.integers(MIN_INTEGER - 9, MAX_INTEGER + 9).map(str), st.text(st.sampled_from("+-01 _٣"), max_size=12))
)
def test_a_string_is_an_integer_where_its_digits_say_so(text: str):
    digits = text[1:] if text[:1] in ("+", "-") else text
    inside = digits.isascii() and digits.isdigit() and MIN_INTEGER <= int(text) <= MAX_INTEGER
    if inside:
        assert to_integer(text) == int(text)
    else:
        with pytest.raises(CastFailed):
            to_integer(text)


@given(VALUES)
def test_a_value_survives_the_way_through_a_string(value: str | int | bool):
    text = to_string(value)
    if type(value) is bool:
        assert to_boolean(text) is value
    elif type(value) is int:
        assert to_integer(text) == value


def test_a_long_string_of_digits_is_no_integer_and_takes_no_time():
    for digits in ("9" * 100_000, "0" * 100_000 + "x"):
        with pytest.raises(CastFailed, match=r"^.{60,100}$"):
            to_integer(digits)
    assert to_integer("0" * 100_000 + "7") == 7
