"""What the operating system says of other processes: CPU time and resident memory.

CPU time is read from the process's own CPU clock (`clock_getcpuclockid(3)`): user and system time of all its threads,
ended ones too, in nanoseconds. /proc/<pid>/stat has the same sum, but in ticks of 10 ms, which is a quarter of what a
round of some thousand requests costs.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Memory", "OthersCpu", "cpu_s", "memory", "parse_busy", "parse_smaps_rollup", "parse_status"]

_PROC: Final = Path("/proc")
#: The kernel's number for "user and system time, whole process" in the clock id of a foreign process.
_CPUCLOCK_SCHED: Final = 2


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory in KiB; `pss_kib` counts each shared page as its share."""

    rss_kib: int
    pss_kib: int


def cpu_s(pids: Iterable[int]) -> float:
    """User and system CPU seconds that these processes have used so far, all threads together.

    Raises ProcessLookupError where one does not exist.
    """
    return sum(_process_cpu_s(pid) for pid in pids)


def _process_cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError as error:
        raise ProcessLookupError(f"There is no process {pid}: it ended while it was measured.") from error


def memory(pid: int) -> Memory:
    """Resident memory of one process. Raises ProcessLookupError where it does not exist."""
    try:
        rss_kib = parse_status((_PROC / str(pid) / "status").read_text())
        pss_kib = parse_smaps_rollup((_PROC / str(pid) / "smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"There is no process {pid}: it ended while it was measured.") from error
    return Memory(rss_kib=rss_kib, pss_kib=pss_kib)


def parse_status(text: str) -> int:
    """VmRSS of /proc/<pid>/status, in KiB. Raises ValueError where it is missing (a kernel thread, a zombie)."""
    return _kib(text, "VmRSS:")


def parse_smaps_rollup(text: str) -> int:
    """Pss of /proc/<pid>/smaps_rollup, in KiB."""
    return _kib(text, "Pss:")


def _kib(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"no {name} line")


class OthersCpu:
    """How busy the machine was with anything but this process and those that it started and that have ended."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._busy_s = _busy_s()
        self._own_s = _own_s()

    def share(self) -> float:
        """Of all cores' time since the start, 0 to 1. Time that a hypervisor gave to others counts as busy."""
        busy_s = _busy_s() - self._busy_s - (_own_s() - self._own_s)
        return max(busy_s, 0.0) / ((time.monotonic() - self._began_s) * (os.cpu_count() or 1))


def parse_busy(text: str) -> int:
    """Ticks that the cores of /proc/stat were busy: all but idle and waiting for I/O (proc(5)). Guests' time is in
    the user time already."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, text.split(None, 9)[1:9])
    return user + nice + system + irq + softirq + steal


def _busy_s() -> float:
    return parse_busy((_PROC / "stat").read_text()) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))
