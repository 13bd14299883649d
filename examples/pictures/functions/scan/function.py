"""Approves or rejects a picture that was uploaded.

A picture is approved when all of this holds:

- it is in the bucket still, and at most 20 MiB;
- it is a JPEG or a PNG by its content, whatever its name says;
- it is at least 64 pixels wide and high, and has at most 40 million pixels;
- its longer side is at most 4 times its shorter one;
- it decodes fully: a truncated or damaged file is rejected.

The answer is an event, ``penstock.examples.pictures.approved`` or ``...rejected``, with the reason and what was found.
Events are delivered at least once: the same upload gives an answer with the same id each time.
"""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

from cloudevents.core.v1.event import CloudEvent
from PIL import Image

UPLOADS = Path(os.environ["UPLOADS"]).resolve()

APPROVED = "penstock.examples.pictures.approved"
REJECTED = "penstock.examples.pictures.rejected"

MAX_BYTES = 20 * 1024 * 1024
MIN_SIDE = 64
MAX_PIXELS = 40_000_000
MAX_RATIO = 4

# What Pillow raises about a damaged picture, depending on the format and on where the damage is.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)


class Rejected(Exception):
    """The picture breaks the rule that is named."""


def handle(event: CloudEvent) -> CloudEvent:
    key = event.get_data()["key"]
    found = {"key": key}
    try:
        content = read(key)
        found["sha256"] = hashlib.sha256(content).hexdigest()
        found["bytes"] = len(content)
        check(content, found)
        verdict, reason = APPROVED, f"{found['width']} x {found['height']} {found['format']}"
    except Rejected as rejection:
        verdict, reason = REJECTED, str(rejection)
    print(f"{verdict.rpartition('.')[2]} {key}: {reason}")
    attributes = {
        "type": verdict,
        "source": "/examples/pictures/scan",
        "id": f"{event.get_id()}.scan",
        "subject": event.get_subject() or key,
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, {**found, "reason": reason})


def read(key: str) -> bytes:
    """The object's content. An error of the disk is raised, so that the event is delivered again."""
    path = (UPLOADS / key).resolve()
    if not path.is_relative_to(UPLOADS):
        raise Rejected("the key leads out of the bucket")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise Rejected("it is no longer in the bucket") from None
    if len(content) > MAX_BYTES:
        raise Rejected(f"it is larger than {MAX_BYTES // 1024 // 1024} MiB")
    return content


def check(content: bytes, found: dict) -> None:
    """Open the picture, and decode all of it; what was found out goes into `found`."""
    try:
        # The head alone is read here, so that a small file which claims to be huge costs nothing.
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            found.update(width=picture.width, height=picture.height, format=picture.format)
            check_size(picture.width, picture.height)
            picture.verify()  # a PNG's checksums
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            picture.load()
    except Image.UnidentifiedImageError:
        raise Rejected("it is neither a JPEG nor a PNG") from None
    except DAMAGED as damage:
        raise Rejected(f"it cannot be decoded: {damage}") from damage


def check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise Rejected(f"{width} x {height} is smaller than {MIN_SIDE} x {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise Rejected(f"{width} x {height} is more than {MAX_PIXELS // 1_000_000} million pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise Rejected(f"{width} x {height} is longer than {MAX_RATIO} to 1")
