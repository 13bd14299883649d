"""Both Checkpoints keep their promises; SQLite's outlive the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import Corrupt, Unavailable
from sources.checkpoints import MemoryCheckpoints, SqliteCheckpoints
from tests.conformance.checkpoints import CheckpointsSuite


class TestMemoryCheckpoints(CheckpointsSuite):
    @pytest.fixture
    def checkpoints(self) -> MemoryCheckpoints:
        return MemoryCheckpoints()


class TestSqliteCheckpoints(CheckpointsSuite):
    @pytest.fixture
    async def checkpoints(self, tmp_path: Path) -> AsyncIterator[SqliteCheckpoints]:
        opened = SqliteCheckpoints(tmp_path / "sources" / "checkpoints.db")
        yield opened
        await opened.close()

    async def test_what_was_written_is_there_after_a_crash_without_closing(self, tmp_path: Path):
        crashed = SqliteCheckpoints(tmp_path / "checkpoints.db")
        await crashed.write("uid-1", {"a": "1"})
        again = SqliteCheckpoints(tmp_path / "checkpoints.db")
        assert await again.read("uid-1", ["a"]) == {"a": "1"}
        await again.close()
        await crashed.close()

    async def test_closing_finishes_the_writes_under_way(self, tmp_path: Path):
        closed = SqliteCheckpoints(tmp_path / "checkpoints.db")
        write = closed.write("uid-1", {"a": "1"})
        write.send(None)  # started, not awaited to its end
        await closed.close()
        write.close()
        again = SqliteCheckpoints(tmp_path / "checkpoints.db")
        assert await again.read("uid-1", ["a"]) == {"a": "1"}
        await again.close()

    def test_a_file_that_is_no_database_is_refused_by_name(self, tmp_path: Path):
        (tmp_path / "checkpoints.db").write_bytes(b"not a database, whatever its name says" * 40)
        with pytest.raises(Corrupt, match=r"checkpoints\.db"):
            SqliteCheckpoints(tmp_path / "checkpoints.db")

    def test_a_place_that_cannot_be_written_is_unavailable(self, tmp_path: Path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(Unavailable):
            SqliteCheckpoints(tmp_path / "file" / "checkpoints.db")
