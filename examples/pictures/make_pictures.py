"""Makes real pictures, and some that are none, and uploads them into a folder as an uploader would.

    python examples/pictures/make_pictures.py --into examples/pictures/buckets/uploads --count 20 --seed 7

The same count and seed make the same files. What is expected of each file (`approved`, and why not) follows from how
it was made, not from looking at it: it is what the functions are checked against. With ``--output json`` the last line
is a JSON list of that.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw

#: Large enough for a picture to come in several pieces.
PIECE_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One upload: its key, whether scan must approve it, and if not, the kind of fault it was made with."""

    key: str
    approved: bool
    fault: str | None = None


def make_pictures(into: Path, count: int, seed: int, *, slow_s: float = 0.0) -> list[Picture]:
    """Upload `count` files into the folder; `slow_s` is how long each upload is spread over, in seconds."""
    return [upload(into, number, *drawn(number, seed), slow_s=slow_s) for number in range(count)]


def drawn(number: int, seed: int) -> tuple[Picture, bytes]:
    """The upload of this number, and its content."""
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - pictures are no secrets
    name, make = RECIPES[number % len(RECIPES)]
    suffix, content = make(rng)
    folder = f"album-{number % 3}/" if number % 4 == 3 else ""
    key = f"{folder}{number:04}-{name}{suffix}"
    return Picture(key=key, approved=name in GOOD, fault=None if name in GOOD else name), content


def upload(into: Path, number: int, picture: Picture, content: bytes, *, slow_s: float = 0.0) -> Picture:
    """Write the file piece by piece: two of three under its own name, the third under a temporary one, then renamed."""
    target = into / picture.key
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_name(target.name + ".part") if number % 3 == 2 else target
    pieces = [content[start : start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES)] or [b""]
    with written.open("wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece)
            if slow_s:
                time.sleep(slow_s / len(pieces))
    if written != target:
        written.rename(target)
    return picture


def paint(rng: random.Random, width: int, height: int) -> Image.Image:
    """A sky, hills and some stones: enough detail that compressing it is real work."""
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y = rng.randrange(width), rng.randrange(height)
        w, h = rng.randrange(2, max(3, width // 4)), rng.randrange(2, max(3, height // 4))
        colour = tuple(rng.randrange(256) for _ in range(3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), fill=colour)
    return picture


def encoded(picture: Image.Image, kind: str) -> bytes:
    held = io.BytesIO()
    picture.save(held, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return held.getvalue()


def photo(rng: random.Random) -> tuple[str, bytes]:
    width, height = rng.choice([(640, 480), (800, 600), (1024, 768), (1200, 900), (480, 640), (900, 300)])
    return ".jpg", encoded(paint(rng, width, height), "JPEG")


def drawing(rng: random.Random) -> tuple[str, bytes]:
    width, height = rng.choice([(64, 64), (320, 200), (512, 512), (700, 500)])
    picture = paint(rng, width, height)
    if rng.random() < 0.5:
        picture.putalpha(rng.randrange(100, 256))
    return ".png", encoded(picture, "PNG")


def too_small(rng: random.Random) -> tuple[str, bytes]:
    width, height = rng.choice([(63, 200), (48, 48), (200, 16), (1, 1)])
    return ".png", encoded(paint(rng, width, height), "PNG")


def too_long(rng: random.Random) -> tuple[str, bytes]:
    return ".jpg", encoded(paint(rng, rng.randrange(410, 900), 100), "JPEG")


def too_many_pixels(rng: random.Random) -> tuple[str, bytes]:
    return ".png", encoded(Image.new("1", (8000, rng.randrange(5001, 5100))), "PNG")


def truncated(rng: random.Random) -> tuple[str, bytes]:
    _, whole = photo(rng)
    return ".jpg", whole[: int(len(whole) * rng.uniform(0.3, 0.8))]


def damaged(rng: random.Random) -> tuple[str, bytes]:
    content = bytearray(encoded(paint(rng, 400, 300), "PNG"))
    for _ in range(20):  # past the head, so that it still looks like a PNG
        content[rng.randrange(100, len(content) - 50)] ^= 0xFF
    return ".png", bytes(content)


def no_picture(rng: random.Random) -> tuple[str, bytes]:
    words = " ".join(rng.choice(["penstock", "turbine", "sluice", "weir"]) for _ in range(200))
    return ".jpg", words.encode()


def empty(rng: random.Random) -> tuple[str, bytes]:
    return ".png", b""


GOOD = ("photo", "drawing")
#: In this order, again and again: good and faulty ones are mixed from the first few on.
RECIPES: Sequence[tuple[str, Callable[[random.Random], tuple[str, bytes]]]] = (
    ("photo", photo),
    ("drawing", drawing),
    ("truncated", truncated),
    ("photo", photo),
    ("too-small", too_small),
    ("drawing", drawing),
    ("photo", photo),
    ("no-picture", no_picture),
    ("photo", photo),
    ("damaged", damaged),
    ("drawing", drawing),
    ("photo", photo),
    ("too-long", too_long),
    ("photo", photo),
    ("drawing", drawing),
    ("too-many-pixels", too_many_pixels),
    ("photo", photo),
    ("empty", empty),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="the bucket's folder")
    parser.add_argument("--count", type=int, default=20, help="how many files (20)")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other pictures (1)")
    parser.add_argument("--slow", type=float, default=0.0, metavar="SECONDS", help="spread each upload over so long")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    asked = parser.parse_args()
    made = make_pictures(asked.into, asked.count, asked.seed, slow_s=asked.slow)
    if asked.output == "json":
        print(json.dumps([asdict(picture) for picture in made]))
        return
    for picture in made:
        print(f"{picture.key}: {'to be approved' if picture.approved else f'to be rejected ({picture.fault})'}")


if __name__ == "__main__":
    main()
