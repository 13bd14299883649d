"""The patterns of LIKE: ``%`` for any characters, ``_`` for one, ``\\%`` and ``\\_`` for themselves.

Time is linear in the value (CESQL 1.0.0, section 3.4.3, asks that evaluation ends; an event must not be able to make
it take long). The pieces between the ``%`` are looked for one after the other, each at the first place that fits: no
place further on can do better, so nothing is ever tried twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import takewhile
from typing import Final

import msgspec

__all__ = ["Affixes", "Matcher", "affixes", "compile_pattern"]

Matcher = Callable[[str], bool]

#: A piece is its characters, of which None stands for any.
_Piece = tuple[str | None, ...]
_ESCAPED: Final = ("%", "_")
#: Characters of a piece that a regular expression looks for, in a tenth of the time of what is written here. It has
#: nothing to go back to, but compares the piece anew at every place, which is bounded by its length.
_SHORT: Final = 32


class Affixes(msgspec.Struct, frozen=True, kw_only=True):
    """What all texts that match a pattern begin and end with; `whole` tells that there is one, which is both."""

    begin: str
    end: str
    whole: bool


def affixes(pattern: str) -> Affixes:
    pieces = _pieces(pattern)
    begin, end = _beginning(pieces[0]), _beginning(pieces[-1][::-1])[::-1]
    return Affixes(begin=begin, end=end, whole=len(pieces) == 1 and len(begin) == len(pieces[0]))


def _beginning(piece: _Piece) -> str:
    return "".join(takewhile(lambda character: character is not None, piece))  # type: ignore[arg-type]


def compile_pattern(pattern: str) -> Matcher:
    pieces = _pieces(pattern)
    if len(pieces) == 1:
        return _whole(pieces[0])
    first, *middle, last = pieces
    simple = _simple(first, middle, last)
    if simple is not None:
        return simple
    starts, ends = _fits(first), _fits(last)
    finds = [_finder(piece) for piece in middle if piece]
    shortest = sum(map(len, pieces))
    head, tail = len(first), len(last)

    def matches(value: str) -> bool:
        end = len(value) - tail
        if len(value) < shortest or not starts(value, 0) or not ends(value, end):
            return False
        at = head
        for find in finds:
            at = find(value, at, end)
            if at < 0:
                return False
        return True

    return matches


def _pieces(pattern: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    piece: list[str | None] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\" and pattern[at + 1 : at + 2] in _ESCAPED:
            at += 1
            piece.append(pattern[at])
        elif character == "%":
            pieces.append(tuple(piece))
            piece = []
        else:
            piece.append(None if character == "_" else character)
        at += 1
    return [*pieces, tuple(piece)]


def _text(piece: _Piece) -> str | None:
    """The piece as a text, None where it stands for several."""
    return None if None in piece else "".join(character for character in piece if character is not None)


def _simple(first: _Piece, middle: list[_Piece], last: _Piece) -> Matcher | None:
    """What most patterns are, in one call: a prefix, a suffix, or a part."""
    begin, end = _text(first), _text(last)
    if any(middle[1:]) or begin is None or end is None:
        return None
    part = _text(middle[0]) if middle else ""
    if part and not begin and not end:
        return lambda value: part in value
    if part == "" and not end:
        return lambda value: value.startswith(begin)
    if part == "" and not begin:
        return lambda value: value.endswith(end)
    return None


def _whole(piece: _Piece) -> Matcher:
    text = _text(piece)
    if text is not None:
        return lambda value: value == text
    length, fits = len(piece), _fits(piece)
    return lambda value: len(value) == length and fits(value, 0)


def _fits(piece: _Piece) -> Callable[[str, int], bool]:
    """Whether the piece stands at a place of a value; the value is long enough."""
    texts: list[tuple[int, str]] = []
    begin = 0
    for at, character in enumerate((*piece, None)):
        if character is None:
            if at > begin:
                texts.append((begin, "".join(filter(None, piece[begin:at]))))
            begin = at + 1

    def fits(value: str, place: int) -> bool:
        return all(value.startswith(text, place + offset) for offset, text in texts)

    return fits


def _short_finder(piece: _Piece) -> Callable[[str, int, int], int]:
    written = "".join("." if character is None else re.escape(character) for character in piece)
    search = re.compile(written, re.DOTALL).search

    def find(value: str, start: int, end: int) -> int:
        found = search(value, start, end)
        return -1 if found is None else found.end()

    return find


def _finder(piece: _Piece) -> Callable[[str, int, int], int]:
    """Finds the piece in a value between two places: where its first occurrence ends, -1 where there is none."""
    text, length = _text(piece), len(piece)
    if text is not None:

        def find_text(value: str, start: int, end: int) -> int:
            found = value.find(text, start, end)
            return found + length if found >= 0 else -1

        return find_text
    if length <= _SHORT:
        return _short_finder(piece)

    # Bit n of the state says that the n characters up to here fit the piece's first n: one step a character, whatever
    # the piece (Baeza-Yates and Gonnet, "A new approach to text searching", 1992).
    anything = 0
    places: dict[str, int] = {}
    for at, wanted in enumerate(piece):
        if wanted is None:
            anything |= 1 << at
        else:
            places[wanted] = places.get(wanted, 0) | 1 << at
    known = {wanted: places[wanted] | anything for wanted in places}
    complete = 1 << (length - 1)

    def find(value: str, start: int, end: int) -> int:
        state = 0
        for at in range(start, end):
            state = ((state << 1) | 1) & known.get(value[at], anything)
            if state & complete:
                return at + 1
        return -1

    return find
