"""The delivery spec that Triggers, Brokers and sources share: its shape and its rules.

Source: knative/eventing `pkg/apis/duck/v1/delivery_types.go`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from core.errors import FieldError
from core.resources.destination import Destination, validate_destination
from core.resources.durations import parse_iso_duration

__all__ = ["DeliveryShape", "validate_delivery"]

#: More would keep an event in retries for days; Knative sets no bound of its own.
MAX_RETRY: Final = 1000


class DeliveryShape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """``spec.delivery``. Durations are ISO 8601 text; None leaves a setting to the Broker, then to the platform."""

    dead_letter_sink: Destination | None = None
    retry: int | None = None
    timeout: str | None = None
    backoff_policy: str | None = None
    backoff_delay: str | None = None
    retry_after_max: str | None = None
    format: str | None = None


def validate_delivery(delivery: DeliveryShape | None, path: str) -> Iterator[FieldError]:
    """Each broken rule of a delivery spec found at `path`."""
    if delivery is None:
        return
    if delivery.dead_letter_sink is not None:
        yield from validate_destination(delivery.dead_letter_sink, f"{path}.deadLetterSink")
    if delivery.retry is not None and not 0 <= delivery.retry <= MAX_RETRY:
        yield FieldError(path=f"{path}.retry", rule=f"must be from 0 to {MAX_RETRY}", value=delivery.retry)
    if delivery.backoff_policy not in (None, "linear", "exponential"):
        rule = "must be linear or exponential"
        yield FieldError(path=f"{path}.backoffPolicy", rule=rule, value=delivery.backoff_policy)
    if delivery.format not in (None, "binary", "json"):
        yield FieldError(path=f"{path}.format", rule="must be binary or json", value=delivery.format)
    for name, text, minimum in (
        ("timeout", delivery.timeout, "more than zero"),
        ("backoffDelay", delivery.backoff_delay, ""),
        ("retryAfterMax", delivery.retry_after_max, ""),
    ):
        if text is None:
            continue
        try:
            seconds = parse_iso_duration(text)
        except ValueError:
            rule = "must be an ISO 8601 duration such as PT0.2S or PT5M"
            yield FieldError(path=f"{path}.{name}", rule=rule, value=text)
        else:
            if minimum and seconds <= 0:
                yield FieldError(path=f"{path}.{name}", rule=f"must be {minimum}", value=text)
