import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.control.cache import Follower
from core.control.gc import GarbageCollector, owner_keys
from core.control.memory import MemoryStore
from core.errors import InvalidInput, NotFound, Unavailable
from core.resources import Key, KindRef, ObjectMeta, OwnerReference, Resource, owner_reference
from core.telemetry import Metrics
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

SERVICE = KindRef("serving.knative.dev", "v1", "Service")
CONFIGURATION = KindRef("serving.knative.dev", "v1", "Configuration")
REVISION = KindRef("serving.knative.dev", "v1", "Revision")
NAMESPACE = KindRef("", "v1", "Namespace")
STRANGER = KindRef("apps", "v1", "Deployment")
KINDS = (SERVICE, CONFIGURATION, REVISION, NAMESPACE)


def made(kind: KindRef, name: str, *owners: Resource, namespace: str = "default", **meta: object) -> Resource:
    references = tuple(owner_reference(owner) for owner in owners)
    held = ObjectMeta(name=name, namespace=namespace, owner_references=references, **meta)
    return Resource(ref=kind, meta=held, body={"spec": {}})


def gone_owner(kind: KindRef = SERVICE, name: str = "gone") -> OwnerReference:
    return OwnerReference(api_version=kind.api_version, kind=kind.kind, name=name, uid="no-such-uid", controller=True)


def store() -> FaultyStore:
    return FaultyStore(MemoryStore(clock=VirtualClock()))


async def cascade(held: FaultyStore) -> Resource:
    """A Service with its Configuration and that one's two Revisions."""
    service = await held.create(made(SERVICE, "s"))
    configuration = await held.create(made(CONFIGURATION, "s", service))
    for name in ("s-00001", "s-00002"):
        await held.create(made(REVISION, name, configuration))
    return service


@asynccontextmanager
async def collecting(held: FaultyStore, metrics: Metrics | None = None) -> AsyncIterator[None]:
    follower = Follower(held, KINDS, rng=random.Random(1))
    collector = GarbageCollector(held, follower, rng=random.Random(1), metrics=metrics)
    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(collector.run())]
    try:
        yield
    finally:
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def left(held: FaultyStore) -> list[str]:
    return [f"{kind.kind}/{item.meta.name}" for kind in KINDS for item in (await held.inner.list(kind)).items]


def test_deleting_a_service_takes_its_configuration_and_revisions_with_it():
    async def main() -> None:
        held = store()
        metrics = Metrics()
        service = await cascade(held)
        other = await held.create(made(SERVICE, "other"))
        await held.create(made(CONFIGURATION, "other", other))
        async with collecting(held, metrics):
            await asyncio.sleep(1)
            assert len(await left(held)) == 6
            await held.delete(service.key)
            await asyncio.sleep(1)
            assert await left(held) == ["Service/other", "Configuration/other"]
        assert "penstock_gc_deleted_total 3" in metrics.expose()

    run_virtual(main())


def test_what_was_orphaned_while_nobody_looked_goes_at_the_start():
    async def main() -> None:
        held = store()
        service = await cascade(held)
        await held.delete(service.key)
        async with collecting(held):
            await asyncio.sleep(1)
            assert await left(held) == []

    run_virtual(main())


def test_a_dependent_goes_only_when_all_of_its_owners_are_gone():
    async def main() -> None:
        held = store()
        one, two = await held.create(made(SERVICE, "one")), await held.create(made(SERVICE, "two"))
        await held.create(made(REVISION, "shared", one, two))
        async with collecting(held):
            await held.delete(one.key)
            await asyncio.sleep(1)
            assert await left(held) == ["Service/two", "Revision/shared"]
            await held.delete(two.key)
            await asyncio.sleep(1)
            assert await left(held) == []

    run_virtual(main())


def test_an_owner_created_again_under_its_name_is_another_one():
    async def main() -> None:
        held = store()
        await cascade(held)
        async with collecting(held):
            await asyncio.sleep(1)
            # Within one expired watch, so that the follower learns of both in one listing.
            held.expire_watches()
            await held.inner.delete(Key(SERVICE, "default", "s"))
            await held.inner.create(made(SERVICE, "s"))
            await asyncio.sleep(1)
            assert await left(held) == ["Service/s"]

    run_virtual(main())


def test_a_dependent_that_is_seen_before_its_owner_stays():
    """The cache of the owner's kind comes up late; only the store knows that the owner exists."""

    async def main() -> None:
        held = store()
        async with collecting(held):
            await asyncio.sleep(1)
            held.watch_lags_s, held.lagging = 1.0, SERVICE
            await cascade(held)
            await asyncio.sleep(20)
            assert len(await left(held)) == 4
            await held.delete(Key(SERVICE, "default", "s"))
            await asyncio.sleep(20)
            assert await left(held) == []

    run_virtual(main())


def test_an_owner_that_goes_without_having_been_seen_does_not_leave_its_dependents():
    async def main() -> None:
        held = store()
        async with collecting(held):
            await asyncio.sleep(1)
            held.watch_lags_s, held.lagging = 5.0, SERVICE
            service = await held.create(made(SERVICE, "s"))
            await held.create(made(CONFIGURATION, "s", service))
            await asyncio.sleep(1)
            await held.delete(service.key)
            held.expire_watches()
            await asyncio.sleep(60)
            assert await left(held) == []

    run_virtual(main())


def test_an_owner_that_goes_while_it_is_looked_up_does_not_leave_its_dependents():
    async def main() -> None:
        held = store()
        async with collecting(held):
            await asyncio.sleep(1)
            held.watch_lags_s, held.lagging, held.answer_takes_s = 1.0, SERVICE, 10.0
            service = await held.create(made(SERVICE, "s"))
            await held.create(made(CONFIGURATION, "s", service))
            await asyncio.sleep(2)
            # The answer that the owner exists is still on its way when the owner is seen, and seen to go.
            await held.delete(service.key)
            await asyncio.sleep(60)
            assert await left(held) == []

    run_virtual(main())


@pytest.mark.parametrize(
    ("namespace", "kind"),
    [
        pytest.param("default", STRANGER, id="a kind that is not followed"),
        pytest.param("", NAMESPACE, id="a namespace"),
    ],
)
def test_an_owner_elsewhere_is_respected(namespace: str, kind: KindRef):
    async def main() -> None:
        held = store()
        owner = await held.create(made(kind, "o", namespace=namespace))
        await held.create(made(REVISION, "r", owner))
        async with collecting(held):
            await asyncio.sleep(1)
            assert "Revision/r" in await left(held)

    run_virtual(main())


def test_an_orphan_with_a_finalizer_is_marked_once_and_left_to_its_controller():
    async def main() -> None:
        held = store()
        await held.create(made(REVISION, "r", finalizers=("f/x",)).with_meta(owner_references=(gone_owner(),)))
        async with collecting(held):
            await asyncio.sleep(60)
            marked = await held.get(Key(REVISION, "default", "r"))
            assert marked.meta.deletion_timestamp is not None
            assert held.calls["delete"] == 1
            await held.update(marked.with_meta(finalizers=()))
            with pytest.raises(NotFound):
                await held.get(marked.key)

    run_virtual(main())


def test_an_outage_only_delays_the_collection():
    async def main() -> None:
        held = store()
        service = await cascade(held)
        async with collecting(held):
            await asyncio.sleep(1)
            held.fail_next["delete"] = [Unavailable("Not now.") for _ in range(5)]
            await held.inner.delete(service.key)
            held.fail_next["get"] = [Unavailable("Not now.")]
            await asyncio.sleep(60)
            assert await left(held) == []
            assert not held.fail_next["delete"]

    run_virtual(main())


def test_one_resource_that_cannot_be_deleted_does_not_hold_up_the_others():
    async def main() -> None:
        held = store()
        for name in "abc":
            await held.create(made(REVISION, name).with_meta(owner_references=(gone_owner(),)))
        held.fail_next["delete"] = [InvalidInput("Never.")]
        async with collecting(held):
            await asyncio.sleep(0.01)
            assert await left(held) == ["Revision/a", "Revision/b", "Revision/c"]
            held.fail_next["delete"] = [InvalidInput("Never."), NotFound("Gone already.")]
            await asyncio.sleep(60)
            assert await left(held) == ["Revision/c"]

    run_virtual(main())


def test_an_owner_is_looked_for_in_the_namespace_and_among_the_cluster_scoped():
    dependent = made(REVISION, "r", namespace="here")
    assert owner_keys(dependent, gone_owner(NAMESPACE, "n")) == (Key(NAMESPACE, "here", "n"), Key(NAMESPACE, "", "n"))
    cluster_scoped = made(NAMESPACE, "x", namespace="")
    assert owner_keys(cluster_scoped, gone_owner(NAMESPACE, "n")) == (Key(NAMESPACE, "", "n"),)
