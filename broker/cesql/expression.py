"""An expression as its users see it: read once, then evaluated on events, or asked why it says no."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from broker.cesql.errors import EvaluationError
from broker.cesql.evaluator import Event, compile_node, compile_truth, result_type
from broker.cesql.functions import FUNCTIONS, function
from broker.cesql.parser import read
from broker.cesql.syntax import (
    Attribute,
    Call,
    Comparison,
    In,
    Like,
    Logic,
    Node,
    Not,
    attributes_of,
    children_of,
)
from broker.cesql.values import Type, Value, shown, type_of

__all__ = ["Expression", "Outcome", "Refusal"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation gives: always a value, and the error that ended it, if one did."""

    value: Value
    error: EvaluationError | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an event does not pass: the smallest part of the expression that decides it, as text, the attributes that it
    looks at, and a reason in words where it is not simply false."""

    part: str
    attributes: tuple[str, ...]
    reason: str = ""


class Expression:
    """Two expressions are equal where they are the same expression, however they are spelled. Raises ParseError."""

    __slots__ = ("_mixed", "_run", "_type", "node", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        parsed = read(text)
        self.node = parsed.node
        self._mixed = parsed.mixed
        self._run = compile_node(self.node)
        self._type = result_type(self.node) or Type.BOOLEAN

    def __eq__(self, other: object) -> bool:
        return self.node == other.node if isinstance(other, Expression) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.node)

    def __str__(self) -> str:
        return str(self.node)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def evaluate(self, event: Event) -> Outcome:
        try:
            return Outcome(value=self._run(event))
        except EvaluationError as error:
            value = error.value if error.where is self.node else None
            return Outcome(value=self._type.zero if value is None else value, error=error)

    def matches(self, event: Event) -> bool:
        """As a filter (section 1.2): only TRUE passes, and only without an error."""
        try:
            return self._run(event) is True
        except EvaluationError:
            return False

    def attributes(self) -> tuple[str, ...]:
        """The names of the attributes that it looks at, in the order of writing."""
        return attributes_of(self.node)

    def problems(self) -> Iterator[str]:
        """What can be said before any event: functions that there are not (section 3.3 asks to check early)."""
        yield from _problems(self.node)

    def doubts(self) -> Iterator[str]:
        """What somebody hardly means who writes this as a filter, though it is an expression."""
        kind = Type.STRING if isinstance(self.node, Attribute) else result_type(self.node)
        if kind is not Type.BOOLEAN:
            given = "a String" if kind is Type.STRING else "an Integer"
            yield f"gives {given}, and a filter needs a Boolean: no event passes"
        yield from _doubts(self.node)
        for node in self._mixed:
            yield f"is read as `{_with_parentheses(node)}`: put parentheses where AND, OR and XOR are mixed"

    def refusal(self, event: Event) -> Refusal | None:
        """Why the event does not pass, None where it does."""
        outcome = self.evaluate(event)
        if outcome.error is None and type(outcome.value) is not bool:
            kind, value = type_of(outcome.value), outcome.value
            told = shown(value) if isinstance(value, str) else value
            reason = f"gives the {kind} {told}, and a filter needs a Boolean"
            return _refusal(self.node, reason)
        if outcome.error is not None:
            around = _around(self.node, outcome.error.where) or self.node
            return _refusal(around, f"fails: {outcome.error.detail}")
        return None if outcome.value else _refusal(_deciding(self.node, event))


def _refusal(node: Node, reason: str = "") -> Refusal:
    return Refusal(part=str(node), attributes=attributes_of(node), reason=reason)


def _problems(node: Node) -> Iterator[str]:
    if isinstance(node, Call) and function(node.name, len(node.arguments)) is None:
        named = FUNCTIONS.get(node.name)
        if named is None:
            yield f"there is no function {node.name}: there are {', '.join(sorted(FUNCTIONS))}"
        else:
            known = " and ".join(each.signature(node.name) for each in named)
            yield f"{node.name} does not take {len(node.arguments)} arguments: there is {known}"
    for child in children_of(node):
        yield from _problems(child)


def _doubts(node: Node) -> Iterator[str]:
    if isinstance(node, Comparison | Like | In):
        operand = node.left if isinstance(node, Comparison) else node.operand
        if isinstance(operand, Not) and result_type(operand.operand) is not Type.BOOLEAN:
            yield f"is read as `({operand}){str(node).removeprefix(str(operand))}`: NOT binds first, so put parentheses"
    for child in children_of(node):
        yield from _doubts(child)


def _with_parentheses(node: Logic) -> str:
    first, *rest = map(str, node.operands)
    return f" {node.operator} ".join((f"({first})", *rest))


def _around(node: Node, where: Node) -> Node | None:
    """The smallest expression that holds `where`; itself, if it is more than an attribute."""
    if node is where:
        return node
    for child in children_of(node):
        found = _around(child, where)
        if found is not None:
            return node if found is where and isinstance(where, Attribute) else found
    return None


def _deciding(node: Node, event: Event) -> Node:
    """Which part of an expression that is false makes it so: of an AND the operand that is false."""
    if isinstance(node, Logic) and node.operator == "AND":
        for operand in node.operands:
            if not compile_truth(operand)(event):
                return _deciding(operand, event)
    return node
