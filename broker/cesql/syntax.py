"""Expressions as values. A node's text (`str`) is an expression that reads as the same node.

Names of attributes are in small letters, names of functions and operators in capitals, whatever was written.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar

import msgspec

__all__ = [
    "Arithmetic",
    "Attribute",
    "BooleanLiteral",
    "Call",
    "Comparison",
    "Exists",
    "In",
    "IntegerLiteral",
    "Like",
    "Logic",
    "Negate",
    "Node",
    "Not",
    "Power",
    "StringLiteral",
    "attributes_of",
    "children_of",
    "quoted",
]


class Power(IntEnum):
    """How strongly an operator binds: a node stands without parentheses where its power is at least what is asked.

    Section 3.6, and the grammar (`CESQLParser.g4`): EXISTS and the literals never need any, and LIKE and IN come after
    their operand, so that their order among themselves is the order of writing.
    """

    LOGIC = 1
    COMPARISON = 2
    ADDITION = 3
    MULTIPLICATION = 4
    POSTFIX = 5
    UNARY = 6
    ATOM = 7


class StringLiteral(msgspec.Struct, frozen=True):
    """Printing it raises ValueError for a text that no literal has, as one that is a single backslash."""

    power: ClassVar[Power] = Power.ATOM
    value: str

    def __str__(self) -> str:
        return quoted(self.value)


class IntegerLiteral(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.ATOM
    value: int

    def __str__(self) -> str:
        return str(self.value)


class BooleanLiteral(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.ATOM
    value: bool

    def __str__(self) -> str:
        return "TRUE" if self.value else "FALSE"


class Attribute(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.ATOM
    name: str

    def __str__(self) -> str:
        return self.name


class Exists(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.ATOM
    name: str

    def __str__(self) -> str:
        return f"EXISTS {self.name}"


class Call(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.ATOM
    name: str
    arguments: tuple[Node, ...]

    def __str__(self) -> str:
        return f"{self.name}({_list(self.arguments)})"


class Not(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.UNARY
    operand: Node

    def __str__(self) -> str:
        return f"NOT {_within(self.operand, self.power)}"


class Negate(msgspec.Struct, frozen=True):
    """The operator, not the sign of a literal."""

    power: ClassVar[Power] = Power.UNARY
    operand: Node

    def __str__(self) -> str:
        if isinstance(self.operand, IntegerLiteral) and self.operand.value >= 0:
            return f"-({self.operand})"
        return f"-{_within(self.operand, self.power)}"


class Like(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.POSTFIX
    operand: Node
    pattern: str
    negated: bool = False

    def __str__(self) -> str:
        return f"{_within(self.operand, self.power)} {'NOT ' * self.negated}LIKE {quoted(self.pattern)}"


class In(msgspec.Struct, frozen=True):
    power: ClassVar[Power] = Power.POSTFIX
    operand: Node
    elements: tuple[Node, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"{_within(self.operand, self.power)} {'NOT ' * self.negated}IN ({_list(self.elements)})"


class Arithmetic(msgspec.Struct, frozen=True):
    """`operator` is one of ``* / % + -``."""

    operator: str
    left: Node
    right: Node

    @property
    def power(self) -> Power:
        return Power.ADDITION if self.operator in "+-" else Power.MULTIPLICATION

    def __str__(self) -> str:
        return f"{_within(self.left, self.power)} {self.operator} {_within(self.right, self.power + 1)}"


class Comparison(msgspec.Struct, frozen=True):
    """`operator` is one of ``= != < <= > >=``; ``<>`` is written ``!=``."""

    power: ClassVar[Power] = Power.COMPARISON
    operator: str
    left: Node
    right: Node

    def __str__(self) -> str:
        return f"{_within(self.left, self.power)} {self.operator} {_within(self.right, self.power + 1)}"


class Logic(msgspec.Struct, frozen=True):
    """`operator` is AND, OR or XOR, between two operands or more, taken from the left."""

    power: ClassVar[Power] = Power.LOGIC
    operator: str
    operands: tuple[Node, ...]

    def __str__(self) -> str:
        return f" {self.operator} ".join(_within(each, self.power + (at > 0)) for at, each in enumerate(self.operands))


Node = (
    StringLiteral
    | IntegerLiteral
    | BooleanLiteral
    | Attribute
    | Exists
    | Call
    | Not
    | Negate
    | Like
    | In
    | Arithmetic
    | Comparison
    | Logic
)


def children_of(node: Node) -> tuple[Node, ...]:
    """The expressions in an expression, in the order in which they are evaluated."""
    match node:
        case Not(operand) | Negate(operand) | Like(operand):
            return (operand,)
        case In(operand, elements):
            return (operand, *elements)
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            return (left, right)
        case Logic(_, operands) | Call(_, operands):
            return operands
        case _:
            return ()


def attributes_of(node: Node) -> tuple[str, ...]:
    """The names of the attributes that an expression looks at, in the order of writing, each once."""
    return tuple(dict.fromkeys(_names(node)))


def _names(node: Node) -> Iterable[str]:
    if isinstance(node, Attribute | Exists):
        yield node.name
    for child in children_of(node):
        yield from _names(child)


def quoted(text: str) -> str:
    """The literal of a text: in single quotes, or in double ones where an escape that the text holds asks for them."""
    for quote in ("'", '"'):
        literal = _literal(text, quote)
        if literal is not None:
            return literal
    raise ValueError(f"{text!r} cannot be written as a literal: a backslash and the quote after it would be one quote")


def _literal(text: str, quote: str) -> str | None:
    """A backslash and what follows stay as they are in a literal, but for a quote, which loses its backslash."""
    written: list[str] = []
    at = 0
    while at < len(text):
        unit = text[at : at + 2] if text[at] == "\\" else text[at]
        if unit in ("\\", f"\\{quote}"):
            return None
        written.append(f"\\{quote}" if unit == quote else unit)
        at += len(unit)
    return f"{quote}{''.join(written)}{quote}"


def _within(node: Node, power: int) -> str:
    return str(node) if node.power >= power else f"({node})"


def _list(nodes: tuple[Node, ...]) -> str:
    return ", ".join(map(str, nodes))
