"""What a filter says of one event."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["MATCHED", "Verdict"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a filter says of one event; where it does not match, the clause that failed and the value it met.

    `clause` is the clause's place as in the manifest (``filters[0].any``), `wanted` what it asks for in words, `value`
    the event's value of `attribute`, None where the event has no such attribute. `attribute` is "" where the clause
    looks at none.
    """

    matched: bool
    clause: str = ""
    attribute: str = ""
    wanted: str = ""
    value: str | None = None


MATCHED: Final = Verdict(matched=True)
