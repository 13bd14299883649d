"""Resources: their metadata, conditions, destinations and durations, and the registry of kinds."""

from core.resources.conditions import Condition, is_ready, merge_conditions, summarize
from core.resources.delivery import DeliveryShape, validate_delivery
from core.resources.destination import Destination, KReference, Unresolved, resolve, validate_destination
from core.resources.durations import parse_go_duration, parse_iso_duration
from core.resources.kinds import Column, Kind, Registry
from core.resources.meta import Key, KindRef, ObjectMeta, OwnerReference, Resource, owner_reference

__all__ = [
    "Column",
    "Condition",
    "DeliveryShape",
    "Destination",
    "KReference",
    "Key",
    "Kind",
    "KindRef",
    "ObjectMeta",
    "OwnerReference",
    "Registry",
    "Resource",
    "Unresolved",
    "is_ready",
    "merge_conditions",
    "owner_reference",
    "parse_go_duration",
    "parse_iso_duration",
    "resolve",
    "summarize",
    "validate_delivery",
    "validate_destination",
]
