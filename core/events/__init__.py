"""The CloudEvent as a value, and its HTTP binding (CloudEvents 1.0.2: binary, structured and batched mode)."""

from core.events.http import (
    batch_type,
    binary_head,
    check_head,
    from_http,
    head_attributes,
    is_event,
    to_binary,
    with_binary_head,
)
from core.events.jsonformat import (
    BATCH_TYPE,
    STRUCTURED_TYPE,
    TooLarge,
    UnknownFormat,
    from_batch,
    in_batch,
    to_batch,
    to_structured,
)
from core.events.letters import dead_letter
from core.events.value import CloudEvent, is_json_type, new_event

__all__ = [
    "BATCH_TYPE",
    "CloudEvent",
    "STRUCTURED_TYPE",
    "TooLarge",
    "UnknownFormat",
    "batch_type",
    "binary_head",
    "check_head",
    "dead_letter",
    "from_batch",
    "from_http",
    "head_attributes",
    "in_batch",
    "is_event",
    "is_json_type",
    "new_event",
    "to_batch",
    "to_binary",
    "to_structured",
    "with_binary_head",
]
