"""The pictures example: each function called directly with real pictures, the uploader, and the manifests."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cloudevents.core.v1.event import CloudEvent
from PIL import Image

from core.resources import Registry, Resource
from examples.pictures.make_pictures import Picture, drawn, make_pictures
from sources.resources import KINDS
from sources.resources import object_store_spec as spec_of_store

EXAMPLE = Path(__file__).parents[2] / "examples" / "pictures"
UPLOADED = "com.amazonaws.s3.ObjectCreated:Put"
APPROVED = "penstock.examples.pictures.approved"
REJECTED = "penstock.examples.pictures.rejected"

Load = Callable[[str], ModuleType]


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    made = tmp_path / "uploads"
    made.mkdir()
    return made


@pytest.fixture
def load(tmp_path: Path, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a function as the host does, with the test's folders as its buckets."""
    monkeypatch.setenv("UPLOADS", str(uploads))
    monkeypatch.setenv("CDN", str(tmp_path / "cdn"))
    monkeypatch.setenv("AUDIT_LOG", str(tmp_path / "audit" / "events.jsonl"))
    monkeypatch.setenv("REPORT", str(tmp_path / "report.json"))

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"pictures_{name}", EXAMPLE / "functions" / name / "function.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


def uploaded(key: str, event_id: str = "e1") -> CloudEvent:
    attributes = {
        "type": UPLOADED,
        "source": "penstock:folder.local.uploads",
        "id": event_id,
        "subject": key,
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, {"bucket": "uploads", "key": key, "size": 1, "etag": "x"})


def approved(key: str, content: bytes) -> CloudEvent:
    attributes = {"type": APPROVED, "source": "/examples/pictures/scan", "id": "e1.scan", "subject": key}
    return CloudEvent(attributes, {"key": key, "sha256": hashlib.sha256(content).hexdigest()})


def picture(kind: str, size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    rng = random.Random(1)
    made = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3)).convert(mode)
    held = io.BytesIO()
    made.save(held, kind, **options)
    return held.getvalue()


def test_scan_decides_every_made_picture_as_it_was_made(load: Load, uploads: Path) -> None:
    scan = load("scan")
    made = make_pictures(uploads, 36, seed=3)
    assert {one.fault for one in made} == {
        None, "truncated", "too-small", "no-picture", "damaged", "too-long", "too-many-pixels", "empty"
    }  # fmt: skip
    for one in made:
        answer = scan.handle(uploaded(one.key))
        assert (answer.get_type() == APPROVED) is one.approved, (one, answer.get_data())
        assert answer.get_data()["reason"]
        assert answer.get_subject() == one.key


@pytest.mark.parametrize(
    ("content", "verdict", "reason"),
    [
        (picture("JPEG", (64, 64)), APPROVED, "64 x 64 JPEG"),
        (picture("PNG", (64, 256), "RGBA"), APPROVED, "64 x 256 PNG"),
        (picture("PNG", (63, 64)), REJECTED, "smaller than 64 x 64"),
        (picture("PNG", (64, 257)), REJECTED, "longer than 4 to 1"),
        (picture("GIF", (64, 64)), REJECTED, "neither a JPEG nor a PNG"),
        (picture("JPEG", (200, 200))[:-500], REJECTED, "cannot be decoded"),
        (picture("PNG", (200, 200))[:-500], REJECTED, "cannot be decoded"),
        (b"", REJECTED, "neither a JPEG nor a PNG"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, REJECTED, ""),
        (picture("JPEG", (64, 64)) + b"\0" * (20 * 1024 * 1024), REJECTED, "larger than 20 MiB"),
    ],
    ids=["small jpeg", "long png", "narrow", "too long", "gif", "cut jpeg", "cut png", "empty", "head only", "large"],
)
def test_scans_rule(load: Load, uploads: Path, content: bytes, verdict: str, reason: str) -> None:
    (uploads / "name-says-nothing").write_bytes(content)
    answer = load("scan").handle(uploaded("name-says-nothing"))
    assert answer.get_type() == verdict
    assert reason in answer.get_data()["reason"]


def test_scan_gives_the_same_answer_to_the_same_event(load: Load, uploads: Path) -> None:
    (uploads / "cat.jpg").write_bytes(picture("JPEG", (100, 100)))
    scan = load("scan")
    first, second = scan.handle(uploaded("cat.jpg")), scan.handle(uploaded("cat.jpg"))
    assert (first.get_id(), first.get_source(), first.get_data()) == (
        second.get_id(),
        second.get_source(),
        second.get_data(),
    )
    assert scan.handle(uploaded("cat.jpg", "e2")).get_id() != first.get_id()


@pytest.mark.parametrize("key", ["gone.jpg", "folder/gone.jpg"])
def test_scan_rejects_what_is_no_longer_there(load: Load, key: str) -> None:
    answer = load("scan").handle(uploaded(key))
    assert answer.get_data()["reason"] == "it is no longer in the bucket"


@pytest.mark.parametrize("key", ["../secret.jpg", "/etc/hostname"])
def test_no_function_follows_a_key_out_of_its_bucket(load: Load, tmp_path: Path, key: str) -> None:
    content = picture("JPEG", (100, 100))
    (tmp_path / "secret.jpg").write_bytes(content)
    assert load("scan").handle(uploaded(key)).get_data()["reason"] == "the key leads out of the bucket"
    with pytest.raises(ValueError, match="out of the bucket"):
        load("thumbnail").handle(approved(key, content))


def test_scan_lets_an_error_of_the_disk_through_so_that_the_event_comes_again(load: Load, uploads: Path) -> None:
    (uploads / "folder.jpg").mkdir()
    with pytest.raises(IsADirectoryError):
        load("scan").handle(uploaded("folder.jpg"))


@pytest.mark.parametrize(
    ("key", "content", "target", "size"),
    [
        ("cat.jpg", picture("JPEG", (800, 600)), "cat.jpg", (320, 240)),
        ("a/b/cat.JPEG", picture("JPEG", (300, 1200)), "a/b/cat.JPEG", (80, 320)),
        ("cat.png", picture("PNG", (500, 500), "RGBA"), "cat.png.jpg", (320, 320)),
        ("small.png", picture("PNG", (100, 80), "P"), "small.png.jpg", (100, 80)),
        ("grey.jpg", picture("JPEG", (640, 640), "L"), "grey.jpg", (320, 320)),
        ("print.jpg", picture("JPEG", (640, 640), "CMYK"), "print.jpg", (320, 320)),
        ("deep.png", picture("PNG", (640, 320), "I;16"), "deep.png.jpg", (320, 160)),
    ],
    ids=["landscape", "portrait", "transparent", "palette, small", "grey", "cmyk", "16 bit"],
)
def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(
    load: Load, uploads: Path, tmp_path: Path, key: str, content: bytes, target: str, size: tuple[int, int]
) -> None:
    (uploads / key).parent.mkdir(parents=True, exist_ok=True)
    (uploads / key).write_bytes(content)
    assert load("thumbnail").handle(approved(key, content)) is None
    with Image.open(tmp_path / "cdn" / target) as small:
        small.load()
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", size)
    assert (tmp_path / "cdn" / target).stat().st_mode & 0o777 == 0o644


def test_a_thumbnail_is_upright_and_without_metadata(load: Load, uploads: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    exif[0x010E] = "where I live"
    content = picture("JPEG", (400, 200), exif=exif)
    (uploads / "cat.jpg").write_bytes(content)
    load("thumbnail").handle(approved("cat.jpg", content))
    with Image.open(tmp_path / "cdn" / "cat.jpg") as small:
        assert small.size == (160, 320)
        assert not small.getexif()


def test_making_a_thumbnail_again_gives_the_same_bytes_and_leaves_nothing_beside_it(
    load: Load, uploads: Path, tmp_path: Path
) -> None:
    content = picture("JPEG", (400, 400))
    (uploads / "cat.jpg").write_bytes(content)
    thumbnail = load("thumbnail")
    thumbnail.handle(approved("cat.jpg", content))
    first = (tmp_path / "cdn" / "cat.jpg").read_bytes()
    thumbnail.handle(approved("cat.jpg", content))
    assert (tmp_path / "cdn" / "cat.jpg").read_bytes() == first
    assert [path.name for path in (tmp_path / "cdn").iterdir()] == ["cat.jpg"]


def test_what_changed_or_went_since_its_approval_is_left_alone(
    load: Load, uploads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (uploads / "cat.jpg").write_bytes(b"not what was approved")
    thumbnail = load("thumbnail")
    thumbnail.handle(approved("cat.jpg", picture("JPEG", (100, 100))))
    thumbnail.handle(approved("gone.jpg", b""))
    assert not (tmp_path / "cdn").exists()
    assert "changed since" in capsys.readouterr().out


def test_audit_appends_one_line_an_event_whatever_its_data(load: Load, tmp_path: Path) -> None:
    audit = load("audit")
    attributes = {"type": "t", "source": "/s", "id": "1", "time": datetime(2026, 11, 23, tzinfo=UTC)}
    datas: list[Any] = [{"a": "ü"}, "text\nlines", b"bytes", b"\xff\xfe", None]
    for data in datas:
        audit.handle(CloudEvent(dict(attributes), data))
    lines = [json.loads(line) for line in (tmp_path / "audit" / "events.jsonl").read_bytes().splitlines()]
    assert [line["data"] for line in lines] == [{"a": "ü"}, "text\nlines", "bytes", "(2 bytes)", None]
    assert lines[0]["time"] == "2026-11-23T00:00:00+00:00"


def test_report_counts_each_event_once_and_passes_over_a_line_that_is_not_complete(
    load: Load, uploads: Path, tmp_path: Path
) -> None:
    scan, thumbnail, audit, report = (load(name) for name in ("scan", "thumbnail", "audit", "report"))
    for number, one in enumerate(make_pictures(uploads, 9, seed=5)):
        event = uploaded(one.key, f"e{number}")
        answer = scan.handle(event)
        for seen in (event, answer, event, answer):  # everything twice: at least once is what is promised
            audit.handle(seen)
        if answer.get_type() == APPROVED:
            thumbnail.handle(answer)
    with (tmp_path / "audit" / "events.jsonl").open("ab") as log:
        log.write(b'{"id": "torn')
    ask = CloudEvent({"type": "dev.knative.sources.ping", "source": "/p", "id": "1"}, None)
    assert report.handle(ask) is None
    written = (tmp_path / "report.json").read_bytes()
    found = json.loads(written)
    assert (found["uploaded"], found["approved"], found["rejected"], found["thumbnails"]) == (9, 6, 3, 6)
    assert found["thumbnail_bytes"] > 0
    assert len(found["reasons"]) == 3
    report.handle(ask)
    assert (tmp_path / "report.json").read_bytes() == written


def test_report_before_anything_happened_is_all_zero(load: Load, tmp_path: Path) -> None:
    load("report").handle(CloudEvent({"type": "t", "source": "/p", "id": "1"}, None))
    assert json.loads((tmp_path / "report.json").read_bytes())["uploaded"] == 0


def test_the_same_seed_makes_the_same_files_and_another_seed_makes_others() -> None:
    assert [drawn(number, 7) for number in range(6)] == [drawn(number, 7) for number in range(6)]
    assert drawn(0, 7)[1] != drawn(0, 8)[1]


def test_the_uploader_as_a_command_says_what_it_made(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "make_pictures.py"), "--into", str(tmp_path / "in"), "--count", "6"]
    done = subprocess.run([*command, "--seed", "2", "--output", "json"], capture_output=True, check=True, timeout=60)
    made = [Picture(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]
    found = {str(path.relative_to(tmp_path / "in")) for path in (tmp_path / "in").rglob("*") if path.is_file()}
    assert {one.key for one in made} == found
    assert not any(name.endswith(".part") for name in found)


def documents() -> list[dict[str, Any]]:
    paths = sorted((EXAMPLE / "manifests").glob("*.yaml"))
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def test_the_manifests_hold_what_the_readme_shows() -> None:
    assert [f"{one['kind']}/{one['metadata']['name']}" for one in documents()] == [
        "Broker/default",
        *(f"Service/{name}" for name in ("scan", "thumbnail", "audit", "report")),
        *(f"Trigger/{name}" for name in ("scan", "thumbnail", "audit")),
        "ObjectStoreSource/uploads",
        "PingSource/every-minute",
    ]


def test_the_sources_in_the_manifests_are_valid() -> None:
    registry = Registry(KINDS)
    sources = [Resource.from_dict(one) for one in documents() if "sources" in one["apiVersion"]]
    for source in sources:
        kind = registry.get(source.ref)
        assert list(kind.validate(kind.default(source), None)) == []
    folder = spec_of_store(sources[0]).store.folder
    assert folder is not None
    assert folder.path == "examples/pictures/buckets/uploads"


def test_the_services_name_folders_that_exist_and_lead_their_functions_to_the_buckets() -> None:
    root = EXAMPLE.parents[1]
    services = [one for one in documents() if one["kind"] == "Service"]
    for service in services:
        template = service["spec"]["template"]
        folder = root / template["metadata"]["annotations"]["penstock.dev/source"]
        assert (folder / "function.py").is_file()
        for variable in template["spec"]["containers"][0]["env"]:
            assert (folder / variable["value"]).resolve().is_relative_to((EXAMPLE / "buckets").resolve())
