"""The 202 goes out after the disk has the event: what the kernel was asked, in which order."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.chaos.http import publish
from tests.support.chaos.process import Setup
from tests.support.chaos.run import ROOT, free_port
from tests.support.chaos.subscribers import data_of, headers_of

pytestmark = pytest.mark.e2e

EVENTS = 20
DEADLINE_S = 60.0
#: A call of one thread: its number, the call, and what follows; one that is cut in two says so at its end.
CALL = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<rest>.*)")
RESUMED = re.compile(r"(?P<thread>\d+) +<\.\.\. (?P<name>\w+) resumed>.*= 0$")
SYNCS = ("fdatasync", "fsync")


def unsynced(trace: Iterator[str], events: list[str]) -> list[str]:
    """The events whose 202 began before a sync of the log ended that had begun after the event was written to it."""
    written: set[str] = set()
    durable: set[str] = set()
    syncing: dict[str, set[str]] = {}
    early, answered = [], iter(events)
    for line in trace:
        if match := RESUMED.match(line):
            if match["name"] in SYNCS:
                durable |= syncing.pop(match["thread"], set())
        elif match := CALL.match(line):
            name, rest = match["name"], match["rest"]
            if name == "pwrite64" and "-wal>" in rest:
                written |= {event for event in events if event in rest}
            elif name in SYNCS and "-wal>" in rest:
                if rest.endswith("= 0"):
                    durable |= written
                else:
                    syncing[match["thread"]] = set(written)
            elif '"HTTP/1.1 202' in rest:
                event = next(answered)
                if event not in durable:
                    early.append(event)
    assert next(answered, None) is None, "the trace does not have every answer"
    return early


@pytest.mark.service("strace")
async def test_an_event_is_answered_202_after_it_was_synced(tmp_path: Path):
    trace, port = tmp_path / "trace", free_port()
    setup = msgspec.json.encode(Setup(log=str(tmp_path / "log.db"), port=port, triggers=[])).decode()
    calls = "trace=pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg"
    strace = ["strace", "-f", "-y", "-s", "5000", "-e", calls, "-e", "signal=none", "-o", str(trace)]
    process = await asyncio.create_subprocess_exec(
        *strace, sys.executable, "-m", "tests.support.chaos.process", setup, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    events = [f"durable-{number:03}" for number in range(EVENTS)]
    async with asyncio.timeout(DEADLINE_S):
        assert (await process.stdout.readline()).startswith(b"ready")
        connection = await asyncio.open_connection("127.0.0.1", port)
        for event in events:
            assert await publish(connection, "/default/default", headers_of(event), data_of(event)) == 202
        connection[1].transport.abort()
        # strace itself takes no signals; the first line is its child's.
        os.kill(int(trace.read_text().split(None, 1)[0]), signal.SIGTERM)
        await process.wait()
    with trace.open() as lines:
        assert unsynced((line.rstrip("\n") for line in lines), events) == []


def test_the_reading_of_a_trace_finds_an_answer_that_came_too_early():
    written = '7 pwrite64(9</log.db-wal>, "..e1..", 4096, 0) = 4096'
    began, ended = "8 fdatasync(9</log.db-wal> <unfinished ...>", "8 <... fdatasync resumed>) = 0"
    answered = '7 write(11<socket:[1]>, "HTTP/1.1 202 Accepted", 21) = 21'
    assert unsynced(iter([written, began, ended, answered]), ["e1"]) == []
    assert unsynced(iter([written, "8 fdatasync(9</log.db-wal>) = 0", answered]), ["e1"]) == []
    assert unsynced(iter([written, began, answered, ended]), ["e1"]) == ["e1"]
    assert unsynced(iter([began, written, ended, answered]), ["e1"]) == ["e1"]
    assert unsynced(iter([written, answered]), ["e1"]) == ["e1"]
