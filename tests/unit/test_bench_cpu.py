"""What the benchmarks read from the operating system."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from bench.cpu import cpu_s, memory, parse_busy, parse_smaps_rollup, parse_status

STATUS = """\
Name:\tpython (x) VmRSS: 1
State:\tS (sleeping)
VmPeak:\t  123456 kB
VmHWM:\t   30000 kB
VmRSS:\t   23456 kB
RssAnon:\t   12000 kB
"""

SMAPS_ROLLUP = """\
5565dd7b2000-7ffe8cdd0000 ---p 00000000 00:00 0                          [rollup]
Rss:                9504 kB
Pss:                5159 kB
Pss_Dirty:          3604 kB
SwapPss:               0 kB
"""


def test_resident_memory_is_vmrss_whatever_the_process_is_called() -> None:
    assert parse_status(STATUS) == 23_456


def test_proportional_memory_is_pss_not_its_parts() -> None:
    assert parse_smaps_rollup(SMAPS_ROLLUP) == 5_159


def test_busy_time_is_all_but_idle_and_waiting_for_io_and_guests_are_counted_once() -> None:
    text = "cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 50 10 15 2000 250 3 3 4 45 5\nintr 1 2 3\n"
    assert parse_busy(text) == 100 + 20 + 30 + 6 + 7 + 8


def test_a_status_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="no VmRSS"):
        parse_status("Name:\tkthreadd\nState:\tS (sleeping)\n")


def test_cpu_time_of_another_process_is_what_that_process_counts_itself() -> None:
    code = (
        "import sys, time\n"
        "sum(range(2_000_000))\n"
        "print(time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID), flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told_s = float(process.stdout.readline())
        read_s = cpu_s([process.pid])
        process.communicate()
    assert told_s <= read_s < told_s + 0.5


def test_cpu_time_has_all_threads_ended_ones_too() -> None:
    used: list[float] = []

    def work() -> None:
        sum(range(1_000_000))
        used.append(time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID))

    before_s = cpu_s([os.getpid()])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_s([os.getpid()]) - before_s >= used[0]


def test_a_process_that_ended_is_an_error_not_zero() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError, match=str(process.pid)):
        cpu_s([process.pid])
    with pytest.raises(ProcessLookupError, match=str(process.pid)):
        memory(process.pid)


def test_memory_counts_shared_pages_once_in_pss() -> None:
    found = memory(os.getpid())
    assert 0 < found.pss_kib <= found.rss_kib
