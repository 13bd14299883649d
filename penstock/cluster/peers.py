"""Where the platform's own pods are, and which names lead to them: what a pod's connections are opened to.

A Service's address in front of pods balances connections, not requests, and goes on leading to a pod that is lost until
the cluster's proxies have heard of it. So the platform's processes follow the EndpointSlices themselves and connect to
pods. A host that is none of ours is left to DNS, as is ours until the first listing is there.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from core.control.addresses import ListedAddresses
from core.control.cache import Follower, Observed
from core.control.port import ResourceStore
from core.net.names import REVISION_SUFFIX
from core.net.types import Address, Places
from core.resources import KindRef, Resource
from core.resources.builtin import ENDPOINT_SLICE
from core.resources.builtin import KINDS as BUILTIN_KINDS
from core.telemetry import Metrics
from penstock.cluster.settings import Release
from serving.resources import KINDS as SERVING_KINDS
from serving.resources import ROUTE

__all__ = ["CONTROL", "GATEWAY", "INGRESS", "PEER_KINDS", "Peers", "hosts_of"]

#: The kinds that the store given to `Peers` must know.
PEER_KINDS: Final = tuple(kind for kind in (*BUILTIN_KINDS, *SERVING_KINDS) if kind.ref in (ENDPOINT_SLICE, ROUTE))

#: Components, as the label ``penstock.dev/component`` of their Services names them.
CONTROL: Final = "control"
GATEWAY: Final = "gateway"
INGRESS: Final = "broker-ingress"


class Peers:
    """Which of the platform's own listeners an address with a name as its host stands for.

    With `routes`, the hosts of Routes and of revisions stand for the gateways; without, only the release's own Services
    are known. `run` it in a task that its owner keeps.
    """

    def __init__(self, store: ResourceStore, release: Release, *, routes: bool, metrics: Metrics) -> None:
        def listed(component: str) -> ListedAddresses:
            return ListedAddresses(component=component, namespace=release.namespace)

        self._gateways = listed(GATEWAY)
        self._services = {
            release.host(release.control): listed(CONTROL),
            release.host(release.gateway): self._gateways,
            release.host(release.ingress): listed(INGRESS),
        }
        self._hosts: frozenset[str] = frozenset()
        self._routes = routes
        kinds: tuple[KindRef, ...] = (ENDPOINT_SLICE, ROUTE) if routes else (ENDPOINT_SLICE,)
        self._follower = Follower(store, kinds, namespaces={ENDPOINT_SLICE: release.namespace}, metrics=metrics)
        for addresses in self._services.values():
            addresses.follow(self._follower)
        if routes:
            self._follower.subscribe(self._note_routes)

    @property
    def synced(self) -> asyncio.Event:
        return self._follower.synced

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._follower.run()

    def places(self, address: Address) -> Places | None:
        """`core.net.client.Client`'s `places`. None for an IP address, which is where it says."""
        if _is_ip(address[0]):
            return None
        host = address[0].lower()
        # One tuple for all answers: while it is the same one, connections are kept.
        itself = (address,)

        def now() -> tuple[Address, ...]:
            listed = self._services.get(host) or (self._gateways if self._is_routed(host) else None)
            return itself if listed is None or not self.synced.is_set() else listed()

        return now

    def _is_routed(self, host: str) -> bool:
        return host in self._hosts or (self._routes and host.endswith(REVISION_SUFFIX))

    def _note_routes(self, batch: Sequence[Observed]) -> None:
        if any(observed.key.kind == ROUTE for observed in batch):
            self._hosts = frozenset(host for route in self._follower.list(ROUTE) for host in hosts_of(route))


def hosts_of(route: Resource) -> Iterator[str]:
    """The names by which a Route is called: in the cluster, and those of its URLs."""
    names = [route.meta.name]
    address = route.status.get("address")
    urls = [route.status.get("url"), address.get("url") if isinstance(address, dict) else None]
    for target in route.status.get("traffic") or ():
        if isinstance(target, dict):
            urls.append(target.get("url"))
            if target.get("tag"):
                names.append(f"{target['tag']}-{route.meta.name}")
    for name in names:
        yield f"{name}.{route.meta.namespace}.svc.cluster.local"
    for url in urls:
        if isinstance(url, str) and (host := urlsplit(url).hostname):
            yield host


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
