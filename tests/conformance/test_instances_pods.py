"""The Instances suite on pods, in a cluster that is a fake; `tests/cluster` has it on a real control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from core.control.cache import Follower
from core.resources import OwnerReference
from serving.instances.kubernetes.pods import FOLLOWED, PodInstances
from serving.instances.port import InstanceSpec, PodTemplate
from tests.conformance.instances import InstancesConformance
from tests.support.pod_world import PodStore, PodWorld


class PodHarness:
    refused = ("InvalidPod", "spec.template.spec.restartPolicy")
    namespace = "default"
    keeps_logs = False

    def __init__(self) -> None:
        store = PodStore()
        follower = Follower(store, FOLLOWED)
        self.world = PodWorld(store)
        self.instances = PodInstances(store=store, follower=follower, logs=self.world.logs)
        self.running = [asyncio.create_task(one.run()) for one in (self.world, self.instances, follower)]

    def spec(self, revision: str = "hello-00001") -> InstanceSpec:
        owner = OwnerReference(
            api_version="serving.knative.dev/v1", kind="Revision", name=revision, uid=f"uid-{revision}", controller=True
        )
        image = "example.com/hello"
        return InstanceSpec(
            namespace="default",
            revision=revision,
            service="hello",
            configuration="hello",
            image=image,
            template=PodTemplate(owner=owner, spec={"containers": [{"name": "user-container", "image": image}]}),
        )

    def unknown_spec(self) -> InstanceSpec:
        spec = self.spec()
        assert spec.template is not None
        template = replace(spec.template, spec={**spec.template.spec, "restartPolicy": "Never"})
        return replace(spec, template=template)

    async def crash(self, name: str) -> None:
        await self.world.crash(name)

    async def write(self, name: str, text: str) -> None:
        await self.world.logs.write(name, text)

    async def close(self) -> None:
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


class TestPodInstances(InstancesConformance):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PodHarness]:
        harness = PodHarness()
        yield harness
        await harness.close()
