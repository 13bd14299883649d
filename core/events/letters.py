"""Dead letters: the event that could not be delivered, with why in Knative's extension attributes.

Source: knative/eventing `pkg/kncloudevents/attributes/knative_error.go` and `event_dispatcher.go`: the destination,
the code, and the answer's body in Base64 cut to 1024 characters.
"""

from __future__ import annotations

import base64
from typing import Final

from core.errors import InvalidInput
from core.events.value import CloudEvent

__all__ = ["dead_letter"]

MAX_DATA_CHARACTERS: Final = 1024

#: What Knative states where there was no answer at all.
_NO_ANSWER: Final = 500


def dead_letter(event: CloudEvent, destination: str, status: int, data: bytes) -> CloudEvent:
    """`event` with ``knativeerrordest``, ``knativeerrorcode`` and, where there is any, ``knativeerrordata``."""
    changed = {"knativeerrorcode": str(status or _NO_ANSWER)}
    if data:
        # Whole groups of four characters, so that what was cut can still be decoded.
        changed["knativeerrordata"] = base64.b64encode(data[: MAX_DATA_CHARACTERS // 4 * 3]).decode("ascii")
    try:
        return event.with_attributes(knativeerrordest=destination, **changed)
    except InvalidInput:  # the destination holds what an attribute may not
        return event.with_attributes(**changed)
