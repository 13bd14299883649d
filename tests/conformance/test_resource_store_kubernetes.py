"""The ResourceStore suite on a real kube-apiserver, and what only a cluster does."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient

from core.control.kubernetes.connection import Cluster, connected
from core.control.kubernetes.store import KubernetesStore
from core.errors import NotFound
from core.resources import Key, Kind, KindRef, ObjectMeta, Resource
from core.resources.builtin import KINDS, NAMESPACE
from tests.conformance.resource_store import DEADLINE_S, GADGET, WIDGET, ResourceStoreSuite

CRD = KindRef("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
KINDS_HERE = (
    *KINDS,
    Kind(ref=GADGET, plural="gadgets", singular="gadget"),
    Kind(ref=WIDGET, plural="widgets", singular="widget"),
    Kind(ref=CRD, plural="customresourcedefinitions", singular="customresourcedefinition", namespaced=False),
)


def definition(kind: Kind) -> Resource:
    """A custom resource of any shape, with status as its own part."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"kind": kind.ref.kind, "plural": kind.plural, "singular": kind.singular}
    version = {
        "name": kind.ref.version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}},
    }
    spec = {"group": kind.ref.group, "scope": "Namespaced", "names": names, "versions": [version]}
    return Resource(ref=CRD, meta=ObjectMeta(name=f"{kind.plural}.{kind.ref.group}"), body={"spec": spec})


async def established(store: KubernetesStore, key: Key) -> None:
    """Wait until the API server serves the kind that this definition is of."""
    listing = await store.list(CRD)
    found = next(item for item in listing.items if item.key == key)
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(store.watch(CRD, listing.version)) as watch:
        while not _is_established(found):
            change = await anext(watch)
            if change.resource is not None and change.resource.key == key:
                found = change.resource


def _is_established(crd: Resource) -> bool:
    found = crd.status.get("conditions") or ()
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in found)


async def ensure(store: KubernetesStore, resource: Resource) -> None:
    try:
        await store.get(resource.key)
    except NotFound:
        await store.create(resource)


async def emptied(store: KubernetesStore, kind: KindRef) -> None:
    for resource in (await store.list(kind)).items:
        if resource.meta.finalizers:
            await store.update(resource.with_meta(finalizers=(), resource_version=""))
        with contextlib.suppress(NotFound):
            await store.delete(resource.key)


@pytest.fixture
async def client(kubernetes) -> AsyncIterator[ApiClient]:
    async with connected(Cluster(kubeconfig=str(kubernetes.kubeconfig))) as client:
        yield client


@pytest.mark.service("kubernetes")
class TestKubernetesStore(ResourceStoreSuite):
    @pytest.fixture
    async def store(self, client: ApiClient) -> AsyncIterator[KubernetesStore]:
        store = KubernetesStore(client, KINDS_HERE)
        await ensure(store, Resource(ref=NAMESPACE, meta=ObjectMeta(name="other"), body={}))
        for kind in KINDS_HERE:
            if kind.ref in (GADGET, WIDGET):
                made = definition(kind)
                await ensure(store, made)
                await established(store, made.key)
                await emptied(store, kind.ref)
        yield store
