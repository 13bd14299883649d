"""Instances as pods on a real control plane: the suite, and what only a real cluster can say of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from core.control.cache import Follower
from core.control.kubernetes.connection import ApiClient, connected
from core.control.kubernetes.connection import Cluster as Connection
from core.control.kubernetes.store import KubernetesStore
from core.resources import Key, KindRef, ObjectMeta, OwnerReference, Resource
from core.resources.builtin import CONFIG_MAP, DEPLOYMENT, KINDS, POD, SECRET
from serving.instances.kubernetes.client import ClusterPodLogs
from serving.instances.kubernetes.pods import FOLLOWED, PodInstances
from serving.instances.kubernetes.pods import KINDS as POD_KINDS
from serving.instances.kubernetes.template import PRE_STOP_S
from serving.instances.port import CannotRun, Instance, InstanceSpec, PodTemplate
from serving.published import endpoint_slice
from tests.conformance.instances import DEADLINE_S, InstancesConformance, Watched
from tests.conformance.test_instances import FUNCTION, post
from tests.support.kubelet.cluster import Cluster

IMAGE = "example.com/checkout"


#: Longer than a pod serves on before its SIGTERM, so that the request is under way when it comes.
LONG_REQUEST_S = PRE_STOP_S + 2
LONG = f"""
    if event.get_type() == "long":
        time.sleep({LONG_REQUEST_S})
    if event.get_type() == "unready":
        open("/tmp/unready", "w").close()
"""
#: Not ready any more once it was sent an "unready".
PROBE = {
    "exec": {"command": ["bash", "-c", "test ! -e /tmp/unready && : < /dev/tcp/127.0.0.1/8080"]},
    "periodSeconds": 1,
    "failureThreshold": 1,
}


class Control:
    """What a control process holds: a follower, and the adapter that runs on it."""

    def __init__(self, client: ApiClient, store: KubernetesStore, namespace: str) -> None:
        self.follower = Follower(store, FOLLOWED)
        self.instances = PodInstances(store=store, follower=self.follower, logs=ClusterPodLogs(client))
        self.watched = Watched(self.instances, namespace)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(one.run()) for one in (self.follower, self.instances)]
        await self.follower.synced.wait()

    async def end(self, *more: asyncio.Task[None]) -> None:
        for task in (*self._tasks, *more):
            task.cancel()
        await asyncio.gather(*self._tasks, *more, return_exceptions=True)


class ClusterHarness:
    """The adapter on the cluster. A ConfigMap stands in for the Revision that everything belongs to."""

    refused = ("InvalidPod", "restartPolicy")
    keeps_logs = False

    def __init__(self, client: ApiClient, store: KubernetesStore, namespace: str, owner: Resource) -> None:
        self.store = store
        self.namespace = namespace
        self.owner = owner
        self.successor = Control(client, store, namespace)
        self.control = Control(client, store, namespace)
        self.instances = self.control.instances
        self.watched = self.control.watched

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

    def spec_of(self, **pod: object) -> InstanceSpec:
        """`spec` with these members of its pod."""
        spec = self.spec()
        assert spec.template is not None
        return replace(spec, template=replace(spec.template, spec={**spec.template.spec, **pod}))

    def unknown_spec(self) -> InstanceSpec:
        return self.spec_of(restartPolicy="Never")

    async def refused_at(self, spec: InstanceSpec) -> None:
        """Ask for one instance again and again, as the autoscaler does, until that is refused."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await self.instances.scale(spec, 1)
                await asyncio.sleep(0.1)

    async def send(self, name: str, event_type: str, subject: str) -> bytes:
        address = self.watched.latest(name).address
        assert address is not None
        return await post(address, event_type, subject)

    async def crash(self, name: str) -> None:
        await self.send(name, "crash", "boom")

    async def write(self, name: str, text: str) -> None:
        assert b" 204 " in await self.send(name, "say", text)

    async def begun(self, count: int) -> list[str]:
        names = await self.watched.begun(self.spec(), count)
        await self.watched.ready(*names)
        return names

    async def deployment(self) -> Resource:
        return await self.store.get(Key(DEPLOYMENT, self.namespace, "hello-00001-deployment"))

    async def none_left(self, kind: KindRef) -> None:
        """Wait until there is nothing of the kind."""
        listing = await self.store.list(kind, self.namespace)
        left = {one.meta.name for one in listing.items}
        async with (
            asyncio.timeout(DEADLINE_S),
            aclosing(self.store.watch(kind, listing.version, self.namespace)) as changes,
        ):
            while left:
                change = await anext(changes)
                if change.type == "DELETED" and change.resource is not None:
                    left.discard(change.resource.meta.name)


@pytest.fixture
async def pods(cluster: Cluster, namespace: str) -> AsyncIterator[ClusterHarness]:
    async with connected(Connection(kubeconfig=str(cluster.plane.access.kubeconfig))) as client:
        store = KubernetesStore(client, (*KINDS, *POD_KINDS))
        meta = ObjectMeta(name="hello-00001", namespace=namespace)
        owner = await store.create(Resource(ref=CONFIG_MAP, meta=meta, body={"data": {"function.py": FUNCTION + LONG}}))
        harness = ClusterHarness(client, store, namespace, owner)
        await harness.control.start()
        yield harness
        await harness.control.end()


class TestPodInstances(InstancesConformance):
    @pytest.fixture
    def harness(self, pods: ClusterHarness) -> ClusterHarness:
        return pods


async def test_the_pod_that_was_chosen_goes_and_first_ends_what_it_is_doing(pods: ClusterHarness) -> None:
    names = await pods.begun(3)
    under_way = asyncio.create_task(pods.send(names[1], "long", "x"))
    await pods.instances.stop(pods.namespace, names[1])
    assert b" 204 " in await under_way
    assert pods.watched.present == [names[0], names[2]]
    assert {pods.watched.latest(name).phase for name in pods.watched.present} == {"ready"}
    assert (await pods.deployment()).spec["replicas"] == 2


async def test_several_go_at_once_and_the_others_are_not_touched(pods: ClusterHarness) -> None:
    names = await pods.begun(5)
    chosen = {names[0], names[2], names[3]}
    await asyncio.gather(*(pods.instances.stop(pods.namespace, name) for name in chosen))
    assert set(pods.watched.present) == set(names) - chosen
    assert [pods.watched.phases(name)[-1] for name in names if name not in chosen] == ["ready", "ready"]
    assert (await pods.deployment()).spec["replicas"] == 2


async def test_a_stop_that_a_crash_broke_off_is_ended_by_the_next_process(
    cluster: Cluster, pods: ClusterHarness
) -> None:
    names = await pods.begun(2)
    cluster.plane.manager.pause()
    try:
        stopping = asyncio.create_task(pods.instances.stop(pods.namespace, names[0]))
        await pods.watched.until(lambda: pods.watched.latest(names[0]).phase == "draining")
        await pods.control.end(stopping)
    finally:
        cluster.plane.manager.resume()
    await pods.successor.start()
    watched = pods.successor.watched
    await watched.until(lambda: watched.present == [names[1]])
    assert watched.latest(names[1]).phase == "ready"
    await pods.successor.end()


async def test_where_the_cluster_takes_another_pod_the_chosen_one_goes_all_the_same(
    cluster: Cluster, pods: ClusterHarness
) -> None:
    names = await pods.watched.begun(pods.spec(readinessProbe=PROBE), 3)
    await pods.watched.ready(*names)
    chosen, unlucky, other = names
    cluster.plane.manager.pause()
    try:
        stopping = asyncio.create_task(pods.instances.stop(pods.namespace, chosen))
        await pods.watched.until(lambda: pods.watched.latest(chosen).phase == "draining")
        await pods.send(unlucky, "unready", "x")
        await pods.watched.until(lambda: pods.watched.latest(unlucky).phase != "ready")
    finally:
        cluster.plane.manager.resume()
    await stopping
    await pods.watched.until(lambda: len(pods.watched.present) == 2)
    await pods.watched.ready(*pods.watched.present)
    assert other in pods.watched.present
    assert pods.watched.latest(unlucky).phase == "gone"
    assert (await pods.deployment()).spec["replicas"] == 2


async def test_a_pod_that_somebody_deletes_drains_and_another_comes(cluster: Cluster, pods: ClusterHarness) -> None:
    (name,) = await pods.begun(1)
    await pods.store.delete(Key(POD, pods.namespace, name))
    await pods.watched.until(lambda: pods.watched.latest(name).phase == "draining")
    await pods.watched.until(lambda: pods.watched.latest(name).phase == "gone" and len(pods.watched.present) == 1)
    await pods.watched.ready(*pods.watched.present)


async def test_of_the_clusters_pods_only_functions_are_followed(pods: ClusterHarness) -> None:
    (name,) = await pods.begun(1)
    container = {"name": "main", "image": IMAGE, "command": ["sleep", "60"]}
    meta = ObjectMeta(name="somebody-elses", namespace=pods.namespace)
    await pods.store.create(Resource(ref=POD, meta=meta, body={"spec": {"containers": [container]}}))
    await pods.instances.stop(pods.namespace, name)
    assert {pod.meta.name for pod in pods.control.follower.list(POD, pods.namespace)} <= {name}
    assert pods.watched.told[-1].phase == "gone"


async def test_an_image_that_does_not_exist_is_told_as_kubernetes_tells_it(pods: ClusterHarness) -> None:
    (name,) = await pods.watched.begun(pods.spec(image="example.com/nobody/made-this:1"), 1)
    await pods.watched.until(lambda: pods.watched.latest(name).phase == "waiting")
    waiting = pods.watched.latest(name)
    assert waiting.reason in ("ErrImagePull", "ImagePullBackOff")
    assert "example.com/nobody/made-this:1" in waiting.message
    await pods.instances.stop(pods.namespace, name)


async def test_what_no_node_has_room_for_is_told_as_kubernetes_tells_it(pods: ClusterHarness) -> None:
    (name,) = await pods.watched.begun(pods.spec(resources={"limits": {"nvidia.com/gpu": "1"}}), 1)
    await pods.watched.until(lambda: pods.watched.latest(name).phase == "waiting")
    assert pods.watched.latest(name).reason == "Unschedulable"
    assert pods.watched.latest(name).message
    await pods.instances.stop(pods.namespace, name)


async def test_pods_that_the_cluster_does_not_make_are_told_when_they_are_asked_for_again(pods: ClusterHarness) -> None:
    spec = pods.spec_of(serviceAccountName="nobody")
    with pytest.raises(CannotRun, match='serviceaccount "nobody" not found') as refused:
        await pods.refused_at(spec)
    assert refused.value.reason == "FailedCreate"


#: All that a Revision's pod may have, as far as the API server judges it without knowing what it names.
WHOLE_POD: dict[str, Any] = {
    "initContainers": [
        {"name": "fetch", "image": IMAGE, "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
        {"name": "proxy", "image": IMAGE, "restartPolicy": "Always"},
    ],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["gpu"]}]},
                }
            ]
        }
    },
    "nodeSelector": {"pool": "gpu"},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": "hello"}},
        }
    ],
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "schedulerName": "mine",
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.1"]},
    "hostAliases": [{"ip": "10.0.0.2", "hostnames": ["db"]}],
    "securityContext": {"runAsNonRoot": True, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    "serviceAccountName": "painter",
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "imagePullSecrets": [{"name": "registry"}],
    "shareProcessNamespace": True,
    "hostNetwork": False,
    "volumes": [
        {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "host", "hostPath": {"path": "/data", "type": "Directory"}},
        {"name": "secrets", "csi": {"driver": "secrets-store.csi.k8s.io", "readOnly": True}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {
            "name": "work",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                }
            },
        },
    ],
}


async def test_the_api_server_keeps_the_whole_pod_specification(pods: ClusterHarness) -> None:
    container = {
        "name": "user-container",
        "image": IMAGE,
        "imagePullPolicy": "Always",
        "ports": [{"containerPort": 9000}],
        "env": [
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "envFrom": [{"prefix": "A_", "configMapRef": {"name": "texts", "optional": True}}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "livenessProbe": {"httpGet": {"path": "/healthz"}, "periodSeconds": 10},
        "startupProbe": {"grpc": {"port": 0}, "failureThreshold": 30},
        "readinessProbe": {"httpGet": {"path": "/ready"}, "successThreshold": 1},
        "volumeMounts": [
            {"name": each["name"], "mountPath": f"/{each['name']}", "mountPropagation": "HostToContainer"}
            for each in WHOLE_POD["volumes"]
        ],
    }
    written = {**WHOLE_POD, "containers": [container, {"name": "helper", "image": IMAGE}]}
    await pods.instances.scale(replace(pods.spec_of(**written), port=9000), 0)
    template = (await pods.deployment()).spec["template"]["spec"]
    (made, _) = written.pop("containers")
    expect(template, written)
    made = {name: value for name, value in made.items() if not name.endswith("Probe") and name != "ports"}
    expect(template["containers"][0], {**made, "env": [*made["env"], {"name": "PORT", "value": "9000"}]})
    assert template["containers"][0]["startupProbe"]["grpc"]["port"] == 9000


def expect(stored: Any, written: Any) -> None:
    """All that was written is in what was stored, which may hold more: defaults, and what comes last in lists."""
    if isinstance(written, dict):
        for name, value in written.items():
            assert name in stored or value is False, name
            expect(stored.get(name, False), value)
    elif isinstance(written, list):
        for one, other in zip(stored, written, strict=False):
            expect(one, other)
        assert len(stored) >= len(written)
    else:
        assert stored == written


async def test_init_containers_sidecars_volumes_and_variables_are_there_when_the_function_starts(
    cluster: Cluster, pods: ClusterHarness
) -> None:
    secret = {"data": {"word": "c2VjcmV0"}, "type": "Opaque"}
    await pods.store.create(Resource(ref=SECRET, meta=ObjectMeta(name="words", namespace=pods.namespace), body=secret))
    mounts = [{"name": "shared", "mountPath": "/srv/shared"}]
    sidecar = {"name": "helper", "image": IMAGE, "command": ["sh", "-c", "echo up > /srv/shared/helper; sleep 600"]}
    prepare = "echo prepared, > /srv/shared/init"
    code = "import os, pathlib\ndef handle(event):\n    print(' '.join([*(pathlib.Path('/srv/shared', name).read_text()"
    code += ".strip() for name in ('init', 'helper')), os.environ['WORD'], os.environ['K_SERVICE']]), flush=True)\n"
    owner = await pods.store.get(pods.owner.key)
    await pods.store.update(msgspec.structs.replace(owner, body={"data": {"function.py": code}}))
    spec = pods.spec(env=[{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "words", "key": "word"}}}])
    assert spec.template is not None
    (serving,) = spec.template.spec["containers"]
    serving = {**serving, "ports": [{"containerPort": 8080}], "volumeMounts": [*serving["volumeMounts"], *mounts]}
    pod = {
        "containers": [serving, {**sidecar, "volumeMounts": mounts}],
        "initContainers": [
            {"name": "prepare", "image": IMAGE, "command": ["sh", "-c", prepare], "volumeMounts": mounts}
        ],
        "volumes": [*spec.template.spec["volumes"], {"name": "shared", "emptyDir": {}}],
    }
    (name,) = await pods.watched.begun(pods.spec_of(**pod), 1)
    await pods.watched.ready(name)
    await pods.write(name, "now")
    lines = pods.instances.log(pods.namespace, "hello-00001", tail=1, follow=False)
    assert [line.text async for line in lines] == ["prepared, up secret hello"]


async def test_with_the_revision_everything_goes(pods: ClusterHarness) -> None:
    names = await pods.begun(2)
    await pods.store.delete(pods.owner.key)
    await asyncio.gather(*(pods.instances.stop(pods.namespace, name) for name in names))
    await pods.none_left(DEPLOYMENT)
    await pods.none_left(POD)
    assert pods.watched.present == []


async def test_while_the_api_server_is_away_a_stop_waits_and_then_goes_on(
    cluster: Cluster, pods: ClusterHarness
) -> None:
    names = await pods.begun(2)
    await asyncio.to_thread(cluster.plane.apiserver.kill)
    stopping = asyncio.create_task(pods.instances.stop(pods.namespace, names[0]))
    assert b" 204 " in await pods.send(names[0], "say", "still here")
    await asyncio.to_thread(cluster.plane.apiserver.start)
    async with asyncio.timeout(2 * DEADLINE_S):
        await stopping
    assert pods.watched.present == [names[1]]


@pytest.mark.parametrize("host", ["10.244.3.4", "fd00::1:2"], ids=["IPv4", "IPv6"])
async def test_an_instances_endpoint_slice_is_stored_as_it_is_written(pods: ClusterHarness, host: str) -> None:
    instance = Instance(
        name="hello-00001-deployment-1",
        namespace=pods.namespace,
        revision="hello-00001",
        phase="ready",
        address=(host, 8080),
    )
    wanted = endpoint_slice(instance, pods.owner, None)
    stored = await pods.store.create(wanted)
    assert stored.body == wanted.body
    again = await pods.store.update(wanted.with_meta(resource_version=stored.meta.resource_version))
    assert again.meta.resource_version == stored.meta.resource_version
