"""The built-in functions (CESQL 1.0.0, section 3.5, and the casts by name that its examples and conformance cases use).

A function is found by its name and how many arguments it is given. Arguments are cast to its parameters' types before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from broker.cesql.errors import ErrorKind
from broker.cesql.values import (
    MAX_INTEGER,
    MIN_INTEGER,
    CastFailed,
    Type,
    Value,
    to_boolean,
    to_integer,
    to_string,
)

__all__ = ["FUNCTIONS", "MAX_STRING_LENGTH", "Function", "FunctionFailed", "function"]

#: Characters of what CONCAT and CONCAT_WS make, which alone make longer texts than they are given: an expression that
#: names a long attribute a thousand times must not fill the memory. An event's attributes together can be so long.
MAX_STRING_LENGTH: Final = 64 * 1024

#: White space as Unicode's property White_Space says; `str.strip` would take control characters (U+001C to U+001F) too.
_SPACES: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)


class FunctionFailed(Exception):
    """The arguments have no right result; `value` is the result all the same."""

    def __init__(self, kind: ErrorKind, detail: str, value: Value) -> None:
        self.kind = kind
        self.detail = detail
        self.value = value
        super().__init__(detail)


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """`parameters` are the types of its first arguments, None for any; `rest` of all further ones, None where there are
    no more. `run` takes the arguments, cast, and raises FunctionFailed."""

    parameters: tuple[Type | None, ...] = ()
    rest: Type | None = None
    result: Type
    run: Callable[..., Value]

    def takes(self, count: int) -> bool:
        return count == len(self.parameters) or (self.rest is not None and count > len(self.parameters))

    def parameter(self, number: int) -> Type | None:
        return self.parameters[number] if number < len(self.parameters) else self.rest

    def signature(self, name: str) -> str:
        words = [each or "any" for each in self.parameters]
        return f"{name}({', '.join([*words, f'{self.rest}...'] if self.rest else words)})"


def function(name: str, count: int) -> Function | None:
    """The function of this name, in capital letters, that takes so many arguments."""
    return next((each for each in FUNCTIONS.get(name, ()) if each.takes(count)), None)


def _failed(detail: str, value: Value) -> FunctionFailed:
    return FunctionFailed(ErrorKind.FUNCTION_EVALUATION, detail, value)


def _concat(*texts: str) -> str:
    return _joined("", texts)


def _concat_ws(delimiter: str, *texts: str) -> str:
    return _joined(delimiter, texts)


def _joined(delimiter: str, texts: tuple[str, ...]) -> str:
    if sum(map(len, texts)) + len(delimiter) * (len(texts) - 1) > MAX_STRING_LENGTH:
        raise _failed(f"the text would be longer than {MAX_STRING_LENGTH} characters", "")
    return delimiter.join(texts)


def _left(text: str, count: int) -> str:
    if count < 0:
        raise _failed(f"LEFT cannot take {count} characters", text)
    return text[:count]


def _right(text: str, count: int) -> str:
    if count < 0:
        raise _failed(f"RIGHT cannot take {count} characters", text)
    return text[max(0, len(text) - count) :]


def _substring(text: str, position: int, length: int = MAX_INTEGER) -> str:
    if length < 0:
        raise _failed(f"SUBSTRING cannot take {length} characters", "")
    if abs(position) > len(text):
        raise _failed(f"SUBSTRING cannot begin at {position} of {len(text)} characters", "")
    if position == 0:
        return ""
    begin = position - 1 if position > 0 else len(text) + position
    return text[begin : begin + length]


def _abs(number: int) -> int:
    if number == MIN_INTEGER:
        detail = f"the absolute value of {number} is not an integer of 32 bits"
        raise FunctionFailed(ErrorKind.MATH, detail, MAX_INTEGER)
    return abs(number)


def _can(cast: Callable[[Value], Value]) -> Callable[[Value], bool]:
    def can(value: Value) -> bool:
        try:
            cast(value)
        except CastFailed:
            return False
        return True

    return can


def _cast(kind: Type, run: Callable[[Value], Value]) -> Function:
    return Function(parameters=(None,), result=kind, run=run)


def _text(run: Callable[..., Value], *more: Type, result: Type = Type.STRING) -> Function:
    return Function(parameters=(Type.STRING, *more), result=result, run=run)


FUNCTIONS: Final[Mapping[str, tuple[Function, ...]]] = {
    "LENGTH": (_text(len, result=Type.INTEGER),),
    "CONCAT": (Function(rest=Type.STRING, result=Type.STRING, run=_concat),),
    "CONCAT_WS": (Function(parameters=(Type.STRING,), rest=Type.STRING, result=Type.STRING, run=_concat_ws),),
    "LOWER": (_text(str.lower),),
    "UPPER": (_text(str.upper),),
    "TRIM": (_text(lambda text: text.strip(_SPACES)),),
    "LEFT": (_text(_left, Type.INTEGER),),
    "RIGHT": (_text(_right, Type.INTEGER),),
    "SUBSTRING": (_text(_substring, Type.INTEGER), _text(_substring, Type.INTEGER, Type.INTEGER)),
    "ABS": (Function(parameters=(Type.INTEGER,), result=Type.INTEGER, run=_abs),),
    "INT": (_cast(Type.INTEGER, to_integer),),
    "BOOL": (_cast(Type.BOOLEAN, to_boolean),),
    "STRING": (_cast(Type.STRING, to_string),),
    "IS_INT": (_cast(Type.BOOLEAN, _can(to_integer)),),
    "IS_BOOL": (_cast(Type.BOOLEAN, _can(to_boolean)),),
}
