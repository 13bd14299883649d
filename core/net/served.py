"""How the gateway tells who delivers an event which revision served it, and whether it waited for a cold start.

Only a request with ``penstock-explain: ?1`` is told, so that an outside client learns nothing of the revisions behind a
name without asking. The answer then has ``penstock-revision``, and ``penstock-cold-start`` with seconds where the
request waited because no instance was ready.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.net.types import Headers

__all__ = ["ASKS", "Served", "asks", "served_by", "telling"]

#: The header of a request that asks, a Boolean of RFC 8941.
ASKS: Final = (b"penstock-explain", b"?1")

_REVISION: Final = b"penstock-revision"
_COLD_START: Final = b"penstock-cold-start"
#: A revision's name is a DNS label; what is longer was not written by a gateway.
MAX_REVISION_BYTES: Final = 253


class Served(msgspec.Struct, frozen=True, gc=False):
    """The revision (by name, in its Route's namespace) and how long the request waited for a cold start, None where it
    did not."""

    revision: str
    cold_start_s: float | None = None


def asks(headers: Headers) -> bool:
    """Whether a request wants to be told."""
    return ASKS in headers


def telling(revision: str, cold_start_s: float | None) -> Headers:
    """The headers that tell it; they go before the function's own, which cannot speak for the gateway then."""
    headers: Headers = [(_REVISION, revision.encode())]
    if cold_start_s is not None:
        headers.append((_COLD_START, b"%.3f" % cold_start_s))
    return headers


def served_by(headers: Headers) -> Served | None:
    """What the gateway told; None where no gateway answered. What is not as a gateway writes it is not believed."""
    revision = cold_start = None
    for name, value in headers:
        if name == _REVISION:
            if revision is None:
                revision = value
        elif name == _COLD_START and cold_start is None:
            cold_start = value
    if revision is None or not 0 < len(revision) <= MAX_REVISION_BYTES or not revision.isascii():
        return None
    return Served(revision.decode(), _seconds(cold_start))


def _seconds(value: bytes | None) -> float | None:
    if value is None:
        return None
    whole, _, part = value.partition(b".")
    return float(value) if whole.isdigit() and part.isdigit() and len(value) <= 16 else None
