"""The ResourceStore suite on a real kube-apiserver, and what only a cluster does."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from kubernetes.aio.client import ApiClient

from core.clock import SystemClock
from core.control import api
from core.control.cache import Follower
from core.control.events import EventRecorder, Note
from core.control.kubernetes.connection import Cluster, ServiceAccount, connected
from core.control.kubernetes.store import KubernetesStore
from core.control.leader import Election, ElectionTimes
from core.errors import Gone, InvalidInput, NotFound, Unavailable
from core.resources import Key, Kind, KindRef, ObjectMeta, Resource
from core.resources.builtin import CONFIG_MAP, EVENT, KINDS, LEASE, NAMESPACE
from tests.conformance.resource_store import (
    DEADLINE_S,
    GADGET,
    WIDGET,
    ResourceStoreSuite,
    gadget,
    key,
    take,
)
from tests.support.controlplane.access import ClusterAccess
from tests.support.controlplane.servers import ControlPlane

pytestmark = pytest.mark.service("kubernetes")

CRD = KindRef("apiextensions.k8s.io", "v1", "CustomResourceDefinition")


class GadgetSpec(msgspec.Struct, frozen=True):
    size: int = 0


def with_colour(resource: Resource) -> Resource:
    return resource if resource.spec.get("colour") else resource.with_spec({**resource.spec, "colour": "red"})


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


def kubectl(access: ClusterAccess, *words: str) -> str:
    command = ["kubectl", "-n", "default", *words]
    return subprocess.run(command, env=access.environment, capture_output=True, text=True, check=True).stdout


async def prepared(client: ApiClient) -> KubernetesStore:
    """A store with Gadgets and Widgets, of which there are none yet."""
    store = KubernetesStore(client, KINDS_HERE)
    await ensure(store, Resource(ref=NAMESPACE, meta=ObjectMeta(name="other"), body={}))
    for kind in KINDS_HERE:
        if kind.ref in (GADGET, WIDGET):
            made = definition(kind)
            await ensure(store, made)
            await established(store, made.key)
            await emptied(store, kind.ref)
    return store


@pytest.fixture
async def client(kubernetes: ClusterAccess) -> AsyncIterator[ApiClient]:
    async with connected(Cluster(kubeconfig=str(kubernetes.kubeconfig))) as client:
        yield client


@pytest.fixture
async def store(client: ApiClient) -> KubernetesStore:
    return await prepared(client)


class TestKubernetesStore(ResourceStoreSuite):
    """The suite on a cluster."""


async def test_a_long_list_comes_in_pages(store: KubernetesStore, monkeypatch: pytest.MonkeyPatch):
    for number in range(7):
        await store.create(gadget(f"g{number}", namespace=("default", "other")[number % 2]))
    whole = await store.list(GADGET)
    monkeypatch.setattr(api, "_PAGE", 3)
    paged = await store.list(GADGET)
    assert len(paged.items) == 7
    assert paged == whole


async def test_what_was_stored_without_defaults_is_read_with_them(client: ApiClient, store: KubernetesStore):
    kind = Kind(ref=GADGET, plural="gadgets", singular="gadget", spec_type=GadgetSpec, default=with_colour)
    reader = KubernetesStore(client, (kind,))
    made = await store.create(gadget("plain"))
    await store.create(gadget("broken").with_spec({"size": "large"}))
    assert made.spec == {"size": 1}
    assert (await reader.get(made.key)).spec == {"size": 1, "colour": "red"}
    assert [item.spec for item in (await reader.list(GADGET)).items] == [
        {"size": "large"},
        {"size": 1, "colour": "red"},
    ]


async def test_a_watch_from_before_what_is_kept_is_refused(store: KubernetesStore):
    with pytest.raises(Gone, match=r"[Ll]ist again"):
        await take(store.watch(GADGET, 1), 1)


async def test_managed_fields_are_left_to_the_server(store: KubernetesStore, kubernetes: ClusterAccess):
    made = await store.create(gadget("a"))
    await store.update(made.with_meta(labels={"x": "y"}))
    assert made.meta.managed_fields == ()
    told = kubectl(kubernetes, "get", "gadgets.test.penstock.dev", "a", "--show-managed-fields", "-o", "yaml")
    assert "manager: penstock" in told


async def test_a_kind_that_the_cluster_does_not_have_is_not_found(client: ApiClient):
    ref = KindRef("absent.penstock.dev", "v1", "Absent")
    store = KubernetesStore(client, (Kind(ref=ref, plural="absents", singular="absent"),))
    with pytest.raises(NotFound, match="Install its definition"):
        await store.list(ref)
    with pytest.raises(NotFound, match="Install its definition"):
        await take(store.watch(ref, 1), 1)


async def test_a_service_account_may_do_what_its_role_says_and_its_token_is_read_again(
    kubernetes: ClusterAccess, tmp_path: Path
):
    for words in (
        ("create", "serviceaccount", "reader"),
        ("create", "role", "reader", "--verb=list", "--resource=configmaps"),
        ("create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader"),
    ):
        with contextlib.suppress(subprocess.CalledProcessError):  # There already, where the cluster is somebody's own.
            kubectl(kubernetes, *words)
    token = tmp_path / "token"
    token.write_text("not.a.token")
    (tmp_path / "ca.crt").write_bytes(kubernetes.ca)
    async with connected(ServiceAccount(server=kubernetes.server, folder=tmp_path)) as client:
        store = KubernetesStore(client, KINDS)
        with pytest.raises(Unavailable, match="credentials"):
            await store.list(CONFIG_MAP, "default")
        token.with_suffix(".new").write_text(kubectl(kubernetes, "create", "token", "reader"))
        token.with_suffix(".new").rename(token)
        await store.list(CONFIG_MAP, "default")
        with pytest.raises(InvalidInput, match="forbidden"):
            await store.list(CONFIG_MAP)


async def test_a_closed_client_is_unavailable(kubernetes: ClusterAccess):
    async with connected(Cluster(kubeconfig=str(kubernetes.kubeconfig))) as client:
        store = KubernetesStore(client, KINDS_HERE)
        await store.list(CONFIG_MAP)
    with pytest.raises(Unavailable, match="closed"):
        await store.list(CONFIG_MAP)


async def test_a_lease_in_the_cluster_passes_from_one_candidate_to_the_next(store: KubernetesStore):
    lease = Key(LEASE, "default", "election")
    with contextlib.suppress(NotFound):
        await store.delete(lease)
    times = ElectionTimes(lease_s=6.0, renew_s=4.0, retry_s=0.1)
    leaders: asyncio.Queue[str] = asyncio.Queue()

    def candidate(name: str) -> asyncio.Task[None]:
        async def work() -> None:
            leaders.put_nowait(name)
            await asyncio.Event().wait()

        return asyncio.create_task(Election(store, lease, name, SystemClock(), times=times).run(work))

    async with asyncio.timeout(DEADLINE_S):
        running = {"one": candidate("one")}
        assert await leaders.get() == "one"
        running["two"] = candidate("two")
        running.pop("one").cancel()
        assert await leaders.get() == "two"
    held = (await store.get(lease)).spec
    assert (held["holderIdentity"], held["leaseDurationSeconds"], held["leaseTransitions"]) == ("two", 6, 1)
    running["two"].cancel()
    await asyncio.gather(running["two"], return_exceptions=True)
    assert not (await store.get(lease)).spec.get("holderIdentity")


async def test_an_event_in_the_cluster_is_shown_by_kubectl_and_counted(
    store: KubernetesStore, kubernetes: ClusterAccess
):
    recorder = EventRecorder(store, SystemClock(), "penstock-control")
    recording = asyncio.create_task(recorder.run())
    about = await store.create(gadget("told"))
    start = (await store.list(EVENT)).version
    async with contextlib.aclosing(store.watch(EVENT, start)) as watch:
        for _ in range(2):
            recorder.tell(about, Note("Warning", "NoSink", "The sink is missing."))
        first, second = [change.resource for change in await take(watch, 2)]
    assert first is not None
    assert second is not None
    assert (first.key, first.body["count"], second.body["count"]) == (second.key, 1, 2)
    assert "NoSink" in kubectl(kubernetes, "describe", "gadgets.test.penstock.dev", "told")
    recording.cancel()
    await asyncio.gather(recording, return_exceptions=True)


@pytest.mark.service("kubernetes", own=True)
async def test_a_follower_keeps_its_state_while_the_api_server_is_away_and_catches_up_afterwards(
    control_plane: ControlPlane,
):
    changed = asyncio.Event()
    async with connected(Cluster(kubeconfig=str(control_plane.access.kubeconfig))) as client:
        store = await prepared(client)
        made = await store.create(gadget("a"))
        follower = Follower(store, (GADGET, WIDGET), lambda batch: changed.set())
        following = asyncio.create_task(follower.run())
        async with asyncio.timeout(DEADLINE_S):
            await follower.synced.wait()
        control_plane.apiserver.kill()
        with pytest.raises(Unavailable, match="does not answer"):
            await store.get(key("a"))
        assert follower.get(made.key) == made
        await asyncio.to_thread(control_plane.apiserver.start)
        changed.clear()
        later = await store.update(made.with_spec({"size": 2}))
        async with asyncio.timeout(DEADLINE_S):
            await changed.wait()
        assert follower.get(made.key) == later
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
