"""Which gateways there are, and whose an instance is: what EndpointSlices tell of both. Pure; time is an argument.

Where there may be several gateways, the instances of a Revision with a hard limit (``containerConcurrency``) are shared
out among them: only an instance's owner sends it requests, and so counts them. The autoscaler decides that
(`serving.sharing`) and writes it on the instance's EndpointSlice; each gateway reads it there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from core.net.types import Address
from core.resources import Resource
from core.resources.endpoints import component_slices, read_slice

__all__ = ["HERE", "Absences", "Gateway", "Holding", "Identity", "Standing", "gateways", "holding", "noted"]

#: On an instance's EndpointSlice: which gateway may use it; "" for none. Without it every gateway may.
ANNOTATION_GATEWAY: Final = "penstock.dev/gateway"
#: Beside an empty owner: the gateway that has to give the instance back before another gets it.
ANNOTATION_BEFORE: Final = "penstock.dev/gateway-before"

_COMPONENT: Final = "gateway"
_PORT_NAMES: Final = ("http", "http1", "")

#: From when a gateway is not listed any more until its instances go to others. Its end has cut its requests; this is
#: for functions to notice, and for a listing that leaves one out for a moment.
GONE_REST_S: Final = 2.0

#: The same for a gateway that is listed and answers no probe. It may be stalled with requests under way, so this is
#: half as long again as its liveness probe takes to have it killed: 9 s at most (2 s until it is asked, three times 2 s
#: without an answer, 1 s of grace), counted from the stall, which begins before anybody is told that it is not ready.
SILENT_REST_S: Final = 15.0

#: When nothing can be held any more by a gateway that is gone: far longer than the rest above.
FORGOTTEN_S: Final = 3600.0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a gateway is, and the namespace where the gateways are listed ("": nowhere; it is the only one)."""

    id: str
    namespace: str = ""


#: The only gateway of a platform on one machine.
HERE: Final = Identity(id="")


class Standing(enum.Enum):
    """What a listed gateway can be counted on for."""

    #: It takes requests and instances.
    READY = "ready"
    #: It is being ended: it takes no new requests, and goes on with what it has.
    ENDING = "ending"
    #: Its probe fails: it starts, is stalled, or has crashed.
    SILENT = "silent"


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway as it is listed."""

    id: str
    address: Address
    standing: Standing


class Holding(msgspec.Struct, frozen=True):
    """Whose an instance is: the `owner`'s, else nobody's; then `before` (if any) has to give it back first."""

    owner: str = ""
    before: str = ""


def gateways(slices: Iterable[Resource], namespace: str) -> dict[str, Gateway]:
    """The gateways that are listed, by id: the name of the pod. Raises msgspec.ValidationError."""
    found: dict[str, Gateway] = {}
    for held in component_slices(slices, _COMPONENT, namespace):
        for endpoint in read_slice(held, _PORT_NAMES):
            if not endpoint.name:
                continue
            standing = Standing.READY if endpoint.ready else Standing.SILENT
            if endpoint.terminating:
                standing = Standing.ENDING
            found[endpoint.name] = Gateway(id=endpoint.name, address=(endpoint.host, endpoint.port), standing=standing)
    return found


def holding(held: Resource) -> Holding | None:
    """Whose the instance of this EndpointSlice is; None where it is everybody's."""
    owner = held.meta.annotations.get(ANNOTATION_GATEWAY)
    if owner is None:
        return None
    return Holding(owner, held.meta.annotations.get(ANNOTATION_BEFORE, ""))


def noted(whose: Holding | None) -> dict[str, str]:
    """The annotations that say so."""
    if whose is None:
        return {}
    said = {ANNOTATION_GATEWAY: whose.owner}
    return said | {ANNOTATION_BEFORE: whose.before} if whose.before else said


class Absences:
    """Since when each gateway has not been there for its instances. Fed by the autoscaler, which owns one."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def lost(
        self, holders: Iterable[str], listed: Mapping[str, Gateway], *, timeout_s: float, now: float
    ) -> tuple[frozenset[str], float | None]:
        """Which of `holders` can have no request under way any more, and in how many seconds the next one will be so.

        `timeout_s` is the longest that a request may take: one that is being ended is over then, for it takes no more.
        """
        gone: set[str] = set()
        next_s: float | None = None
        for holder in holders:
            gateway = listed.get(holder)
            if gateway is not None and gateway.standing is Standing.READY:
                continue
            rest_s = GONE_REST_S
            if gateway is not None:
                rest_s = SILENT_REST_S if gateway.standing is Standing.SILENT else timeout_s
            left_s = self._since.setdefault(holder, now) + rest_s - now
            if left_s <= 0:
                gone.add(holder)
            else:
                next_s = left_s if next_s is None else min(next_s, left_s)
        return frozenset(gone), next_s

    def relist(self, listed: Mapping[str, Gateway], now: float) -> None:
        """Those that are ready again begin anew when they are missed the next time."""
        for id_, since in list(self._since.items()):
            gateway = listed.get(id_)
            if now - since > FORGOTTEN_S if gateway is None else gateway.standing is Standing.READY:
                del self._since[id_]
