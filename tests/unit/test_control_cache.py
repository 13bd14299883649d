import asyncio
import random
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest

from core.control.backoff import Backoff
from core.control.cache import Follower, Observed
from core.control.memory import MemoryStore
from core.control.port import ResourceStore
from core.errors import NotFound, Unavailable
from core.resources import Key, KindRef, ObjectMeta, OwnerReference, Resource
from tests.support.stores import FaultyStore
from tests.support.virtual_time import VirtualClock, run_virtual

FLOW = KindRef("test.penstock.dev", "v1", "Flow")
PIPE = KindRef("test.penstock.dev", "v1", "Pipe")


def resource(name: str, kind: KindRef = FLOW, namespace: str = "default", size: int = 1, **meta: object) -> Resource:
    return Resource(ref=kind, meta=ObjectMeta(name=name, namespace=namespace, **meta), body={"spec": {"size": size}})


def shown(batch: Sequence[Observed]) -> set[tuple[str, int | None, int | None]]:
    def size(state: Resource | None) -> int | None:
        return None if state is None else state.spec["size"]

    return {(observed.key.name, size(observed.before), size(observed.after)) for observed in batch}


class Following:
    """A follower at work and everything that it told."""

    def __init__(self, store: ResourceStore, kinds: tuple[KindRef, ...] = (FLOW,)) -> None:
        self.batches: list[set[tuple[str, int | None, int | None]]] = []
        self.follower = Follower(store, kinds, lambda batch: self.batches.append(shown(batch)), rng=random.Random(1))

    def names(self, kind: KindRef = FLOW) -> list[str]:
        return [held.meta.name for held in self.follower.list(kind)]


@asynccontextmanager
async def following(store: ResourceStore, *kinds: KindRef):
    one = Following(store, kinds or (FLOW,))
    running = asyncio.create_task(one.follower.run())
    try:
        yield one
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert getattr(store, "open_watches", 0) == 0


def store() -> FaultyStore:
    return FaultyStore(MemoryStore(clock=VirtualClock()))


async def settle() -> None:
    """Long enough for everything that needs no back-off."""
    await asyncio.sleep(0.001)


def test_the_first_call_tells_everything_of_all_kinds_at_once():
    async def main() -> None:
        held = store()
        await held.create(resource("a", size=1))
        await held.create(resource("p", PIPE, size=2))
        async with following(held, FLOW, PIPE) as one:
            assert not one.follower.synced.is_set()
            await one.follower.synced.wait()
            await settle()
            assert one.batches == [{("a", None, 1), ("p", None, 2)}]

    run_virtual(main())


def test_nothing_is_told_before_every_kind_is_listed():
    async def main() -> None:
        held = store()
        await held.create(resource("a"))
        held.fail_next["list"] = [Unavailable("Not now.")]
        async with following(held, FLOW, PIPE) as one:
            await settle()
            assert one.batches == []
            assert not one.follower.synced.is_set()
            await one.follower.synced.wait()
            await settle()
            assert one.batches == [{("a", None, 1)}]

    run_virtual(main())


def test_a_kind_that_is_not_served_keeps_no_other_waiting_and_is_followed_once_it_is():
    async def main() -> None:
        held = store()
        await held.create(resource("a"))
        await held.create(resource("p", kind=PIPE))
        # In the order of their names: Flow, then Pipe.
        held.fail_next["list"] = [NotFound("That kind is not served yet.")]
        async with following(held, FLOW, PIPE) as one:
            await one.follower.synced.wait()
            await settle()
            assert (one.names(FLOW), one.names(PIPE)) == ([], ["p"])
            await asyncio.sleep(10)
            assert one.names(FLOW) == ["a"]
            # What is known stays, where its kind is not found later.
            held.fail_next["list"] = [NotFound("The definition is gone.")]
            held.expire_watches()
            await settle()
            assert one.names(FLOW) == ["a"]

    run_virtual(main())


def test_an_empty_store_is_synced_too():
    async def main() -> None:
        async with following(store(), FLOW, PIPE) as one:
            await one.follower.synced.wait()
            await settle()
            assert one.batches == [set()]

    run_virtual(main())


def test_changes_of_one_turn_are_told_together_with_first_and_last_state():
    async def main() -> None:
        held = MemoryStore()
        made = await held.create(resource("a", size=1))
        await held.create(resource("b", size=1))
        async with following(held) as one:
            await one.follower.synced.wait()
            await settle()
            made = await held.update(made.with_spec({"size": 2}))
            await held.update(made.with_spec({"size": 3}))
            await held.delete(Key(FLOW, "default", "b"))
            await held.create(resource("c", size=7))
            await settle()
            assert one.batches[1:] == [{("a", 1, 3), ("b", 1, None), ("c", None, 7)}]

    run_virtual(main())


def test_what_came_and_went_within_one_turn_is_told_as_gone():
    async def main() -> None:
        held = MemoryStore()
        async with following(held) as one:
            await one.follower.synced.wait()
            await settle()
            await held.create(resource("a", size=5))
            await held.delete(Key(FLOW, "default", "a"))
            await settle()
            assert one.batches[1:] == [{("a", 5, None)}]

    run_virtual(main())


def test_a_broken_watch_is_resumed_without_a_listing_and_misses_nothing():
    async def main() -> None:
        held = store()
        async with following(held) as one:
            await one.follower.synced.wait()
            await settle()
            held.go_down()
            await held.inner.create(resource("meanwhile"))
            held.come_up()
            await asyncio.sleep(1)
            assert one.names() == ["meanwhile"]
            assert held.calls["list"] == 1

    run_virtual(main())


def test_a_watch_that_the_server_ends_is_resumed_at_once():
    async def main() -> None:
        held = store()
        async with following(held) as one:
            await one.follower.synced.wait()
            for _ in range(5):
                await asyncio.sleep(300)
                held.break_watches(None)
                await settle()
                assert held.open_watches == 1
            await held.inner.create(resource("a"))
            await settle()
            assert one.names() == ["a"]

    run_virtual(main())


def test_a_position_that_is_gone_is_listed_again_and_only_differences_are_told():
    async def main() -> None:
        held = store()
        for name in "abc":
            await held.create(resource(name))
        async with following(held) as one:
            await one.follower.synced.wait()
            await settle()
            held.expire_watches()
            await held.inner.delete(Key(FLOW, "default", "a"))
            changed = await held.inner.get(Key(FLOW, "default", "b"))
            await held.inner.update(changed.with_spec({"size": 2}))
            await held.inner.create(resource("d", size=4))
            await settle()
            assert one.batches[1:] == [{("a", 1, None), ("b", 1, 2), ("d", None, 4)}]
            assert one.names() == ["b", "c", "d"]
            assert held.calls["list"] == 2

    run_virtual(main())


def test_a_deletion_and_new_creation_during_an_outage_shows_both_uids():
    async def main() -> None:
        held = store()
        first = await held.create(resource("a"))
        told: list[Observed] = []
        async with following(held) as one:
            await one.follower.synced.wait()
            await settle()
            one.follower.subscribe(told.extend)
            held.expire_watches()
            await held.inner.delete(first.key)
            second = await held.inner.create(resource("a"))
            await settle()
        (observed,) = told
        assert observed.before is not None
        assert observed.after is not None
        assert (observed.before.meta.uid, observed.after.meta.uid) == (first.meta.uid, second.meta.uid)

    run_virtual(main())


def test_an_outage_leaves_the_last_state_and_is_asked_after_ever_more_slowly():
    async def main() -> None:
        held = store()
        await held.create(resource("a"))
        async with following(held) as one:
            await one.follower.synced.wait()
            await settle()
            held.go_down()
            await asyncio.sleep(3600)
            assert one.names() == ["a"]
            assert len(one.batches) == 1
            # The cap is 5 s with jitter down to half of it.
            assert 3600 / 5 <= held.calls["watch"] <= 3600 / 2.5 + 10
            held.come_up()
            await held.inner.create(resource("b"))
            await asyncio.sleep(5)
            assert one.names() == ["a", "b"]

    run_virtual(main())


def test_a_store_that_is_away_at_the_start_is_waited_for():
    async def main() -> None:
        held = store()
        await held.inner.create(resource("a"))
        held.go_down()
        async with following(held) as one:
            await asyncio.sleep(60)
            assert one.batches == []
            held.come_up()
            await one.follower.synced.wait()
            assert one.names() == ["a"]

    run_virtual(main())


def test_a_server_that_ends_every_watch_at_once_is_not_asked_in_a_tight_loop():
    async def main() -> None:
        held = store()
        async with following(held) as one:
            await one.follower.synced.wait()
            for _ in range(100):
                held.break_watches(None)
                await asyncio.sleep(0.1)
            assert held.calls["watch"] < 30

    run_virtual(main())


def test_gone_again_and_again_does_not_list_in_a_tight_loop():
    async def main() -> None:
        held = store()
        async with following(held) as one:
            await one.follower.synced.wait()
            for _ in range(100):
                held.expire_watches()
                await asyncio.sleep(0.1)
            assert held.calls["list"] < 30

    run_virtual(main())


def test_a_subscriber_that_fails_does_not_silence_the_others(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        held = store()
        one = Follower(held, (FLOW,), lambda batch: 1 / len(batch))  # type: ignore[arg-type] # fails on an empty batch
        heard: list[int] = []
        one.subscribe(lambda batch: heard.append(len(batch)))
        running = asyncio.create_task(one.run())
        await one.synced.wait()
        await held.create(resource("a"))
        await settle()
        assert heard == [0, 1]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())
    assert "a subscriber of the store's changes failed" in caplog.text


def test_seen_follows_changes_bookmarks_and_listings():
    async def main() -> None:
        held = store()
        async with following(held, FLOW) as one:
            assert one.follower.seen(FLOW) == 0
            await one.follower.synced.wait()
            made = await held.create(resource("a"))
            await settle()
            assert one.follower.seen(FLOW) == int(made.meta.resource_version)
            pipe = await held.create(resource("p", PIPE))
            for size in range(1_000):
                pipe = await held.update(pipe.with_spec({"size": size + 2}))
            await settle()
            assert one.follower.seen(FLOW) == 1_000
            assert len(one.batches) == 2

    run_virtual(main())


def test_lists_are_by_namespace_sorted_and_owned_only_by_the_controller():
    async def main() -> None:
        held = store()
        owner = await held.create(resource("o"))
        controller = OwnerReference(api_version="x/v1", kind="Flow", name="o", uid=owner.meta.uid, controller=True)
        other = OwnerReference(api_version="x/v1", kind="Flow", name="o", uid=owner.meta.uid)
        await held.create(resource("b", PIPE, owner_references=(controller,)))
        await held.create(resource("a", PIPE, owner_references=(controller,)))
        await held.create(resource("c", PIPE, owner_references=(other,)))
        await held.create(resource("z", PIPE, namespace="another"))
        async with following(held, FLOW, PIPE) as one:
            await one.follower.synced.wait()
            view = one.follower
            assert one.names(PIPE) == ["z", "a", "b", "c"]
            assert [held.meta.name for held in view.list(PIPE, "default")] == ["a", "b", "c"]
            assert [held.meta.name for held in view.owned(owner, PIPE)] == ["a", "b"]
            assert {held.meta.name for held in view.dependents(owner.meta.uid)} == {"a", "b", "c"}
            assert view.owned(owner, FLOW) == ()
            assert view.list(KindRef("", "v1", "Unknown")) == ()
            assert view.get(owner.key) == owner
            orphan = await held.get(Key(PIPE, "default", "a"))
            await held.update(orphan.with_meta(owner_references=()))
            await settle()
            assert [held.meta.name for held in view.owned(owner, PIPE)] == ["b"]

    run_virtual(main())


def test_backoff_doubles_to_its_cap_with_jitter_of_at_most_half():
    backoff = Backoff(first_s=0.1, cap_s=5.0)
    rng = random.Random(7)
    full = [min(5.0, 0.1 * 2**power) for power in range(12)]
    for failures, most in enumerate(full, start=1):
        delays = [backoff.delay_s(failures, rng) for _ in range(50)]
        assert most / 2 <= min(delays) < max(delays) <= most
    assert backoff.delay_s(10_000, rng) <= 5.0
