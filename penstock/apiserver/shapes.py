"""Why a document does not have the shape of a type: every unknown key and every wrong value, each with its path.

msgspec says whether a document fits, fast, and names the first thing that does not. This module is asked only then: it
takes the type apart and converts each part by itself, so that it has path and value at hand.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec

from core.errors import FieldError

__all__ = ["Fault", "UnknownField", "faults", "without"]

Step = str | int

_LOCATION: Final = re.compile(r" - at `(?:key in )?\$(.*)`\Z")
_EXPECTED: Final = re.compile(r"Expected `(?P<wanted>[^`]+)`(?P<limit>[^,]*)(?:, got `(?P<got>[^`]+)`)?\Z")
_WORDS: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_UNSET_TEXT: Final = "null"


class UnknownField(msgspec.Struct, frozen=True):
    """A key that the type does not have. `steps` leads to it; `known` are the keys that stand at its place."""

    path: str
    steps: tuple[Step, ...]
    known: tuple[str, ...]

    def __str__(self) -> str:
        """As Kubernetes words it, with a guess at what was meant."""
        close = get_close_matches(str(self.steps[-1]), self.known, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        return f'unknown field "{self.path}"{hint}'


Fault = UnknownField | FieldError


def faults(value: Any, expected: Any, path: str, steps: tuple[Step, ...] = ()) -> Iterator[Fault]:
    """Each way in which `value`, found at `path`, is not an `expected`; nothing where it fits."""
    try:
        msgspec.convert(value, expected)
        return
    except msgspec.ValidationError as error:
        message = str(error)
    inner = list(_inner(value, expected, path, steps))
    if inner:
        yield from inner
        return
    located = _LOCATION.search(message)
    if located:
        path += located[1]
        message = message[: located.start()]
    yield FieldError(path=path, rule=_rule(message, expected), value=_UNSET_TEXT if value is None else value)


def without(document: Any, steps: Sequence[Step]) -> Any:
    """`document` less the value that `steps` lead to; what is not on the way is shared, not copied."""
    first, rest = steps[0], steps[1:]
    if isinstance(document, list):
        assert isinstance(first, int)  # noqa: S101 - faults() makes integer steps for lists
        return [without(item, rest) if index == first else item for index, item in enumerate(document)]
    if not rest:
        return {name: item for name, item in document.items() if name != first}
    return {name: without(item, rest) if name == first else item for name, item in document.items()}


def _inner(value: Any, expected: Any, path: str, steps: tuple[Step, ...]) -> Iterator[Fault]:
    for candidate in _candidates(expected):
        if isinstance(value, dict) and isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            yield from _struct_faults(value, candidate, path, steps)
            return
        origin, arguments = get_origin(candidate), get_args(candidate)
        if isinstance(value, dict) and origin in (dict, Mapping) and len(arguments) == 2:
            for name, item in value.items():
                yield from faults(item, arguments[1], f"{path}[{name}]", (*steps, name))
            return
        if isinstance(value, list) and origin in (list, tuple, set, frozenset, Sequence) and arguments:
            for index, item in enumerate(value):
                yield from faults(item, arguments[0], f"{path}[{index}]", (*steps, index))
            return


def _candidates(expected: Any) -> Iterator[Any]:
    origin = get_origin(expected)
    if origin is Annotated:
        yield from _candidates(get_args(expected)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(expected):
            yield from _candidates(option)
    else:
        yield expected


def _struct_faults(
    value: dict[str, Any], expected: type[msgspec.Struct], path: str, steps: tuple[Step, ...]
) -> Iterator[Fault]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(expected)}
    if expected.__struct_config__.forbid_unknown_fields:
        for name in value:
            if name not in fields:
                yield UnknownField(below(path, name), (*steps, name), tuple(fields))
    for name, field in fields.items():
        if name in value:
            yield from faults(value[name], field.type, below(path, name), (*steps, name))
        elif field.required:
            yield FieldError(path=below(path, name), rule="is required")


def below(path: str, name: str) -> str:
    """The path of member `name` of what is at `path` ("" is the document)."""
    return f"{path}.{name}" if path else name


def _rule(message: str, expected: Any) -> str:
    options = [
        str(option)
        for candidate in _candidates(expected)
        if get_origin(candidate) is Literal
        for option in get_args(candidate)
    ]
    if options:
        return "must be one of " + ", ".join(f'"{option}"' for option in options)
    match = _EXPECTED.match(message)
    if match is None:
        return message
    # That null is taken too is no help to somebody who wrote something else.
    words = [word for word in match["wanted"].split(" | ") if word != "null"]
    wanted = " or ".join(_WORDS.get(word, word) for word in words)
    got = match["got"]
    tail = f", not {_WORDS.get(got, got)}" if got else ""
    return f"must be {wanted}{match['limit'] or ''}{tail}"
