"""What an event is like that passes a CloudEvents SQL expression, said in the dialects that an index can look up.

The filter told is weaker than the expression or equal to it: all that pass the expression pass the filter, and perhaps
others. It takes an event's attributes for Strings, as those of a stored event are.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.cesql import Expression
from broker.cesql.evaluator import REQUIRED
from broker.cesql.like import Affixes, affixes
from broker.cesql.syntax import (
    Attribute,
    Comparison,
    Exists,
    In,
    Like,
    Logic,
    Node,
    StringLiteral,
    children_of,
)
from broker.filters import ANYTHING, All, Any, Exact, Filter, Prefix, Suffix

__all__ = ["implied"]


def implied(expression: Expression) -> Filter:
    return _if_true(expression.node)


def _if_true(node: Node) -> Filter:
    match node:
        case Comparison("=", Attribute(name), StringLiteral(text)) | Comparison(
            "=", StringLiteral(text), Attribute(name)
        ):
            return Exact(((name, text),))
        case Like(Attribute(name), pattern, False):
            return _of_affixes(name, affixes(pattern))
        case In(Attribute(name), elements, False):
            texts = [each.value for each in elements if isinstance(each, StringLiteral)]
            return (
                Any(tuple(Exact(((name, text),)) for text in texts)) if len(texts) == len(elements) else _present(name)
            )
        case Exists(name):
            return _present(name)
        case Logic("AND", operands):
            return _all(map(_if_true, operands))
        case Logic(_, operands):
            # Of an OR, and of a XOR as well, at least one operand is true.
            return _all((_if_evaluated(node), _any(map(_if_true, operands))))
        case _:
            return _if_evaluated(node)


def _if_evaluated(node: Node) -> Filter:
    """What holds of an event on which the expression does not fail: it has the attributes that are looked at always."""
    match node:
        case Attribute(name):
            return _present(name)
        case Logic("AND" | "OR", operands):
            # The others are not looked at where this one decides.
            return _if_evaluated(operands[0])
        case In(operand):
            return _if_evaluated(operand)
        case _:
            return _all(map(_if_evaluated, children_of(node)))


def _present(name: str) -> Filter:
    return ANYTHING if name in REQUIRED else Exact(((name, ""),))


def _of_affixes(name: str, found: Affixes) -> Filter:
    if found.whole:
        return Exact(((name, found.begin),))
    begin = (Prefix(((name, found.begin),)),) if found.begin else ()
    end = (Suffix(((name, found.end),)),) if found.end else ()
    return _all((*begin, *end)) if found.begin or found.end else _present(name)


def _all(filters: Iterable[Filter]) -> Filter:
    told = tuple(dict.fromkeys(each for each in filters if each != ANYTHING))
    return told[0] if len(told) == 1 else All(told)


def _any(filters: Iterable[Filter]) -> Filter:
    told = tuple(dict.fromkeys(filters))
    return ANYTHING if ANYTHING in told else Any(told)
