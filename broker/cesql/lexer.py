"""Cuts an expression into words, literals and signs (CESQL 1.0.0, section 2, and its `CESQLLexer.g4`)."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

import msgspec

from broker.cesql.errors import ParseError

__all__ = ["KEYWORDS", "Sort", "Token", "tokenize"]

KEYWORDS: Final = frozenset({"AND", "OR", "XOR", "NOT", "LIKE", "IN", "EXISTS", "TRUE", "FALSE"})

#: A string ends at the first quote of its own kind that no backslash stands before.
_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<word>[A-Za-z0-9_]+)"
    r"|(?P<string>'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\")"
    r"|(?P<sign><>|<=|>=|!=|[()=<>,+*/%-])",
    re.DOTALL,
)
_INTEGER: Final = re.compile(r"[0-9]+\Z")
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]+\Z")
_FUNCTION: Final = re.compile(r"[A-Za-z][A-Za-z_]*\Z")
#: What people write who think of another language.
_MEANT: Final = {"&": "AND", "|": "OR", "!": "NOT, or != between two values", "^": "XOR", "`": "a quote ' or \""}


class Sort(Enum):
    KEYWORD = auto()
    #: An attribute's name, or a function's where a parenthesis follows.
    NAME = auto()
    INTEGER = auto()
    STRING = auto()
    SIGN = auto()
    END = auto()


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """`text` is a keyword in capitals, a string's content, or what was written. It stands from `start` up to `end`."""

    sort: Sort
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        match self.sort:
            case Sort.STRING:
                return "a string"
            case Sort.END:
                return "the end"
            case _:
                return f"{self.text!r}"


def tokenize(text: str) -> list[Token]:
    """Everything but the space between, and a token for the end. Raises ParseError."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _unknown(text, at)
        at = found.end()
        if found.lastgroup != "space":
            tokens.append(_token(text, found))
    return [*tokens, Token(sort=Sort.END, text="", start=at, end=at)]


def _token(text: str, found: re.Match[str]) -> Token:
    word, start, end = found[0], found.start(), found.end()
    if found.lastgroup == "sign":
        return Token(sort=Sort.SIGN, text=word, start=start, end=end)
    if found.lastgroup == "string":
        return Token(sort=Sort.STRING, text=word[1:-1].replace(f"\\{word[0]}", word[0]), start=start, end=end)
    if word.upper() in KEYWORDS:
        return Token(sort=Sort.KEYWORD, text=word.upper(), start=start, end=end)
    if _INTEGER.match(word):
        return Token(sort=Sort.INTEGER, text=word, start=start, end=end)
    if _IDENTIFIER.match(word) or _FUNCTION.match(word):
        return Token(sort=Sort.NAME, text=word, start=start, end=end)
    raise ParseError(text, start, found=repr(word), expected="a name: of an attribute in a-z and 0-9, or of a function")


def _unknown(text: str, at: int) -> ParseError:
    character = text[at]
    if character in "'\"":
        return ParseError(text, at, found="a string without its end", expected=f"{character} after it")
    expected = _MEANT.get(character, "a value, a name or an operator")
    return ParseError(text, at, found=repr(character), expected=expected)
