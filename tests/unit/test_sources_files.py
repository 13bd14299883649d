"""Files as objects: which are complete, which keys count, and a listing that holds little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sources.files import MAX_DEPTH, FolderGone, Lister, Look, Selection, Step, identity, look, missing

EVERYTHING = Selection()


def listed(root: Path, selection: Selection = EVERYTHING, limit: int = 3, start: str = "") -> list[Step]:
    lister, steps = Lister(str(root), selection, start), []
    while not (steps and steps[-1].done):
        steps.append(lister.step(limit))
    lister.close()
    return steps


def keys(steps: list[Step]) -> list[str]:
    return sorted(key for step in steps for key in step.keys)


def test_a_file_is_complete_when_nobody_has_it_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as first, path.open("ab"):
        first.write(b"x")
        assert look(str(path)).look is Look.WRITING
    with path.open("rb"):
        assert look(str(path)).look is Look.COMPLETE


def test_a_writer_in_another_process_counts_too(tmp_path: Path) -> None:
    path = tmp_path / "a"
    script = "import sys; held = open(sys.argv[1], 'wb'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        assert look(str(path)).look is Look.WRITING
        writer.communicate(timeout=10)
    assert look(str(path)).look is Look.COMPLETE


def test_a_look_gives_the_lease_back_so_that_writers_are_not_held_up(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    assert look(str(path)).look is Look.COMPLETE
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # EWOULDBLOCK while a lease is held


def test_the_version_changes_with_the_content_and_not_with_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = look(str(path)).version
    path.rename(tmp_path / "b")
    renamed = look(str(tmp_path / "b")).version
    (tmp_path / "b").write_bytes(b"three")
    third = look(str(tmp_path / "b")).version
    assert first is not None
    assert renamed is not None
    assert third is not None
    assert first.etag == renamed.etag != third.etag


def test_what_is_no_regular_file_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert look(str(tmp_path / "link")).look is Look.OTHER
    assert look(str(tmp_path / "pipe")).look is Look.OTHER
    assert look(str(tmp_path)).look is Look.OTHER
    assert look(str(tmp_path / "nothing")).look is Look.GONE
    assert look(str(tmp_path / "file" / "below")).look is Look.GONE


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("in/a.jpg", True),
        ("in/deep/er/a.jpg", True),
        ("in/a.png", False),
        ("a.jpg", False),
        ("in/.a.jpg", False),
        ("in/.hidden/a.jpg", False),
        ("in/a.jpg.part", False),
        ("in/caf\udce9.jpg", False),
        ("in/\N{SNOWMAN}.jpg", True),
    ],
)
def test_which_keys_count(key: str, counts: bool) -> None:
    assert Selection(prefix="in/", suffix=".jpg").has(key) is counts


@pytest.mark.parametrize("name", ["a.tmp", "a.temp", "a.part", "a.partial", "a.filepart", "a.crdownload", ".a"])
def test_temporary_names_do_not_count(name: str) -> None:
    assert not EVERYTHING.has(name)


@pytest.mark.parametrize(
    ("folder", "enters"), [("in/", True), ("in/deep/", True), ("out/", False), (".git/", False), ("i/", False)]
)
def test_folders_that_cannot_hold_a_key_are_not_entered(folder: str, enters: bool) -> None:
    assert Selection(prefix="in/").may_hold(folder) is enters


def test_a_prefix_that_ends_within_a_name_enters_the_folders_that_match() -> None:
    assert Selection(prefix="year-20").may_hold("year-2024/")
    assert not Selection(prefix="year-20").may_hold("year-1999/")


def test_a_listing_gives_every_object_once_in_steps_of_at_most_the_limit(tmp_path: Path) -> None:
    made = [f"{a}/{b}/{number}" for a in "xyz" for b in "uv" for number in range(5)] + ["top-1", "top-2"]
    for key in made:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"")
    steps = listed(tmp_path)
    assert keys(steps) == sorted(made)
    assert max(len(step.keys) for step in steps) <= 3
    assert sorted(step.folder for step in steps if step.folder) == sorted(
        {f"{a}/" for a in "xyz"} | {f"{a}/{b}/" for a in "xyz" for b in "uv"}
    )


def test_a_listing_can_start_at_a_folder(tmp_path: Path) -> None:
    for key in ("a/b/c", "a/d", "e"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"")
    assert keys(listed(tmp_path, start="a/")) == ["a/b/c", "a/d"]


def test_a_listing_holds_a_bounded_number_of_folders_open(tmp_path: Path) -> None:
    folder = tmp_path
    for number in range(MAX_DEPTH + 2):
        folder = folder / "d"
        folder.mkdir()
        (folder / f"f{number}").write_bytes(b"")
    steps = listed(tmp_path, limit=1000)
    assert len(keys(steps)) == MAX_DEPTH - 1
    assert [reason for step in steps for _, reason in step.problems] == [f"it is more than {MAX_DEPTH} folders deep"]


def test_a_root_that_is_missing_is_said_and_a_folder_that_vanished_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FolderGone):
        listed(tmp_path / "nothing")
    (tmp_path / "a").mkdir()
    lister = Lister(str(tmp_path), EVERYTHING)
    assert lister.step(10).folder == "a/"
    (tmp_path / "a").rmdir()
    assert lister.step(10) == Step([], None, True)
    lister.close()


def test_a_listing_that_is_given_up_closes_its_folders(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"")
    lister = Lister(str(tmp_path), EVERYTHING)
    lister.step(2)
    lister.close()  # an open scandir would be a ResourceWarning, which fails the test
    lister.close()


def test_missing_keys_are_told_only_of_the_folder_that_was_expected(tmp_path: Path) -> None:
    root = tmp_path / "bucket"
    root.mkdir()
    (root / "a").write_bytes(b"")
    expected = identity(str(root))
    assert missing(str(root), expected, ["a", "b", "c/d"]) == ["b", "c/d"]
    root.rename(tmp_path / "moved")
    root.mkdir()
    with pytest.raises(FolderGone):
        missing(str(root), expected, ["a"])
