"""What every ResourceStore does, whatever holds the bytes. An adapter's test class gives the `store` fixture."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest

from core.control.port import Change, ResourceStore
from core.errors import AlreadyExists, Conflict, Gone, InvalidInput, NotFound
from core.resources import Key, KindRef, ObjectMeta, OwnerReference, Resource

GADGET = KindRef("test.penstock.dev", "v1", "Gadget")
WIDGET = KindRef("test.penstock.dev", "v1", "Widget")

#: Longer than any store takes on a busy machine; a store that never answers fails the test by it.
DEADLINE_S = 10.0


def gadget(name: str, namespace: str = "default", kind: KindRef = GADGET, **meta: object) -> Resource:
    """A resource to create: `meta` goes into its metadata."""
    held = ObjectMeta(name=name, namespace=namespace)
    return Resource(ref=kind, meta=msgspec.structs.replace(held, **meta), body={"spec": {"size": 1}})


def key(name: str, namespace: str = "default", kind: KindRef = GADGET) -> Key:
    return Key(kind, namespace, name)


async def take(watch: AsyncGenerator[Change, None], count: int) -> list[Change]:
    """The next `count` changes that carry a resource."""
    taken: list[Change] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(taken) < count:
            change = await anext(watch)
            if change.type != "BOOKMARK":
                taken.append(change)
    return taken


def told(changes: list[Change]) -> list[tuple[str, str]]:
    return [(change.type, change.resource.meta.name if change.resource else "") for change in changes]


class ResourceStoreSuite:
    """The promises of `core.control.port.ResourceStore`."""

    # --- create, get, list ---

    async def test_a_created_resource_gets_what_the_store_owns_and_is_found(self, store: ResourceStore):
        made = await store.create(gadget("a", labels={"app": "x"}))
        assert made.meta.uid
        assert made.meta.generation == 1
        assert made.meta.creation_timestamp is not None
        assert made.meta.creation_timestamp.endswith("Z")
        assert int(made.meta.resource_version) > 0
        assert made.meta.labels == {"app": "x"}
        assert made.spec == {"size": 1}
        assert await store.get(key("a")) == made

    async def test_status_starts_empty(self, store: ResourceStore):
        made = await store.create(gadget("a").with_status({"ready": True}))
        assert made.status == {}

    async def test_a_name_that_is_taken_is_refused(self, store: ResourceStore):
        await store.create(gadget("a"))
        with pytest.raises(AlreadyExists, match="already exists"):
            await store.create(gadget("a"))

    async def test_the_same_name_may_be_used_in_another_namespace_and_by_another_kind(self, store: ResourceStore):
        made = [
            await store.create(gadget("a")),
            await store.create(gadget("a", namespace="other")),
            await store.create(gadget("a", kind=WIDGET)),
        ]
        assert len({resource.meta.uid for resource in made}) == 3

    async def test_generate_name_gives_different_names_with_that_beginning(self, store: ResourceStore):
        made = [await store.create(gadget("", generate_name="job-")) for _ in range(5)]
        names = {resource.meta.name for resource in made}
        assert len(names) == 5
        assert all(name.startswith("job-") and len(name) == len("job-") + 5 for name in names)

    async def test_a_resource_without_any_name_is_refused(self, store: ResourceStore):
        with pytest.raises(InvalidInput, match="name"):
            await store.create(gadget(""))

    async def test_what_does_not_exist_is_not_found_by_any_operation(self, store: ResourceStore):
        for attempt in (
            store.get(key("a")),
            store.update(gadget("a")),
            store.update_status(gadget("a")),
            store.delete(key("a")),
        ):
            with pytest.raises(NotFound):
                await attempt

    async def test_a_list_is_of_one_kind_sorted_by_namespace_and_name(self, store: ResourceStore):
        for namespace, name in (("other", "a"), ("default", "c"), ("default", "a-1"), ("default", "a")):
            await store.create(gadget(name, namespace=namespace))
        await store.create(gadget("w", kind=WIDGET))
        everywhere = await store.list(GADGET)
        names = [(item.meta.namespace, item.meta.name) for item in everywhere.items]
        assert names == [("default", "a"), ("default", "a-1"), ("default", "c"), ("other", "a")]
        here = await store.list(GADGET, "default")
        assert [item.meta.name for item in here.items] == ["a", "a-1", "c"]

    async def test_a_list_of_a_kind_without_resources_is_empty(self, store: ResourceStore):
        assert (await store.list(WIDGET)).items == ()

    async def test_every_json_value_comes_back_as_it_was(self, store: ResourceStore):
        spec = {"text": "ä\n\u2028", "no": None, "yes": True, "n": -1, "f": 0.5, "deep": [{"a": []}, 2**53]}
        made = await store.create(gadget("a").with_spec(spec))
        assert made.spec == spec
        assert (await store.get(key("a"))).spec == spec

    # --- update ---

    async def test_an_update_of_the_spec_grows_generation_and_version(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        changed = await store.update(made.with_spec({"size": 2}))
        assert changed.meta.generation == 2
        assert int(changed.meta.resource_version) > int(made.meta.resource_version)
        assert await store.get(key("a")) == changed

    async def test_an_update_of_metadata_alone_keeps_generation(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        changed = await store.update(made.with_meta(labels={"x": "y"}, annotations={"a": "b"}))
        assert changed.meta.generation == 1
        assert (changed.meta.labels, changed.meta.annotations) == ({"x": "y"}, {"a": "b"})
        assert changed.meta.resource_version != made.meta.resource_version

    async def test_an_update_that_changes_nothing_writes_nothing(self, store: ResourceStore):
        made = await store.create(gadget("a", labels={"x": "y"}))
        assert await store.update(made) == made
        assert await store.update(made.with_meta(resource_version="")) == made

    async def test_true_and_1_are_different_values(self, store: ResourceStore):
        made = await store.create(gadget("a").with_spec({"on": 1}))
        changed = await store.update(made.with_spec({"on": True}))
        assert changed.spec["on"] is True

    async def test_an_update_of_an_old_version_conflicts_and_changes_nothing(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        current = await store.update(made.with_spec({"size": 2}))
        with pytest.raises(Conflict):
            await store.update(made.with_spec({"size": 3}))
        assert await store.get(key("a")) == current

    async def test_an_update_without_a_version_replaces_whatever_is_there(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        await store.update(made.with_spec({"size": 2}))
        changed = await store.update(gadget("a").with_spec({"size": 3}))
        assert changed.spec == {"size": 3}
        assert changed.meta.uid == made.meta.uid
        assert changed.meta.creation_timestamp == made.meta.creation_timestamp

    async def test_an_update_leaves_status_alone(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        held = await store.update_status(made.with_status({"ready": True}))
        changed = await store.update(held.with_spec({"size": 2}).with_status({"ready": False}))
        assert changed.status == {"ready": True}

    # --- status ---

    async def test_a_status_write_changes_status_only(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        other = made.with_spec({"size": 9}).with_meta(labels={"x": "y"}).with_status({"ready": True})
        held = await store.update_status(other)
        assert held.status == {"ready": True}
        assert held.spec == {"size": 1}
        assert held.meta.labels == {}
        assert held.meta.generation == 1
        assert int(held.meta.resource_version) > int(made.meta.resource_version)

    async def test_a_status_write_that_changes_nothing_writes_nothing(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        held = await store.update_status(made.with_status({"ready": True}))
        assert await store.update_status(held.with_status({"ready": True})) == held

    async def test_a_status_write_to_an_old_version_conflicts(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        await store.update(made.with_spec({"size": 2}))
        with pytest.raises(Conflict):
            await store.update_status(made.with_status({"ready": True}))

    # --- delete and finalizers ---

    async def test_a_deleted_resource_is_gone_and_its_name_free(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        last = await store.delete(key("a"))
        assert last.meta.uid == made.meta.uid
        with pytest.raises(NotFound):
            await store.get(key("a"))
        again = await store.create(gadget("a"))
        assert again.meta.uid != made.meta.uid

    async def test_a_delete_of_another_uid_conflicts_and_deletes_nothing(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        with pytest.raises(Conflict):
            await store.delete(key("a"), uid="another")
        assert (await store.delete(key("a"), uid=made.meta.uid)).meta.uid == made.meta.uid

    async def test_an_update_meant_for_a_deleted_namesake_conflicts(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        await store.delete(key("a"))
        await store.create(gadget("a"))
        with pytest.raises(Conflict):
            await store.update(made.with_spec({"size": 2}))

    async def test_finalizers_hold_a_resource_until_the_last_is_removed(self, store: ResourceStore):
        await store.create(gadget("a", finalizers=("one/x", "two/x")))
        marked = await store.delete(key("a"))
        assert marked.meta.deletion_timestamp is not None
        half = await store.update(marked.with_meta(finalizers=("two/x",)))
        assert (await store.get(key("a"))).meta.finalizers == ("two/x",)
        await store.update(half.with_meta(finalizers=()))
        with pytest.raises(NotFound):
            await store.get(key("a"))

    async def test_deleting_what_is_being_deleted_changes_nothing(self, store: ResourceStore):
        await store.create(gadget("a", finalizers=("one/x",)))
        marked = await store.delete(key("a"))
        assert await store.delete(key("a")) == marked

    async def test_finalizers_must_not_grow_during_deletion(self, store: ResourceStore):
        await store.create(gadget("a", finalizers=("one/x",)))
        marked = await store.delete(key("a"))
        with pytest.raises(InvalidInput, match="finalizers"):
            await store.update(marked.with_meta(finalizers=("one/x", "two/x")))

    async def test_owner_references_are_kept(self, store: ResourceStore):
        owner = OwnerReference(api_version="test.penstock.dev/v1", kind="Widget", name="w", uid="u", controller=True)
        await store.create(gadget("a", owner_references=(owner,)))
        assert (await store.get(key("a"))).meta.owner_references == (owner,)

    # --- watch ---

    async def test_a_watch_from_a_listing_misses_nothing(self, store: ResourceStore):
        await store.create(gadget("before"))
        listing = await store.list(GADGET)
        made = await store.create(gadget("a"))
        changed = await store.update(made.with_spec({"size": 2}))
        held = await store.update_status(changed.with_status({"ready": True}))
        await store.delete(key("a"))
        async with aclosing(store.watch(GADGET, listing.version)) as watch:
            changes = await take(watch, 4)
        assert told(changes) == [("ADDED", "a"), ("MODIFIED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
        assert [change.resource for change in changes[:3]] == [made, changed, held]
        assert changes[3].resource is not None
        assert changes[3].resource.status == {"ready": True}

    async def test_versions_of_a_watch_grow_and_each_resumes_after_its_change(self, store: ResourceStore):
        start = (await store.list(GADGET)).version
        for name in "abc":
            await store.create(gadget(name))
        async with aclosing(store.watch(GADGET, start)) as watch:
            changes = await take(watch, 3)
        versions = [change.version for change in changes]
        assert versions == sorted(set(versions))
        for position, change in enumerate(changes[:-1]):
            async with aclosing(store.watch(GADGET, change.version)) as watch:
                assert told(await take(watch, 2 - position)) == told(changes[position + 1 :])

    async def test_a_waiting_watch_is_woken_by_a_write(self, store: ResourceStore):
        start = (await store.list(GADGET)).version
        async with aclosing(store.watch(GADGET, start)) as watch:
            waiting = asyncio.create_task(take(watch, 1))
            await asyncio.sleep(0)
            await store.create(gadget("a"))
            assert told(await waiting) == [("ADDED", "a")]
            await store.delete(key("a"))
            assert told(await take(watch, 1)) == [("DELETED", "a")]

    async def test_a_watch_tells_only_its_kind_and_namespace(self, store: ResourceStore):
        start = (await store.list(GADGET)).version
        await store.create(gadget("w", kind=WIDGET))
        await store.create(gadget("elsewhere", namespace="other"))
        await store.create(gadget("here"))
        async with aclosing(store.watch(GADGET, start, "default")) as watch:
            assert told(await take(watch, 1)) == [("ADDED", "here")]
        async with aclosing(store.watch(GADGET, start)) as watch:
            assert told(await take(watch, 2)) == [("ADDED", "elsewhere"), ("ADDED", "here")]

    async def test_watches_are_independent(self, store: ResourceStore):
        start = (await store.list(GADGET)).version
        async with aclosing(store.watch(GADGET, start)) as one, aclosing(store.watch(GADGET, start)) as two:
            await store.create(gadget("a"))
            assert told(await take(one, 1)) == [("ADDED", "a")]
            await store.create(gadget("b"))
            assert told(await take(two, 2)) == [("ADDED", "a"), ("ADDED", "b")]
            assert told(await take(one, 1)) == [("ADDED", "b")]

    async def test_a_watch_shows_the_mark_and_the_end_of_a_finalized_delete(self, store: ResourceStore):
        start = (await store.list(GADGET)).version
        await store.create(gadget("a", finalizers=("one/x",)))
        marked = await store.delete(key("a"))
        await store.update(marked.with_meta(finalizers=()))
        async with aclosing(store.watch(GADGET, start)) as watch:
            changes = await take(watch, 3)
        assert [change.type for change in changes] == ["ADDED", "MODIFIED", "DELETED"]

    async def test_a_watch_from_a_version_that_never_was_is_refused(self, store: ResourceStore):
        future = (await store.list(GADGET)).version + 1_000_000
        async with aclosing(store.watch(GADGET, future)) as watch:
            with pytest.raises(Gone, match=r"[Ll]ist again"):
                await take(watch, 1)

    async def test_writes_that_race_are_decided_one_after_the_other(self, store: ResourceStore):
        made = await store.create(gadget("a"))
        writes = [store.update(made.with_spec({"size": size})) for size in range(10, 20)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        won = [result for result in results if isinstance(result, Resource)]
        lost = [result for result in results if isinstance(result, Conflict)]
        assert (len(won), len(lost)) == (1, 9)
        assert await store.get(key("a")) == won[0]


class BoundedChangesSuite:
    """What a store that keeps its own changes does at its limit. The `small` fixture keeps the newest 10."""

    async def test_a_watch_from_before_what_is_kept_is_refused(self, small: ResourceStore):
        start = (await small.list(GADGET)).version
        for number in range(11):
            await small.create(gadget(f"a{number}"))
        async with aclosing(small.watch(GADGET, start)) as watch:
            with pytest.raises(Gone, match=r"[Ll]ist again"):
                await take(watch, 1)
        async with aclosing(small.watch(GADGET, start + 1)) as watch:
            assert len(await take(watch, 10)) == 10

    async def test_a_watch_that_waits_is_not_overtaken_by_changes_of_other_kinds(self, small: ResourceStore):
        start = (await small.list(GADGET)).version
        async with aclosing(small.watch(GADGET, start)) as watch:
            waiting = asyncio.create_task(take(watch, 1))
            await asyncio.sleep(0)
            for number in range(25):
                await small.create(gadget(f"w{number}", kind=WIDGET))
            await small.create(gadget("a"))
            assert told(await waiting) == [("ADDED", "a")]

    async def test_a_watch_of_a_quiet_kind_gets_bookmarks(self, small: ResourceStore):
        start = (await small.list(GADGET)).version
        async with aclosing(small.watch(GADGET, start)) as watch:
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            made = await small.create(gadget("w", kind=WIDGET))
            for number in range(1_100):
                made = await small.update(made.with_spec({"size": number}))
            async with asyncio.timeout(DEADLINE_S):
                bookmark = await waiting
        assert bookmark.type == "BOOKMARK"
        assert bookmark.resource is None
        assert start < bookmark.version <= int(made.meta.resource_version)
