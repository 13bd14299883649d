"""What Services lead to: the addresses on which they listen, the endpoints behind them, and their names. Pure.

Built whole from Services and EndpointSlices, as kube-proxy and the cluster's DNS read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tests.support.kubelet.spec import Endpoint, EndpointSlice, Service

__all__ = ["Names", "Address", "forwards", "names", "resolve"]

DOMAIN: Final = "svc.cluster.local"
_SERVICE_NAME: Final = "kubernetes.io/service-name"

#: Host and port.
Address = tuple[str, int]


def forwards(services: Iterable[Service], slices: Iterable[EndpointSlice]) -> dict[Address, tuple[Address, ...]]:
    """Where connections to each address of a Service go. A Service without endpoints has none: it refuses."""
    by_service = _grouped(slices)
    table: dict[Address, tuple[Address, ...]] = {}
    for service in services:
        spec, metadata = service.spec, service.metadata
        if spec.type == "ExternalName" or spec.cluster_ip in {"", "None"}:
            continue
        behind = by_service.get((metadata.namespace, metadata.name), [])
        for port in spec.ports:
            targets = _targets(behind, port.name)
            if targets and port.protocol == "TCP":
                table[spec.cluster_ip, port.port] = targets
    return table


def _targets(slices: list[EndpointSlice], name: str) -> tuple[Address, ...]:
    """Ready endpoints; where none is, those that serve still while they end, as kube-proxy has it."""
    ready: list[Address] = []
    ending: list[Address] = []
    for one in slices:
        ports = [port.port for port in one.ports or () if (port.name or "") == name and port.port is not None]
        for endpoint in one.endpoints or ():
            found = [(address, port) for address in endpoint.addresses for port in ports]
            if endpoint.conditions.ready is not False:
                ready += found
            elif endpoint.conditions.serving and endpoint.conditions.terminating:
                ending += found
    return tuple(sorted(set(ready or ending)))


@dataclass(frozen=True, kw_only=True)
class Names:
    """Addresses by name, and names that are other names; all in lower case and without the last dot."""

    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def names(services: Iterable[Service], slices: Iterable[EndpointSlice]) -> Names:
    by_service = _grouped(slices)
    addresses: dict[str, tuple[str, ...]] = {}
    aliases: dict[str, str] = {}
    for service in services:
        spec, metadata = service.spec, service.metadata
        name = f"{metadata.name}.{metadata.namespace}.{DOMAIN}".lower()
        if spec.type == "ExternalName":
            aliases[name] = spec.external_name.rstrip(".").lower()
        elif spec.cluster_ip not in {"", "None"}:
            addresses[name] = (spec.cluster_ip,)
        else:
            found: list[str] = []
            for endpoint in _endpoints(by_service.get((metadata.namespace, metadata.name), [])):
                if endpoint.conditions.ready is not False or spec.publish_not_ready_addresses:
                    found += endpoint.addresses
                    if endpoint.hostname:
                        addresses[f"{endpoint.hostname}.{name}".lower()] = endpoint.addresses
            addresses[name] = tuple(sorted(set(found)))
    return Names(addresses=addresses, aliases=aliases)


#: A chain of aliases longer than this leads in a circle.
_MAX_ALIASES: Final = 8


def resolve(table: Names, name: str) -> tuple[list[tuple[str, str]], tuple[str, ...]] | None:
    """The aliases on the way, with what each stands for, and the addresses at its end; None where it is unknown."""
    name = name.rstrip(".").lower()
    chain: list[tuple[str, str]] = []
    while name in table.aliases and len(chain) < _MAX_ALIASES:
        chain.append((name, table.aliases[name]))
        name = table.aliases[name]
    if name in table.addresses:
        return chain, table.addresses[name]
    return (chain, ()) if chain else None


def _grouped(slices: Iterable[EndpointSlice]) -> dict[tuple[str, str], list[EndpointSlice]]:
    groups: dict[tuple[str, str], list[EndpointSlice]] = {}
    for one in slices:
        name = one.metadata.labels.get(_SERVICE_NAME)
        if name and one.address_type == "IPv4":
            groups.setdefault((one.metadata.namespace, name), []).append(one)
    return groups


def _endpoints(slices: list[EndpointSlice]) -> list[Endpoint]:
    return [endpoint for one in slices for endpoint in one.endpoints or ()]
