"""How the gateway tells who delivers an event which revision served it, and whether it waited for a cold start.

Only a request with ``penstock-explain: ?1`` is told, so that an outside client learns nothing of the revisions behind a
name without asking. The answer then has ``penstock-revision``, and ``penstock-cold-start`` with seconds where the
request waited because no instance was ready.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.net.types import Headers
from core.net.wire import ReadyHeaders

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


def telling(revision: str, cold_start_s: float | None) -> ReadyHeaders:
    """The headers that tell it. They go before the function's own, which cannot speak for the gateway then."""
    headers: Headers = [(_REVISION, revision.encode())]
    if cold_start_s is not None:
        headers.append((_COLD_START, b"%.3f" % cold_start_s))
    return ReadyHeaders(headers)


def served_by(headers: Headers) -> Served | None:
    """What the gateway told, which comes first; None where no gateway answered. What is not as a gateway writes it is
    not believed."""
    if not headers or headers[0][0] != _REVISION:
        return None
    revision = headers[0][1]
    if not 0 < len(revision) <= MAX_REVISION_BYTES or not revision.isascii():
        return None
    cold = len(headers) > 1 and headers[1][0] == _COLD_START
    return Served(revision.decode(), _seconds(headers[1][1]) if cold else None)


def _seconds(value: bytes) -> float | None:
    whole, _, part = value.partition(b".")
    return float(value) if whole.isdigit() and part.isdigit() and len(value) <= 16 else None
