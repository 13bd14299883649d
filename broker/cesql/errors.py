"""What can go wrong with an expression: when it is read (`ParseError`), and when it meets an event (`EvaluationError`).

Source: CESQL 1.0.0, section 3.3, which also names the kinds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from core.errors import FieldError, InvalidInput, PenstockError

if TYPE_CHECKING:
    from broker.cesql.syntax import Node
    from broker.cesql.values import Value

__all__ = ["ErrorKind", "EvaluationError", "ParseError"]


class ErrorKind(StrEnum):
    """The specification's error types, but for the ParseError, which is an exception of its own here."""

    MATH = "MathError"
    CAST = "CastError"
    MISSING_ATTRIBUTE = "MissingAttributeError"
    MISSING_FUNCTION = "MissingFunctionError"
    FUNCTION_EVALUATION = "FunctionEvaluationError"


class ParseError(InvalidInput):
    """The text is no expression. `position` counts characters from 0; `found` and `expected` are words for people."""

    def __init__(self, text: str, position: int, *, found: str, expected: str) -> None:
        self.position = position
        self.found = found
        self.expected = expected
        rule = f"{_place(text, position)}: found {found}, expected {expected}"
        super().__init__(f"is not a CloudEvents SQL expression: {rule}", [FieldError(path="", rule=rule, value=text)])


class EvaluationError(PenstockError):
    """An expression met a value that it cannot do with.

    `where` is the sub-expression that raised it, `value` what that gives all the same (None: the zero value of its
    type). What stands around it gives the zero value of its own type and carries the error on (section 3.2).
    """

    def __init__(self, kind: ErrorKind, detail: str, where: Node, value: Value | None = None) -> None:
        self.kind = kind
        self.detail = detail
        self.where = where
        self.value = value

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def _place(text: str, position: int) -> str:
    """The position as people count, from 1; the line only where there are several."""
    line = text.count("\n", 0, position)
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"at line {line + 1}, column {column}" if "\n" in text.strip() else f"at column {position + 1}"
