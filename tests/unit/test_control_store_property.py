"""The durable store against the in-memory one as oracle: the same calls give the same answers, down to uids."""

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core.control.memory import MemoryStore
from core.control.port import Change, ResourceStore
from core.control.sqlite import SqliteStore
from core.errors import Gone, PenstockError
from core.resources import Key, KindRef, ObjectMeta, Resource

FLOW = KindRef("test.penstock.dev", "v1", "Flow")
PIPE = KindRef("", "v1", "Pipe")

#: So few that the limit is passed within a run.
KEPT = 15

kinds = st.sampled_from([FLOW, PIPE])
names = st.sampled_from(["a", "b", "c"])
namespaces = st.sampled_from(["default", "other"])
specs = st.sampled_from([{}, {"n": 1}, {"n": True}, {"n": 1.5, "deep": [{"x": None}]}, {"ä": "\u2028"}])
finalizers = st.sampled_from([(), ("f/1",), ("f/1", "f/2")])
labels = st.sampled_from([{}, {"x": "y"}])


class FixedClock:
    def now(self) -> float:
        return 1_700_000_000.0


class Stores(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def open(self, seed: int) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.rng = random.Random(seed)
        self.memory = MemoryStore(clock=FixedClock(), rng=random.Random(seed), max_changes=KEPT)
        self.sqlite = self._open_sqlite()
        #: Every change since the start, as the oracle's watch must tell them.
        self.history: list[Change] = []
        #: States that were seen at some time, to write to again: current ones and old ones.
        self.states: list[Resource] = []

    def _open_sqlite(self) -> SqliteStore:
        path = Path(self.folder.name) / "store.db"
        return SqliteStore(path, clock=FixedClock(), rng=self.rng, max_changes=KEPT)

    def teardown(self) -> None:
        if hasattr(self, "sqlite"):
            self.sqlite.close()
            self.folder.cleanup()
            self.runner.close()

    def both(self, call: Callable[[ResourceStore], Awaitable[Any]]) -> Any:
        """The answer of both stores, which must be the same; an error as its type and text."""

        async def ask(store: ResourceStore) -> Any:
            try:
                return await call(store)
            except PenstockError as error:
                return type(error), str(error)

        expected, found = self.runner.run(ask(self.memory)), self.runner.run(ask(self.sqlite))
        assert found == expected
        if isinstance(expected, Resource):
            self.states.append(expected)
        return expected

    def _state(self, data: st.DataObject) -> Resource:
        recent = self.states[-12:]
        return data.draw(st.sampled_from(recent)) if recent else Resource(ref=FLOW, meta=ObjectMeta(name="a"), body={})

    @rule(
        kind=kinds,
        name=names,
        namespace=namespaces,
        spec=specs,
        finalizers=finalizers,
        generated=st.booleans(),
        anonymous=st.sampled_from([False, False, False, True]),
    )
    def create(self, kind, name, namespace, spec, finalizers, generated, anonymous) -> None:
        meta = ObjectMeta(
            name="" if generated or anonymous else name,
            generate_name="job-" if generated else "",
            namespace=namespace,
            finalizers=finalizers,
        )
        self.both(lambda store: store.create(Resource(ref=kind, meta=meta, body={"spec": spec, "status": {"x": 1}})))

    @rule(data=st.data(), spec=specs, labels=labels, finalizers=finalizers, blind=st.booleans())
    def update(self, data, spec, labels, finalizers, blind) -> None:
        state = self._state(data).with_spec(spec).with_meta(labels=labels, finalizers=finalizers)
        state = state.with_meta(resource_version="", uid="") if blind else state
        self.both(lambda store: store.update(state))

    @rule(data=st.data(), status=specs, blind=st.booleans())
    def update_status(self, data, status, blind) -> None:
        state = self._state(data).with_status(status)
        state = state.with_meta(resource_version="") if blind else state
        self.both(lambda store: store.update_status(state))

    @rule(data=st.data(), with_uid=st.booleans())
    def delete(self, data, with_uid) -> None:
        state = self._state(data)
        self.both(lambda store: store.delete(state.key, uid=state.meta.uid if with_uid else None))

    @rule(kind=kinds, namespace=namespaces, name=names)
    def get(self, kind, namespace, name) -> None:
        self.both(lambda store: store.get(Key(kind, namespace, name)))

    @rule()
    def reopen(self) -> None:
        self.sqlite.close()
        self.sqlite = self._open_sqlite()

    @rule(kind=kinds, namespace=st.sampled_from([None, "default", "other"]), back=st.integers(-2, KEPT + 5))
    def watch(self, kind, namespace, back) -> None:
        """A watch from any version tells every later change of the kind once and in order, or is Gone."""
        newest = self.runner.run(self.memory.list(kind)).version
        since = max(newest - back, 1)
        told = self.both(lambda store: _told(store, kind, since, namespace))
        self._note_history(newest)
        if isinstance(told, tuple) and told and told[0] is Gone:
            assert since > newest or since < newest - KEPT
            return
        assert newest - KEPT <= since <= newest
        expected = [
            change
            for change in self.history
            if change.version > since
            and change.resource is not None
            and change.resource.ref == kind
            and namespace in (None, change.resource.meta.namespace)
        ]
        assert told == expected

    def _note_history(self, newest: int) -> None:
        """What the oracle keeps, merged into everything that was seen before: versions must be gapless."""
        known = {change.version: change for change in self.history}
        oldest = max(newest - KEPT, 1)
        for kind in (FLOW, PIPE):
            for change in self.runner.run(_told(self.memory, kind, oldest, None)):
                assert known.setdefault(change.version, change) == change
        self.history = [known[version] for version in sorted(known)]
        kept = [change.version for change in self.history if change.version > oldest]
        assert kept == list(range(oldest + 1, newest + 1))

    @invariant()
    def lists_agree(self) -> None:
        if not hasattr(self, "sqlite"):
            return
        for kind in (FLOW, PIPE):
            for namespace in (None, "default"):
                self.both(lambda store, k=kind, n=namespace: store.list(k, n))


async def _told(store: ResourceStore, kind: KindRef, since: int, namespace: str | None) -> list[Change]:
    """What a watch has to tell now, without waiting for more."""
    changes: list[Change] = []
    async with aclosing(store.watch(kind, since, namespace)) as watch:
        while True:
            following = asyncio.ensure_future(anext(watch))
            # A store that has something to tell tells it within the first step.
            await asyncio.sleep(0)
            if not following.done():
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                return changes
            changes.append(following.result())


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
