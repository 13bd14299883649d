"""Where the platform's own components listen, as EndpointSlices tell it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.control.addresses import ListedAddresses
from core.control.cache import Follower
from core.control.memory import MemoryStore
from core.resources import Resource
from core.resources.builtin import ENDPOINT_SLICE
from tests.support.virtual_time import run_virtual


def listing(name: str, *hosts: str, namespace: str = "penstock", component: str = "control", **state: bool) -> Resource:
    """An EndpointSlice as Kubernetes writes it for a Service."""
    endpoints = [{"addresses": [host], "conditions": state, "targetRef": {"name": f"pod-{host}"}} for host in hosts]
    document: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"penstock.dev/component": component}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "metrics", "port": 9090}, {"name": "http", "port": 8080}],
    }
    return Resource.from_dict(document)


CASES = {
    "nothing is listed": ([], ()),
    "the ready ones of all slices, in order": (
        [listing("b", "10.0.0.2", ready=True), listing("a", "10.0.0.3", "10.0.0.1", ready=True)],
        ("10.0.0.1", "10.0.0.2", "10.0.0.3"),
    ),
    "a state that is not told counts as ready": ([listing("a", "10.0.0.1")], ("10.0.0.1",)),
    "those that are not ready only where none is": (
        [listing("a", "10.0.0.1", ready=False), listing("b", "10.0.0.2", ready=True)],
        ("10.0.0.2",),
    ),
    "those that are not ready, rather than none": ([listing("a", "10.0.0.1", ready=False)], ("10.0.0.1",)),
    "none that is being ended": ([listing("a", "10.0.0.1", ready=True, terminating=True)], ()),
    "no other component": ([listing("a", "10.0.0.1", component="gateway")], ()),
    "no other namespace, where anybody may write": ([listing("a", "10.0.0.1", namespace="shop")], ()),
}


@pytest.mark.parametrize(("slices", "hosts"), CASES.values(), ids=CASES.keys())
def test_a_component_is_found_where_it_is_listed(slices: list[Resource], hosts: tuple[str, ...]) -> None:
    async def main() -> None:
        store = MemoryStore()
        for each in slices:
            await store.create(each)
        follower = Follower(store, (ENDPOINT_SLICE,))
        addresses = ListedAddresses(component="control", namespace="penstock")
        addresses.follow(follower)
        following = asyncio.create_task(follower.run())
        await follower.synced.wait()
        assert addresses() == tuple((host, 8080) for host in hosts)
        following.cancel()

    run_virtual(main())


def test_the_addresses_are_the_same_object_until_they_change() -> None:
    async def main() -> None:
        store = MemoryStore()
        follower = Follower(store, (ENDPOINT_SLICE,))
        addresses = ListedAddresses(component="control", namespace="penstock")
        addresses.follow(follower)
        following = asyncio.create_task(follower.run())
        await store.create(listing("a", "10.0.0.1", ready=True))
        await asyncio.sleep(0.1)
        before = addresses()
        await store.create(listing("b", "10.0.0.2", component="gateway"))
        await asyncio.sleep(0.1)
        assert addresses() is before
        await store.create(listing("c", "10.0.0.3", ready=True))
        await asyncio.sleep(0.1)
        assert addresses() == (("10.0.0.1", 8080), ("10.0.0.3", 8080))
        following.cancel()

    run_virtual(main())


def test_a_slice_that_cannot_be_read_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = MemoryStore()
        bad = listing("a", "10.0.0.1")
        bad.body["endpoints"] = "all"
        await store.create(bad)
        await store.create(listing("b", "10.0.0.2"))
        follower = Follower(store, (ENDPOINT_SLICE,))
        addresses = ListedAddresses(component="control", namespace="penstock")
        addresses.follow(follower)
        following = asyncio.create_task(follower.run())
        await follower.synced.wait()
        assert addresses() == (("10.0.0.2", 8080),)
        following.cancel()

    run_virtual(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
