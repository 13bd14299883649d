"""The files that instances write to, without instances."""

import os
from contextlib import aclosing

import pytest

from serving.instances import logs as logs_module
from serving.instances.logs import KEPT_FILES, MAX_FILE_BYTES, LogFiles
from serving.instances.port import LogLine


@pytest.fixture
def logs(tmp_path):
    return LogFiles(tmp_path)


def write(logs, text, instance="a", revision="r"):
    handle = logs.open("ns", revision, instance)
    os.write(handle, text.encode())
    os.close(handle)


async def read(logs, tail=None):
    return [line.text async for line in logs.read("ns", "r", tail=tail, follow=False)]


async def test_a_file_over_its_limit_is_moved_aside_and_goes_on_empty(logs):
    write(logs, "x" * MAX_FILE_BYTES)
    logs.rotate("ns", "r", "a")
    assert logs.path("ns", "r", "a").stat().st_size == MAX_FILE_BYTES
    handle = logs.open("ns", "r", "a")
    os.write(handle, b"\nlast\n")
    logs.rotate("ns", "r", "a")
    os.write(handle, b"after\n")
    os.close(handle)
    assert await read(logs) == ["after"]
    assert logs.path("ns", "r", "a").with_suffix(".log.1").read_bytes().endswith(b"\nlast\n")
    logs.rotate("ns", "r", "never-there")


async def test_a_follower_goes_on_in_a_file_that_was_rotated(logs, monkeypatch):
    monkeypatch.setattr(logs_module, "FOLLOW_EVERY_S", 0)
    write(logs, "x" * MAX_FILE_BYTES + "\nzero\n")
    async with aclosing(logs.read("ns", "r", tail=1, follow=True)) as lines:
        assert (await anext(lines)).text == "zero"
        write(logs, "one\n")
        assert (await anext(lines)).text == "one"
        logs.rotate("ns", "r", "a")
        write(logs, "two\n")
        assert (await anext(lines)).text == "two"
        write(logs, "three\n", instance="b")
        assert await anext(lines) == LogLine("b", "three")


async def test_a_line_is_told_once_it_is_complete(logs):
    write(logs, "whole\nhal")
    assert await read(logs) == ["whole"]
    write(logs, "f\n")
    assert await read(logs) == ["whole", "half"]


async def test_bytes_that_are_no_text_are_told_as_what_they_may_be(logs):
    handle = logs.open("ns", "r", "a")
    os.write(handle, b"caf\xe9\n")
    os.close(handle)
    assert await read(logs) == ["caf\ufffd"]


@pytest.mark.parametrize(
    ("tail", "expected"), [(None, ["1", "2", "3"]), (2, ["2", "3"]), (0, []), (9, ["1", "2", "3"])]
)
async def test_the_tail(logs, tail, expected):
    write(logs, "1\n2\n3\n")
    assert await read(logs, tail) == expected


def test_the_last_lines_leave_out_blank_ones(logs):
    write(logs, "1\n2\n\n3\n\n")
    assert logs.last_lines("ns", "r", "a", 2) == ["2", "3"]
    assert logs.last_lines("ns", "r", "never-there", 2) == []


def age(path, seconds):
    os.utime(path, (1_000_000 - seconds, 1_000_000 - seconds))


def test_the_files_of_the_last_instances_that_are_gone_are_kept(logs):
    for number in range(KEPT_FILES + 3):
        write(logs, "x", instance=f"i{number:02d}")
        age(logs.path("ns", "r", f"i{number:02d}"), 1000 - number)
    logs.prune("ns", "r", running={"i00"})
    left = sorted(path.stem for path in logs.path("ns", "r", "x").parent.iterdir())
    assert left == ["i00", *(f"i{number:02d}" for number in range(3, KEPT_FILES + 3))]


def test_the_logs_of_revisions_that_were_last_are_kept(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(logs_module, "KEPT_REVISIONS", 2)
    for number in range(5):
        write(logs, "x", revision=f"r{number}")
        age(tmp_path / "ns" / f"r{number}", 1000 - number)
    logs.prune_revisions({("ns", "r0")})
    assert sorted(path.name for path in (tmp_path / "ns").iterdir()) == ["r0", "r3", "r4"]


def test_only_the_owner_can_read_what_functions_write(logs, tmp_path):
    write(logs, "x")
    assert logs.path("ns", "r", "a").stat().st_mode & 0o077 == 0
    assert (tmp_path / "ns" / "r").stat().st_mode & 0o077 == 0
