"""What an image's name means here: a row of a table that the test gives, in a file that is read at each start."""

from __future__ import annotations

import fnmatch
import hashlib
from pathlib import Path

import msgspec

__all__ = ["Image", "Images"]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """`pattern` is a shell pattern on the image's name; the first that matches counts. The rest is its config."""

    pattern: str
    entrypoint: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    working_dir: str = "/"
    user: int = 0

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Images:
    """The table, in `path`. A test may change it while the kubelet runs: what is not there yet is tried again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, images: list[Image]) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(images))
        partial.rename(self._path)

    def find(self, name: str) -> Image | None:
        if not self._path.exists():
            return None
        table = msgspec.json.decode(self._path.read_bytes(), type=list[Image])
        return next((image for image in table if fnmatch.fnmatchcase(name, image.pattern)), None)
