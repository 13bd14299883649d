"""The filter dialect ``cesql``: a CloudEvents SQL expression, which passes the events on which it is TRUE.

An event on which it fails, or gives no Boolean, does not pass (CloudEvents Subscriptions API, section 3.2.4.1.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from broker.cesql import Expression, Refusal
from broker.cesql.values import shown
from broker.verdict import MATCHED, Verdict

__all__ = ["Cesql"]


class Cesql(msgspec.Struct, frozen=True):
    """The expression gives TRUE, and no error."""

    expression: Expression

    def matches(self, attributes: Mapping[str, str]) -> bool:
        return self.expression.matches(attributes)

    def explain(self, attributes: Mapping[str, str], path: str) -> Verdict:
        refusal = self.expression.refusal(attributes)
        if refusal is None:
            return MATCHED
        first = refusal.attributes[0] if refusal.attributes else ""
        wanted = _wanted(refusal, attributes)
        return Verdict(matched=False, clause=path, attribute=first, wanted=wanted, value=attributes.get(first))


def _wanted(refusal: Refusal, attributes: Mapping[str, str]) -> str:
    """Which part of the expression says no, and the values of the attributes after the first, which the verdict has."""
    others = [
        f"{name} is {shown(value)}" if (value := attributes.get(name)) is not None else f"there is no {name}"
        for name in refusal.attributes[1:]
    ]
    met = f" ({', '.join(others)})" if others else ""
    return f"in `{refusal.part}`, which {refusal.reason or 'is false'}{met}"
