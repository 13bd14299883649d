"""The ResourceStore suite on every adapter and on the fake."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn

from core.clock import SystemClock
from core.control.cache import Follower
from core.control.memory import MemoryStore
from core.control.rest import RestStore
from core.control.sqlite import SqliteStore
from core.errors import Gone, InvalidInput, NotFound, Unavailable
from core.net.client import Client
from core.resources import Kind, KindRef, Registry
from core.resources.builtin import KINDS
from core.telemetry import Metrics
from penstock.apiserver.app import create_app
from tests.conformance.resource_store import (
    DEADLINE_S,
    GADGET,
    WIDGET,
    BoundedChangesSuite,
    ResourceStoreSuite,
    gadget,
    key,
    take,
    told,
)


class TestMemoryStore(ResourceStoreSuite, BoundedChangesSuite):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def small(self) -> MemoryStore:
        return MemoryStore(max_changes=10)


class TestSqliteStore(ResourceStoreSuite, BoundedChangesSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SqliteStore]:
        store = SqliteStore(tmp_path / "store.db")
        yield store
        store.close()

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[SqliteStore]:
        store = SqliteStore(tmp_path / "small.db", max_changes=10)
        yield store
        store.close()


class _GadgetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every member that the suite writes into a spec."""

    size: int = 0
    on: Any = None
    text: Any = None
    no: Any = None
    yes: Any = None
    n: Any = None
    f: Any = None
    deep: Any = None


_KINDS = (
    *KINDS,
    Kind(ref=GADGET, plural="gadgets", singular="gadget", spec_type=_GadgetSpec),
    Kind(ref=WIDGET, plural="widgets", singular="widget", spec_type=_GadgetSpec),
)


@contextlib.asynccontextmanager
async def serving(held: MemoryStore | SqliteStore, listener: socket.socket) -> AsyncIterator[None]:
    """A running API server over `held`, which takes its connections from `listener`."""
    app = create_app(store=held, registry=Registry(_KINDS), clock=SystemClock(), metrics=Metrics())
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    # The server closes what it is given; the listener stays open for the next one.
    running = asyncio.create_task(server.serve(sockets=[listener.dup()]))
    try:
        yield
    finally:
        app.state.watches.close()
        server.should_exit = True
        await running


@contextlib.asynccontextmanager
async def closing_client() -> AsyncIterator[Client]:
    client = Client()
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def over_rest(held: MemoryStore | SqliteStore) -> AsyncIterator[RestStore]:
    """`held` behind a running API server, as another process sees it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving(held, listener), closing_client() as client:
            yield RestStore(client, listener.getsockname(), _KINDS)


class TestRestStore(ResourceStoreSuite):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[RestStore]:
        with contextlib.closing(SqliteStore(tmp_path / "store.db")) as held:
            async with over_rest(held) as store:
                yield store

    async def test_a_watch_from_before_what_is_kept_is_refused(self):
        async with over_rest(MemoryStore(max_changes=10)) as store:
            start = (await store.list(GADGET)).version
            for number in range(12):
                await store.create(gadget(f"a{number}"))
            async with contextlib.aclosing(store.watch(GADGET, start)) as watch:
                with pytest.raises(Gone, match=r"[Ll]ist again"):
                    await take(watch, 1)

    async def test_a_server_that_is_not_there_is_unavailable_to_every_operation(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            nowhere = listener.getsockname()
        async with closing_client() as client:
            store = RestStore(client, nowhere, _KINDS)
            attempts = (
                store.get(key("a")),
                store.list(GADGET),
                store.create(gadget("a")),
                store.update(gadget("a")),
                store.update_status(gadget("a")),
                store.delete(key("a")),
                take(store.watch(GADGET, 1), 1),
            )
            for attempt in attempts:
                with pytest.raises(Unavailable, match="API server"):
                    await attempt

    async def test_a_follower_keeps_its_state_while_the_server_is_away_and_catches_up_afterwards(self, tmp_path: Path):
        changed = asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with closing_client() as client:
                store = RestStore(client, listener.getsockname(), _KINDS)
                follower = Follower(store, (GADGET, WIDGET), lambda batch: changed.set())
                following = asyncio.create_task(follower.run())
                with contextlib.closing(SqliteStore(tmp_path / "store.db")) as held:
                    made = await held.create(gadget("a"))
                    async with serving(held, listener), asyncio.timeout(DEADLINE_S):
                        await follower.synced.wait()
                        assert follower.get(made.key) == made
                assert follower.get(made.key) == made
                with contextlib.closing(SqliteStore(tmp_path / "store.db")) as held:
                    later = await held.update(made.with_spec({"size": 2}))
                    changed.clear()
                    async with serving(held, listener), asyncio.timeout(DEADLINE_S):
                        await changed.wait()
                        assert follower.get(made.key) == later
                        following.cancel()
                        await asyncio.gather(following, return_exceptions=True)

    async def test_a_watch_breaks_off_as_unavailable_when_the_server_goes(self):
        held = MemoryStore()
        async with over_rest(held) as store:
            start = (await store.list(GADGET)).version
            watch = store.watch(GADGET, start)
            await store.create(gadget("a"))
            assert told(await take(watch, 1)) == [("ADDED", "a")]
            held.close()
            with pytest.raises(Unavailable):
                await take(watch, 1)

    async def test_an_invalid_resource_is_refused_with_every_field(self, store: RestStore):
        with pytest.raises(InvalidInput, match=r"spec\.size") as refused:
            await store.create(gadget("a").with_spec({"size": "large"}))
        assert [error.path for error in refused.value.errors] == ["spec.size"]

    async def test_a_kind_that_the_process_does_not_know_is_not_found(self, store: RestStore):
        with pytest.raises(NotFound, match="not among"):
            await store.list(KindRef("", "v1", "Pod"))
