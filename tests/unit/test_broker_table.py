"""The table that is kept through changes is the one that would be built anew, and what changed is said."""

import logging
import random
from typing import Final

import pytest

from broker.messaging import IN_MEMORY_CHANNEL, SUBSCRIPTION
from broker.resources import CLASS_ANNOTATION, DEFAULT_CLASS, REDIS_CLASS
from broker.table import EMPTY, GIVERS, TAKERS, Table, TableBuilder
from core.control.cache import Observed
from core.resources import Key, ObjectMeta, Resource
from tests.support.broker import broker, trigger

BROKERS: Final = ("a", "b", "c")


class Resources:
    """What a store would hold, changed at random, with the changes as a follower tells them."""

    def __init__(self, rng: random.Random) -> None:
        self.held: dict[Key, Resource] = {}
        self._rng = rng
        self._count = 0

    def change(self) -> Observed:
        made = self._rng.choice((self._broker, self._channel, self._trigger, self._trigger, self._subscription))()
        before = self.held.get(made.key)
        if before is not None and self._rng.random() < 0.4:
            del self.held[made.key]
            return Observed(before, None)
        self._count += 1
        again = before is None or self._rng.random() < 0.1  # deleted and created again, told as one change
        uid = f"uid-{self._count}" if again else before.meta.uid
        after = made.with_meta(uid=uid, resource_version=str(self._count))
        self.held[after.key] = after
        return Observed(before, after)

    def of(self, kinds: tuple[object, ...]) -> list[Resource]:
        return [resource for key, resource in sorted(self.held.items()) if key.kind in kinds]

    def _broker(self) -> Resource:
        rng = self._rng
        made = broker(rng.choice(BROKERS), **rng.choice(({}, {}, {"delivery": {"retry": 3}}, {"nonsense": 1})))
        return made.with_meta(annotations={CLASS_ANNOTATION: rng.choice((DEFAULT_CLASS, DEFAULT_CLASS, REDIS_CLASS))})

    def _channel(self) -> Resource:
        meta = ObjectMeta(name=self._rng.choice(BROKERS), namespace="default")
        return Resource(ref=IN_MEMORY_CHANNEL, meta=meta, body={"spec": {}})

    def _trigger(self) -> Resource:
        rng = self._rng
        wanted = rng.choice(("a", "b", 7))
        return trigger(
            f"t{rng.randrange(8)}",
            rng.choice(("http://one.test/", None)),
            broker=rng.choice(BROKERS),
            filter={"attributes": {"type": wanted}},
        )

    def _subscription(self) -> Resource:
        rng = self._rng
        channel = {"apiVersion": "messaging.knative.dev/v1", "kind": "Channel", "name": rng.choice(BROKERS)}
        spec = {"channel": channel, "subscriber": {"uri": "http://one.test/"}}
        meta = ObjectMeta(name=f"s{rng.randrange(3)}", namespace="default")
        return Resource(ref=SUBSCRIPTION, meta=meta, body={"spec": spec, "status": {}})


def differences(before: Table, after: Table, classes: set[str]) -> set[str]:
    """The Triggers of which something is different that a log's fan-out goes by."""
    uids = {*before.triggers, *after.triggers, *before.unread, *after.unread}
    return {
        uid
        for uid in uids
        if (before.triggers.get(uid), before.served(uid, classes), before.waits(uid))
        != (after.triggers.get(uid), after.served(uid, classes), after.waits(uid))
    }


@pytest.mark.parametrize("classes", [None, {DEFAULT_CLASS}], ids=["all", "one class"])
def test_a_table_that_is_kept_through_changes_is_the_one_that_would_be_built_anew(
    classes: set[str] | None, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    resources, kept = Resources(rng), TableBuilder(classes)
    for _ in range(600):
        changes = [resources.change() for _ in range(rng.choice((1, 1, 1, 5)))]
        before = kept.table
        changed = kept.update(changes)
        anew = TableBuilder(classes).build(resources.of(GIVERS), resources.of(TAKERS))
        assert kept.table == anew
        for served in ({DEFAULT_CLASS}, {REDIS_CLASS}):
            assert differences(before, anew, served) <= set(changed), seed
        if not changed and before.brokers == anew.brokers:
            assert kept.table is before


def test_a_change_of_what_the_table_does_not_hold_changes_nothing():
    builder = TableBuilder()
    assert builder.table is EMPTY
    one = trigger("t").with_meta(resource_version="1")
    table = builder.build([broker()], [one])
    told = one.with_meta(resource_version="2", labels={"seen": "by no table"})
    assert not builder.update([Observed(one, told)])
    assert builder.table is table


def test_a_new_trigger_is_the_only_one_that_changes():
    builder = TableBuilder()
    builder.build([broker()], [trigger(f"t{n}") for n in range(100)])
    assert builder.update([Observed(None, trigger("new"))]) == ["uid-new"]
    assert builder.update([Observed(trigger("new"), None)]) == ["uid-new"]


def test_a_broker_that_comes_or_goes_changes_all_its_triggers_and_no_others():
    builder = TableBuilder()
    builder.build([], [trigger("t"), trigger("u"), trigger("other", broker="other")])
    assert builder.update([Observed(None, broker())]) == ["uid-t", "uid-u"]
    assert builder.update([Observed(broker(), None)]) == ["uid-t", "uid-u"]


@pytest.mark.parametrize("kind", GIVERS)
def test_a_broker_or_channel_whose_delivery_cannot_be_read_keeps_the_others_from_nothing(kind):
    name = "channels/odd" if kind == IN_MEMORY_CHANNEL else "odd"
    meta = ObjectMeta(name="odd", namespace="default", uid="odd")
    odd = Resource(ref=kind, meta=meta, body={"spec": {"delivery": {"timeout": "soon"}}})
    resources = [broker(), odd], [trigger("one"), trigger("two", broker=name)]
    table = TableBuilder().build(*resources)
    assert (list(table.brokers), sorted(table.triggers)) == (["default/default"], ["uid-one", "uid-two"])
    kept = TableBuilder()
    kept.update([Observed(None, resource) for resource in (*resources[0], *resources[1])])
    assert kept.table == table
