"""What a new control process needs to know of the instances that the last one started: one small file each.

The files hold environments, so only their owner may read them. They are written without fsync: after a crash of the
machine there is no process left to adopt, and a process without a record is found by its environment.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from serving.instances.port import InstanceSpec
from serving.instances.process import Identity

__all__ = ["Record", "Records"]

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A started instance: which process, where it listens, and from what it was made."""

    name: str
    identity: Identity
    port: int
    spec: InstanceSpec
    restarts: int = 0


class Records:
    """The record files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, record: Record) -> None:
        path = self._path(record.name)
        partial = path.with_suffix(".partial")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, msgspec.json.encode(record))
        finally:
            os.close(handle)
        partial.rename(path)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def read(self) -> list[Record]:
        """All records; one that cannot be read is removed, for its process is found by its environment."""
        found = []
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                _log.warning("removed an instance record that cannot be read", extra={"facts": {"error": str(error)}})
                path.unlink(missing_ok=True)
        return found

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{_SUFFIX}"
