"""All kinds of resource that this platform knows, put together from the planes' own declarations."""

from __future__ import annotations

from broker.kinds import KINDS as BROKER_KINDS
from core.resources import Registry
from core.resources.builtin import KINDS as BUILTIN_KINDS
from serving.resources import KINDS as SERVING_KINDS
from sources.kinds import KINDS as SOURCE_KINDS

__all__ = ["registry"]


def registry() -> Registry:
    """The registry that the API server serves and the command line names kinds by."""
    return Registry((*BUILTIN_KINDS, *BROKER_KINDS, *SOURCE_KINDS, *SERVING_KINDS))
