"""The pictures example under fire: processes killed with SIGKILL while pictures flow. Nothing accepted is lost."""

import contextlib
import os
import random
import signal
from pathlib import Path

import pytest

from examples.pictures.demo import HERE, UPLOADED, Buckets, check_results, running_instances
from examples.pictures.make_pictures import Picture, drawn, make_pictures, upload
from penstock.testing import Platform, wait_until

pytestmark = pytest.mark.e2e

#: Uploads. Enough that events are at every stage when the killing begins.
COUNT = 24


def start(root: Path) -> Platform:
    return Platform.start(data=root / "data", root=root)


def apply_example(platform: Platform) -> None:
    platform.penstock("apply", "-f", str(HERE / "manifests"))


def judged(buckets: Buckets) -> int:
    return len(buckets.audited())


@pytest.mark.parametrize("name", ["broker", "gateway", "control"])
def test_nothing_is_lost_when_a_process_is_killed_while_pictures_flow(tmp_path, name):
    buckets = Buckets.make(tmp_path)
    with start(tmp_path) as platform:
        apply_example(platform)
        pictures = make_pictures(buckets.uploads, COUNT, seed=1)
        for audited in (1, COUNT // 2, COUNT):
            wait_until(lambda least=audited: judged(buckets) >= least, what=f"{audited} events audited")
            before = platform.pids()[name]
            os.kill(before, signal.SIGKILL)
            wait_until(lambda old=before: platform.pids().get(name, old) != old, what=f"{name} is restarted")
        wait_until(lambda: buckets.is_complete(pictures), what="every upload judged, every approved one made smaller")
        check_results(buckets, pictures)


def test_nothing_is_lost_when_the_whole_platform_is_killed_while_pictures_flow(tmp_path):
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    buckets = Buckets.make(tmp_path)
    platform = start(tmp_path)
    try:
        apply_example(platform)
        pictures = make_pictures(buckets.uploads, COUNT, seed=2)
        # In the end twice COUNT events are audited, an upload and a verdict for each picture.
        for least in sorted(rng.sample(range(1, 2 * COUNT - 8), 3)):
            wait_until(lambda least=least: judged(buckets) >= least, what=f"{least} events audited")
            platform.kill()
            platform = start(tmp_path)
        wait_until(lambda: buckets.is_complete(pictures), what="every upload judged, every approved one made smaller")
        check_results(buckets, pictures)
    finally:
        platform.stop()


def test_nothing_is_lost_whichever_process_is_killed_functions_and_supervisor_included(tmp_path):
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    buckets = Buckets.make(tmp_path)
    platform = start(tmp_path)
    pictures: list[Picture] = []
    try:
        apply_example(platform)
        for number in range(COUNT):
            pictures.append(upload(buckets.uploads, number, *drawn(number, seed)))
            least = rng.randrange(number + 1)
            wait_until(lambda least=least: judged(buckets) >= least, what=f"{least} events audited")
            victim = rng.choice(platform.everything())
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            if victim == platform.process.pid:
                platform.process.wait()
                platform = start_when_free(tmp_path)
        wait_until(lambda: buckets.is_complete(pictures), what="every upload judged, every approved one made smaller")
        check_results(buckets, pictures)
    finally:
        platform.stop()


def start_when_free(root: Path) -> Platform:
    """Start again after the supervisor was killed: the others end by themselves, and hold their files until then."""

    def started() -> Platform | None:
        try:
            return start(root)
        except RuntimeError:
            return None

    return wait_until(started, what="the platform starts again")


def test_what_was_there_before_the_start_is_an_event_once_and_not_again_after_a_restart(tmp_path):
    buckets = Buckets.make(tmp_path)
    early = make_pictures(buckets.uploads, 4, seed=3)
    with start(tmp_path) as platform:
        apply_example(platform)
        wait_until(lambda: buckets.is_complete(early), what="the early uploads are judged")
        wait_until(lambda: not running_instances(platform), what="every function is back at zero")
    lines = buckets.audit.read_text().count(UPLOADED)
    with start(tmp_path) as platform:
        late = buckets.uploads / "late.jpg"
        late.write_bytes((buckets.uploads / early[0].key).read_bytes())
        wait_until(lambda: "late.jpg" in buckets.subjects(UPLOADED), what="the late upload is audited")
    assert buckets.audit.read_text().count(UPLOADED) == lines + 1


def test_a_file_that_is_still_being_written_is_not_an_event(tmp_path):
    buckets = Buckets.make(tmp_path)
    with start(tmp_path) as platform:
        apply_example(platform)
        make_pictures(buckets.uploads, 1, seed=4)
        whole = next(path for path in buckets.uploads.rglob("*") if path.is_file()).read_bytes()
        with (buckets.uploads / "slow.jpg").open("wb", buffering=0) as slow:
            slow.write(whole[: len(whole) // 2])
            (buckets.uploads / "after.jpg").write_bytes(whole)
            wait_until(lambda: "after.jpg" in buckets.subjects(UPLOADED), what="a file that came later is audited")
            assert "slow.jpg" not in buckets.subjects(UPLOADED)
            slow.write(whole[len(whole) // 2 :])
        wait_until(lambda: "slow.jpg" in buckets.subjects(UPLOADED), what="the slow upload is audited once closed")
