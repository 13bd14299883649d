"""What every implementation of the Instances port does. Subclasses give a `harness` fixture."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Protocol

import pytest

from serving.instances.port import FOLLOWS, CannotRun, Instance, Instances, InstanceSpec, LogLine

#: Real processes of a busy machine need some time; nothing waits for as long as this.
DEADLINE_S = 20.0


class Harness(Protocol):
    """An implementation under test."""

    instances: Instances
    namespace: str
    #: The reason for which `unknown_spec` is refused, and a part of what is said.
    refused: tuple[str, str]
    #: Whether the log of an instance outlives it.
    keeps_logs: bool

    def spec(self, revision: str = "hello-00001") -> InstanceSpec:
        """One whose instances become ready."""
        ...

    def unknown_spec(self) -> InstanceSpec:
        """One that cannot be run."""
        ...

    async def crash(self, name: str) -> None:
        """End a ready instance's process from outside."""
        ...

    async def write(self, name: str, text: str) -> None:
        """Make a ready instance write a line."""
        ...


class Watched:
    """Everything that a listener was told of one namespace, and a way to wait for more."""

    def __init__(self, instances: Instances, namespace: str = "default") -> None:
        self._namespace = namespace
        self.told: list[Instance] = []
        self._instances = instances
        self._changed = asyncio.Event()
        instances.watch(self._on_change)

    def _on_change(self, instance: Instance) -> None:
        if instance.namespace == self._namespace:
            self.told.append(instance)
            self._changed.set()

    def latest(self, name: str) -> Instance:
        return [instance for instance in self.told if instance.name == name][-1]

    def phases(self, name: str) -> list[str]:
        return [instance.phase for instance in self.told if instance.name == name]

    @property
    def present(self) -> list[str]:
        """Names of the instances that are not gone, in the order they appeared."""
        names = dict.fromkeys(instance.name for instance in self.told)
        return [name for name in names if self.latest(name).phase != "gone"]

    async def begun(self, spec: InstanceSpec, count: int) -> list[str]:
        """Ask for `count` instances, where there are none, and wait until they appear; their names."""
        await self._instances.scale(spec, count)
        await self.until(lambda: len(self.present) >= count)
        return self.present

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def ready(self, *names: str) -> None:
        await self.until(lambda: all(self.latest(name).phase == "ready" for name in names))


class InstancesConformance:
    async def test_a_made_instance_starts_and_becomes_ready_at_an_address(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        latest = watched.latest(name)
        assert (latest.namespace, latest.revision) == (harness.namespace, "hello-00001")
        assert watched.phases(name) == ["starting", "ready"]
        assert latest.address is not None
        assert latest.address[1] > 0

    async def test_several_instances_have_names_and_addresses_of_their_own(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        names = await watched.begun(harness.spec(), 3)
        await watched.ready(*names)
        assert len(set(names)) == 3
        assert len({watched.latest(name).address for name in names}) == 3

    async def test_a_count_of_zero_is_only_a_check(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        await harness.instances.scale(harness.spec(), 0)
        assert watched.told == []

    async def test_asking_for_the_same_number_again_changes_nothing(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        await harness.instances.scale(harness.spec(), 2)
        await harness.instances.scale(harness.spec(), 2)
        await watched.until(lambda: len(watched.present) == 2)
        await watched.ready(*watched.present)
        await harness.instances.scale(harness.spec(), 2)
        assert [watched.phases(name) for name in watched.present] == [["starting", "ready"]] * 2

    async def test_only_what_is_missing_is_begun_and_what_is_there_stays(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        names = await watched.begun(harness.spec(), 2)
        await watched.ready(*names)
        await harness.instances.scale(harness.spec(), 3)
        await watched.until(lambda: len(watched.present) == 3)
        await watched.ready(*watched.present)
        await harness.instances.scale(harness.spec(), 1)
        assert watched.present[:2] == names
        assert {watched.latest(name).phase for name in watched.present} == {"ready"}

    async def test_an_instance_that_is_being_stopped_does_not_count(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (first,) = await watched.begun(harness.spec(), 1)
        await watched.ready(first)
        stopping = asyncio.create_task(harness.instances.stop(harness.namespace, first))
        await watched.until(lambda: watched.latest(first).phase in ("draining", "gone"))
        await harness.instances.scale(harness.spec(), 1)
        await stopping
        await watched.until(lambda: len(watched.present) == 1)
        await watched.ready(*watched.present)
        assert watched.present != [first]

    @pytest.mark.parametrize("count", [0, 1])
    async def test_what_cannot_be_run_is_refused_with_a_reason(self, harness: Harness, count: int) -> None:
        watched = Watched(harness.instances, harness.namespace)
        with pytest.raises(CannotRun) as refused:
            await harness.instances.scale(harness.unknown_spec(), count)
        reason, text = harness.refused
        assert refused.value.reason == reason
        assert text in str(refused.value)
        assert watched.told == []

    async def test_a_listener_that_comes_late_is_told_what_there_is(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        late = Watched(harness.instances, harness.namespace)
        assert late.told == [watched.latest(name)]

    async def test_a_stopped_instance_drains_and_is_gone_when_stop_returns(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        first, second = await watched.begun(harness.spec(), 2)
        await watched.ready(first, second)
        await harness.instances.stop(harness.namespace, first)
        assert watched.phases(first) == ["starting", "ready", "draining", "gone"]
        assert watched.latest(second).phase == "ready"
        assert [instance.name for instance in Watched(harness.instances, harness.namespace).told] == [second]

    async def test_an_instance_can_be_stopped_while_it_starts(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await harness.instances.stop(harness.namespace, name)
        assert watched.phases(name)[-1] == "gone"

    async def test_stopping_one_that_does_not_exist_does_nothing(self, harness: Harness) -> None:
        await harness.instances.stop(harness.namespace, "never-there")

    async def test_stopping_twice_at_once_is_stopping_once(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        await asyncio.gather(
            harness.instances.stop(harness.namespace, name), harness.instances.stop(harness.namespace, name)
        )
        assert watched.phases(name).count("gone") == 1

    async def test_a_crashed_instance_says_why_and_is_started_again_under_its_name(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        await harness.crash(name)
        await watched.until(lambda: watched.phases(name).count("ready") == 2)
        assert watched.phases(name) == ["starting", "ready", "waiting", "starting", "ready"]
        waiting = next(one for one in watched.told if one.phase == "waiting")
        assert waiting.reason.startswith("ExitCode")
        assert waiting.message
        assert waiting.address is None
        assert watched.latest(name).restarts == 1

    async def test_a_crashed_instance_can_be_stopped_while_it_waits(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        await harness.crash(name)
        await watched.until(lambda: "waiting" in watched.phases(name))
        await harness.instances.stop(harness.namespace, name)
        assert watched.phases(name)[-1] == "gone"

    async def test_the_phases_follow_the_lifecycle(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        names = await watched.begun(harness.spec(), 2)
        await watched.ready(*names)
        await harness.crash(names[0])
        await watched.until(lambda: watched.phases(names[0]).count("ready") == 2)
        for name in names:
            await harness.instances.stop(harness.namespace, name)
            steps = watched.phases(name)
            assert all(after in FOLLOWS[before] for before, after in itertools.pairwise(steps))

    async def test_the_log_holds_the_last_lines_and_outlives_the_instance_where_the_place_keeps_it(
        self, harness: Harness
    ) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        for text in ("one", "two", "three"):
            await harness.write(name, text)
        assert await self._tail(harness, 2) == [LogLine(name, "two"), LogLine(name, "three")]
        await harness.instances.stop(harness.namespace, name)
        assert await self._tail(harness, 1) == ([LogLine(name, "three")] if harness.keeps_logs else [])

    async def test_a_followed_log_goes_on(self, harness: Harness) -> None:
        watched = Watched(harness.instances, harness.namespace)
        (name,) = await watched.begun(harness.spec(), 1)
        await watched.ready(name)
        await harness.write(name, "before")
        lines = harness.instances.log(harness.namespace, "hello-00001", tail=1, follow=True)
        async with asyncio.timeout(DEADLINE_S):
            assert await anext(lines) == LogLine(name, "before")
            await harness.write(name, "after")
            assert await anext(lines) == LogLine(name, "after")
        await lines.aclose()

    async def test_the_log_of_an_unknown_revision_is_empty(self, harness: Harness) -> None:
        lines = harness.instances.log(harness.namespace, "never-there", tail=None, follow=False)
        assert [line async for line in lines] == []

    async def _tail(self, harness: Harness, count: int) -> list[LogLine]:
        lines = harness.instances.log(harness.namespace, "hello-00001", tail=count, follow=False)
        return [line async for line in lines]
