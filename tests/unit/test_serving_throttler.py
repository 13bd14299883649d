"""The throttler against a slow, obvious model of what it promises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from core.errors import Overloaded
from serving.routing import Endpoint
from serving.throttler import BACK_OFF_S, MAX_BACK_OFF_S, Instance, State, Throttler, Waiter


class Asker(Waiter):
    """A waiter with a name for messages."""

    def __init__(self, name: int) -> None:
        super().__init__()
        self.name = name

    def __repr__(self) -> str:
        return f"request {self.name}"


def endpoints(*names: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(name, ("127.0.0.1", 1000 + index)) for index, name in enumerate(sorted(names)))


def throttler(*names: str, limit: int = 0, max_held: int = 10_000) -> Throttler[Asker]:
    made: Throttler[Asker] = Throttler(max_held=max_held)
    made.update([Endpoint(name, (name, 80)) for name in names], limit)
    return made


def taken(instance: Instance | None) -> str:
    assert instance is not None
    return instance.endpoint.name


def names(grants: list[tuple[Asker, Instance]]) -> list[tuple[int, str]]:
    return [(waiter.name, instance.endpoint.name) for waiter, instance in grants]


def test_the_least_loaded_instance_is_taken_and_ties_go_round() -> None:
    it = throttler("a", "b", "c")
    first = [it.acquire(Asker(n)) for n in range(6)]
    assert [taken(instance) for instance in first] == ["a", "b", "c", "a", "b", "c"]
    assert first[1] is not None
    it.release(first[1])
    assert taken(it.acquire(Asker(7))) == "b"


def test_one_instance_idle_between_requests_shares_the_load_with_the_others() -> None:
    it = throttler("a", "b")
    seen = []
    for n in range(4):
        instance = it.acquire(Asker(n))
        seen.append(taken(instance))
        assert instance is not None
        it.release(instance)
    assert seen == ["a", "b", "a", "b"]


def test_a_limit_of_one_holds_the_second_request_until_the_first_ends() -> None:
    it = throttler("a", limit=1)
    first = it.acquire(Asker(1))
    assert it.acquire(Asker(2)) is None
    assert it.acquire(Asker(3)) is None
    assert first is not None
    assert names(it.release(first)) == [(2, "a")]
    assert (it.in_flight, it.held) == (1, 1)


def test_requests_held_at_zero_are_granted_in_order_when_instances_come() -> None:
    it = throttler(limit=2)
    for n in range(5):
        assert it.acquire(Asker(n)) is None
    grants = it.update([Endpoint("a", ("a", 80)), Endpoint("b", ("b", 80))], 2)
    assert names(grants) == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert it.held == 1


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    it = throttler(max_held=2)
    it.acquire(Asker(1))
    it.acquire(Asker(2))
    with pytest.raises(Overloaded) as refused:
        it.acquire(Asker(3))
    assert refused.value.retry_after_s > 0
    assert it.held == 2


def test_a_held_request_that_goes_away_gives_its_place_to_the_next() -> None:
    it = throttler(max_held=2)
    gone, stays = Asker(1), Asker(2)
    it.acquire(gone)
    it.acquire(stays)
    it.cancel(gone)
    it.acquire(Asker(3))
    assert names(it.update([Endpoint("a", ("a", 80))], 0)) == [(2, "a"), (3, "a")]


def test_a_removed_instance_finishes_what_it_has_and_gets_nothing_new() -> None:
    it = throttler("a", limit=1)
    instance = it.acquire(Asker(1))
    assert instance is not None
    it.update([], 1)
    assert instance.state is State.LEAVING
    assert it.acquire(Asker(2)) is None
    assert it.release(instance) == []
    assert it.instances == ()
    assert (it.in_flight, it.held) == (0, 1)


def test_an_instance_that_is_told_again_while_it_leaves_keeps_its_count() -> None:
    it = throttler("a", limit=1)
    instance = it.acquire(Asker(1))
    assert instance is not None
    it.update([], 1)
    it.update([Endpoint("a", ("a", 80))], 1)
    assert it.acquire(Asker(2)) is None
    assert names(it.release(instance)) == [(2, "a")]


def test_the_same_name_on_another_port_is_another_instance() -> None:
    it = throttler(limit=1)
    it.update([Endpoint("a", ("h", 1))], 1)
    old = it.acquire(Asker(1))
    it.update([Endpoint("a", ("h", 2))], 1)
    new = it.acquire(Asker(2))
    assert old is not new
    assert new is not None
    assert new.endpoint.address == ("h", 2)


def test_a_failed_instance_is_left_alone_and_its_request_goes_to_another_at_once() -> None:
    it = throttler("a", "b", limit=1)
    asker = Asker(1)
    first = it.acquire(asker)
    assert first is not None
    assert names(it.fail(first, 0.0, asker)) == [(1, "b")]
    assert it.acquire(Asker(2)) is None
    assert it.due(BACK_OFF_S / 2) == []
    assert names(it.due(BACK_OFF_S)) == [(2, "a")]


def test_a_request_that_failed_is_served_before_those_that_came_after_it() -> None:
    it = throttler("a", limit=2)
    early, late = Asker(1), Asker(2)
    one, two = it.acquire(early), it.acquire(late)
    it.acquire(Asker(3))
    assert one is two is not None
    it.fail(one, 0.0, late)
    it.fail(one, 0.0, early)
    assert names(it.due(BACK_OFF_S)) == [(1, "a"), (2, "a")]


def test_back_off_grows_with_each_failure_in_a_row_and_ends_with_a_success() -> None:
    it = throttler("a")
    now, waits = 0.0, []
    for n in range(8):
        instance = it.acquire(Asker(n))
        assert instance is not None
        it.fail(instance, now)
        waits.append(instance.back_at_s - now)
        now = instance.back_at_s
        it.due(now)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(BACK_OFF_S)
    assert waits[-1] == pytest.approx(MAX_BACK_OFF_S)
    instance = it.acquire(Asker(9))
    assert instance is not None
    it.release(instance)
    again = it.acquire(Asker(10))
    assert again is not None
    it.fail(again, now)
    assert again.back_at_s - now == pytest.approx(BACK_OFF_S)


def test_several_failures_of_one_moment_count_as_one() -> None:
    it = throttler("a")
    instances = [it.acquire(Asker(n)) for n in range(5)]
    for instance in instances:
        assert instance is not None
        it.fail(instance, 0.0)
    assert instances[0] is not None
    assert instances[0].back_at_s == pytest.approx(BACK_OFF_S)


def test_a_lower_limit_takes_effect_as_requests_end() -> None:
    it = throttler("a", limit=3)
    held = [it.acquire(Asker(n)) for n in range(3)]
    it.update([Endpoint("a", ("a", 80))], 1)
    assert it.acquire(Asker(4)) is None
    for instance in held[:2]:
        assert instance is not None
        assert it.release(instance) == []
    assert held[2] is not None
    assert names(it.release(held[2])) == [(4, "a")]


def test_giving_a_slot_back_twice_is_an_error() -> None:
    it = throttler("a")
    instance = it.acquire(Asker(1))
    assert instance is not None
    it.release(instance)
    with pytest.raises(ValueError, match="has no request"):
        it.release(instance)


class ThrottlerMachine(RuleBasedStateMachine):
    """Drives a throttler at random; the oracle is a plain list of who waits and a dict of who has what."""

    running: Bundle[Asker] = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.limit = 2
        self.max_held = 6
        self.now = 0.0
        self.it: Throttler[Asker] = Throttler(max_held=self.max_held)
        self.told: set[Endpoint] = set()
        self.waiting: list[Asker] = []
        self.slots: dict[Asker, Instance] = {}
        self.made = 0
        self.ended = 0
        self.refused = 0
        #: Requests that were granted a slot and ended or failed; each must have had one.
        self.order: list[Asker] = []

    # -- the oracle's own small rules --

    def free(self) -> set[Endpoint]:
        """Told instances with a free slot that are not set aside."""
        return {
            instance.endpoint
            for instance in self.it.instances
            if instance.endpoint in self.told
            and instance.state is State.READY
            and sum(held is instance for held in self.slots.values()) < self.limit
        }

    def got(self, grants: list[tuple[Asker, Instance]]) -> None:
        for waiter, instance in grants:
            expected = min(self.waiting, key=lambda asker: asker.ticket)
            assert waiter is expected, f"{waiter} overtook {expected}"
            loads = {i: sum(h is i for h in self.slots.values()) for i in self.it.instances if i.state is State.READY}
            assert instance in loads, "a slot of an instance that must get nothing"
            assert loads[instance] == min(loads.values()), "not the least loaded"
            assert loads[instance] < self.limit, "over the limit"
            self.waiting.remove(waiter)
            self.slots[waiter] = instance

    @rule(how_many=st.integers(1, 4))
    def arrive(self, how_many: int) -> None:
        for _ in range(how_many):
            self.made += 1
            asker = Asker(self.made)
            free = self.free()
            try:
                instance = self.it.acquire(asker)
            except Overloaded:
                assert not free
                assert len(self.waiting) >= self.max_held
                self.refused += 1
                continue
            self.waiting.append(asker)
            if instance is not None:
                assert len(self.waiting) == 1, "overtook those who wait"
                self.got([(asker, instance)])
            else:
                assert not free

    @rule(data=st.data(), healthy=st.booleans())
    def finish(self, data: Any, healthy: bool) -> None:
        if not self.slots:
            return
        asker = data.draw(st.sampled_from(sorted(self.slots, key=lambda a: a.ticket)))
        instance = self.slots.pop(asker)
        self.ended += 1
        self.got(self.it.release(instance) if healthy else self.it.retreat(instance))

    @rule(data=st.data(), again=st.booleans())
    def fail(self, data: Any, again: bool) -> None:
        if not self.slots:
            return
        asker = data.draw(st.sampled_from(sorted(self.slots, key=lambda a: a.ticket)))
        instance = self.slots.pop(asker)
        if again:
            self.waiting.append(asker)
        else:
            self.ended += 1
        self.got(self.it.fail(instance, self.now, asker if again else None))

    @rule(data=st.data())
    def hang_up(self, data: Any) -> None:
        if not self.waiting:
            return
        asker = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(asker)
        self.ended += 1
        self.it.cancel(asker)

    @rule(names=st.sets(st.sampled_from("abcd")), limit=st.integers(1, 3))
    def update(self, names: set[str], limit: int) -> None:
        self.told = {Endpoint(name, (name, 80)) for name in names}
        self.limit = limit
        self.got(self.it.update(sorted(self.told), limit))

    @rule(later_s=st.floats(0.01, 3.0))
    def wait(self, later_s: float) -> None:
        self.now += later_s
        self.got(self.it.due(self.now))
        assert all(i.state is not State.ASIDE or i.back_at_s > self.now for i in self.it.instances)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.it.held == len(self.waiting)
        assert self.it.in_flight == len(self.slots)
        assert self.made == len(self.waiting) + len(self.slots) + self.ended + self.refused

    @invariant()
    def counts_are_those_of_the_requests(self) -> None:
        for instance in self.it.instances:
            assert instance.in_flight == sum(held is instance for held in self.slots.values())
        for held in self.slots.values():
            assert held in self.it.instances

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        assert not (self.waiting and self.free())

    @invariant()
    def only_told_instances_or_those_that_still_work_are_kept(self) -> None:
        for instance in self.it.instances:
            assert (instance.endpoint in self.told) == (instance.state is not State.LEAVING)
            assert instance.endpoint in self.told or instance.in_flight
        assert self.it.ready == sum(instance.state is State.READY for instance in self.it.instances)


ThrottlerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestThrottlerMachine = ThrottlerMachine.TestCase
