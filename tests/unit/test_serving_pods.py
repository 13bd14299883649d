"""Instances as pods on virtual time, in a cluster that is a fake: what is written, in which order, and what happens
when something comes in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from core.control.cache import Follower
from core.errors import Conflict, NotFound, Unavailable
from core.resources import Key, OwnerReference
from core.resources.builtin import DEPLOYMENT, POD
from serving.instances.kubernetes.pods import FOLLOWED, MAX_ATTEMPTS, PodInstances
from serving.instances.port import CannotRun, InstanceSpec, LogLine, PodTemplate
from tests.conformance.instances import Watched
from tests.support.pod_world import PodStore, PodWorld
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

NAME = "hello-00001-deployment"
LEAVING = "penstock.dev/leaving"
COST = "controller.kubernetes.io/pod-deletion-cost"


def spec(image="example.com/hello", uid="uid-1", **more):
    owner = OwnerReference(
        api_version="serving.knative.dev/v1", kind="Revision", name="hello-00001", uid=uid, controller=True
    )
    pod = {"containers": [{"name": "user-container", "image": image}]}
    return InstanceSpec(
        namespace="default",
        revision="hello-00001",
        service="hello",
        configuration="hello",
        image=image,
        template=PodTemplate(owner=owner, spec=pod),
        **more,
    )


class Cluster:
    def __init__(self, **world):
        self.memory = PodStore(clock=VirtualClock())
        self.store = FaultyStore(self.memory)
        self.world = PodWorld(self.memory, **world)
        self.follower, self.instances, self.watched = self.adapter()

    def adapter(self):
        follower = Follower(self.store, FOLLOWED)
        instances = PodInstances(store=self.store, follower=follower, logs=self.world.logs)
        return follower, instances, Watched(instances)

    async def deployment(self, name=NAME):
        return await self.memory.get(Key(DEPLOYMENT, "default", name))

    async def pods(self):
        return {pod.meta.name: pod for pod in (await self.memory.list(POD)).items}

    async def active(self):
        return [name for name, pod in (await self.pods()).items() if not pod.meta.deletion_timestamp]

    async def scaled(self, count):
        names = await self.watched.begun(spec(), count)
        await self.watched.ready(*names)
        return names


@asynccontextmanager
async def cluster(**world) -> AsyncIterator[Cluster]:
    made = Cluster(**world)
    tasks = [asyncio.create_task(one.run()) for one in (made.world, made.follower, made.instances)]
    try:
        yield made
    finally:
        await cancelled(*tasks)


async def cancelled(*tasks):
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


def test_a_count_of_zero_makes_the_deployment_so_that_the_first_start_is_one_write():
    async def main():
        async with cluster() as it:
            await it.instances.scale(spec(), 0)
            deployment = await it.deployment()
            assert deployment.spec["replicas"] == 0
            assert [owner.uid for owner in deployment.meta.owner_references] == ["uid-1"]
            it.store.calls.clear()
            await it.instances.scale(spec(), 2)
            assert dict(it.store.calls) == {"update": 1}
            await it.instances.scale(spec(), 2)
            assert dict(it.store.calls) == {"update": 1}

    run_virtual(main())


def test_exactly_the_pod_that_was_chosen_is_taken_and_the_others_stay():
    async def main():
        async with cluster() as it:
            names = await it.scaled(3)
            # The ReplicaSet itself would take the first by name.
            await it.instances.stop("default", names[2])
            await asyncio.sleep(5)
            assert await it.active() == names[:2]
            deployment = await it.deployment()
            assert deployment.spec["replicas"] == 2
            assert it.watched.phases(names[2])[-2:] == ["draining", "gone"]

    run_virtual(main())


def test_several_pods_are_stopped_at_once_and_no_other_is_touched():
    async def main():
        async with cluster(drain_s=2.0) as it:
            names = await it.scaled(6)
            chosen = [names[1], names[3], names[4]]
            await asyncio.gather(*(it.instances.stop("default", name) for name in [*chosen, chosen[0]]))
            await asyncio.sleep(5)
            assert await it.active() == [name for name in names if name not in chosen]
            assert (await it.deployment()).spec["replicas"] == 3
            assert len(await it.pods()) == 3

    run_virtual(main())


def test_many_stops_at_once_share_one_write_to_the_deployment():
    async def main():
        async with cluster() as it:
            names = await it.scaled(8)
            it.store.calls.clear()
            it.store.write_takes_s = 0.05
            await asyncio.gather(*(it.instances.stop("default", name) for name in names[1:]))
            assert it.store.calls["update"] <= 7 + 2  # a mark each, the first one's write, and one for all others
            assert (await it.deployment()).spec["replicas"] == 1
            await asyncio.sleep(5)
            assert await it.active() == names[:1]

    run_virtual(main())


def test_where_the_shared_write_fails_every_stop_goes_on():
    async def main():
        async with cluster() as it:
            names = await it.scaled(4)
            it.world.frozen = True
            stops = [asyncio.create_task(it.instances.stop("default", name)) for name in names[1:]]
            await it.watched.until(lambda: it.watched.latest(names[1]).phase == "draining")
            it.store.fail_next["update"] = [Conflict("It changed.")] * (MAX_ATTEMPTS + 1)
            await asyncio.sleep(1)
            it.world.thaw()
            await asyncio.gather(*stops)
            await asyncio.sleep(5)
            assert await it.active() == names[:1]
            assert (await it.deployment()).spec["replicas"] == 1

    run_virtual(main())


def test_a_copy_of_a_pod_that_nobody_controls_is_no_instance():
    async def main():
        async with cluster() as it:
            (name,) = await it.scaled(1)
            pod = (await it.pods())[name]
            copy = pod.with_meta(name="copy", uid="", resource_version="", owner_references=(), finalizers=())
            await it.memory.create(copy)
            await asyncio.sleep(5)
            assert it.watched.present == [name]

    run_virtual(main())


def test_a_new_process_is_told_of_the_oldest_pod_first():
    async def main():
        async with cluster() as it:
            (old,) = await it.scaled(1)
            await asyncio.sleep(5)
            # The fake's names count up; this one's would come first by name.
            it.world.next_number = 0
            await it.instances.scale(spec(), 2)
            await it.watched.until(lambda: len(it.watched.present) == 2)
            (new,) = set(it.watched.present) - {old}
            assert new < old
            follower, instances, watched = it.adapter()
            tasks = [asyncio.create_task(one.run()) for one in (follower, instances)]
            await watched.until(lambda: len(watched.present) == 2)
            assert watched.present == [old, new]
            await cancelled(*tasks)

    run_virtual(main())


def test_a_pod_that_drains_is_not_counted_and_what_is_asked_for_meanwhile_comes_beside_it():
    async def main():
        async with cluster(drain_s=10.0) as it:
            names = await it.scaled(2)
            stopping = asyncio.create_task(it.instances.stop("default", names[0]))
            await it.watched.until(lambda: it.watched.latest(names[0]).phase == "draining")
            await it.instances.scale(spec(), 2)
            await it.watched.until(lambda: len(it.watched.present) == 3)
            await it.watched.ready(it.watched.present[-1])
            assert not stopping.done()
            await stopping
            await asyncio.sleep(5)
            assert len(await it.active()) == 2
            assert names[1] in await it.active()

    run_virtual(main())


def test_where_the_cluster_took_another_pod_the_chosen_one_goes_all_the_same():
    async def main():
        async with cluster() as it:
            names = await it.scaled(3)
            it.world.frozen = True
            stopping = asyncio.create_task(it.instances.stop("default", names[0]))
            await it.watched.until(lambda: it.watched.latest(names[0]).phase == "draining")
            # Just before the ReplicaSet looks, another one becomes unready: that one goes first in its order.
            await it.world.unready(names[1])
            it.world.thaw()
            await stopping
            await asyncio.sleep(5)
            active = await it.active()
            assert len(active) == 2
            assert names[0] not in active
            assert names[2] in active
            assert len([one for one in it.watched.told if one.name == names[0] and one.phase == "gone"]) == 1

    run_virtual(main())


def test_a_stop_that_a_crash_broke_off_is_ended_by_the_next_process():
    async def main():
        async with cluster() as it:
            names = await it.scaled(3)
            it.world.frozen = True
            stopping = asyncio.create_task(it.instances.stop("default", names[0]))
            await it.watched.until(lambda: it.watched.latest(names[0]).phase == "draining")
            await cancelled(stopping)
            await it.world.unready(names[1])
            it.world.thaw()
            follower, instances, watched = it.adapter()
            tasks = [asyncio.create_task(one.run()) for one in (follower, instances)]
            await asyncio.sleep(5)
            assert names[0] not in await it.active()
            assert len(await it.active()) == 2
            assert names[0] not in watched.present
            await cancelled(*tasks)

    run_virtual(main())


def test_a_mark_without_the_second_write_leaves_the_pod_where_it_is():
    async def main():
        async with cluster() as it:
            names = await it.scaled(2)
            pod = (await it.pods())[names[0]]
            await it.memory.update(pod.with_meta(annotations={COST: "-2147483648"}))
            follower, instances, watched = it.adapter()
            tasks = [asyncio.create_task(one.run()) for one in (follower, instances)]
            await asyncio.sleep(5)
            assert watched.latest(names[0]).phase == "ready"
            assert await it.active() == names
            await cancelled(*tasks)

    run_virtual(main())


def test_writes_that_find_their_resource_changed_are_made_again_on_what_is_there():
    async def main():
        async with cluster() as it:
            names = await it.scaled(3)
            it.store.fail_next["update"] = [Conflict("The pod changed."), Conflict("It changed again.")]
            await it.instances.stop("default", names[1])
            await asyncio.sleep(5)
            assert await it.active() == [names[0], names[2]]
            assert (await it.deployment()).spec["replicas"] == 2
            it.store.fail_next["update"] = [Conflict("The Deployment changed.")]
            await it.instances.scale(spec(), 4)
            await asyncio.sleep(5)
            assert len(await it.active()) == 4

    run_virtual(main())


def test_a_deployment_that_another_writer_has_just_scaled_keeps_what_both_wanted():
    async def main():
        async with cluster() as it:
            names = await it.scaled(2)
            it.store.lagging, it.store.watch_lags_s = DEPLOYMENT, 30.0
            held = await it.deployment()
            await it.memory.update(held.with_meta(annotations={**held.meta.annotations, "a": "b"}))
            await it.instances.stop("default", names[0])
            deployment = await it.deployment()
            assert deployment.spec["replicas"] == 1
            assert deployment.meta.annotations["a"] == "b"

    run_virtual(main())


def test_while_the_api_is_away_a_stop_waits_and_then_goes_on():
    async def main():
        async with cluster() as it:
            names = await it.scaled(2)
            it.store.go_down()
            stopping = asyncio.create_task(it.instances.stop("default", names[0]))
            with pytest.raises(Unavailable):
                await it.instances.scale(spec(), 3)
            await asyncio.sleep(60)
            assert not stopping.done()
            assert [one.phase for one in map(it.watched.latest, names)] == ["ready", "ready"]
            it.store.come_up()
            await stopping
            assert await it.active() == [names[1]]

    run_virtual(main())


def test_an_evicted_pod_is_gone_and_another_comes():
    async def main():
        async with cluster() as it:
            (name,) = await it.scaled(1)
            await it.world.evict(name)
            await it.watched.until(lambda: it.watched.latest(name).phase == "gone")
            assert (it.watched.latest(name).reason, it.watched.latest(name).message) == ("Evicted", "low on memory")
            await it.watched.until(lambda: len(it.watched.present) == 1)
            await it.watched.ready(*it.watched.present)
            assert (await it.deployment()).spec["replicas"] == 1
            await it.instances.stop("default", name)  # it is gone already

    run_virtual(main())


def test_a_pod_that_somebody_deletes_drains_and_is_replaced():
    async def main():
        async with cluster(drain_s=3.0) as it:
            (name,) = await it.scaled(1)
            await it.memory.delete(Key(POD, "default", name))
            await it.watched.until(lambda: it.watched.latest(name).phase == "draining")
            assert it.watched.latest(name).address is not None
            await it.watched.until(lambda: len(it.watched.present) == 2)
            await asyncio.sleep(10)
            assert len(await it.pods()) == 1

    run_virtual(main())


def test_what_was_asked_for_and_has_not_begun_is_taken_back():
    async def main():
        async with cluster() as it:
            names = await it.scaled(1)
            it.world.frozen = True
            await it.instances.scale(spec(), 5)
            await it.instances.scale(spec(), 1)
            it.world.thaw()
            await asyncio.sleep(5)
            assert await it.active() == names

    run_virtual(main())


def test_a_template_of_a_newer_controller_is_taken_over_when_there_are_no_pods_and_replaces_none():
    async def main():
        async with cluster() as it:
            (name,) = await it.scaled(1)
            newer = spec(image="example.com/hello@sha256:1")
            await it.instances.scale(newer, 1)
            await asyncio.sleep(5)
            assert await it.active() == [name]
            held = (await it.deployment()).spec["template"]["spec"]["containers"][0]["image"]
            assert held == "example.com/hello"
            await it.instances.stop("default", name)
            await it.instances.scale(newer, 1)
            held = (await it.deployment()).spec["template"]["spec"]["containers"][0]["image"]
            assert held == "example.com/hello@sha256:1"

    run_virtual(main())


def test_what_the_api_server_filled_in_is_no_change_of_the_template():
    async def main():
        async with cluster() as it:
            await it.instances.scale(spec(), 0)
            held = await it.deployment()
            template = {**held.spec["template"], "spec": {**held.spec["template"]["spec"], "dnsPolicy": "ClusterFirst"}}
            await it.memory.update(held.with_spec({**held.spec, "template": template}))
            await asyncio.sleep(1)
            it.store.calls.clear()
            await it.instances.scale(spec(), 0)
            assert dict(it.store.calls) == {}

    run_virtual(main())


def test_a_namesakes_deployment_is_left_alone():
    async def main():
        async with cluster() as it:
            await it.instances.scale(spec(), 0)
            with pytest.raises(CannotRun, match="somebody else") as refused:
                await it.instances.scale(spec(uid="uid-2"), 1)
            assert refused.value.reason == "NotOwned"

    run_virtual(main())


def test_why_the_cluster_makes_no_pods_is_told():
    async def main():
        async with cluster() as it:
            it.world.frozen = True
            await it.instances.scale(spec(), 1)
            held = await it.deployment()
            message = 'pods "hello" is forbidden: exceeded quota'
            failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
            await it.memory.update_status(held.with_status({"conditions": [failure]}))
            await asyncio.sleep(1)
            with pytest.raises(CannotRun, match="exceeded quota") as refused:
                await it.instances.scale(spec(), 1)
            assert refused.value.reason == "FailedCreate"

    run_virtual(main())


def test_in_a_namespace_that_is_gone_nothing_is_tried_again_at_once():
    async def main():
        async with cluster() as it:
            it.store.fail_next["create"] = [NotFound('namespaces "default" not found')]
            with pytest.raises(Unavailable, match="namespaces"):
                await it.instances.scale(spec(), 1)
            assert it.store.calls["create"] == 1

    run_virtual(main())


def test_pods_of_a_deployment_that_is_gone_are_deleted_directly():
    async def main():
        async with cluster() as it:
            names = await it.scaled(2)
            await it.memory.delete((await it.deployment()).key)
            await asyncio.gather(*(it.instances.stop("default", name) for name in names))
            assert await it.pods() == {}

    run_virtual(main())


def test_a_specification_without_a_pod_is_refused():
    async def main():
        async with cluster() as it:
            with pytest.raises(CannotRun, match="hello-00001"):
                await it.instances.scale(replace(spec(), template=None), 1)

    run_virtual(main())


def test_a_log_that_cannot_be_read_is_told_in_its_place_and_the_others_are_read():
    async def main():
        async with cluster() as it:
            names = await it.scaled(3)
            for name in names:
                await it.world.logs.write(name, "here")
            it.world.logs.fail_next = [Unavailable("The node is away."), NotFound("It has not started.")]
            lines = it.instances.log("default", "hello-00001", tail=None, follow=False)
            assert [line async for line in lines] == [
                LogLine(names[0], "(its log cannot be read: The node is away.)"),
                LogLine(names[2], "here"),
            ]

    run_virtual(main())


def test_a_followed_log_goes_on_over_a_failing_api_a_restart_and_a_pod_that_comes_later():
    async def main():
        async with cluster() as it:
            (first,) = await it.scaled(1)
            logs = it.world.logs
            await logs.write(first, "one")
            lines = it.instances.log("default", "hello-00001", tail=None, follow=True)
            assert await anext(lines) == LogLine(first, "one")
            logs.fail_next = [Unavailable("The node is away.")]
            await logs.write(first, "two")
            assert await anext(lines) == LogLine(first, "two")
            await asyncio.sleep(5)
            await logs.write(first, "three")
            assert await anext(lines) == LogLine(first, "three")
            await it.instances.scale(spec(), 2)
            await it.watched.until(lambda: len(it.watched.present) == 2)
            second = it.watched.present[1]
            await logs.write(second, "four")
            assert await anext(lines) == LogLine(second, "four")
            await lines.aclose()

    run_virtual(main())
