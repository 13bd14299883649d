"""The two ways Knative writes a length of time: ISO 8601 (delivery specs) and Go's durations (serving annotations)."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["parse_go_duration", "parse_iso_duration"]

_ISO: Final = re.compile(
    r"P(?=.)(?:(?P<d>\d+(?:\.\d+)?)D)?(?:T(?=.)(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?\Z"
)
_GO_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_GO_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_iso_duration(text: str) -> float:
    """Seconds of an ISO 8601 duration of days and less: ``PT0.2S``, ``PT1M``, ``P1DT2H``. Raises ValueError."""
    match = _ISO.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not an ISO 8601 duration such as PT0.2S or PT5M")
    days, hours, minutes, seconds = (float(match[name] or 0) for name in "dhms")
    return days * 86_400 + hours * 3_600 + minutes * 60 + seconds


def parse_go_duration(text: str) -> float:
    """Seconds of a Go duration: ``60s``, ``1m30s``, ``1.5h``. Raises ValueError."""
    if text == "0":
        return 0.0
    position, total = 0, 0.0
    while match := _GO_PART.match(text, position):
        total += float(match[1]) * _GO_UNITS_S[match[2]]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError(f"{text!r} is not a duration such as 30s, 1m30s or 500ms")
    return total
