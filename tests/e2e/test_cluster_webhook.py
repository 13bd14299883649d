"""A real API server asks the admission webhooks: a cluster defaults and refuses as `penstock up` does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from broker.flows import PARALLEL, SEQUENCE
from broker.messaging import CHANNEL, SUBSCRIPTION
from broker.reconcile import reconcilers as broker_reconcilers
from core.clock import SystemClock
from core.control.events import EventRecorder
from core.control.kubernetes.connection import Cluster, connected
from core.control.kubernetes.store import KubernetesStore
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.errors import AlreadyExists, InvalidInput, NotFound, PenstockError
from core.resources import Kind, KindRef, ObjectMeta, Resource, is_ready
from core.resources.builtin import EVENT
from core.telemetry import Metrics
from penstock.apiserver.app import create_app
from penstock.apiserver.webhook import create_webhook, serving_webhook
from penstock.cluster import crds
from penstock.kinds import registry
from serving.kpa import KpaState
from serving.reconcile import reconcilers as serving_reconcilers
from serving.reconcile.podautoscaler import scaling_status
from serving.resources import POD_AUTOSCALER
from sources.reconcile import reconcilers as source_reconcilers
from tests.support.apiserver import AsgiExchange, FixedClock
from tests.support.controlplane.pki import Authority
from tests.support.controlplane.servers import ControlPlane
from tests.support.document import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.service("kubernetes", own=True)]

DEADLINE_S = 30.0
POLL_S = 0.05

CRD = KindRef("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
CLUSTER_KINDS = (
    Kind(ref=CRD, plural="customresourcedefinitions", singular="customresourcedefinition", namespaced=False),
    *(
        Kind(
            ref=KindRef("admissionregistration.k8s.io", "v1", name),
            plural=f"{name.lower()}s",
            singular=name.lower(),
            namespaced=False,
        )
        for name in WEBHOOKS
    ),
)
#: As kubectl would see them: the kinds without their defaults.
PLAIN = tuple(Kind(ref=kind.ref, plural=kind.plural, singular=kind.singular) for kind in registry())

TRIGGERS = "/apis/eventing.knative.dev/v1/namespaces/default/triggers"
SUBSCRIBER = {"uri": "http://example.com"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster of its own: its webhooks are the whole cluster's."""
    with ControlPlane(tmp_path_factory.mktemp("webhook")) as plane:
        yield plane


@pytest.fixture
async def store(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[KubernetesStore]:
    """The cluster, whose kinds are defaulted and judged by our webhooks."""
    authority = Authority(tmp_path / "pki")
    certificates(tmp_path, authority)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(Cluster(kubeconfig=str(plane.access.kubeconfig))))
        store = KubernetesStore(client, (*PLAIN, *CLUSTER_KINDS))
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        await stack.enter_async_context(serving_webhook(create_webhook(registry()), sock, tmp_path, drain_s=1))
        for kind in crds.custom_kinds(registry()):
            with contextlib.suppress(AlreadyExists):
                await store.create(Resource.from_dict(crds.definition(kind)))
        url = f"https://127.0.0.1:{sock.getsockname()[1]}"
        for name, path in zip(WEBHOOKS, ("default", "validate"), strict=True):
            made = await store.create(configuration(name, f"{url}/{path}", authority.certificate.read_bytes()))
            stack.push_async_callback(store.delete, made.key)
        await asked(store)
        yield store


def certificates(folder: Path, authority: Authority) -> None:
    """What the chart's Secret holds."""
    certificate, key = authority.serving("webhook", ("127.0.0.1",))
    os.replace(certificate, folder / "tls.crt")
    os.replace(key, folder / "tls.key")


def configuration(kind: str, url: str, authority: bytes) -> Resource:
    webhook = {
        "name": f"{kind.lower()}.webhook.penstock.dev",
        "clientConfig": {"url": url, "caBundle": base64.b64encode(authority).decode()},
        "rules": crds.webhook_rules(registry()),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
    }
    ref = KindRef("admissionregistration.k8s.io", "v1", kind)
    return Resource(ref=ref, meta=ObjectMeta(name="penstock"), body={"webhooks": [webhook]})


async def asked(store: KubernetesStore) -> None:
    """Wait until the API server serves the kinds and asks both webhooks, which takes it about a second."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(PenstockError):
                await store.delete(trigger("probe").key)
            try:
                made = await store.create(trigger("probe"))
                await store.create(trigger("refused", retry=-1))
            except InvalidInput as error:
                if "denied the request" in str(error) and made.spec.get("broker") == "default":
                    return
            except PenstockError as error:
                print(error)
            await asyncio.sleep(POLL_S)


def trigger(name: str = "t", **delivery: Any) -> Resource:
    spec: dict[str, Any] = {"subscriber": SUBSCRIBER}
    if delivery:
        spec["delivery"] = delivery
    ref = KindRef("eventing.knative.dev", "v1", "Trigger")
    return Resource(ref=ref, meta=ObjectMeta(name=name, namespace="default"), body={"spec": spec})


async def embedded(resource: Resource) -> Any:
    """What the embedded API server answers to the same create."""
    app = create_app(store=MemoryStore(), registry=registry(), clock=FixedClock(), metrics=Metrics())
    body = msgspec.json.encode(resource.to_dict())
    exchange = AsgiExchange("POST", TRIGGERS, body, {"content-type": "application/json"})
    await exchange.run(app)
    return exchange.answer().json


async def test_what_is_stored_has_the_defaults_of_the_embedded_api_server(store: KubernetesStore):
    made = await store.create(trigger("defaulted"))
    same = await embedded(trigger("defaulted"))
    assert (made.spec, made.meta.labels) == (same["spec"], same["metadata"]["labels"])
    assert made.spec["broker"] == "default"


@pytest.mark.parametrize(
    "resource",
    [
        pytest.param(trigger(retry=-1, backoffDelay="soon"), id="rules"),
        pytest.param(trigger(retry="often"), id="a wrong type"),
        pytest.param(trigger().with_spec({"subscriber": {"ref": {"kind": "Service"}}}), id="missing members"),
        pytest.param(
            trigger().with_spec({"subscriber": SUBSCRIBER, "filters": [{"all": [{"exact": {"Type": "x"}}, {}]}]}),
            id="deep in filters",
        ),
        pytest.param(
            trigger().with_spec({"subscriber": SUBSCRIBER, "filters": [{"not": {"not": {"exakt": {}}}}]}),
            id="an unknown member where the schema takes any",
        ),
    ],
)
async def test_what_is_refused_is_refused_in_the_same_words(store: KubernetesStore, resource: Resource):
    with pytest.raises(InvalidInput) as refused:
        await store.create(resource)
    same = await embedded(resource)
    assert str(refused.value).endswith(same["message"])
    causes = same["details"].get("causes", [])
    assert [error.path for error in refused.value.errors] == [cause["field"] for cause in causes]


async def test_what_broke_a_rule_before_there_were_webhooks_can_still_be_deleted(store: KubernetesStore):
    made = await store.create(trigger("held").with_meta(finalizers=("penstock.dev/held",)))
    broken = made.with_spec({**made.spec, "broker": "other"})
    with pytest.raises(InvalidInput, match=r"spec\.broker: .*immutable"):
        await store.update(broken)
    marked = await store.delete(made.key)
    await store.update(marked.with_meta(finalizers=()))
    with pytest.raises(NotFound):
        await store.get(made.key)


async def test_a_status_is_not_asked_about(store: KubernetesStore):
    made = await store.create(trigger("status"))
    held = await store.update_status(made.with_status({"observedGeneration": 1}))
    assert held.status == {"observedGeneration": 1}
    await store.delete(made.key)


async def test_what_the_platform_writes_itself_passes_its_own_admission(store: KubernetesStore):
    """The example's resources become ready, once somebody says that their instances have started."""
    clock = SystemClock()
    reconcilers = (*broker_reconcilers(), *source_reconcilers(), *serving_reconcilers(url_suffix=".example.com"))
    recorder = EventRecorder(store, clock, "penstock-control")
    loop = ControlLoop(store, reconcilers, clock, on_status=recorder.status_changed)
    documents = [
        document
        for path in sorted((ROOT / "examples/pictures/manifests").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    services = [document["metadata"]["name"] for document in documents if document["kind"] == "Service"]
    running = [asyncio.create_task(loop.run()), asyncio.create_task(recorder.run())]
    try:
        for document in documents:
            meta = {**document["metadata"], "namespace": "default"}
            await store.create(Resource.from_dict({**document, "metadata": meta}))
        async with asyncio.timeout(DEADLINE_S):
            for scaler in await held(store, POD_AUTOSCALER, lambda found: len(found) == len(services)):
                started = msgspec.structs.replace(KpaState.start(1, 0.0), initialized=True)
                status = scaling_status(scaler, state=started, ready=1, failure=None, now=clock.now())
                await store.update_status(scaler.with_status(status))
            await held(store, EVENT, lambda found: told_ready(found) >= set(services))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


FLOWS = """
apiVersion: flows.knative.dev/v1
kind: Sequence
metadata: {name: steps, namespace: default}
spec:
  steps: [{uri: "http://one.example/"}, {uri: "http://two.example/", delivery: {retry: 1}}]
---
apiVersion: flows.knative.dev/v1
kind: Parallel
metadata: {name: branches, namespace: default}
spec:
  channelTemplate: {apiVersion: messaging.knative.dev/v1, kind: Channel, spec: {delivery: {retry: 2}}}
  branches:
    - filter: {uri: "http://filter.example/"}
      subscriber: {ref: {apiVersion: flows.knative.dev/v1, kind: Sequence, name: steps}}
  reply: {ref: {apiVersion: messaging.knative.dev/v1, kind: Channel, name: branches-kn-parallel}}
"""


async def test_a_flow_and_its_parts_pass_admission_and_come_to_rest(store: KubernetesStore):
    loop = ControlLoop(store, broker_reconcilers(), SystemClock())
    running = asyncio.create_task(loop.run())

    def ready(found: Collection[Resource]) -> bool:
        return all(is_ready(one.status, one.meta.generation) == "True" for one in found)

    try:
        for document in yaml.safe_load_all(FLOWS):
            await store.create(Resource.from_dict(document))
        async with asyncio.timeout(DEADLINE_S):
            for kind in (SEQUENCE, PARALLEL):
                await held(store, kind, lambda found: bool(found) and ready(found))
            parts = await held(store, SUBSCRIPTION, lambda found: len(found) == 4 and ready(found))
            channels = await held(store, CHANNEL, lambda found: len(found) == 2 and ready(found))
        # A reconciler that wants what admission changes writes it again with every look.
        assert {one.meta.generation for one in (*parts, *channels)} == {1}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def held(
    store: KubernetesStore, kind: KindRef, enough: Callable[[Collection[Resource]], bool]
) -> tuple[Resource, ...]:
    """All resources of a kind, as soon as they are `enough`."""
    listing = await store.list(kind)
    found = {item.key: item for item in listing.items}
    async with contextlib.aclosing(store.watch(kind, listing.version)) as watch:
        while not enough(found.values()):
            change = await anext(watch)
            if change.resource is not None:
                found[change.resource.key] = change.resource
    return tuple(found.values())


def told_ready(events: Collection[Resource]) -> set[str]:
    """The Services of which an Event says that they are ready."""
    return {
        event.body["involvedObject"]["name"]
        for event in events
        if event.body["reason"] == "Ready" and event.body["involvedObject"]["kind"] == "Service"
    }
