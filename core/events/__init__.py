"""The CloudEvent as a value, and its HTTP binding (CloudEvents 1.0.2: binary and structured mode)."""

from core.events.http import (
    STRUCTURED_TYPE,
    binary_head,
    from_http,
    is_event,
    to_binary,
    to_structured,
    with_binary_head,
)
from core.events.letters import dead_letter
from core.events.value import CloudEvent, is_json_type, new_event

__all__ = [
    "CloudEvent",
    "STRUCTURED_TYPE",
    "binary_head",
    "dead_letter",
    "from_http",
    "is_event",
    "is_json_type",
    "new_event",
    "to_binary",
    "to_structured",
    "with_binary_head",
]
