"""All kinds of this plane."""

from __future__ import annotations

from typing import Final

from sources.kafka.resources import KIND as KAFKA_SOURCE
from sources.resources import KINDS as OWN

__all__ = ["KINDS"]

KINDS: Final = (*OWN, KAFKA_SOURCE)
