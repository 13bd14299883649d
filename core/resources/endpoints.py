"""What an EndpointSlice says: who is behind it, where, and in which state. Rules: Kubernetes' EndpointSlice, v1.

The platform's own processes that several clients must find are listed in EndpointSlices with the label
``penstock.dev/component``: in a cluster Kubernetes writes those, from Services that carry the label.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from core.resources.meta import Resource

__all__ = ["LABEL_COMPONENT", "SliceEndpoint", "component_slices", "read_slice"]

LABEL_COMPONENT: Final = "penstock.dev/component"


class SliceEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint that has an address and a port. `name` is that of the pod, "" where the slice does not tell.

    `ready` says that it is to get new requests, `terminating` that it is being ended.
    """

    name: str
    host: str
    port: int
    ready: bool
    terminating: bool


class _Conditions(msgspec.Struct, frozen=True, kw_only=True):
    ready: bool | None = None
    terminating: bool | None = None


class _TargetRef(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""


class _Endpoint(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    addresses: tuple[str, ...] = ()
    conditions: _Conditions = _Conditions()
    target_ref: _TargetRef | None = None


class _Port(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    port: int | None = None


class _Slice(msgspec.Struct, frozen=True, kw_only=True):
    endpoints: tuple[_Endpoint, ...] | None = None
    ports: tuple[_Port, ...] | None = None


def read_slice(resource: Resource, port_names: Iterable[str]) -> tuple[SliceEndpoint, ...]:
    """The endpoints of an EndpointSlice, each at the first of `port_names` that the slice has, else at its first port.

    A state that is not told counts as ready, and as not terminating. Raises msgspec.ValidationError where it is not an
    EndpointSlice.
    """
    held = msgspec.convert(resource.body, _Slice)
    port = _port(held.ports or (), port_names)
    if port is None:
        return ()
    return tuple(
        SliceEndpoint(
            name=endpoint.target_ref.name if endpoint.target_ref else "",
            host=endpoint.addresses[0],
            port=port,
            ready=endpoint.conditions.ready is not False,
            terminating=endpoint.conditions.terminating is True,
        )
        for endpoint in held.endpoints or ()
        if endpoint.addresses
    )


def component_slices(slices: Iterable[Resource], component: str, namespace: str) -> list[Resource]:
    """Those that list a component of the platform. Only `namespace` counts: whoever may write there is trusted."""
    return [
        each
        for each in slices
        if each.meta.namespace == namespace and each.meta.labels.get(LABEL_COMPONENT) == component
    ]


def _port(ports: Iterable[_Port], names: Iterable[str]) -> int | None:
    by_name = {port.name or "": port.port for port in reversed(tuple(ports)) if port.port}
    for name in names:
        if name in by_name:
            return by_name[name]
    return next(iter(reversed(by_name.values())), None)
