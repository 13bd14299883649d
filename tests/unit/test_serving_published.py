"""What the autoscaler publishes of instances, against a store that others write to as well."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from core.control.memory import MemoryStore
from core.errors import Conflict
from core.resources import ObjectMeta, Resource
from core.resources.builtin import ENDPOINT_SLICE
from serving.gateways import Holding, holding
from serving.instances.port import Instance
from serving.published import GatewayList, Published, Situation
from serving.resources import REVISION
from serving.routing import Return
from tests.unit.test_control_addresses import listing

ONE = Instance(name="app-1-a", namespace="shop", revision="app-1", phase="ready", address=("10.0.0.1", 8080))
QUIET = Situation(need={}, now=1000.0)


def revision(**spec: Any) -> Resource:
    return Resource(ref=REVISION, meta=ObjectMeta(name="app-1", namespace="shop", uid="u"), body={"spec": spec})


def gateways(*hosts: str) -> GatewayList:
    """Gateways ``pod-<host>``, all ready."""
    listed = GatewayList("penstock")
    listed.relist([listing("gateways", *hosts, component="gateway", ready=True)], now=0.0)
    return listed


async def whose(store: MemoryStore) -> list[Holding | None]:
    return [holding(held) for held in (await store.list(ENDPOINT_SLICE)).items]


LIMITED = revision(containerConcurrency=1)


@pytest.mark.parametrize(
    ("what", "shared_by", "expected"),
    [
        (LIMITED, gateways("g1"), Holding(owner="pod-g1")),
        (LIMITED, gateways(), Holding()),
        (LIMITED, None, None),
        (revision(containerConcurrency=0), gateways("g1"), None),
        (revision(), gateways("g1"), None),
    ],
    ids=["one gateway", "none yet", "the only one", "without a limit", "limit not told"],
)
async def test_an_instance_has_an_owner_where_there_is_a_limit_and_there_may_be_several_gateways(
    what: Resource, shared_by: GatewayList | None, expected: Holding | None
) -> None:
    store = MemoryStore()
    await Published(store, {}, shared_by).publish([ONE], what, QUIET)
    assert await whose(store) == [expected]


async def test_what_another_process_wrote_since_is_read_before_it_is_decided_anew() -> None:
    store = MemoryStore()
    first, second = (Published(store, {}, gateways("g1", "g2")) for _ in range(2))
    await first.publish([ONE], LIMITED, replace(QUIET, need={"pod-g2": 1.0}))
    with pytest.raises(Conflict):
        await second.publish([ONE], LIMITED, replace(QUIET, need={"pod-g1": 1.0}))
    await second.publish([ONE], LIMITED, QUIET)
    assert await whose(store) == [Holding(owner="pod-g2")]
    moved = replace(ONE, address=("10.0.0.2", 8080))
    await first.publish([moved], LIMITED, QUIET)
    with pytest.raises(Conflict):
        await second.publish([replace(ONE, address=("10.0.0.3", 8080))], LIMITED, QUIET)
    await second.publish([moved], LIMITED, QUIET)
    assert await whose(store) == [Holding(owner="pod-g2")]


async def test_only_what_was_said_of_this_version_gives_an_instance_back() -> None:
    store = MemoryStore()
    published = Published(store, {}, gateways("g1", "g2"))
    await published.publish([ONE], LIMITED, replace(QUIET, need={"pod-g1": 1.0}))
    await published.publish([ONE], LIMITED, replace(QUIET, need={"pod-g2": 1.0}))
    assert await whose(store) == [Holding(before="pod-g1")]
    (held,) = (await store.list(ENDPOINT_SLICE)).items
    told = Return("shop", "app-1", ONE.name, held.meta.resource_version)
    assert not published.returned("pod-g1", replace(told, version="1"))
    assert not published.returned("pod-g2", told)
    assert not published.returned("pod-g1", replace(told, name="app-1-b"))
    await published.publish([ONE], LIMITED, QUIET)
    assert await whose(store) == [Holding(before="pod-g1")]
    assert published.returned("pod-g1", told)
    assert not published.returned("pod-g1", told)
    await published.publish([ONE], LIMITED, replace(QUIET, need={"pod-g2": 1.0}))
    assert await whose(store) == [Holding(owner="pod-g2")]


async def test_an_instance_that_is_not_ready_keeps_its_owner_and_one_that_goes_does_not() -> None:
    store = MemoryStore()
    published = Published(store, {}, gateways("g1", "g2"))
    await published.publish([ONE], LIMITED, replace(QUIET, need={"pod-g2": 1.0}))
    await published.publish([replace(ONE, phase="waiting", address=None)], LIMITED, QUIET)
    (held,) = (await store.list(ENDPOINT_SLICE)).items
    assert holding(held) == Holding(owner="pod-g2")
    assert [endpoint["conditions"]["ready"] for endpoint in held.body["endpoints"]] == [False]
    await published.publish([ONE], LIMITED, QUIET)
    assert await whose(store) == [Holding(owner="pod-g2")]
    await published.publish([], LIMITED, QUIET)
    assert await whose(store) == []


async def test_without_a_limit_an_instance_that_is_not_ready_is_not_listed() -> None:
    store = MemoryStore()
    published = Published(store, {}, gateways("g1"))
    await published.publish([ONE], revision(), QUIET)
    await published.publish([replace(ONE, phase="waiting", address=None)], revision(), QUIET)
    assert await whose(store) == []


async def test_how_long_until_a_gateway_is_given_up_is_told() -> None:
    store, listed = MemoryStore(), gateways("g1")
    published = Published(store, {}, listed)
    assert await published.publish([ONE], LIMITED, QUIET) is None
    listed.relist([listing("gateways", "g2", component="gateway", ready=True)], now=1000.0)
    assert await published.publish([ONE], LIMITED, QUIET) == pytest.approx(2.0)
    assert await whose(store) == [Holding(owner="pod-g1")]
    assert await published.publish([ONE], LIMITED, replace(QUIET, now=1002.0)) is None
    assert await whose(store) == [Holding(owner="pod-g2")]
