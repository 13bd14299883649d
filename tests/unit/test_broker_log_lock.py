"""The lock of the SQLite event log's file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from broker.log.files import Files


def test_a_file_that_could_not_be_opened_is_not_left_locked(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.mkdir()
    with pytest.raises(sqlite3.OperationalError):
        Files(path, 1 << 30)
    path.rmdir()
    Files(path, 1 << 30).close()
