"""Which revision a host leads to: a pure, immutable table built from Routes, Revisions and EndpointSlices.

Rules: Knative's Route (`status.traffic` is what was rolled out, `percent` its share, `tag` a name of its own), its
names inside the cluster (``<route>.<namespace>[.svc[.cluster.local]]``), and Kubernetes' EndpointSlice (an unknown
`ready` counts as ready; `targetRef` names the instance). The gateway swaps a whole table and never changes one.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from core.errors import NotFound
from core.net.names import revision_host
from core.net.types import Address
from core.resources import Resource
from core.resources.endpoints import read_slice
from serving.gateways import HERE, Gateway, Identity, Standing, gateways, holding
from serving.resources import DEFAULT_TIMEOUT_S, LABEL_REVISION, REVISION

__all__ = [
    "Endpoint",
    "Return",
    "RevisionKey",
    "RevisionLimits",
    "RouteTarget",
    "RoutingTable",
    "Snapshot",
    "bare_host",
    "routed_alike",
]

_VISIBILITY_LABEL: Final = "networking.knative.dev/visibility"

#: Names under which a route answers inside the cluster, after ``<route>.<namespace>``.
_CLUSTER_SUFFIXES: Final = ("", ".svc", ".svc.cluster.local")
_LOCALHOST_SUFFIX: Final = ".localhost"

#: Ports of a slice that speak HTTP to the function, best first (Knative's names for a container's port).
_PORT_NAMES: Final = ("http", "http1", "h2c", "")

T = TypeVar("T")
U = TypeVar("U")


class RevisionKey(msgspec.Struct, frozen=True, order=True):
    """Which revision."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class RevisionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a Revision asks of the gateway. `concurrency` is the hard limit of one instance, 0 for none; `timeout_s`
    spans a request from its arrival to the last byte of its answer; `response_start_s` 0 means no limit of its own."""

    concurrency: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    response_start_s: float = 0.0


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """One ready instance: its name and where it listens. Another port under the same name is another instance.

    With `peer`, it is another gateway, which has instances of the revision that this one has none of.
    """

    name: str
    address: Address
    peer: bool = False


class Return(msgspec.Struct, frozen=True, order=True):
    """An instance that is asked back from this gateway, in this version of its EndpointSlice."""

    namespace: str
    revision: str
    name: str
    version: str

    @property
    def key(self) -> RevisionKey:
        return RevisionKey(self.namespace, self.revision)


@dataclass(frozen=True, slots=True)
class RouteTarget(Generic[T]):
    """What a host leads to: `choices` with their shares, told as running totals in `bounds`.

    `route` names the Route as ``namespace/name``. No choices means that the Route has nothing rolled out yet.
    """

    route: str
    choices: tuple[T, ...]
    bounds: tuple[int, ...]

    def pick(self, rng: random.Random) -> T:
        """One choice, each with a chance of its share. Must not be called where there are no choices."""
        if len(self.choices) == 1:
            return self.choices[0]
        return self.choices[bisect_right(self.bounds, rng.random() * self.bounds[-1])]

    def map(self, change: Callable[[T], U]) -> RouteTarget[U]:
        return RouteTarget(self.route, tuple(change(choice) for choice in self.choices), self.bounds)

    @classmethod
    def of(cls, route: str, shares: Iterable[tuple[T, int]]) -> RouteTarget[T]:
        """A target of (choice, percent) pairs; those without a share are left out."""
        held = [(choice, percent) for choice, percent in shares if percent > 0]
        return cls(route, tuple(choice for choice, _ in held), tuple(accumulate(percent for _, percent in held)))


@dataclass(frozen=True, slots=True)
class RoutingTable(Generic[T]):
    """Hosts and what they lead to; keys are lower-case names without port."""

    hosts: Mapping[bytes, RouteTarget[T]]

    def lookup(self, host: bytes) -> RouteTarget[T]:
        """What `host` (as in the Host header, with or without port) leads to. Raises NotFound saying what hosts
        look like."""
        target = self.hosts.get(bare_host(host))
        if target is None:
            shown = host.decode("latin-1")[:253]
            raise NotFound(
                f'No route for the host "{shown}". Hosts are <service>.<namespace>.localhost, '
                "<service>.<namespace>.svc.cluster.local, and <tag>-<service>.<namespace>... for a tagged revision; "
                "`penstock get services` lists the URLs that exist."
            )
        return target

    def map(self, change: Callable[[T], U]) -> RoutingTable[U]:
        return RoutingTable({host: target.map(change) for host, target in self.hosts.items()})


def bare_host(host: bytes) -> bytes:
    """A Host header's name: lower-case, without port and without the dot that ends a fully qualified name."""
    if host.endswith(b"]"):
        return host.lower()
    name, colon, port = host.rpartition(b":")
    if not colon or not (port.isdigit() or not port):
        name = host
    return name.lower().removesuffix(b".")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the gateway takes from the resource store, as of one moment.

    `endpoints` holds, in a stable order, the ready instances that gateway `me` may use; where it may use none, the
    gateways that may. `returns` holds the instances that it is to give back, and `peers` the hosts of all gateways.
    `problems` are complete sentences about resources that could not be read; what they speak of is left out rather than
    guessed.
    """

    table: RoutingTable[RevisionKey]
    limits: Mapping[RevisionKey, RevisionLimits]
    endpoints: Mapping[RevisionKey, tuple[Endpoint, ...]]
    returns: frozenset[Return] = frozenset()
    peers: frozenset[str] = frozenset()
    me: Identity = HERE
    table_problems: tuple[str, ...] = ()
    slice_problems: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        return self.table_problems + self.slice_problems

    @classmethod
    def build(
        cls,
        *,
        routes: Iterable[Resource],
        revisions: Iterable[Resource],
        slices: Iterable[Resource],
        me: Identity = HERE,
    ) -> Snapshot:
        problems: list[str] = []
        hosts: dict[bytes, RouteTarget[RevisionKey]] = {}
        read = list(_read(routes, _RouteStatus, "status", problems))
        # A route's own name beats a tag that reads like it ("v1-app"); further clashes go by the store's order.
        for name in (_own_hosts, _tag_hosts):
            for route, status in read:
                for host, target in name(route, status):
                    hosts.setdefault(host, target)
        limits = {
            RevisionKey(revision.meta.namespace, revision.meta.name): RevisionLimits(
                concurrency=max(0, spec.container_concurrency or 0),
                timeout_s=float(spec.timeout_seconds or DEFAULT_TIMEOUT_S),
                response_start_s=float(spec.response_start_timeout_seconds or 0),
            )
            for revision, spec in _read(revisions, _RevisionSpec, "spec", problems)
        }
        for key in limits:
            host = revision_host(key.namespace, key.name).encode()
            hosts.setdefault(host, RouteTarget.of(str(key), [(key, 1)]))
        table = cls(table=RoutingTable(hosts), limits=limits, endpoints={}, table_problems=tuple(problems), me=me)
        return table.with_slices(slices)

    def with_slices(self, slices: Iterable[Resource]) -> Snapshot:
        """The same table and limits with the instances of these slices: what each scaling changes."""
        problems: list[str] = []
        read = _Slices(self.me, tuple(slices), problems)
        return msgspec.structs.replace(
            self,
            endpoints=read.endpoints(),
            returns=frozenset(read.returns),
            peers=frozenset(gateway.address[0] for gateway in read.listed.values()),
            slice_problems=tuple(problems),
        )


def routed_alike(before: Resource | None, after: Resource | None) -> bool:
    """Whether a Route or Revision that changed so leaves the table as it is, as most writes of their statuses do."""
    if before is None or after is None:
        return False
    if after.ref == REVISION:
        return before.spec == after.spec
    parts = [(r.meta.labels, [r.status.get(name) for name in ("url", "address", "traffic")]) for r in (before, after)]
    return parts[0] == parts[1]


class _Traffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    revision_name: str = ""
    percent: int | None = None
    tag: str = ""
    url: str = ""


class _Addressable(msgspec.Struct, frozen=True, kw_only=True):
    url: str = ""


class _RouteStatus(msgspec.Struct, frozen=True, kw_only=True):
    url: str = ""
    address: _Addressable | None = None
    traffic: tuple[_Traffic, ...] = ()


class _RevisionSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    container_concurrency: int | None = None
    timeout_seconds: int | None = None
    response_start_timeout_seconds: int | None = None


S = TypeVar("S", bound=msgspec.Struct)


def _read(
    resources: Iterable[Resource], shape: type[S], member: str, problems: list[str]
) -> Iterator[tuple[Resource, S]]:
    """Each resource with that member of its body (the whole body for "") read into `shape`."""
    for resource in resources:
        try:
            yield resource, msgspec.convert((resource.body.get(member) or {}) if member else resource.body, shape)
        except msgspec.ValidationError as error:
            problems.append(f"{resource.key} cannot be read and is left out of the routing table: {error}")


def _own_hosts(route: Resource, status: _RouteStatus) -> Iterator[tuple[bytes, RouteTarget[RevisionKey]]]:
    """Each host that leads to the whole split of `route`."""
    namespace, name = route.meta.namespace, route.meta.name
    shares = [(RevisionKey(namespace, t.revision_name), t.percent or 0) for t in status.traffic if t.revision_name]
    target = RouteTarget.of(f"{namespace}/{name}", shares)
    for url in (status.url, status.address.url if status.address else ""):
        if host := _hostname(url):
            yield host, target
    for suffix in _suffixes(route):
        yield f"{name}.{namespace}{suffix}".encode(), target


def _tag_hosts(route: Resource, status: _RouteStatus) -> Iterator[tuple[bytes, RouteTarget[RevisionKey]]]:
    """Each host that leads to one tagged revision of `route`."""
    namespace, name = route.meta.namespace, route.meta.name
    for traffic in status.traffic:
        if not (traffic.tag and traffic.revision_name):
            continue
        target = RouteTarget.of(f"{namespace}/{name}", [(RevisionKey(namespace, traffic.revision_name), 1)])
        if host := _hostname(traffic.url):
            yield host, target
        for suffix in _suffixes(route):
            yield f"{traffic.tag}-{name}.{namespace}{suffix}".encode(), target


def _hostname(url: str) -> bytes:
    """The host of a URL in a status; empty where there is none to be read."""
    try:
        return (urlsplit(url).hostname or "").encode()
    except ValueError:
        return b""


def _suffixes(route: Resource) -> tuple[str, ...]:
    private = route.meta.labels.get(_VISIBILITY_LABEL) == "cluster-local"
    return _CLUSTER_SUFFIXES if private else (*_CLUSTER_SUFFIXES, _LOCALHOST_SUFFIX)


class _Slices:
    """What the EndpointSlices tell gateway `me`."""

    def __init__(self, me: Identity, slices: Sequence[Resource], problems: list[str]) -> None:
        self.listed: dict[str, Gateway] = {}
        self.returns: set[Return] = set()
        self._me = me
        self._problems = problems
        self._usable: dict[RevisionKey, set[Endpoint]] = {}
        self._owners: dict[RevisionKey, set[str]] = {}
        if me.namespace:
            try:
                self.listed = gateways(slices, me.namespace)
            except msgspec.ValidationError as error:
                problems.append(f"The EndpointSlices of the gateways cannot be read: {error}")
        for each in slices:
            if revision := each.meta.labels.get(LABEL_REVISION):
                self._read(each, RevisionKey(each.meta.namespace, revision))

    def endpoints(self) -> dict[RevisionKey, tuple[Endpoint, ...]]:
        return {key: tuple(sorted(usable or self._peers(key))) for key, usable in self._usable.items()}

    def _read(self, held: Resource, key: RevisionKey) -> None:
        try:
            endpoints = read_slice(held, _PORT_NAMES)
        except msgspec.ValidationError as error:
            self._problems.append(f"{held.key} cannot be read and is left out of the routing table: {error}")
            return
        usable = self._usable.setdefault(key, set())
        whose = holding(held)
        if whose is None or (whose.owner and whose.owner == self._me.id):
            usable.update(Endpoint(one.name, (one.host, one.port)) for one in endpoints if one.ready)
        elif whose.owner and any(one.ready for one in endpoints):
            self._owners.setdefault(key, set()).add(whose.owner)
        elif whose.before == self._me.id:
            self.returns.add(Return(key.namespace, key.name, held.meta.name, held.meta.resource_version))

    def _peers(self, key: RevisionKey) -> Iterator[Endpoint]:
        for owner in self._owners.get(key, ()):
            gateway = self.listed.get(owner)
            if gateway is not None and gateway.standing is not Standing.SILENT:
                yield Endpoint(gateway.id, gateway.address, peer=True)
