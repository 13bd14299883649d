"""The control side of serving over pods on virtual time: store and cluster are fakes, all between them is real."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.control.gc import GarbageCollector
from core.control.loop import ControlLoop
from core.errors import NotFound
from core.resources import Key
from core.resources.builtin import DEPLOYMENT, ENDPOINT_SLICE, POD
from core.telemetry import Metrics
from serving.autoscaler import FOLLOWED, Autoscaler
from serving.instances.kubernetes.pods import FOLLOWED as PODS_FOLLOW
from serving.instances.kubernetes.pods import PodInstances
from serving.instances.spec import instance_spec
from serving.reconcile import reconcilers
from serving.resources import REVISION, SERVICE
from serving.scaling import ScalingSettings
from tests.support.pod_world import PodStore, PodWorld
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual
from tests.unit.test_serving_autoscaler import Platform

LEAVING = "penstock.dev/leaving"


class PodPlatform(Platform):
    """One control process over a cluster. `cut` is between the two."""

    def __init__(self, world: PodWorld) -> None:
        self.world = world
        self.store = world.store
        self.cut = FaultyStore(world.store)
        self.metrics = Metrics()
        self.clock = VirtualClock()
        followed = FOLLOWED | PODS_FOLLOW
        self.loop = ControlLoop(self.cut, reconcilers(url_suffix=".localhost"), self.clock, also_follow=followed)
        self.instances = PodInstances(store=self.cut, follower=self.loop.follower, logs=world.logs)
        self.autoscaler = Autoscaler(
            store=self.cut,
            follower=self.loop.follower,
            instances=self.instances,
            describe=instance_spec,
            clock=self.clock,
            settings=ScalingSettings(),
            metrics=self.metrics,
        )
        self.collector = GarbageCollector(self.cut, self.loop.follower)

    async def pods(self):
        return [pod for pod in (await self.store.list(POD)).items if pod.status.get("phase") != "Failed"]

    async def active(self):
        return [pod.meta.name for pod in await self.pods() if not pod.meta.deletion_timestamp]

    async def deployment(self):
        return await self.store.get(Key(DEPLOYMENT, "default", "hello-00001-deployment"))


@asynccontextmanager
async def control(world: PodWorld) -> AsyncIterator[PodPlatform]:
    """A control process, from its start to its crash."""
    made = PodPlatform(world)
    parts = (made.loop, made.autoscaler, made.instances, made.collector)
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


@asynccontextmanager
async def cluster(**times: float) -> AsyncIterator[PodWorld]:
    world = PodWorld(PodStore(), **times)
    running = asyncio.create_task(world.run())
    try:
        yield world
    finally:
        running.cancel()
        ended = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError), ended


def test_a_service_starts_one_pod_becomes_ready_and_goes_to_zero_with_its_deployment_kept():
    async def main():
        async with cluster(start_s=0.5, drain_s=1.0) as world, control(world) as it:
            await it.apply(window="6s")
            await asyncio.sleep(1)
            assert await it.condition(SERVICE, "hello") == ("True", "")
            (pod,) = await it.pods()
            (published,) = await it.slices()
            assert published.meta.name == pod.meta.name
            assert published.body["endpoints"][0]["addresses"] == [pod.status["podIP"]]
            await asyncio.sleep(20)
            assert await it.pods() == []
            assert await it.slices() == ()
            assert (await it.deployment()).spec["replicas"] == 0
            assert LEAVING in (await it.deployment()).meta.annotations
            it.demand(queued=3)
            await asyncio.sleep(0.6)
            assert len(await it.slices()) == 1
            assert LEAVING not in (await it.deployment()).meta.annotations

    run_virtual(main())


def test_scale_follows_load_up_and_down_and_the_time_of_starts_is_measured():
    async def main():
        async with cluster(start_s=0.5, drain_s=1.0) as world, control(world) as it:
            await it.apply(target=10, target_utilization_percentage=100, window="10s", max_scale=4)
            await asyncio.sleep(1)
            await it.load(12, 25.0)
            assert len(await it.active()) == 3
            await it.load(12, 100.0)
            assert len(await it.active()) == 4
            await it.load(30, 5.0)
            assert len(await it.active()) == len(await it.slices()) == 1
            starts = it.metrics.histogram("penstock_instance_start_seconds", "")
            assert sum(starts.counts) == 4
            assert starts.total == pytest.approx(4 * 0.5, rel=0.1)

    run_virtual(main())


def test_a_pod_is_out_of_the_slices_before_it_is_deleted():
    async def main():
        async with cluster(start_s=0.5, drain_s=1.0) as world, control(world) as it:
            await it.apply(window="6s")
            await asyncio.sleep(1)
            order = []

            async def changes(kind, since):
                async for change in it.store.watch(kind, since):
                    if change.type == "DELETED" or change.resource.meta.deletion_timestamp:
                        order.append((kind.kind, asyncio.get_running_loop().time()))
                        return

            since = (await it.store.list(POD)).version
            await asyncio.gather(changes(ENDPOINT_SLICE, since), changes(POD, since))
            (first, withdrawn_at), (second, deleted_at) = order
            assert (first, second) == ("EndpointSlice", "Pod")
            assert deleted_at - withdrawn_at >= 0.25

    run_virtual(main())


def test_a_rollout_that_crashes_leaves_the_old_revision_serving_and_says_why():
    async def main():
        async with cluster(start_s=0.5) as world, control(world) as it:
            await it.apply(min_scale=1)
            await asyncio.sleep(2)
            world.start_s = 60.0
            await it.apply(image="example.com/hello:2", min_scale=1)
            await asyncio.sleep(1)
            (broken,) = [name for name in await it.active() if name.startswith("hello-00002")]
            waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
            status = {"name": "user-container", "restartCount": 0, "state": {"waiting": waiting}}
            await world.change(broken, {"containerStatuses": [status]})
            await asyncio.sleep(0.1)
            assert await it.condition(REVISION, "hello-00002", "ContainerHealthy") == ("False", "ImagePullBackOff")
            assert await it.condition(SERVICE, "hello") == ("False", "RevisionFailed")
            assert len([one for one in await it.slices() if one.meta.name.startswith("hello-00001")]) == 1

    run_virtual(main())


def test_deleting_a_service_leaves_nothing():
    async def main():
        async with cluster(drain_s=1.0) as world, control(world) as it:
            await it.apply(min_scale=3)
            await asyncio.sleep(2)
            await it.store.delete(Key(SERVICE, "default", "hello"))
            await asyncio.sleep(10)
            assert await it.pods() == []
            assert await it.slices() == ()
            assert (await it.store.list(DEPLOYMENT)).items == ()

    run_virtual(main())


async def disturb(world: PodWorld, it: PodPlatform, rng: random.Random) -> None:
    """Something that happens in clusters."""
    names = [name for name in await it.active() if name]
    what = rng.choice(["load", "load", "load", "evict", "unready", "crash", "delete", "away", "freeze", "wait"])
    if what == "load":
        it.demand(concurrency=rng.choice([0.0, 5.0, 15.0, 35.0, 80.0]), queued=rng.choice([0, 0, 3]))
    elif what == "away":
        it.cut.go_down()
        await asyncio.sleep(rng.random() * 4)
        it.cut.come_up()
    elif what == "freeze":
        world.frozen = True
        await asyncio.sleep(rng.random() * 4)
        world.thaw()
    elif names and what in ("evict", "unready", "crash", "delete"):
        name = rng.choice(names)
        with contextlib.suppress(NotFound, ValueError, KeyError):
            if what == "delete":
                await it.store.delete(Key(POD, "default", name))
            else:
                await getattr(world, what)(name)
    await asyncio.sleep(rng.random() * 3)


#: With 30 the cluster takes another pod than the one that was chosen.
@pytest.mark.parametrize("seed", [2, 13, 30, 41])
def test_whatever_happens_there_are_in_the_end_as_many_pods_as_were_decided(seed: int):
    """Load, evictions, crashes, deletions, an API and controllers that are away, and control processes that die."""

    async def main():
        rng = random.Random(seed)
        async with cluster(start_s=0.7, drain_s=1.3, restart_s=0.4) as world:
            async with control(world) as it:
                await it.apply(target=10, target_utilization_percentage=100, window="6s", max_scale=9)
            for _ in range(4):
                async with control(world) as it:
                    for _ in range(12):
                        await disturb(world, it, rng)
                        slices = {one.meta.name for one in await it.slices()}
                        assert len(slices) == len(await it.slices())
            async with control(world) as it:
                await it.load(40, 25.0)
                active = await it.active()
                assert len(active) == 3, f"seed {seed}"
                deployment = await it.deployment()
                assert deployment.spec["replicas"] == 3
                left = deployment.meta.annotations.get(LEAVING, "").split(",")
                assert not set(left) & set(active), f"seed {seed}"
                await asyncio.sleep(60)
                assert await it.active() == []
                assert await it.slices() == ()

    run_virtual(main())
