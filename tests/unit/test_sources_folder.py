# ruff: noqa: ASYNC240 - a test may use the disk while nothing else waits for the loop
"""The folder source on a real folder with the real inotify: complete uploads are told, once each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest

from core.errors import Unavailable
from sources.checkpoints import SqliteCheckpoints
from sources.files import FileVersion, Look, Selection, Sight
from sources.folder import MAX_EMITTING, QUIET_S, FolderSource, Hint, Verdict, decide
from sources.objectstore import Bucket
from sources.port import Refused
from tests.support.sources import RecordingContext, Rig, running

NOBODY = 65534
BUCKET = Bucket(event_source="penstock:folder", region="local", name="uploads")

Start = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "uploads"
    made.mkdir()
    return made


@pytest.fixture
async def checkpoints(tmp_path: Path) -> AsyncIterator[SqliteCheckpoints]:
    opened = SqliteCheckpoints(tmp_path / "state" / "checkpoints.db")
    yield opened
    await opened.close()


@pytest.fixture
def start(folder: Path, checkpoints: SqliteCheckpoints) -> Start:
    """Start a source on the folder; each start is a restart on the same checkpoints."""

    def started(prefix: str = "", suffix: str = "", create: bool = False) -> AbstractAsyncContextManager[Rig]:
        def make(context: RecordingContext) -> FolderSource:
            selection = Selection(prefix=prefix, suffix=suffix)
            return FolderSource(context=context, bucket=BUCKET, selection=selection, path=str(folder), create=create)

        return running(make, RecordingContext(checkpoints=checkpoints))

    return started


async def marked(rig: Rig, *keys: str) -> None:
    """Wait until the checkpoint holds exactly these keys."""
    while await rig.context.marks.page("", 10_000) != sorted(keys):
        await rig.until(lambda: rig.outlet.under_way == 0)


async def test_a_file_that_is_copied_in_becomes_one_event_in_the_form_of_the_s3_adapter(
    start: Start, folder: Path
) -> None:
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        (folder / "cat.jpg").write_bytes(b"meow")
        await rig.until_subjects("cat.jpg")
    event = rig.outlet.events[0]
    assert event.type == "com.amazonaws.s3.ObjectCreated:Put"
    assert event.source == "penstock:folder.local.uploads"
    data = json.loads(event.data or b"")
    assert data["bucket"] == "uploads"
    assert data["key"] == "cat.jpg"
    assert data["size"] == 4
    assert data["eventName"] == "ObjectCreated:Put"
    assert data["eventTime"] == event.attributes["time"]
    assert data["etag"]


async def test_a_file_written_in_pieces_is_no_event_until_it_is_closed(start: Start, folder: Path) -> None:
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        with (folder / "slow.bin").open("wb", buffering=0) as slow:
            for number in range(3):
                slow.write(b"x" * 1000)
                # A file that arrives later is told: by then the slow one was looked at, and left alone.
                (folder / f"quick-{number}").write_bytes(b"q")
                await rig.until_subjects(*(f"quick-{earlier}" for earlier in range(number + 1)))
        await rig.until_subjects("quick-0", "quick-1", "quick-2", "slow.bin")
    assert json.loads(rig.outlet.events[-1].data or b"")["size"] == 3000


async def test_a_file_that_is_open_for_writing_at_the_start_is_told_once_it_is_closed(
    start: Start, folder: Path
) -> None:
    (folder / "done").write_bytes(b"d")
    with (folder / "slow").open("wb", buffering=0) as slow:
        slow.write(b"half")
        async with start() as rig:
            await rig.until_subjects("done")
            slow.write(b"rest")
            slow.close()
            await rig.until_subjects("done", "slow")
    assert json.loads(rig.outlet.events[1].data or b"")["size"] == 8


@pytest.mark.parametrize("temporary", [".cat.jpg.x1", "cat.jpg.part", "cat.jpg.tmp", "cat.jpg.filepart"])
async def test_a_temporary_file_is_no_event_until_it_is_renamed(start: Start, folder: Path, temporary: str) -> None:
    (folder / "old.part").write_bytes(b"left from an upload that never ended")
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        (folder / temporary).write_bytes(b"meow")
        (folder / "marker").write_bytes(b"")
        await rig.until_subjects("marker")
        (folder / temporary).rename(folder / "cat.jpg")
        await rig.until_subjects("marker", "cat.jpg")


async def test_a_file_that_is_linked_into_place_is_told(start: Start, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"meow")
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        (folder / "cat.jpg").hardlink_to(tmp_path / "elsewhere")
        await rig.until_subjects("cat.jpg")


async def test_an_overwritten_file_is_a_new_event_with_another_id(start: Start, folder: Path) -> None:
    async with start() as rig:
        (folder / "cat.jpg").write_bytes(b"meow")
        await rig.until_subjects("cat.jpg")
        (folder / "cat.jpg").write_bytes(b"meow, meow")
        await rig.until_subjects("cat.jpg", "cat.jpg")
    assert rig.outlet.events[0].id != rig.outlet.events[1].id


async def test_a_copy_that_gets_its_original_times_after_closing_is_told_once_also_after_a_restart(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "original").write_bytes(b"meow")
    os.utime(tmp_path / "original", (1_000_000_000, 1_000_000_000))
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        shutil.copyfile(tmp_path / "original", folder / "cat.jpg")
        await rig.until_subjects("cat.jpg")
        await marked(rig, "cat.jpg")
        shutil.copystat(tmp_path / "original", folder / "cat.jpg")
        (folder / "marker").write_bytes(b"")
        await rig.until_subjects("cat.jpg", "marker")
        await marked(rig, "cat.jpg", "marker")
    async with start() as again:
        (folder / "marker-2").write_bytes(b"")
        await again.until_subjects("marker-2")


async def test_files_present_before_the_start_are_told_once_and_not_again_after_a_restart(
    start: Start, folder: Path
) -> None:
    for number in range(5):
        (folder / f"early-{number}").write_bytes(b"e")
    async with start() as rig:
        await rig.until_subjects(*(f"early-{number}" for number in range(5)))
        await marked(rig, *(f"early-{number}" for number in range(5)))
    (folder / "meanwhile").write_bytes(b"m")
    (folder / "early-0").write_bytes(b"changed meanwhile")
    async with start() as again:
        await again.until_subjects("meanwhile", "early-0")


async def test_a_crash_between_emit_and_checkpoint_tells_the_same_event_id_again(start: Start, folder: Path) -> None:
    (folder / "cat.jpg").write_bytes(b"meow")
    async with start() as rig:
        rig.outlet.open.clear()
        await rig.until(lambda: len(rig.outlet.offered) == 1)
    async with start() as again:
        await again.until_subjects("cat.jpg")
    assert again.outlet.events[0] == rig.outlet.offered[0]


async def test_two_thousand_files_dropped_at_once_are_each_told_once_within_the_limit_under_way(
    start: Start, folder: Path
) -> None:
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        for number in range(2000):
            (folder / f"{number:04}.bin").write_bytes(b"%d" % number)
        await rig.until_subjects(*(f"{number:04}.bin" for number in range(2000)))
        await marked(rig, *(f"{number:04}.bin" for number in range(2000)))
    assert rig.outlet.most_under_way <= MAX_EMITTING
    assert len({event.id for event in rig.outlet.events}) == 2000


async def test_while_the_sink_is_away_uploads_wait_and_none_is_lost(start: Start, folder: Path) -> None:
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        rig.outlet.open.clear()
        for number in range(100):
            (folder / f"{number:03}").write_bytes(b"x")
        await rig.until(lambda: len(rig.outlet.offered) == MAX_EMITTING)
        rig.outlet.open.set()
        await rig.until_subjects(*(f"{number:03}" for number in range(100)))


async def test_a_file_overwritten_while_its_event_waits_is_told_again_afterwards(start: Start, folder: Path) -> None:
    async with start() as rig:
        rig.outlet.open.clear()
        (folder / "cat.jpg").write_bytes(b"one")
        await rig.until(lambda: len(rig.outlet.offered) == 1)
        (folder / "cat.jpg").write_bytes(b"three")
        (folder / "marker").write_bytes(b"")
        await rig.until(lambda: len(rig.outlet.offered) == 2)
        rig.outlet.open.set()
        await rig.until_subjects("cat.jpg", "cat.jpg", "marker")


async def test_nested_folders_give_keys_with_slashes_however_quickly_they_are_filled(
    start: Start, folder: Path
) -> None:
    (folder / "2024" / "01").mkdir(parents=True)
    (folder / "2024" / "01" / "a.jpg").write_bytes(b"a")
    async with start() as rig:
        await rig.until_subjects("2024/01/a.jpg")
        (folder / "2025" / "02" / "deep").mkdir(parents=True)
        (folder / "2025" / "02" / "deep" / "b.jpg").write_bytes(b"b")
        await rig.until_subjects("2024/01/a.jpg", "2025/02/deep/b.jpg")
        (folder / "2025" / "02" / "deep" / "c.jpg").write_bytes(b"c")
        await rig.until_subjects("2024/01/a.jpg", "2025/02/deep/b.jpg", "2025/02/deep/c.jpg")


async def test_a_folder_moved_into_or_within_the_bucket_has_its_files_told_under_their_new_keys(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "a").write_bytes(b"a")
    async with start() as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        (tmp_path / "batch").rename(folder / "batch")
        await rig.until_subjects("batch/a")
        (folder / "batch").rename(folder / "moved")
        await rig.until_subjects("batch/a", "moved/a")
        (folder / "moved" / "b").write_bytes(b"b")
        await rig.until_subjects("batch/a", "moved/a", "moved/b")


async def test_only_keys_with_the_prefix_and_suffix_count(start: Start, folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for key in ("in/a.jpg", "in/a.txt", "out/a.jpg", "top.jpg"):
        (folder / key).write_bytes(b"x")
    async with start(prefix="in/", suffix=".jpg") as rig:
        await rig.until_subjects("in/a.jpg")
        for key in ("in/b.txt", "out/b.jpg", "in/b.jpg"):
            (folder / key).write_bytes(b"x")
        await rig.until_subjects("in/a.jpg", "in/b.jpg")


async def test_symbolic_links_and_pipes_are_no_objects(start: Start, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder-link").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    async with start() as rig:
        (folder / "plain").write_bytes(b"p")
        await rig.until_subjects("plain")
        (folder / "link-2").symlink_to(tmp_path / "secret")
        (folder / "plain-2").write_bytes(b"p")
        await rig.until_subjects("plain", "plain-2")


async def test_a_name_that_is_not_utf_8_is_complained_of_and_stops_nothing(start: Start, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(b"x")
    (folder / "z-after.jpg").write_bytes(b"x")
    async with start() as rig:
        await rig.until_subjects("z-after.jpg")
        await rig.until(lambda: rig.context.counted["unreadable"] == 1)


async def test_a_key_with_control_characters_is_told_with_an_encoded_subject_and_its_true_key(
    start: Start, folder: Path
) -> None:
    (folder / "a\nb.jpg").write_bytes(b"x")
    async with start() as rig:
        await rig.until_subjects("a%0Ab.jpg")
    assert json.loads(rig.outlet.events[0].data or b"")["key"] == "a\nb.jpg"


async def test_events_that_the_kernels_queue_has_no_room_for_are_made_up_by_listing(start: Start, folder: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    busy = [folder / "busy-0", folder / "busy-1"]
    for path in busy:
        path.write_bytes(b"b")
    async with start() as rig:
        await rig.until_subjects("busy-0", "busy-1")
        # Nobody reads the queue while this runs; two names in turns, because equal events are merged.
        for number in range(limit + 10):
            busy[number % 2].chmod(0o600 + number // 2 % 8)
        (folder / "unheard").write_bytes(b"u")
        await rig.until_subjects("busy-0", "busy-1", "unheard")


async def test_a_deleted_folder_is_said_and_waited_for_and_watched_again(start: Start, folder: Path) -> None:
    async with start() as rig:
        (folder / "a").write_bytes(b"a")
        await rig.until_subjects("a")
        shutil.rmtree(folder)
        await rig.until(lambda: rig.context.said[-1] == "FolderMissing")
        folder.mkdir()
        (folder / "b").write_bytes(b"b")
        await rig.until_subjects("a", "b")
        assert rig.context.said[-1] == "ready"
        (folder / "c").write_bytes(b"c")
        await rig.until_subjects("a", "b", "c")


async def test_a_missing_folder_is_made_where_the_spec_says_so(start: Start, folder: Path) -> None:
    folder.rmdir()
    async with start(create=True) as rig:
        await rig.until(lambda: "ready" in rig.context.said)
        (folder / "a").write_bytes(b"a")
        await rig.until_subjects("a")


async def test_the_checkpoint_forgets_files_that_are_gone(start: Start, folder: Path) -> None:
    for key in ("a", "b", "c"):
        (folder / key).write_bytes(b"x")
    async with start() as rig:
        await rig.until_subjects("a", "b", "c")
        await marked(rig, "a", "b", "c")
        (folder / "a").unlink()
        (folder / "d").write_bytes(b"x")
        await rig.until_subjects("a", "b", "c", "d")
        await marked(rig, "b", "c", "d")
    (folder / "b").unlink()
    (folder / "e").write_bytes(b"x")
    async with start() as again:
        await again.until_subjects("e")
        await marked(again, "c", "d", "e")


async def test_a_file_of_the_same_name_after_a_deletion_is_a_new_event(start: Start, folder: Path) -> None:
    async with start() as rig:
        (folder / "a").write_bytes(b"x")
        await rig.until_subjects("a")
        (folder / "a").unlink()
        (folder / "a").write_bytes(b"x")
        await rig.until_subjects("a", "a")


async def test_an_event_that_the_sink_refuses_counts_as_told(start: Start, folder: Path) -> None:
    (folder / "a").write_bytes(b"x")
    async with start() as rig:
        rig.outlet.error = Refused("The sink answered 400: no.", status=400)
        await marked(rig, "a")
        rig.outlet.error = None
        (folder / "b").write_bytes(b"x")
        await rig.until_subjects("b")
    async with start() as again:
        (folder / "c").write_bytes(b"x")
        await again.until_subjects("c")


async def test_a_checkpoint_that_cannot_be_written_stops_the_source_with_the_reason(
    folder: Path, checkpoints: SqliteCheckpoints
) -> None:
    class Full:
        async def read(self, source: str, keys: object) -> dict[str, str]:
            return {}

        async def write(self, source: str, marks: dict[str, str | None]) -> None:
            if marks:
                raise Unavailable("The disk is full.")

        async def page(self, source: str, after: str, limit: int) -> list[str]:
            return []

    (folder / "a").write_bytes(b"x")
    context = RecordingContext(checkpoints=Full())  # type: ignore[arg-type]  # what a source needs of it
    source = FolderSource(context=context, bucket=BUCKET, selection=Selection(), path=str(folder))
    with pytest.raises(ExceptionGroup) as raised:
        await source.run(Rig(context).outlet.emit)
    assert isinstance(raised.value.exceptions[0], Unavailable)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights to read everything and to lease other people's files; nothing to do for other users."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike the test's own."""
    made = Path(mkdtemp())
    made.chmod(0o755)
    yield made
    with suppress(FileNotFoundError):
        shutil.rmtree(made)


async def test_an_unreadable_file_is_complained_of_once_stops_nothing_and_is_told_once_it_can_be_read(
    open_folder: Path,
) -> None:
    (open_folder / "locked").write_bytes(b"x")
    (open_folder / "locked").chmod(0)
    (open_folder / "plain").write_bytes(b"x")
    os.utime(open_folder / "plain", (1_000_000_000, 1_000_000_000))
    (open_folder / "fresh").write_bytes(b"x")  # cannot be leased either: told once it has been quiet
    context = RecordingContext()

    def make(context: RecordingContext) -> FolderSource:
        return FolderSource(context=context, bucket=BUCKET, selection=Selection(), path=str(open_folder))

    async with running(make, context) as rig:
        with as_nobody():
            await rig.until_subjects("plain", "fresh")
            await rig.until(lambda: context.counted["unreadable"] == 1)
        (open_folder / "locked").chmod(0o644)
        await rig.until_subjects("plain", "fresh", "locked")


VERSION = FileVersion(size=4, modified_ns=2, changed_ns=3, inode=5)
REDATED = FileVersion(size=4, modified_ns=9, changed_ns=9, inode=5)
COMPLETE, UNSURE = Sight(Look.COMPLETE, VERSION), Sight(Look.UNSURE, VERSION)


@pytest.mark.parametrize(
    ("hint", "sight", "mark", "quiet_s", "verdict"),
    [
        pytest.param(Hint.WRITTEN, COMPLETE, None, 0.0, Verdict.TELL, id="a closed file is told"),
        pytest.param(Hint.LISTED, COMPLETE, None, 0.0, Verdict.TELL, id="a listed file that nobody writes is told"),
        pytest.param(Hint.APPEARED, COMPLETE, None, 0.0, Verdict.TELL, id="a linked file is told"),
        pytest.param(Hint.LISTED, COMPLETE, VERSION.etag, 9.9, Verdict.NOTHING, id="a known version is not"),
        pytest.param(Hint.WRITTEN, COMPLETE, "1-1-1", 0.0, Verdict.TELL, id="another version is told"),
        pytest.param(Hint.WRITTEN, COMPLETE, REDATED.etag, 0.0, Verdict.TELL, id="rewritten at the same size is told"),
        pytest.param(Hint.TOUCHED, COMPLETE, REDATED.etag, 0.0, Verdict.NOTE, id="re-dated is noted"),
        pytest.param(Hint.TOUCHED, COMPLETE, None, 0.0, Verdict.TELL, id="unknown and now readable is told"),
        pytest.param(Hint.LISTED, Sight(Look.WRITING), None, 9.9, Verdict.NOTHING, id="being written is left alone"),
        pytest.param(Hint.WRITTEN, Sight(Look.WRITING), None, 0.0, Verdict.NOTHING, id="opened again by a writer"),
        pytest.param(Hint.WRITTEN, UNSURE, None, 0.0, Verdict.TELL, id="without leases a close is trusted"),
        pytest.param(Hint.LISTED, UNSURE, None, 0.0, Verdict.LOOK_LATER, id="without leases a listed file waits"),
        pytest.param(Hint.LISTED, UNSURE, None, QUIET_S, Verdict.TELL, id="and is told when quiet"),
        pytest.param(Hint.APPEARED, UNSURE, None, 0.0, Verdict.NOTHING, id="without leases a new name waits to close"),
        pytest.param(Hint.TOUCHED, Sight(Look.GONE), "1-1-1", 0.0, Verdict.FORGET, id="gone is forgotten"),
        pytest.param(Hint.WRITTEN, Sight(Look.GONE), None, 0.0, Verdict.NOTHING, id="gone before it was told"),
        pytest.param(Hint.LISTED, Sight(Look.UNREADABLE), None, 0.0, Verdict.COMPLAIN, id="unreadable is said"),
        pytest.param(Hint.WRITTEN, Sight(Look.OTHER), None, 0.0, Verdict.NOTHING, id="a pipe is no object"),
    ],
)
def test_what_becomes_of_a_candidate(
    hint: Hint, sight: Sight, mark: str | None, quiet_s: float, verdict: Verdict
) -> None:
    assert decide(hint, sight, mark, quiet_s=quiet_s) is verdict
