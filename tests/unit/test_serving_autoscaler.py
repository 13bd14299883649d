"""The whole control side of serving on virtual time: real store in memory, real loop, instances that are a fake."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.control.gc import GarbageCollector
from core.control.loop import ControlLoop
from core.control.memory import MemoryStore
from core.errors import NotFound, Overloaded, PenstockError, Unavailable
from core.resources import Key, ObjectMeta, Registry, Resource
from core.resources.builtin import CONFIG_MAP, ENDPOINT_SLICE
from core.telemetry import Metrics
from serving.autoscaler import DRAIN_NOTICE_S, FOLLOWED, Autoscaler
from serving.demand import Demand, DemandReport
from serving.instances.memory import MemoryInstances
from serving.instances.port import Instance
from serving.instances.spec import FOLLOWED as VARIABLE_SOURCES
from serving.instances.spec import instance_spec
from serving.reconcile import reconcilers
from serving.resources import CONFIGURATION, KINDS, POD_AUTOSCALER, REVISION, ROUTE, SERVICE
from serving.scaling import ScalingSettings
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

REGISTRY = Registry(KINDS)
SCALE = "autoscaling.knative.dev/"


class Platform:
    """The parts under test, and what a person and a gateway would do."""

    def __init__(self, store: MemoryStore, instances: MemoryInstances) -> None:
        self.store = store
        self.instances = instances
        self.metrics = Metrics()
        self.clock = VirtualClock()
        followed = FOLLOWED | VARIABLE_SOURCES
        self.loop = ControlLoop(store, reconcilers(url_suffix=".localhost:8080"), self.clock, also_follow=followed)
        self.autoscaler = Autoscaler(
            store=store,
            follower=self.loop.follower,
            instances=instances,
            describe=lambda revision: instance_spec(revision, self.loop.follower.get),
            clock=self.clock,
            settings=ScalingSettings(),
            metrics=self.metrics,
        )

    async def apply(self, name="hello", *, image="example.com/hello:1", source="functions/hello", **scaling):
        annotations = {SCALE + key.replace("_", "-"): str(value) for key, value in scaling.items()}
        if source:
            annotations["penstock.dev/source"] = source
        template = {"metadata": {"annotations": annotations}, "spec": {"containers": [{"image": image}]}}
        made = Resource(
            ref=SERVICE, meta=ObjectMeta(name=name, namespace="default"), body={"spec": {"template": template}}
        )
        made = REGISTRY.get(SERVICE).default(made)
        try:
            held = await self.get(SERVICE, name)
        except NotFound:
            return await self.store.create(made)
        return await self.store.update(held.with_spec(made.spec))

    async def get(self, kind, name):
        return await self.store.get(Key(kind, "default", name))

    def demand(self, queued=0, *, revision="hello-00001", concurrency=0.0, rps=0.0, gateway="g1"):
        told = Demand(namespace="default", name=revision, concurrency=concurrency, rps=rps, queued=queued)
        self.autoscaler.report(DemandReport(gateway=gateway, revisions=(told,)))

    async def load(self, seconds, concurrency, **more):
        """A gateway that reports each second."""
        for _ in range(seconds):
            self.demand(concurrency=concurrency, **more)
            await asyncio.sleep(1)

    async def condition(self, kind, name, condition="Ready"):
        status = (await self.get(kind, name)).status
        entry = next((one for one in status.get("conditions", ()) if one["type"] == condition), {})
        return entry.get("status"), entry.get("reason", "")

    async def slices(self):
        return (await self.store.list(ENDPOINT_SLICE)).items

    def running(self, revision="hello-00001"):
        return [one for one in self.instances.instances if one.revision == revision]


@asynccontextmanager
async def platform(store=None, instances=None) -> AsyncIterator[Platform]:
    instances = instances or MemoryInstances(start_s=0.1, drain_s=0.1)
    made = Platform(store or MemoryStore(), instances)
    collector = GarbageCollector(made.store, made.loop.follower)
    tasks = [asyncio.create_task(one.run()) for one in (made.loop, made.autoscaler, collector)]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        made.instances.close()
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


def test_a_service_becomes_ready_by_starting_one_instance_and_goes_to_zero_when_idle():
    async def main():
        async with platform() as it:
            await it.apply(window="6s")
            await asyncio.sleep(0.05)
            assert await it.condition(SERVICE, "hello") == ("Unknown", "RevisionMissing")
            assert await it.condition(REVISION, "hello-00001", "Active") == ("Unknown", "Queued")
            await asyncio.sleep(0.2)
            assert await it.condition(SERVICE, "hello") == ("True", "")
            scaler = await it.get(POD_AUTOSCALER, "hello-00001")
            assert (scaler.status["desiredScale"], scaler.status["actualScale"]) == (1, 1)
            # Without them, Knative's own definition refuses the status.
            assert {"serviceName", "metricsServiceName"} <= scaler.status.keys()
            assert await it.condition(POD_AUTOSCALER, "hello-00001", "ScaleTargetInitialized") == ("True", "")
            await asyncio.sleep(10)
            assert it.running() == []
            assert await it.slices() == ()
            assert await it.condition(SERVICE, "hello") == ("True", "")
            assert await it.condition(REVISION, "hello-00001", "Active") == ("False", "NoTraffic")
            revision = await it.get(REVISION, "hello-00001")
            assert (revision.status["actualReplicas"], revision.status["desiredReplicas"]) == (0, 0)

    run_virtual(main())


def test_initial_scale_zero_is_ready_without_starting_anything():
    async def main():
        async with platform() as it:
            await it.apply(initial_scale=0)
            await asyncio.sleep(5)
            assert it.running() == []
            assert await it.condition(SERVICE, "hello") == ("True", "")

    run_virtual(main())


def test_a_held_request_starts_an_instance_at_once_and_its_slice_follows_readiness_at_once():
    async def main():
        async with platform() as it:
            await it.apply(initial_scale=0)
            await asyncio.sleep(5.3)
            loop = asyncio.get_running_loop()
            told: list[tuple[float, Instance]] = []
            it.instances.watch(lambda instance: told.append((loop.time(), instance)))
            began = loop.time()
            it.demand(queued=1)
            async for change in it.store.watch(ENDPOINT_SLICE, (await it.store.list(ENDPOINT_SLICE)).version):
                assert change.resource is not None
                published = change.resource
                break
            assert [(one.phase, round(at - began, 6)) for at, one in told] == [("starting", 0.0), ("ready", 0.1)]
            assert loop.time() - began == pytest.approx(0.1)
            (instance,) = it.running()
            assert published.meta.name == instance.name
            assert published.meta.labels["serving.knative.dev/revision"] == "hello-00001"
            assert published.body["endpoints"][0]["addresses"] == ["127.0.0.1"]
            assert published.body["endpoints"][0]["conditions"]["ready"] is True
            assert published.body["endpoints"][0]["targetRef"]["name"] == instance.name
            assert published.body["ports"] == [{"name": "http", "protocol": "TCP", "port": instance.address[1]}]
            revision = await it.get(REVISION, "hello-00001")
            assert published.meta.owner_references[0].uid == revision.meta.uid

    run_virtual(main())


def test_many_held_requests_start_as_many_instances_as_they_need_in_one_step():
    async def main():
        async with platform() as it:
            await it.apply(initial_scale=0, target=10, target_utilization_percentage=100)
            await asyncio.sleep(5)
            it.demand(queued=45)
            await asyncio.sleep(0.01)
            assert len(it.running()) == 5

    run_virtual(main())


def test_instances_that_appear_some_time_after_they_were_asked_for_are_asked_for_once():
    async def main():
        instances = MemoryInstances(appear_s=3.0, start_s=0.5, drain_s=0.1)
        async with platform(instances=instances) as it:
            await it.apply(initial_scale=0, target=10, target_utilization_percentage=100, window="60s")
            await asyncio.sleep(5)
            told: set[str] = set()
            instances.watch(lambda instance: told.add(instance.name))
            it.demand(queued=25)
            await it.load(10, 25.0)
            assert len(told) == len(it.running()) == 3
            starts = it.metrics.histogram("penstock_instance_start_seconds", "")
            assert sum(starts.counts) == 3
            assert starts.total == pytest.approx(3 * 3.5)

    run_virtual(main())


def test_what_was_asked_for_and_is_not_needed_any_more_is_taken_back():
    async def main():
        instances = MemoryInstances(appear_s=30.0, start_s=0.1, drain_s=0.1)
        async with platform(instances=instances) as it:
            await it.apply(min_scale=1, target=10, target_utilization_percentage=100, window="6s")
            await asyncio.sleep(35)
            await it.load(5, 25.0)
            assert it.autoscaler.decisions("default", "hello")[-1].desired == 3
            told: set[str] = set()
            instances.watch(lambda instance: told.add(instance.name))
            await asyncio.sleep(120)
            assert len(told) == len(it.running()) == 1

    run_virtual(main())


def test_scale_follows_load_up_and_down():
    async def main():
        async with platform() as it:
            await it.apply(target=10, target_utilization_percentage=100, window="10s", max_scale=4)
            await asyncio.sleep(1)
            await it.load(12, 25.0)
            assert len(it.running()) == 3
            await it.load(12, 100.0)
            assert len(it.running()) == 4
            await it.load(30, 5.0)
            assert len(it.running()) == 1
            assert len(await it.slices()) == 1
            await it.load(2, 0.0)
            await asyncio.sleep(20)
            assert it.running() == []

    run_virtual(main())


def test_the_demand_of_several_gateways_is_added_and_a_silent_one_forgotten():
    async def main():
        async with platform() as it:
            await it.apply(target=10, target_utilization_percentage=100, window="6s")
            await asyncio.sleep(1)
            for _ in range(8):
                it.demand(concurrency=10.0, gateway="a")
                it.demand(concurrency=10.0, gateway="b")
                await asyncio.sleep(1)
            assert len(it.running()) == 2
            await it.load(20, 10.0, gateway="a")
            assert len(it.running()) == 1

    run_virtual(main())


def test_requests_per_second_can_be_the_metric():
    async def main():
        async with platform() as it:
            await it.apply(metric="rps", target=100, target_utilization_percentage=100, window="6s")
            await asyncio.sleep(1)
            await it.load(10, 1.0, rps=250.0)
            assert len(it.running()) == 3

    run_virtual(main())


def test_min_scale_holds_without_demand():
    async def main():
        async with platform() as it:
            await it.apply(min_scale=2, window="6s")
            await asyncio.sleep(60)
            assert len(it.running()) == 2
            assert await it.condition(SERVICE, "hello") == ("True", "")

    run_virtual(main())


def test_a_new_revision_takes_over_only_once_it_is_ready_and_the_old_one_goes():
    async def main():
        async with platform() as it:
            await it.apply(min_scale=1, window="6s")
            await asyncio.sleep(1)
            it.instances.start_s = 5.0
            await it.apply(image="example.com/hello:2", min_scale=1, window="6s")
            await asyncio.sleep(3)
            route = await it.get(ROUTE, "hello")
            assert [target["revisionName"] for target in route.status["traffic"]] == ["hello-00001"]
            assert len(it.running()) == 1
            await asyncio.sleep(3)
            route = await it.get(ROUTE, "hello")
            assert [target["revisionName"] for target in route.status["traffic"]] == ["hello-00002"]
            assert await it.condition(SERVICE, "hello") == ("True", "")
            await asyncio.sleep(15)
            assert it.running() == []
            assert len(it.running("hello-00002")) == 1

    run_virtual(main())


def test_a_rollout_that_crashes_leaves_the_old_revision_serving_and_says_why():
    async def main():
        async with platform() as it:
            await it.apply(min_scale=1)
            await asyncio.sleep(1)
            it.instances.start_s = 5.0
            await it.apply(image="example.com/hello:2", min_scale=1)
            await asyncio.sleep(1)
            it.instances.crash(it.running("hello-00002")[0].name, exit_code=3, message="ImportError: no such module")
            await asyncio.sleep(0.1)
            assert await it.condition(REVISION, "hello-00002", "ContainerHealthy") == ("False", "ExitCode3")
            assert await it.condition(SERVICE, "hello") == ("False", "RevisionFailed")
            service = await it.get(SERVICE, "hello")
            ready = next(one for one in service.status["conditions"] if one["type"] == "ConfigurationsReady")
            assert "ImportError: no such module" in ready["message"]
            assert service.status["traffic"][0]["revisionName"] == "hello-00001"
            assert len(it.running()) == 1
            await asyncio.sleep(10)
            assert await it.condition(SERVICE, "hello") == ("True", "")

    run_virtual(main())


def test_why_instances_are_lost_before_they_serve_is_told_and_others_are_made():
    async def main():
        async with platform(instances=MemoryInstances(start_s=5.0)) as it:
            await it.apply()
            await asyncio.sleep(1)
            (lost,) = it.running()
            it.instances.lose(lost.name, reason="UnexpectedAdmissionError", message="no GPU is left")
            await asyncio.sleep(0.1)
            told = await it.condition(REVISION, "hello-00001", "ContainerHealthy")
            assert told == ("False", "UnexpectedAdmissionError")
            await asyncio.sleep(10)
            assert [one.name == lost.name for one in it.running()] == [False]
            assert await it.condition(SERVICE, "hello") == ("True", "")

    run_virtual(main())


def test_an_image_that_means_nothing_here_is_told_with_what_to_do():
    async def main():
        async with platform() as it:
            await it.apply(source="", initial_scale=0)
            await asyncio.sleep(1)
            assert await it.condition(REVISION, "hello-00001") == ("False", "ImageNotMapped")
            assert await it.condition(SERVICE, "hello") == ("False", "RevisionFailed")

    run_virtual(main())


def test_variables_come_from_config_maps_and_a_missing_one_is_told_until_it_is_there():
    async def main():
        async with platform() as it:
            env = [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "texts", "key": "greeting"}}}]
            made = await it.apply()
            template = dict(made.spec["template"])
            container = {**template["spec"]["containers"][0], "env": env}
            template["spec"] = {**template["spec"], "containers": [container]}
            await it.store.update(made.with_spec({**made.spec, "template": template}))
            await asyncio.sleep(1)
            latest = (await it.get(SERVICE, "hello")).status["latestCreatedRevisionName"]
            assert await it.condition(REVISION, latest) == ("False", "CreateContainerConfigError")
            meta = ObjectMeta(name="texts", namespace="default")
            await it.store.create(Resource(ref=CONFIG_MAP, meta=meta, body={"data": {"greeting": "hi"}}))
            await asyncio.sleep(5)
            assert await it.condition(REVISION, latest) == ("True", "")

    run_virtual(main())


def test_an_instance_is_taken_out_of_the_slices_before_it_is_asked_to_stop():
    async def main():
        async with platform() as it:
            await it.apply(window="6s")
            await asyncio.sleep(1)
            loop = asyncio.get_running_loop()
            order = []
            it.instances.watch(lambda instance: order.append((loop.time(), instance.phase)))
            version = (await it.store.list(ENDPOINT_SLICE)).version
            async for change in it.store.watch(ENDPOINT_SLICE, version):
                order.append((loop.time(), change.type))
                break
            await asyncio.sleep(1)
            assert [what for _, what in order] == ["ready", "DELETED", "draining", "gone"]
            assert order[2][0] - order[1][0] == pytest.approx(DRAIN_NOTICE_S)

    run_virtual(main())


def test_a_crashed_instance_leaves_the_slices_at_once_and_comes_back():
    async def main():
        async with platform() as it:
            await it.apply(min_scale=1)
            await asyncio.sleep(1)
            (instance,) = it.running()
            it.instances.crash(instance.name)
            await asyncio.sleep(0.01)
            assert await it.slices() == ()
            await asyncio.sleep(2)
            assert len(await it.slices()) == 1

    run_virtual(main())


def test_deleting_a_service_stops_its_instances():
    async def main():
        async with platform() as it:
            await it.apply(min_scale=2)
            await asyncio.sleep(1)
            await it.store.delete(Key(SERVICE, "default", "hello"))
            await asyncio.sleep(1)
            assert it.running() == []
            assert await it.slices() == ()
            assert "hello-00001" not in it.metrics.expose()

    run_virtual(main())


def test_a_new_control_process_goes_on_with_what_runs():
    async def main():
        store, instances = MemoryStore(), MemoryInstances(start_s=0.1, drain_s=0.1)
        async with platform(store, instances) as it:
            await it.apply(target=10, target_utilization_percentage=100)
            await asyncio.sleep(1)
            await it.load(12, 30.0)
            before = {one.name for one in it.running()}
            assert len(before) == 3
        orphan = Resource(
            ref=ENDPOINT_SLICE,
            meta=ObjectMeta(
                name="gone-00001-x",
                namespace="default",
                labels={
                    "serving.knative.dev/revision": "gone-00001",
                    "endpointslice.kubernetes.io/managed-by": "autoscaler.penstock.dev",
                },
            ),
            body={"addressType": "IPv4", "endpoints": [], "ports": []},
        )
        await store.create(orphan)
        async with platform(store, instances) as it:
            await asyncio.sleep(30)
            assert {one.name for one in it.running()} == before
            assert {one.meta.name for one in await it.slices()} == before
            await asyncio.sleep(120)
            assert it.running() == []

    run_virtual(main())


def test_instances_of_a_revision_that_was_deleted_meanwhile_are_stopped():
    async def main():
        store, instances = MemoryStore(), MemoryInstances(start_s=0.1, drain_s=0.1)
        async with platform(store, instances) as it:
            await it.apply(min_scale=1)
            await asyncio.sleep(1)
        for kind in (SERVICE, CONFIGURATION, ROUTE):
            await store.delete(Key(kind, "default", "hello"))
        for kind in (REVISION, POD_AUTOSCALER):
            await store.delete(Key(kind, "default", "hello-00001"))
        async with platform(store, instances) as it:
            await asyncio.sleep(2)
            assert it.running() == []
            assert await it.slices() == ()

    run_virtual(main())


class FlakyStore(MemoryStore):
    """Refuses writes while `away`."""

    away = False

    async def create(self, resource):
        self._check()
        return await super().create(resource)

    async def update_status(self, resource):
        self._check()
        return await super().update_status(resource)

    def _check(self):
        if self.away:
            raise Unavailable("The store is away.")


def test_a_store_that_is_away_for_a_while_is_waited_for():
    async def main():
        store = FlakyStore()
        async with platform(store) as it:
            await it.apply(initial_scale=0)
            await asyncio.sleep(1)
            store.away = True
            it.demand(queued=1)
            await asyncio.sleep(3)
            assert len(it.running()) == 1
            assert await it.slices() == ()
            store.away = False
            await asyncio.sleep(1)
            assert len(await it.slices()) == 1

    run_virtual(main())


def test_the_last_decisions_are_kept_with_what_led_to_them():
    async def main():
        async with platform() as it:
            await it.apply(initial_scale=0, window="6s")
            await asyncio.sleep(1)
            it.demand(queued=2)
            await asyncio.sleep(30)
            told = it.autoscaler.decisions("default", "hello")
            assert told[0].desired == 0
            woken = next(one for one in told if one.desired == 1)
            assert (woken.demand, woken.ready, woken.phase) == (2.0, 0, "activating")
            assert "2 (panic)" in woken.explanation
            assert told[-1].desired == 0
            assert len(told) < 12
            assert it.autoscaler.decisions("default", "other") == []
            assert it.autoscaler.revisions("default", "hello") == ["hello-00001"]

    run_virtual(main())


def test_demand_for_what_does_not_exist_is_passed_over():
    async def main():
        async with platform() as it:
            it.demand(queued=5, revision="nobody-00001")
            await asyncio.sleep(3)
            assert it.instances.instances == ()

    run_virtual(main())


@pytest.mark.parametrize(
    "refusal", [Overloaded("Too many requests."), Unavailable("No answer.")], ids=["429", "time-out"]
)
def test_a_slice_of_a_former_revision_goes_once_the_store_lets_it(refusal: PenstockError, caplog):
    async def main():
        store = FaultyStore(MemoryStore())
        meta = ObjectMeta(
            name="gone-00001",
            namespace="default",
            labels={
                "endpointslice.kubernetes.io/managed-by": "autoscaler.penstock.dev",
                "serving.knative.dev/revision": "gone-00001",
            },
        )
        await store.create(Resource(ref=ENDPOINT_SLICE, meta=meta, body={"endpoints": [], "ports": []}))
        store.fail_next["delete"] = [refusal, refusal]
        async with platform(store) as it:
            await asyncio.sleep(1)
            assert len(await it.slices()) == 1
            await asyncio.sleep(5)
            assert await it.slices() == ()
            await it.apply()
            await asyncio.sleep(1)
            assert await it.condition(SERVICE, "hello") == ("True", ""), "it scales as ever"

    run_virtual(main())
    said = [record for record in caplog.records if "EndpointSlice of a former Revision" in record.message]
    assert len(said) == 1
