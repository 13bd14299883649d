"""Hosts lead where Routes say; splits are exact; slices are read as Kubernetes writes them."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotFound
from core.resources import Resource
from serving.gateways import Identity
from serving.routing import (
    Endpoint,
    Return,
    RevisionKey,
    RevisionLimits,
    RouteTarget,
    Snapshot,
    bare_host,
    routed_alike,
)


def route(name: str = "app", *traffic: dict[str, Any], namespace: str = "shop", **more: Any) -> Resource:
    status: dict[str, Any] = {"traffic": list(traffic), **more.pop("status", {})}
    return Resource.from_dict(
        {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Route",
            "metadata": {"name": name, "namespace": namespace, "labels": more.pop("labels", {})},
            "spec": {},
            "status": status,
        }
    )


def revision(name: str, namespace: str = "shop", **spec: Any) -> Resource:
    return Resource.from_dict(
        {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"containers": [{"image": "x"}], **spec},
        }
    )


def endpoint_slice(
    revision_name: str | None, *endpoints: dict[str, Any], ports: Any = None, name: str = "s"
) -> Resource:
    return Resource.from_dict(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "shop",
                "labels": {"serving.knative.dev/revision": revision_name} if revision_name else {},
            },
            "addressType": "IPv4",
            "endpoints": list(endpoints),
            "ports": [{"name": "http", "port": 41234}] if ports is None else ports,
        }
    )


def at(address: str, pod: str = "", **conditions: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"addresses": [address], "conditions": conditions}
    if pod:
        found["targetRef"] = {"kind": "Pod", "name": pod}
    return found


def snapshot(*resources: Resource) -> Snapshot:
    kinds: dict[str, list[Resource]] = {"Route": [], "Revision": [], "EndpointSlice": []}
    for resource in resources:
        kinds[resource.ref.kind].append(resource)
    return Snapshot.build(routes=kinds["Route"], revisions=kinds["Revision"], slices=kinds["EndpointSlice"])


V1 = {"revisionName": "app-1", "percent": 100, "latestRevision": True}

HOSTS = {
    "browser": b"app.shop.localhost",
    "browser with port": b"app.shop.localhost:8080",
    "another port": b"app.shop.localhost:1",
    "upper case": b"App.Shop.LOCALHOST:8080",
    "trailing dot": b"app.shop.localhost.",
    "trailing dot and port": b"app.shop.localhost.:8080",
    "cluster": b"app.shop.svc.cluster.local",
    "cluster with port": b"app.shop.svc.cluster.local:80",
    "svc": b"app.shop.svc",
    "short": b"app.shop",
    "status.url": b"app.example.com",
    "status.address.url": b"app.inside.example.com:8080",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_every_name_of_a_route_leads_to_its_revision(host: bytes) -> None:
    status = {"url": "http://app.example.com", "address": {"url": "http://app.inside.example.com"}}
    table = snapshot(route("app", V1, status=status)).table
    assert table.lookup(host).choices == (RevisionKey("shop", "app-1"),)


@pytest.mark.parametrize(
    "host",
    [b"", b"app", b"app.other.localhost", b"app.shop.example.com", b"127.0.0.1:8080", b"[::1]:8080", b"x" * 5000],
)
def test_an_unknown_host_gets_told_what_hosts_look_like(host: bytes) -> None:
    with pytest.raises(NotFound, match=r"<service>\.<namespace>\.localhost") as refused:
        snapshot(route("app", V1)).table.lookup(host)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize(
    ("host", "bare"),
    [
        (b"a.b", b"a.b"),
        (b"A.b:80", b"a.b"),
        (b"a.b:", b"a.b"),
        (b"[::1]", b"[::1]"),
        (b"[::1]:80", b"[::1]"),
        (b"", b""),
    ],
)
def test_a_host_is_known_without_its_port_and_case(host: bytes, bare: bytes) -> None:
    assert bare_host(host) == bare


def test_a_tag_has_names_of_its_own_even_without_a_share() -> None:
    traffic = ({"revisionName": "app-1", "percent": 100}, {"revisionName": "app-2", "percent": 0, "tag": "next"})
    table = snapshot(route("app", *traffic)).table
    for host in (b"next-app.shop.localhost:8080", b"next-app.shop", b"next-app.shop.svc.cluster.local"):
        assert table.lookup(host).choices == (RevisionKey("shop", "app-2"),)
    assert table.lookup(b"app.shop").choices == (RevisionKey("shop", "app-1"),)


def test_a_tags_own_url_leads_to_it() -> None:
    traffic = {"revisionName": "app-2", "tag": "next", "url": "http://next-app.example.com:8080"}
    table = snapshot(route("app", V1, traffic)).table
    assert table.lookup(b"next-app.example.com").choices == (RevisionKey("shop", "app-2"),)


def test_a_routes_own_name_beats_a_tag_that_reads_like_it() -> None:
    tagged = route("app", {"revisionName": "app-1", "percent": 100, "tag": "v1"})
    table = snapshot(tagged, route("v1-app", {"revisionName": "other", "percent": 100})).table
    assert table.lookup(b"v1-app.shop").choices == (RevisionKey("shop", "other"),)


def test_a_cluster_local_route_has_no_name_outside() -> None:
    table = snapshot(route("app", V1, labels={"networking.knative.dev/visibility": "cluster-local"})).table
    assert table.lookup(b"app.shop.svc.cluster.local").choices
    with pytest.raises(NotFound):
        table.lookup(b"app.shop.localhost")


@pytest.mark.parametrize("url", ["", "http://[bad", "not a url", "http://"])
def test_a_url_that_cannot_be_read_takes_no_name_away(url: str) -> None:
    table = snapshot(route("app", V1, {"revisionName": "app-2", "tag": "next", "url": url}, status={"url": url})).table
    assert table.lookup(b"app.shop").choices
    assert table.lookup(b"next-app.shop").choices
    assert b"" not in table.hosts


def test_a_route_without_traffic_is_known_and_leads_nowhere_yet() -> None:
    assert snapshot(route("app")).table.lookup(b"app.shop").choices == ()


class Evenly(random.Random):
    """Gives the middles of `parts` equal parts of [0, 1), one after the other."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.at = 0

    def random(self) -> float:
        self.at += 1
        return (self.at - 0.5) / self.parts


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any))
def test_a_split_gives_each_revision_exactly_its_share(percents: list[int]) -> None:
    target = RouteTarget.of("shop/app", list(enumerate(percents)))
    rng = Evenly(sum(percents))
    seen = Counter(target.pick(rng) for _ in range(sum(percents)))
    assert [seen[index] for index in range(len(percents))] == percents


def test_a_split_of_90_to_10_comes_out_so_with_a_seeded_generator() -> None:
    target = RouteTarget.of("shop/app", [("a", 90), ("none", 0), ("b", 10)])
    rng = random.Random(20_26)
    seen = Counter(target.pick(rng) for _ in range(10_000))
    assert seen["none"] == 0
    assert abs(seen["b"] - 1_000) < 5 * (10_000 * 0.9 * 0.1) ** 0.5


def test_a_seeded_split_is_the_same_every_time() -> None:
    target = RouteTarget.of("shop/app", [("a", 50), ("b", 50)])
    one, two = random.Random(7), random.Random(7)
    assert [target.pick(one) for _ in range(100)] == [target.pick(two) for _ in range(100)]


def test_two_entries_for_one_revision_add_up() -> None:
    traffic = ({"revisionName": "app-1", "percent": 30}, {"revisionName": "app-1", "percent": 70, "tag": "x"})
    assert snapshot(route("app", *traffic)).table.lookup(b"app.shop").bounds == (30, 100)


def test_a_revisions_limits_are_read_with_knatives_defaults() -> None:
    found = snapshot(
        revision("a"),
        revision("b", containerConcurrency=3, timeoutSeconds=20, responseStartTimeoutSeconds=5),
    ).limits
    assert found[RevisionKey("shop", "a")] == RevisionLimits(concurrency=0, timeout_s=300.0, response_start_s=0.0)
    assert found[RevisionKey("shop", "b")] == RevisionLimits(concurrency=3, timeout_s=20.0, response_start_s=5.0)


def test_instances_come_from_any_number_of_slices_each_once_in_a_stable_order() -> None:
    slices = [
        endpoint_slice("app-1", at("10.0.0.2", "p2", ready=True), at("10.0.0.1", "p1", ready=True), name="one"),
        endpoint_slice("app-1", at("10.0.0.2", "p2", ready=True), name="two"),
        endpoint_slice("app-2", at("10.0.0.3", ready=True), name="three"),
    ]
    expected = (Endpoint("p1", ("10.0.0.1", 41234)), Endpoint("p2", ("10.0.0.2", 41234)))
    for order in (slices, slices[::-1]):
        found = snapshot(*order).endpoints
        assert found[RevisionKey("shop", "app-1")] == expected
        assert found[RevisionKey("shop", "app-2")] == (Endpoint("", ("10.0.0.3", 41234)),)


CONDITIONS = {
    "ready": ({"ready": True}, True),
    "unknown counts as ready": ({}, True),
    "not ready": ({"ready": False}, False),
    "terminating": ({"ready": False, "serving": True, "terminating": True}, False),
}


@pytest.mark.parametrize(("conditions", "used"), CONDITIONS.values(), ids=CONDITIONS)
def test_only_ready_instances_are_used(conditions: dict[str, bool], used: bool) -> None:
    found = snapshot(endpoint_slice("app-1", at("10.0.0.1", **conditions))).endpoints
    assert bool(found[RevisionKey("shop", "app-1")]) is used


PORTS = {
    "http beats others": ([{"name": "metrics", "port": 9}, {"name": "http", "port": 1}], 1),
    "http1": ([{"name": "http1", "port": 2}], 2),
    "h2c": ([{"name": "h2c", "port": 3}], 3),
    "unnamed": ([{"port": 4}], 4),
    "the first of unknown names": ([{"name": "web", "port": 5}, {"name": "admin", "port": 6}], 5),
    "null": ([{"name": None, "port": 7}], 7),
}


@pytest.mark.parametrize(("ports", "expected"), PORTS.values(), ids=PORTS)
def test_the_port_is_the_one_that_speaks_http(ports: list[dict[str, Any]], expected: int) -> None:
    found = snapshot(endpoint_slice("app-1", at("10.0.0.1"), ports=ports)).endpoints
    assert found[RevisionKey("shop", "app-1")][0].address == ("10.0.0.1", expected)


ME = Identity(id="g1", namespace="penstock")
OWN = Endpoint("p1", ("10.0.0.1", 41234))
OTHER = Endpoint("g2", ("10.0.9.2", 8080), peer=True)

#: What the instance's EndpointSlice says, and what gateway g1 may use then.
OWNERS = {
    "everybody's": ({}, (OWN,)),
    "its own": ({"gateway": "g1"}, (OWN,)),
    "another's": ({"gateway": "g2"}, (OTHER,)),
    "one's that is being ended": ({"gateway": "ending"}, (Endpoint("ending", ("10.0.9.3", 8080), peer=True),)),
    "one's that does not answer": ({"gateway": "silent"}, ()),
    "one's that is not listed": ({"gateway": "gone"}, ()),
    "nobody's": ({"gateway": ""}, ()),
    "asked back from it": ({"gateway": "", "gateway-before": "g1"}, ()),
    "asked back from another": ({"gateway": "", "gateway-before": "g2"}, ()),
}


def gateway(name: str, address: str, *, namespace: str = "penstock", **conditions: bool) -> Resource:
    held = endpoint_slice(None, at(address, name, **conditions), ports=[{"name": "http", "port": 8080}], name=name)
    return held.with_meta(namespace=namespace, labels={"penstock.dev/component": "gateway"})


@pytest.mark.parametrize(("notes", "usable"), OWNERS.values(), ids=OWNERS)
def test_a_gateway_uses_its_own_instances_and_else_the_gateways_that_have_some(
    notes: dict[str, str], usable: tuple[Endpoint, ...]
) -> None:
    noted = {f"penstock.dev/{name}": value for name, value in notes.items()}
    slices = [
        gateway("g1", "10.0.9.1", ready=True),
        gateway("g2", "10.0.9.2", ready=True),
        gateway("ending", "10.0.9.3", ready=False, terminating=True),
        gateway("silent", "10.0.9.4", ready=False),
        gateway("gone", "10.0.9.5", ready=True, namespace="anybody's"),
        endpoint_slice("app-1", at("10.0.0.1", "p1")).with_meta(annotations=noted, resource_version="7"),
    ]
    found = Snapshot.build(routes=(), revisions=(), slices=slices, me=ME)
    assert found.endpoints == {RevisionKey("shop", "app-1"): usable}
    assert found.peers == {"10.0.9.1", "10.0.9.2", "10.0.9.3", "10.0.9.4"}
    is_asked = notes.get("gateway-before") == "g1"
    assert found.returns == ({Return("shop", "app-1", "s", "7")} if is_asked else set())


def test_an_instance_of_its_own_is_used_rather_than_another_gateway() -> None:
    slices = [
        gateway("g2", "10.0.9.2", ready=True),
        endpoint_slice("app-1", at("10.0.0.1", "p1"), name="one").with_meta(annotations={"penstock.dev/gateway": "g1"}),
        endpoint_slice("app-1", at("10.0.0.2", "p2"), name="two").with_meta(annotations={"penstock.dev/gateway": "g2"}),
    ]
    found = Snapshot.build(routes=(), revisions=(), slices=slices, me=ME)
    assert found.endpoints == {RevisionKey("shop", "app-1"): (OWN,)}


def test_slices_of_other_owners_and_without_ports_are_no_instances() -> None:
    found = snapshot(endpoint_slice(None, at("10.0.0.1")), endpoint_slice("app-1", at("10.0.0.1"), ports=[]))
    assert not any(found.endpoints.values())


def test_what_cannot_be_read_is_named_and_left_out_and_the_rest_stays() -> None:
    broken = route("broken", {"revisionName": 5, "percent": 100})
    found = snapshot(broken, route("app", V1), revision("app-1", timeoutSeconds="soon"))
    assert found.table.lookup(b"app.shop").choices
    assert b"broken.shop" not in found.table.hosts
    assert not found.limits
    assert [problem.split(" cannot")[0] for problem in found.problems] == [
        'Route.serving.knative.dev "shop/broken"',
        'Revision.serving.knative.dev "shop/app-1"',
    ]


ALIKE = {
    "a revision's status": (revision("a"), revision("a").with_status({"actualReplicas": 2}), True),
    "a revision's limit": (revision("a"), revision("a", containerConcurrency=1), False),
    "a route's conditions": (
        route("app", V1),
        route("app", V1, status={"conditions": [{"type": "Ready", "status": "True"}]}),
        True,
    ),
    "a route's traffic": (route("app", V1), route("app", {**V1, "percent": 90}), False),
    "a route's address": (route("app", V1), route("app", V1, status={"url": "http://x.example.com"}), False),
    "a route's visibility": (
        route("app", V1),
        route("app", V1, labels={"networking.knative.dev/visibility": "cluster-local"}),
        False,
    ),
    "a new route": (None, route("app", V1), False),
    "a deleted route": (route("app", V1), None, False),
}


@pytest.mark.parametrize(("before", "after", "alike"), ALIKE.values(), ids=ALIKE)
def test_a_table_is_built_anew_only_for_what_it_is_made_of(
    before: Resource | None, after: Resource | None, alike: bool
) -> None:
    assert routed_alike(before, after) is alike
    if alike:
        assert before is not None
        assert after is not None
        assert snapshot(before) == snapshot(after)


def test_new_slices_leave_table_and_limits_as_they_are() -> None:
    first = snapshot(route("app", V1), revision("app-1"), endpoint_slice("app-1", at("10.0.0.1")))
    second = first.with_slices([endpoint_slice("app-1", at("10.0.0.2")), endpoint_slice("app-1", {"addresses": 5})])
    assert second.table is first.table
    assert second.limits is first.limits
    assert [endpoint.address[0] for endpoint in second.endpoints[RevisionKey("shop", "app-1")]] == ["10.0.0.2"]
    assert len(second.problems) == 1


def test_a_revision_has_a_host_of_its_own_with_traffic_or_without():
    table = Snapshot.build(
        routes=[route("app", {"revisionName": "app-2", "percent": 100})],
        revisions=[revision("app-1"), revision("app-2")],
        slices=[],
    ).table
    for name in ("app-1", "app-2"):
        target = table.lookup(f"{name}.shop.revision.localhost:8080".encode())
        assert target.choices == (RevisionKey("shop", name),)
    with pytest.raises(NotFound):
        table.lookup(b"app-3.shop.revision.localhost")
