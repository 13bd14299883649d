"""Reads an expression: precedence climbing over the grammar of CESQL 1.0.0 (sections 2 and 3.6, `CESQLParser.g4`).

Two rules of it are not those of SQL. NOT binds more strongly than a comparison: ``NOT a = b`` is ``(NOT a) = b``. And
AND, OR and XOR are of one precedence, taken from the left: ``a OR b AND c`` is ``(a OR b) AND c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from broker.cesql.errors import ParseError
from broker.cesql.lexer import Sort, Token, tokenize
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
    Power,
    StringLiteral,
)
from broker.cesql.values import MAX_INTEGER, MIN_INTEGER

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "Parsed", "parse", "read"]

#: Characters of an expression: room for some hundred values in a list. Reading takes a millisecond for some thousand.
MAX_LENGTH: Final = 8192
#: Expressions within each other. Reading, evaluating and printing recurse; people write less than ten. A chain of AND,
#: OR or XOR is one expression, however long.
MAX_DEPTH: Final = 100

_POWERS: Final = {
    **dict.fromkeys(("AND", "OR", "XOR"), Power.LOGIC),
    **dict.fromkeys(("=", "!=", "<>", "<", "<=", ">", ">="), Power.COMPARISON),
    **dict.fromkeys(("+", "-"), Power.ADDITION),
    **dict.fromkeys(("*", "/", "%"), Power.MULTIPLICATION),
    **dict.fromkeys(("NOT", "LIKE", "IN"), Power.POSTFIX),
}
_OPERATORS: Final = (Sort.KEYWORD, Sort.SIGN)
_OPERAND: Final = "a value, an attribute, a function, NOT, EXISTS, - or ("
_OPERATOR: Final = "an operator"

#: A node and how many nodes lie within each other from it on.
_Read = tuple[Node, int]


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """An expression, and those in it whose operands are of another operator without parentheses: ``a OR b AND c``."""

    node: Node
    mixed: tuple[Logic, ...]


def parse(text: str) -> Node:
    """Raises ParseError, which says where the text stops to be an expression, and what may stand there."""
    return read(text).node


def read(text: str) -> Parsed:
    """As `parse`, with what the nodes do not tell of how it was written."""
    if len(text) > MAX_LENGTH:
        raise ParseError(text, MAX_LENGTH, found=f"{len(text)} characters", expected=f"at most {MAX_LENGTH}")
    parser = _Parser(text)
    node = parser.whole()
    return Parsed(node=node, mixed=tuple(parser.mixed))


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._at = 0
        self._open = 0
        self.mixed: list[Logic] = []

    def whole(self) -> Node:
        node, _ = self._expression(Power.LOGIC)
        if self._next.sort is not Sort.END:
            raise self._unexpected(f"{_OPERATOR}{self._hint()} or the end")
        return node

    # ---- tokens

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        self._at += 1
        return token

    def _is(self, *texts: str) -> bool:
        token = self._next
        return token.text in texts and token.sort in _OPERATORS

    def _expect(self, text: str, otherwise: str) -> None:
        if not self._is(text):
            raise self._unexpected(otherwise)
        self._at += 1

    def _unexpected(self, expected: str) -> ParseError:
        return ParseError(self._text, self._next.start, found=str(self._next), expected=expected)

    def _hint(self) -> str:
        """SQL doubles a quote within a string, which here would be two strings side by side."""
        before = self._tokens[self._at - 1]
        if self._next.sort is before.sort is Sort.STRING and before.end == self._next.start:
            quote = self._text[self._next.start]
            return f" (a quote within a string is written \\{quote})"
        return ""

    # ---- expressions

    def _expression(self, power: int) -> _Read:
        """What stands from here on and binds at least so strongly."""
        self._open += 1
        self._limit(self._open)
        read = self._operand()
        alone, _ = read
        while self._power() >= power:
            start = self._at
            before, _ = read
            read = self._continued(read)
            self._limit(read[1], start)
            node, _ = read
            # What stood alone before has parentheses around it, if it is one of these.
            chain = before if before is not alone and isinstance(before, Logic) else None
            if chain is not None and isinstance(node, Logic) and node.operator != chain.operator:
                self.mixed.append(node)
        self._open -= 1
        return read

    def _power(self) -> int:
        """How strongly the operator here binds, 0 where there is none."""
        token = self._next
        return _POWERS.get(token.text, 0) if token.sort in _OPERATORS else 0

    def _limit(self, depth: int, at: int | None = None) -> None:
        if depth > MAX_DEPTH:
            token = self._tokens[self._at if at is None else at]
            found = f"more than {MAX_DEPTH} expressions within each other"
            raise ParseError(self._text, token.start, found=found, expected="fewer: take it apart into several filters")

    def _operand(self) -> _Read:
        token = self._next
        match token.sort:
            case Sort.KEYWORD | Sort.SIGN:
                return self._prefixed()
            case Sort.STRING:
                return StringLiteral(self._take().text), 1
            case Sort.INTEGER:
                return self._integer(""), 1
            case Sort.NAME:
                return self._named()
            case _:
                raise self._unexpected(_OPERAND)

    def _prefixed(self) -> _Read:
        match self._next.text:
            case "TRUE" | "FALSE":
                return BooleanLiteral(self._take().text == "TRUE"), 1
            case "NOT":
                return self._unary(Not)
            case "EXISTS":
                self._at += 1
                return Exists(self._attribute()), 1
            case "(":
                self._at += 1
                read = self._expression(Power.LOGIC)
                self._expect(")", f"{_OPERATOR}{self._hint()} or )")
                return read
            case "+" | "-" if self._signs():
                return self._integer(self._take().text), 1
            case "-":
                return self._unary(Negate)
            case _:
                raise self._unexpected(_OPERAND)

    def _signs(self) -> bool:
        """Whether the sign here is that of the integer right after it."""
        after = self._tokens[self._at + 1]
        return after.sort is Sort.INTEGER and after.start == self._next.end

    def _integer(self, sign: str) -> IntegerLiteral:
        digits = self._next
        # Zeros aside, so long a text is out of range anyway.
        significant = digits.text.lstrip("0")
        value = int(sign + (significant or "0")) if len(significant) <= len(str(MAX_INTEGER)) else MAX_INTEGER + 1
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            found = f"the integer {sign}{digits.text if len(digits.text) <= 20 else digits.text[:20] + '...'}"
            expected = f"one from {MIN_INTEGER} to {MAX_INTEGER}"
            raise ParseError(self._text, digits.start - len(sign), found=found, expected=expected)
        self._at += 1
        return IntegerLiteral(value)

    def _unary(self, make: Callable[[Node], Node]) -> _Read:
        self._at += 1
        operand, height = self._expression(Power.UNARY)
        return make(operand), self._raised(height)

    def _raised(self, height: int) -> int:
        self._limit(height + 1, self._at - 1)
        return height + 1

    def _named(self) -> _Read:
        after = self._tokens[self._at + 1]
        if after.sort is Sort.SIGN and after.text == "(":
            return self._call()
        return Attribute(self._attribute()), 1

    def _attribute(self) -> str:
        """An attribute's name; one of digits alone is an integer elsewhere, but not after EXISTS."""
        token = self._next
        if token.sort is Sort.KEYWORD:
            raise self._unexpected("the name of an attribute, which a keyword cannot be")
        if token.sort not in (Sort.NAME, Sort.INTEGER):
            raise self._unexpected("the name of an attribute")
        if "_" in token.text:
            self._at += 1
            raise self._unexpected(f"( after the function {token.text} (the name of an attribute has no _)")
        return self._take().text.lower()

    def _call(self) -> _Read:
        name = self._next.text
        if any(character.isdigit() for character in name):
            raise self._unexpected("the name of a function before (, which has no digits")
        self._at += 2
        if self._is(")"):
            self._at += 1
            return Call(name.upper(), ()), 1
        arguments, height = self._several(f"the arguments of {name.upper()}")
        return Call(name.upper(), arguments), height

    def _several(self, what: str) -> tuple[tuple[Node, ...], int]:
        """Expressions with commas between, and the parenthesis after them; and the height of what holds them."""
        nodes: list[Node] = []
        highest = 0
        while True:
            node, height = self._expression(Power.LOGIC)
            nodes.append(node)
            highest = max(highest, height)
            if not self._is(","):
                break
            self._at += 1
        self._expect(")", f"{_OPERATOR}{self._hint()}, or , or ) in {what}")
        return tuple(nodes), self._raised(highest)

    def _continued(self, read: _Read) -> _Read:
        """The operand with the operator after it, and what that takes."""
        left, height = read
        operator = self._take().text
        negated = operator == "NOT"
        if negated:
            if not self._is("LIKE", "IN"):
                raise self._unexpected("LIKE or IN after NOT")
            operator = self._take().text
        if operator == "LIKE":
            if self._next.sort is not Sort.STRING:
                raise self._unexpected("a string in quotes after LIKE")
            return Like(left, self._take().text, negated), height + 1
        if operator == "IN":
            self._expect("(", "( and the elements after IN")
            elements, highest = self._several("the elements of IN")
            return In(left, elements, negated), max(height + 1, highest)
        power = _POWERS[operator]
        right, other = self._expression(power + 1)
        if power is Power.LOGIC:
            return _logic(operator, left, right), max(height + (not _chains(operator, left)), other + 1)
        if power is Power.COMPARISON:
            return Comparison("!=" if operator == "<>" else operator, left, right), max(height, other) + 1
        return Arithmetic(operator, left, right), max(height, other) + 1


def _chains(operator: str, left: Node) -> bool:
    return isinstance(left, Logic) and left.operator == operator


def _logic(operator: str, left: Node, right: Node) -> Logic:
    """One node for a chain of one operator: ``(a AND b) AND c`` is evaluated as ``a AND b AND c``."""
    if isinstance(left, Logic) and left.operator == operator:
        return Logic(operator, (*left.operands, right))
    return Logic(operator, (left, right))
