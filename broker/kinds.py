"""All kinds of resource of this plane."""

from __future__ import annotations

from typing import Final

from broker.event_types import KINDS as EVENT_TYPE_KINDS
from broker.flows import KINDS as FLOW_KINDS
from broker.messaging import KINDS as MESSAGING_KINDS
from broker.resources import KINDS as EVENTING_KINDS

__all__ = ["KINDS"]

KINDS: Final = (*EVENTING_KINDS, *MESSAGING_KINDS, *FLOW_KINDS, *EVENT_TYPE_KINDS)
