"""Instances as pods on a real control plane: the suite, and what only a real cluster can say of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from core.control.cache import Follower
from core.control.kubernetes.connection import Cluster as Connection
from core.control.kubernetes.connection import connected
from core.control.kubernetes.store import KubernetesStore
from core.resources import Key, KindRef, ObjectMeta, OwnerReference, Resource
from core.resources.builtin import CONFIG_MAP, DEPLOYMENT, KINDS, WORKLOADS
from serving.instances.kubernetes.client import ClusterPodLogs
from serving.instances.kubernetes.pods import FOLLOWED, PodInstances
from serving.instances.port import InstanceSpec, PodTemplate
from tests.conformance.instances import InstancesConformance, Watched
from tests.conformance.test_instances import FUNCTION, post
from tests.support.kubelet.cluster import Cluster

IMAGE = "example.com/checkout"


class ClusterHarness:
    """The adapter on the cluster. A ConfigMap stands in for the Revision that everything belongs to."""

    refused = ("InvalidPod", "restartPolicy")
    keeps_logs = False

    def __init__(self, store: KubernetesStore, instances: PodInstances, namespace: str, owner: Resource) -> None:
        self.store = store
        self.instances = instances
        self.namespace = namespace
        self.owner = owner
        self.watched = Watched(instances, namespace)

    def spec(self, revision: str = "hello-00001", **changed: object) -> InstanceSpec:
        meta = self.owner.meta
        owner = OwnerReference(api_version="v1", kind="ConfigMap", name=meta.name, uid=meta.uid, controller=True)
        container = {
            "name": "user-container",
            "image": IMAGE,
            "command": ["penstock", "serve", "--host", "0.0.0.0", "/srv/function"],  # noqa: S104 - in a pod
            "readinessProbe": {"tcpSocket": {"port": 0}},
            "volumeMounts": [{"name": "code", "mountPath": "/srv/function", "readOnly": True}],
            **changed,
        }
        volumes = [{"name": "code", "configMap": {"name": meta.name}}]
        return InstanceSpec(
            namespace=self.namespace,
            revision=revision,
            service="hello",
            configuration="hello",
            image=IMAGE,
            drain_timeout_s=10,
            template=PodTemplate(owner=owner, spec={"containers": [container], "volumes": volumes}),
        )

    def unknown_spec(self) -> InstanceSpec:
        spec = self.spec()
        assert spec.template is not None
        template = replace(spec.template, spec={**spec.template.spec, "restartPolicy": "Never"})
        return replace(spec, template=template)

    async def send(self, name: str, event_type: str, subject: str) -> bytes:
        address = self.watched.latest(name).address
        assert address is not None
        return await post(address, event_type, subject)

    async def crash(self, name: str) -> None:
        await self.send(name, "crash", "boom")

    async def write(self, name: str, text: str) -> None:
        assert b" 204 " in await self.send(name, "say", text)

    async def deployment(self) -> Resource:
        return await self.store.get(Key(DEPLOYMENT, self.namespace, "hello-00001-deployment"))

    async def count(self, kind: KindRef) -> int:
        return len((await self.store.list(kind, self.namespace)).items)


@pytest.fixture
async def pods(cluster: Cluster, namespace: str) -> AsyncIterator[ClusterHarness]:
    async with connected(Connection(kubeconfig=str(cluster.plane.access.kubeconfig))) as client:
        store = KubernetesStore(client, (*KINDS, *WORKLOADS))
        follower = Follower(store, FOLLOWED)
        instances = PodInstances(store=store, follower=follower, logs=ClusterPodLogs(client))
        meta = ObjectMeta(name="hello-00001", namespace=namespace)
        owner = await store.create(Resource(ref=CONFIG_MAP, meta=meta, body={"data": {"function.py": FUNCTION}}))
        running = [asyncio.create_task(one.run()) for one in (follower, instances)]
        await follower.synced.wait()
        yield ClusterHarness(store, instances, namespace, owner)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class TestPodInstances(InstancesConformance):
    @pytest.fixture
    def harness(self, pods: ClusterHarness) -> ClusterHarness:
        return pods
