"""What the benchmarks read from nginx."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import nginx
from bench.broken import Broken
from bench.nginx import NginxLog


def test_the_sinks_log_counts_each_event_and_a_line_that_is_not_complete_waits(tmp_path: Path) -> None:
    path = tmp_path / "ids.log"
    log = NginxLog(path)
    path.write_text("cpu-1 100.500\ncpu-2 100.250\ncpu-")
    log.read()
    assert log.counts == {"cpu-1": 1, "cpu-2": 1}
    with path.open("a") as file:
        file.write("3 101.000\ncpu-1 102.000\n")
    log.read()
    assert log.counts == {"cpu-1": 2, "cpu-2": 1, "cpu-3": 1}
    assert log.last_at_s == 102.0


def test_a_cleared_log_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ids.log"
    path.write_text("cpu-1 100.500\n")
    log = NginxLog(path)
    log.read()
    log.clear()
    log.read()
    assert log.counts == {}


def test_a_missing_nginx_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, path=None: None)
    with pytest.raises(Broken, match="apt-get install nginx-light"):
        nginx.version()
