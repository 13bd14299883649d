"""What only the durable store has: a file, its lock, its limits, and what it says of a file that is not its own."""

import asyncio
import sqlite3
import stat
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from core.control.sqlite import SqliteStore, read_stored
from core.errors import Corrupt, Gone, InvalidInput, Unavailable
from core.limits import MAX_RESOURCE_BYTES
from core.resources import KindRef, ObjectMeta, Resource

FLOW = KindRef("test.penstock.dev", "v1", "Flow")


def flow(name: str, **spec: object) -> Resource:
    return Resource(ref=FLOW, meta=ObjectMeta(name=name, namespace="default"), body={"spec": spec})


async def _create(store: SqliteStore, resource: Resource) -> None:
    await store.create(resource)


async def test_everything_is_there_after_a_reopening_and_versions_go_on(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        first = await store.create(flow("a"))
        gone = await store.create(flow("b"))
        await store.delete(gone.key)
        before = await store.list(FLOW)
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        assert await store.list(FLOW) == before
        assert await store.get(first.key) == first
        later = await store.create(flow("c"))
        assert int(later.meta.resource_version) == before.version + 1
        async with aclosing(store.watch(FLOW, int(first.meta.resource_version))) as watch:
            told = [await anext(watch) for _ in range(3)]
        assert [change.type for change in told] == ["ADDED", "DELETED", "ADDED"]


async def test_the_version_goes_on_even_after_everything_is_deleted(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "store.db", max_changes=1)) as store:
        made = await store.create(flow("a"))
        await store.delete(made.key)
        version = (await store.list(FLOW)).version
    with closing(SqliteStore(tmp_path / "store.db", max_changes=1)) as store:
        assert (await store.list(FLOW)).version == version


def test_a_second_opening_names_the_directory_and_what_to_do(tmp_path: Path):
    with (
        closing(SqliteStore(tmp_path / "data" / "store.db")),
        pytest.raises(Unavailable, match="in use by another running Penstock") as refused,
    ):
        SqliteStore(tmp_path / "data" / "store.db")
    assert str(tmp_path / "data") in str(refused.value)
    assert "another data directory" in str(refused.value)


def test_the_lock_is_free_again_after_closing_and_after_a_failed_opening(tmp_path: Path):
    path = tmp_path / "store.db"
    path.write_text("this is not a database, and longer than its header would be" * 50)
    for _ in range(2):
        with pytest.raises(Corrupt, match="is not a store that this version of Penstock can read"):
            SqliteStore(path)
    path.unlink()
    SqliteStore(path).close()
    SqliteStore(path).close()


def _other_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE songs (title TEXT)")


def _newer_schema(path: Path) -> None:
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def _cut(path: Path) -> None:
    SqliteStore(path).close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_other_application, id="another application's database"),
        pytest.param(_newer_schema, id="a newer version's store"),
        pytest.param(_cut, id="a file cut short"),
    ],
)
def test_a_file_that_is_not_a_store_is_left_alone_and_named(tmp_path: Path, spoil: Callable[[Path], None]):
    path = tmp_path / "store.db"
    spoil(path)
    held = path.read_bytes()
    with pytest.raises(Corrupt, match="Restore it from a backup") as refused:
        SqliteStore(path)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == held


async def test_a_damaged_row_is_corrupt_and_never_returned(tmp_path: Path):
    path = tmp_path / "store.db"
    with closing(SqliteStore(path)) as store:
        made = await store.create(flow("a"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE objects SET body = ?", (b'{"apiVersion": "v1", "kind"',))
        db.commit()
    with closing(SqliteStore(path)) as store:
        with pytest.raises(Corrupt):
            await store.get(made.key)
        with pytest.raises(Corrupt):
            await store.list(FLOW)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be used") as refused:
        SqliteStore(tmp_path / "file" / "store.db")
    assert str(tmp_path / "file") in str(refused.value)


def test_secrets_are_readable_by_this_user_alone(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        asyncio.run(_create(store, flow("a")))
        files = sorted(tmp_path.iterdir())
        assert len(files) >= 3
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_kept_changes_are_bounded_in_bytes_too(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "store.db", max_changes_bytes=20_000)) as store:
        made = await store.create(flow("a"))
        for size in range(30):
            made = await store.update(made.with_spec({"size": size, "fill": "x" * 3_000}))
        version = int(made.meta.resource_version)
        with pytest.raises(Gone):
            await anext(store.watch(FLOW, version - 10))
        async with aclosing(store.watch(FLOW, version - 5)) as watch:
            assert [(await anext(watch)).version for _ in range(5)] == list(range(version - 4, version + 1))
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        assert db.execute("SELECT sum(length(body)) FROM changes").fetchone()[0] <= 20_000


async def test_one_change_larger_than_all_that_may_be_kept_still_counts(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "store.db", max_changes_bytes=1_000)) as store:
        made = await store.create(flow("a", fill="x" * 5_000))
    with closing(SqliteStore(tmp_path / "store.db", max_changes_bytes=1_000)) as store:
        assert str((await store.list(FLOW)).version) == made.meta.resource_version
        changed = await store.update(made.with_spec({"fill": "y"}))
        assert int(changed.meta.resource_version) == int(made.meta.resource_version) + 1


async def test_a_resource_over_the_limit_is_refused_and_nothing_written(tmp_path: Path):
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        with pytest.raises(InvalidInput, match=str(MAX_RESOURCE_BYTES)):
            await store.create(flow("a", fill="x" * MAX_RESOURCE_BYTES))
        assert (await store.list(FLOW)).items == ()
        made = await store.create(flow("b"))
        assert made.meta.resource_version == "2"


async def test_closing_ends_every_watch_and_every_later_call_as_unavailable(tmp_path: Path):
    store = SqliteStore(tmp_path / "store.db")
    version = (await store.list(FLOW)).version
    waiting = [asyncio.ensure_future(anext(store.watch(FLOW, version))) for _ in range(3)]
    await asyncio.sleep(0)
    store.close()
    store.close()
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, Unavailable)
    for call in (store.create(flow("a")), store.list(FLOW), anext(store.watch(FLOW, version))):
        with pytest.raises(Unavailable, match="closed"):
            await call


async def test_a_write_that_fails_changes_nothing_and_the_next_one_works(tmp_path: Path):
    """Another connection holds the write lock: SQLite gives up after its time-out, as with a full disk."""
    path = tmp_path / "store.db"
    with closing(SqliteStore(path, busy_timeout_s=0.01)) as store:
        made = await store.create(flow("a"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="cannot be read or written now"):
                await store.update(made.with_spec({"size": 2}))
            other.execute("ROLLBACK")
        assert await store.get(made.key) == made
        changed = await store.update(made.with_spec({"size": 2}))
        assert int(changed.meta.resource_version) == int(made.meta.resource_version) + 1


async def test_what_is_stored_can_be_read_beside_its_owner_and_after_it(tmp_path: Path):
    path = tmp_path / "store.db"
    assert read_stored(path, (FLOW,)) == ()
    with closing(SqliteStore(path)) as store:
        made = await store.create(flow("a"))
        await store.create(Resource(ref=KindRef("other.dev", "v1", "Other"), meta=ObjectMeta(name="b"), body={}))
        assert read_stored(path, (FLOW,)) == (made,)
    assert read_stored(path, (FLOW,)) == (made,)


def test_a_file_that_is_no_store_cannot_be_read_as_one(tmp_path: Path):
    (tmp_path / "store.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Unavailable, match="cannot be read now"):
        read_stored(tmp_path / "store.db", (FLOW,))
