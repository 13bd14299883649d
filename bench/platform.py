"""The real platform under measurement: started on free ports with an empty data directory, and stopped with nothing
left behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench.broken import Broken
from bench.cpu import Memory, memory
from bench.places import REPOSITORY
from core.net.types import Address
from core.resources import KindRef
from penstock.cli.api import Refused, object_path
from penstock.kinds import registry
from penstock.testing import Platform, wait_until

__all__ = ["NAMESPACE", "address", "apply", "await_ready", "fetch", "instance_pids", "memory_by_process", "running"]

NAMESPACE: Final = "default"
#: Creating a handful of resources takes well under a second; instances that start side by side share the cores.
READY_TIMEOUT_S: Final = 60.0


@contextmanager
def running(data: Path) -> Iterator[tuple[Platform, float]]:
    """The platform, and the seconds from starting its command to ready (the time of writing ``platform.json``).

    Raises Broken where it does not start, or leaves anything running.
    """
    began_s = time.time()
    try:
        platform = Platform.start(data=data, root=REPOSITORY, arguments=("--quiet",))
    except (RuntimeError, TimeoutError) as error:
        raise Broken(str(error)) from error
    try:
        yield platform, (data / "platform.json").stat().st_mtime - began_s
    except BaseException:
        platform.kill()
        raise
    try:
        platform.stop()
    except RuntimeError as error:
        raise Broken(str(error)) from error


def apply(platform: Platform, manifests: str) -> None:
    """``penstock apply -f -``. Raises Broken with what it said where it refuses."""
    try:
        platform.penstock("apply", "-f", "-", text=manifests)
    except RuntimeError as error:
        raise Broken(str(error)) from error


def fetch(platform: Platform, kind: KindRef, name: str) -> Mapping[str, Any]:
    """A resource of the benchmark's namespace; empty where it does not exist."""
    try:
        found: Mapping[str, Any] = platform.api.request("GET", object_path(registry().get(kind), NAMESPACE, name))
    except Refused as refusal:
        if refusal.status == 404:
            return {}
        raise Broken(str(refusal)) from refusal
    return found


def await_ready(platform: Platform, kind: KindRef, name: str) -> Mapping[str, Any]:
    """The resource once its condition Ready is True. Raises Broken with its conditions where that takes too long."""
    last: Mapping[str, Any] = {}

    def ready() -> Mapping[str, Any] | None:
        nonlocal last
        last = fetch(platform, kind, name)
        conditions = last.get("status", {}).get("conditions", [])
        return last if any(each["type"] == "Ready" and each["status"] == "True" for each in conditions) else None

    try:
        return wait_until(ready, what=f"{kind.kind} {name} is ready", timeout_s=READY_TIMEOUT_S)
    except TimeoutError as error:
        raise Broken(f"{error}: {last.get('status')}") from error


def address(url: str) -> Address:
    """Where a listener of the platform is."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


def instance_pids(platform: Platform) -> list[int]:
    """The processes below the platform that are not its own: functions' instances, and what they started."""
    own = set(platform.pids().values())
    return [pid for pid in platform.everything() if pid not in own]


def memory_by_process(platform: Platform) -> dict[str, Memory]:
    """Resident memory of each of the platform's own processes. Raises Broken where one is gone or instances run."""
    instances = instance_pids(platform)
    if instances:
        raise Broken(f"The platform is not idle: processes {instances} run beside its own.")
    try:
        return {name: memory(pid) for name, pid in platform.pids().items()}
    except ProcessLookupError as error:
        raise Broken(str(error)) from error
