"""The ResourceStore suite on every adapter and on the fake."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.control.memory import MemoryStore
from core.control.sqlite import SqliteStore
from tests.conformance.resource_store import BoundedChangesSuite, ResourceStoreSuite


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
