"""The three types and the casts between them (CESQL 1.0.0, sections 3.1 and 3.7).

A String is a `str`, an Integer an `int` of 32 bits with a sign, a Boolean a `bool`, which Python counts among its
integers: types are compared with `type()`, never with `isinstance`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

__all__ = [
    "CASTS",
    "MAX_INTEGER",
    "MIN_INTEGER",
    "CastFailed",
    "Type",
    "Value",
    "shown",
    "to_boolean",
    "to_integer",
    "to_string",
    "type_of",
]

Value = str | int | bool

MIN_INTEGER: Final = -(2**31)
MAX_INTEGER: Final = 2**31 - 1

#: Digits of the largest Integer. A longer text, leading zeros aside, is out of range: it is not read, which costs the
#: square of its length.
_MAX_DIGITS: Final = 10
_INTEGER: Final = re.compile(r"[+-]?[0-9]+\Z")
#: Characters of a value that an error shows: events that fail are many, and an attribute may be long.
_SHOWN: Final = 60


class Type(StrEnum):
    STRING = "String"
    INTEGER = "Integer"
    BOOLEAN = "Boolean"

    @property
    def zero(self) -> Value:
        """What an expression of this type gives where it fails."""
        return _ZEROS[self]


class CastFailed(ValueError):
    """The value has no counterpart in the type asked for; the text says so."""


def type_of(value: Value) -> Type:
    return _TYPES[type(value)]


def to_string(value: Value) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    return str(value)


def to_integer(value: Value) -> int:
    """Raises CastFailed."""
    if type(value) is not str:
        return int(value)
    if _INTEGER.match(value) is not None:
        digits = value.lstrip("+-0")
        number = int(digits or "0") if len(digits) <= _MAX_DIGITS else MAX_INTEGER + 2
        if value[0] == "-":
            number = -number
        if MIN_INTEGER <= number <= MAX_INTEGER:
            return number
    raise CastFailed(f"{shown(value)} is not an integer of 32 bits")


def to_boolean(value: Value) -> bool:
    """Raises CastFailed."""
    if type(value) is not str:
        return bool(value)
    lower = value.lower() if len(value) <= len("false") else ""
    if lower in ("true", "false"):
        return lower == "true"
    raise CastFailed(f"{shown(value)} is neither true nor false")


def shown(text: str) -> str:
    """As people are shown a String, which may be long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


_TYPES: Final = {str: Type.STRING, int: Type.INTEGER, bool: Type.BOOLEAN}
_ZEROS: Final[dict[Type, Value]] = {Type.STRING: "", Type.INTEGER: 0, Type.BOOLEAN: False}

#: Each raises CastFailed where the value cannot be cast, but for the one to String, which always works.
CASTS: Final[dict[Type, Callable[[Value], Value]]] = {
    Type.STRING: to_string,
    Type.INTEGER: to_integer,
    Type.BOOLEAN: to_boolean,
}
