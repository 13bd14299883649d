"""Writes a small JPEG of an approved picture into the CDN's bucket: at most 320 x 320, without metadata.

``cat.jpg`` becomes ``cat.jpg``, ``cat.png`` becomes ``cat.png.jpg``. The file appears complete or not at all (a
temporary name, then a rename). Events are delivered at least once: doing it again writes the same bytes. A picture that
was changed or deleted since it was approved is left alone: the newer content has an approval of its own to pass.
"""

import hashlib
import io
import os
import tempfile
from pathlib import Path

from cloudevents.core.v1.event import CloudEvent
from PIL import Image, ImageOps

UPLOADS = Path(os.environ["UPLOADS"]).resolve()
CDN = Path(os.environ["CDN"]).resolve()

SIZE = (320, 320)
QUALITY = 80


def handle(event: CloudEvent) -> None:
    data = event.get_data()
    source, target = UPLOADS / data["key"], CDN / target_key(data["key"])
    if not (source.resolve().is_relative_to(UPLOADS) and target.resolve().is_relative_to(CDN)):
        raise ValueError(f"the key {data['key']!r} leads out of the bucket")
    try:
        content = source.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        print(f"skipped {data['key']}: deleted since it was approved")
        return
    if hashlib.sha256(content).hexdigest() != data["sha256"]:
        print(f"skipped {data['key']}: changed since it was approved")
        return
    small = thumbnail(content)
    write(target, small)
    print(f"wrote {target.relative_to(CDN)}: {len(content)} -> {len(small)} bytes")


def target_key(key: str) -> str:
    return key if key.lower().endswith((".jpg", ".jpeg")) else f"{key}.jpg"


def thumbnail(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
        picture.draft("RGB", (SIZE[0] * 2, SIZE[1] * 2))  # a JPEG is decoded at a fraction of its size
        upright = ImageOps.exif_transpose(picture)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        small = upright.convert("RGB")
        small.thumbnail(SIZE)
    held = io.BytesIO()
    small.save(held, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return held.getvalue()


def write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
