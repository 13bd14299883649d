"""Compiles an expression into functions that call each other, once, so that evaluating does no more than it must.

The mode is "fail fast" (CESQL 1.0.0, section 4.1): the first error ends the evaluation. It is raised, and what stands
around the place gives the zero value of its type (section 3.2), which nobody needs to compute before the root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final, TypeVar

from broker.cesql.errors import ErrorKind, EvaluationError
from broker.cesql.functions import FunctionFailed, function
from broker.cesql.like import compile_pattern
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
)
from broker.cesql.values import (
    CASTS,
    MAX_INTEGER,
    MIN_INTEGER,
    CastFailed,
    Type,
    Value,
    to_boolean,
    to_integer,
    to_string,
    type_of,
)

__all__ = ["REQUIRED", "Event", "Run", "compile_node", "compile_truth", "result_type"]

#: An event's context attributes by name.
Event = Mapping[str, Value]
#: Evaluates an expression on an event. Raises EvaluationError.
Run = Callable[[Event], Value]
V = TypeVar("V", str, int, bool)

#: Attributes that every event has, whatever the mapping says (section 3.4.4).
REQUIRED: Final = frozenset({"id", "source", "specversion", "type"})


def result_type(node: Node) -> Type | None:
    """What an expression gives; None where that is an attribute, whose type is the event's matter."""
    match node:
        case Attribute():
            return None
        case StringLiteral():
            return Type.STRING
        case IntegerLiteral() | Negate() | Arithmetic():
            return Type.INTEGER
        case Call(name, arguments):
            found = function(name, len(arguments))
            return Type.BOOLEAN if found is None else found.result
        case _:
            return Type.BOOLEAN


@singledispatch
def compile_node(node: Any) -> Run:
    raise TypeError(f"{node!r} is no expression")


def _value(node: StringLiteral | IntegerLiteral | BooleanLiteral) -> Run:
    value = node.value
    return lambda _: value


for _kind in (StringLiteral, IntegerLiteral, BooleanLiteral):
    compile_node.register(_kind, _value)


@compile_node.register
def _attribute(node: Attribute) -> Run:
    name, detail = node.name, _missing(node)

    def run(event: Event) -> Value:
        value = event.get(name)
        if value is None:
            raise EvaluationError(ErrorKind.MISSING_ATTRIBUTE, detail, node, False)
        return value

    return run


def _missing(node: Attribute) -> str:
    return f"the event has no attribute {node.name}"


@compile_node.register
def _exists(node: Exists) -> Run:
    name = node.name
    if name in REQUIRED:
        return lambda _: True
    return lambda event: name in event


# ---- operands of a type


def _cast(node: Node, around: Node, kind: Type, cast: Callable[[Value], V]) -> Callable[[Event], V]:
    """An operand of `around`, cast to a type that it may not have."""
    run: Any = compile_node(node)
    if result_type(node) is kind:
        return run  # type: ignore[no-any-return]

    def cast_run(event: Event) -> V:
        try:
            return cast(run(event))
        except CastFailed as failed:
            raise _uncastable(failed, around) from None

    return cast_run


def _uncastable(failed: CastFailed, around: Node) -> EvaluationError:
    return EvaluationError(ErrorKind.CAST, str(failed), around)


def compile_truth(node: Node) -> Callable[[Event], bool]:
    """The expression as an operand of AND, which its value is cast for."""
    return _truth_of(node, node)


def _text_of(node: Node, around: Node) -> Callable[[Event], str]:
    return _cast(node, around, Type.STRING, to_string)


def _integer_of(node: Node, around: Node) -> Callable[[Event], int]:
    return _cast(node, around, Type.INTEGER, to_integer)


def _truth_of(node: Node, around: Node) -> Callable[[Event], bool]:
    return _cast(node, around, Type.BOOLEAN, to_boolean)


# ---- logic


@compile_node.register
def _not(node: Not) -> Run:
    if isinstance(node.operand, IntegerLiteral):
        return _not_of_integer(node)
    operand = _truth_of(node.operand, node)
    return lambda event: not operand(event)


def _not_of_integer(node: Not) -> Run:
    """The specification's conformance cases call NOT of an integer that is written there a failed cast which gives
    TRUE, against its own table of casts (section 3.7), by which an Integer that is computed is cast."""

    def run(_: Event) -> Value:
        raise EvaluationError(ErrorKind.CAST, f"{node.operand} is neither true nor false", node, True)

    return run


@compile_node.register
def _logic(node: Logic) -> Run:
    operands = tuple(_truth_of(each, node) for each in node.operands)
    if node.operator == "XOR":
        return lambda event: sum(operand(event) for operand in operands) % 2 == 1
    stops = node.operator == "OR"
    if len(operands) == 2:
        left, right = operands
        if stops:
            return lambda event: left(event) or right(event)
        return lambda event: left(event) and right(event)

    def run(event: Event) -> Value:
        for operand in operands:
            if operand(event) is stops:
                return stops
        return not stops

    return run


# ---- comparisons


_EQUALITY: Final[Mapping[str, Callable[[object, object], bool]]] = {"=": eq, "!=": ne}
_ORDER: Final[Mapping[str, Callable[[int, int], bool]]] = {"<": lt, "<=": le, ">": gt, ">=": ge}


@compile_node.register
def _comparison(node: Comparison) -> Run:
    if node.operator in _ORDER:
        first, second = _integer_of(node.left, node), _integer_of(node.right, node)
        compare = _ORDER[node.operator]
        return lambda event: compare(first(event), second(event))
    if isinstance(node.right, StringLiteral):
        return _equal_to_text(node, node.right.value)
    left, right, same = compile_node(node.left), compile_node(node.right), _EQUALITY[node.operator]

    def run(event: Event) -> Value:
        value, wanted = left(event), right(event)
        if type(value) is type(wanted):
            return same(value, wanted)
        try:
            # The right operand says which of the operators of that name it is (section 3.7).
            return same(CASTS[type_of(wanted)](value), wanted)
        except CastFailed as failed:
            raise _uncastable(failed, node) from None

    return run


def _equal_to_text(node: Comparison, wanted: str) -> Run:
    """What most filters are; the attribute is looked up here, which saves a call."""
    equal = node.operator == "="
    if isinstance(node.left, Attribute):
        attribute, name, detail = node.left, node.left.name, _missing(node.left)

        def run_attribute(event: Event) -> Value:
            value = event.get(name)
            if value is None:
                raise EvaluationError(ErrorKind.MISSING_ATTRIBUTE, detail, attribute, False)
            return ((value if type(value) is str else to_string(value)) == wanted) is equal

        return run_attribute
    text = _text_of(node.left, node)
    return lambda event: (text(event) == wanted) is equal


@compile_node.register
def _like(node: Like) -> Run:
    text, matches, wanted = _text_of(node.operand, node), compile_pattern(node.pattern), not node.negated
    return lambda event: matches(text(event)) is wanted


@compile_node.register
def _in(node: In) -> Run:
    operand, found = compile_node(node.operand), not node.negated
    elements = tuple(compile_node(each) for each in node.elements)
    texts = frozenset(each.value for each in node.elements if isinstance(each, StringLiteral))
    only_texts = all(isinstance(each, StringLiteral) for each in node.elements)

    def run(event: Event) -> Value:
        value = operand(event)
        if only_texts and type(value) is str:
            return (value in texts) is found
        cast = CASTS[type_of(value)]
        try:
            return any(cast(element(event)) == value for element in elements) is found
        except CastFailed as failed:
            raise _uncastable(failed, node) from None

    return run


# ---- integers


@compile_node.register
def _negate(node: Negate) -> Run:
    operand = _integer_of(node.operand, node)
    return lambda event: _in_range(-operand(event), node)


@compile_node.register
def _arithmetic(node: Arithmetic) -> Run:
    left, right = _integer_of(node.left, node), _integer_of(node.right, node)
    compute = _ARITHMETIC[node.operator]

    def run(event: Event) -> Value:
        first, second = left(event), right(event)
        try:
            return _in_range(compute(first, second), node)
        except ZeroDivisionError:
            raise EvaluationError(ErrorKind.MATH, f"{first} cannot be divided by zero", node) from None

    return run


def _in_range(number: int, node: Node) -> int:
    if MIN_INTEGER <= number <= MAX_INTEGER:
        return number
    raise EvaluationError(ErrorKind.MATH, f"{number} is not an integer of 32 bits", node)


def _quotient(left: int, right: int) -> int:
    """Rounded towards zero, where Python rounds down."""
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _remainder(left: int, right: int) -> int:
    """With the sign of `left`, where Python gives that of `right`."""
    remainder = abs(left) % abs(right)
    return -remainder if left < 0 else remainder


_ARITHMETIC: Final[Mapping[str, Callable[[int, int], int]]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": _quotient,
    "%": _remainder,
}


# ---- functions


@compile_node.register
def _call(node: Call) -> Run:
    found = function(node.name, len(node.arguments))
    if found is None:
        return _missing_function(node)
    compute = found.run
    arguments = tuple(_argument(each, found.parameter(number), node) for number, each in enumerate(node.arguments))

    def run(event: Event) -> Value:
        try:
            return compute(*[argument(event) for argument in arguments])
        except FunctionFailed as failed:
            raise EvaluationError(failed.kind, failed.detail, node, failed.value) from None
        except CastFailed as failed:
            raise _uncastable(failed, node) from None

    return run


def _argument(node: Node, kind: Type | None, around: Call) -> Run:
    return compile_node(node) if kind is None else _cast(node, around, kind, CASTS[kind])  # type: ignore[type-var]


def _missing_function(node: Call) -> Run:
    detail = f"there is no function {node.name} with {len(node.arguments)} arguments"

    def run(_: Event) -> Value:
        raise EvaluationError(ErrorKind.MISSING_FUNCTION, detail, node, False)

    return run
