"""The pictures example, start to end, every result checked: ``make demo``.

Starts a platform of its own on free ports with empty buckets, uploads pictures, and follows them: each upload must be
approved or rejected as it was made to be, each approved one must have its thumbnail, everything must be in the audit
log, the cron's report must agree, and every function must be back at zero. The last line is the result as JSON; the
exit code is 0 only if every check held.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from examples.pictures.make_pictures import Picture, make_pictures
from penstock.testing import Platform, wait_until

HERE = Path(__file__).parent
FUNCTIONS = ("scan", "thumbnail", "audit", "report")
UPLOADED = "com.amazonaws.s3.ObjectCreated:Put"
APPROVED = "penstock.examples.pictures.approved"
REJECTED = "penstock.examples.pictures.rejected"
THUMBNAIL_PIXELS = 320
#: The cron ticks once a minute; starting the function and a busy machine come on top.
REPORT_TIMEOUT_S = 120.0


class CheckFailed(Exception):
    """A result is not what it must be."""


class Buckets:
    """The example's folders under a platform's root, and what must come out of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        buckets = root / "examples/pictures/buckets"
        self.uploads = buckets / "uploads"
        self.cdn = buckets / "cdn"
        self.audit = buckets / "audit/events.jsonl"
        self.report = buckets / "report.json"

    @classmethod
    def make(cls, root: Path) -> Buckets:
        """Empty buckets in a root that holds the example's functions."""
        example = root / "examples/pictures"
        example.mkdir(parents=True)
        shutil.copytree(HERE / "functions", example / "functions", ignore=shutil.ignore_patterns("__pycache__"))
        made = cls(root)
        made.uploads.mkdir(parents=True)
        return made

    def audited(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Every event in the audit log, once, by source and id."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self.audit.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    found[(event["source"], event["id"])] = event
        return found

    def subjects(self, kind: str) -> set[str]:
        """The keys of the uploads that an event of this type speaks of."""
        return {str(event["subject"]) for event in self.audited().values() if event["type"] == kind}

    def thumbnails(self) -> list[Path]:
        return sorted(path for path in self.cdn.rglob("*") if path.is_file() and not path.name.startswith("."))

    def is_complete(self, pictures: list[Picture]) -> bool:
        """Every upload has its verdict in the audit log, every approved one its thumbnail."""
        approved = sum(picture.approved for picture in pictures)
        judged = self.subjects(APPROVED) | self.subjects(REJECTED)
        return len(judged) >= len(pictures) and len(self.thumbnails()) >= approved


def check_results(buckets: Buckets, pictures: list[Picture]) -> dict[str, int]:
    """The counts of the result line. Raises CheckFailed with the first thing that is wrong."""
    approved = {picture.key for picture in pictures if picture.approved}
    rejected = {picture.key for picture in pictures if not picture.approved}
    uploaded = buckets.subjects(UPLOADED)
    for what, expected, found in (
        ("uploaded", approved | rejected, uploaded),
        ("approved", approved, buckets.subjects(APPROVED)),
        ("rejected", rejected, buckets.subjects(REJECTED)),
    ):
        if expected != found:
            raise CheckFailed(f"{what}: missing {sorted(expected - found)}, too many {sorted(found - expected)}")
    thumbnails = buckets.thumbnails()
    for path in thumbnails:
        with Image.open(path) as picture:
            picture.load()
            if max(picture.size) > THUMBNAIL_PIXELS:
                raise CheckFailed(f"{path.name} is {picture.size}, larger than {THUMBNAIL_PIXELS} pixels")
    if len(thumbnails) != len(approved):
        raise CheckFailed(f"{len(thumbnails)} thumbnails of {len(approved)} approved pictures")
    return {
        "uploaded": len(uploaded),
        "approved": len(approved),
        "rejected": len(rejected),
        "thumbnails": len(thumbnails),
        "lost": len(pictures) - len(uploaded),
    }


def check_report(buckets: Buckets, counts: dict[str, int]) -> bool:
    """Whether the cron's report is there and agrees."""
    try:
        report = json.loads(buckets.report.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return all(report[name] == counts[name] for name in ("uploaded", "approved", "rejected", "thumbnails"))


def running_instances(platform: Platform) -> list[str]:
    """The names of all instances that are ready."""
    done = platform.penstock("get", "endpointslices", "-o", "json")
    return [item["metadata"]["name"] for item in json.loads(done.stdout)["items"]]


def cold_start_ms(platform: Platform, name: str) -> float:
    """The time from sending an event to a function at zero to the answer's last byte, in milliseconds."""
    gateway = urlsplit(platform.places.gateway)
    headers = {
        "Host": f"{name}.default.localhost:{gateway.port}",
        "ce-specversion": "1.0",
        "ce-id": "demo-cold-start",
        "ce-source": "/examples/pictures/demo",
        "ce-type": "penstock.examples.pictures.demo",
        "Content-Type": "application/json",
    }
    connection = http.client.HTTPConnection(gateway.hostname or "", gateway.port, timeout=60)
    try:
        began_s = time.perf_counter()
        connection.request("POST", "/", b"{}", headers)
        answer = connection.getresponse()
        answer.read()
        took_ms = (time.perf_counter() - began_s) * 1_000
    finally:
        connection.close()
    # `scan` and `thumbnail` refuse an event that is not about a picture; started they are all the same.
    if answer.status >= 500 and name in ("audit", "report"):
        raise CheckFailed(f"{name} answered {answer.status}")
    return round(took_ms, 1)


def run(count: int, seed: int, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole demo. Raises CheckFailed or TimeoutError."""
    buckets = Buckets.make(root)
    with Platform.start(data=root / "data", root=root) as platform:
        say(f"platform up at {platform.places.api}, state in {platform.data}")
        platform.penstock("apply", "-f", str(HERE / "manifests"))
        for name in FUNCTIONS:
            wait_until(lambda name=name: platform.is_ready("ksvc", name), what=f"Service {name} is ready")  # type: ignore[misc]
        say(f"{len(FUNCTIONS)} functions ready, {len(running_instances(platform))} instances running")
        pictures = make_pictures(buckets.uploads, count, seed)
        say(f"{len(pictures)} files uploaded")
        wait_until(lambda: buckets.is_complete(pictures), what="every upload judged, every approved one made smaller")
        counts = check_results(buckets, pictures)
        say(f"checked: {counts}")
        wait_until(lambda: check_report(buckets, counts), what="the cron's report agrees", timeout_s=REPORT_TIMEOUT_S)
        say("the cron's report agrees")
        wait_until(lambda: not running_instances(platform), what="every function is back at zero")
        say("every function is back at zero")
        cold = {name: cold_start_ms(platform, name) for name in FUNCTIONS}
        say(f"woken once more from zero: {cold}")
    say("stopped, nothing left running")
    return {**counts, "cold_starts_ms": cold, "scaled_to_zero": True}


@contextlib.contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """An empty folder: `keep`, or a temporary one."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
        yield Path(folder).resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description="The pictures example, start to end, every result checked.")
    parser.add_argument("--count", type=int, default=24, help="how many files to upload (default: 24)")
    parser.add_argument("--seed", type=int, default=7, help="what the files are drawn from (default: 7)")
    parser.add_argument("--keep", type=Path, help="a new folder to work in and leave behind")
    given = parser.parse_args()
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began_s:6.1f} s] {text}", file=sys.stderr)

    say(f"seed {given.seed}")
    try:
        with workplace(given.keep) as root:
            result = run(given.count, given.seed, root, say)
    except (CheckFailed, TimeoutError, RuntimeError) as error:
        say(f"failed: {error}")
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
