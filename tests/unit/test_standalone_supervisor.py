"""The supervisor over tiny processes that do as they are told: start, crash, refuse, ignore signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.standalone.child import StartFailed
from penstock.standalone.supervisor import PROCESSES, Ports, Supervisor, restart_delay_s
from penstock.testing import wait_until

#: What one does is the next line of ``<name>.how``, the last one from then on; what it hears goes to ``heard``.
STUB = """
import json, os, select, signal, sys

told = json.loads(os.environ["PENSTOCK_PROCESS"])
data, name = told["data"], told["name"]
with open(f"{data}/{name}.how") as file:
    how, *later = file.read().splitlines()
if later:
    with open(f"{data}/{name}.how", "w") as file:
        file.write("\\n".join(later))


def note(what):
    with open(f"{data}/heard", "a") as file:
        file.write(f"{name} {what}\\n")


def heard(number, frame):
    note(signal.Signals(number).name)
    if how != "deaf" and not (how == "stubborn" and number == signal.SIGTERM):
        os._exit(0)


signal.signal(signal.SIGTERM, heard)
signal.signal(signal.SIGINT, heard)
note(f"pid {os.getpid()}")
if how == "crash":
    print(json.dumps({"level": "info", "message": "daily business"}), file=sys.stderr)
    trouble = {"level": "error", "message": "no luck", "exception": "Traceback\\nOSError: bad"}
    print(json.dumps(trouble), file=sys.stderr)
    print("boom", file=sys.stderr)
    sys.exit(3)
if how.startswith("refuse "):
    os.write(told["ready_fd"], how.removeprefix("refuse ").encode())
    sys.exit(69)
if how == "hang":
    signal.pause()
os.write(told["ready_fd"], b"ready\\n")
os.close(told["ready_fd"])
if how == "die":
    sys.exit(7)
while True:
    if select.select([told["life_fd"]], [], [])[0]:
        note("orphaned")
        os._exit(0)
"""

DEADLINE_S = 30.0


class World:
    """A data directory, and how its processes are to behave."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.troubles: list[str] = []
        self.changed = asyncio.Event()
        for name in PROCESSES:
            self.let(name, "serve")

    def let(self, name: str, *how: str) -> None:
        (self.data / f"{name}.how").write_text("\n".join(how))

    def supervisor(self, ports: Ports | None = None, drain_s: float = 5.0) -> Supervisor:
        return Supervisor(
            data=self.data,
            root=self.data,
            ports=ports or Ports(gateway=0, broker=0, api=0, admin=0),
            drain_s=drain_s,
            on_trouble=self._trouble,
            commands=dict.fromkeys(PROCESSES, (sys.executable, "-SE", "-c", STUB)),
        )

    def _trouble(self, said: str) -> None:
        self.troubles.append(said)
        self.changed.set()

    async def until(self, count: int) -> None:
        """Wait for that many troubles."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.troubles) < count:
                self.changed.clear()
                await self.changed.wait()

    async def see(self, condition: Callable[[], bool], what: str) -> None:
        await asyncio.to_thread(wait_until, condition, what=what, timeout_s=DEADLINE_S)

    def heard(self) -> list[str]:
        return [line for line in self._notes() if " pid " not in line]

    def left(self) -> list[int]:
        """The processes that still run, of all that were started."""
        pids = [int(line.rpartition(" ")[2]) for line in self._notes() if " pid " in line]
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    def _notes(self) -> list[str]:
        notes = self.data / "heard"
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    left = made.left()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


async def test_it_listens_starts_all_and_stops_them_in_order(world):
    supervisor = world.supervisor()
    await supervisor.start()
    ports = {name: port for name, (_, port) in supervisor.addresses.items()}
    assert set(ports) == {"gateway", "broker", "api", "admin"}
    with socket.create_connection(("127.0.0.1", ports["gateway"])):
        pass
    assert world.heard() == []
    await supervisor.stop()
    assert world.heard() == ["broker SIGTERM", "gateway SIGTERM", "control SIGTERM"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports["gateway"]))
    assert world.troubles == []
    again = world.supervisor()
    await again.start()
    await again.stop()


async def test_one_that_crashes_while_starting_is_told_with_the_end_of_its_log_and_nothing_is_left(world):
    world.let("gateway", "crash")
    with pytest.raises(StartFailed) as caught:
        await world.supervisor().start()
    first, *log = str(caught.value).splitlines()
    assert first == f"The gateway process ended with code 3 while starting; see {world.data}/logs/gateway.log."
    assert log == ["  error: no luck", "  Traceback", "  OSError: bad", "  boom"]
    assert world.left() == []
    world.let("gateway", "serve")
    supervisor = world.supervisor()
    await supervisor.start()
    await supervisor.stop()


async def test_the_reason_that_a_process_gives_for_not_starting_is_told_as_it_is(world):
    world.let("control", "refuse The store is no database. Move it away.")
    with pytest.raises(StartFailed) as caught:
        await world.supervisor().start()
    assert str(caught.value) == "The control process cannot start. The store is no database. Move it away."


async def test_a_start_that_is_given_up_leaves_nothing(world):
    world.let("broker", "hang")
    starting = asyncio.create_task(world.supervisor().start())
    await world.see(lambda: len(world.left()) == len(PROCESSES), "all are started")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert world.left() == []


@pytest.mark.parametrize("name", ["gateway", "broker", "api", "admin"])
async def test_a_port_in_use_is_refused_with_the_option_that_changes_it(world, name):
    ports = {"gateway": 0, "broker": 0, "api": 0, "admin": 0}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[name] = taken.getsockname()[1]
        with pytest.raises(StartFailed) as caught:
            await world.supervisor(Ports(**ports)).start()
    assert f"The {name} cannot listen on 127.0.0.1:{ports[name]}: Address already in use" in str(caught.value)
    assert f"--{name}-port (0 takes any free one)" in str(caught.value)
    supervisor = world.supervisor()
    await supervisor.start()
    await supervisor.stop()


async def test_a_host_that_is_not_of_this_machine_is_refused_by_its_option(world):
    with pytest.raises(StartFailed, match="--host"):
        await world.supervisor(Ports(host="192.0.2.1", gateway=0)).start()


async def test_a_data_directory_serves_one_platform_and_names_it_to_the_next(world):
    first = world.supervisor()
    await first.start()
    with pytest.raises(StartFailed) as caught:
        await world.supervisor().start()
    assert f"process {os.getpid()}" in str(caught.value)
    assert "--data-dir" in str(caught.value)
    await first.stop()
    assert len(world.heard()) == len(PROCESSES)


@pytest.mark.parametrize("blocked", ["lock", "logs"])
async def test_a_data_directory_that_cannot_be_used_is_told_by_its_path(world, blocked):
    path = world.data / blocked
    if blocked == "lock":
        path.mkdir()
    else:
        path.write_text("a file where a folder has to be")
    with pytest.raises(StartFailed, match="--data-dir") as caught:
        await world.supervisor().start()
    assert str(path) in str(caught.value)


async def test_a_log_that_cannot_be_written_is_told(world):
    (world.data / "logs/control.log").mkdir(parents=True)
    with pytest.raises(StartFailed, match=r"The control process cannot be started: .*control\.log"):
        await world.supervisor().start()


async def test_a_process_that_crashes_is_started_again_and_again_and_each_time_told(world):
    world.let("broker", "serve", "refuse No room.", "die", "serve")
    supervisor = world.supervisor()
    await supervisor.start()
    first = supervisor.pids
    os.kill(first["broker"], signal.SIGKILL)
    await world.until(3)
    await world.see(lambda: supervisor.pids["broker"] in world.left(), "the last one runs")
    now = supervisor.pids
    assert {name: now[name] == first[name] for name in PROCESSES} == {"broker": False, "gateway": True, "control": True}
    assert [said.splitlines()[0] for said in world.troubles] == [
        f"The broker process was ended by SIGKILL; see {world.data}/logs/broker.log.",
        "The broker process cannot start. No room.",
        f"The broker process ended with code 7; see {world.data}/logs/broker.log.",
    ]
    assert [said.splitlines()[-1] for said in world.troubles] == [
        "It is started again in 0.05 s.",
        "It is started again in 0.1 s (2 times in a row).",
        "It is started again in 0.2 s (3 times in a row).",
    ]
    await supervisor.stop()


@pytest.mark.parametrize(
    ("crashes", "delay_s"), [(1, 0.05), (2, 0.1), (3, 0.2), (7, 3.2), (8, 5.0), (9, 5.0), (10_000, 5.0)]
)
def test_the_pause_doubles_with_each_crash_in_a_row_up_to_a_cap(crashes, delay_s):
    assert restart_delay_s(crashes) == pytest.approx(delay_s)


async def test_one_that_does_not_end_is_told_not_to_drain_once_the_stop_is_forced(world):
    for name in PROCESSES:
        world.let(name, "stubborn")
    supervisor = world.supervisor(drain_s=600)
    await supervisor.start()
    stopping = asyncio.create_task(supervisor.stop())
    await world.see(lambda: world.heard() == ["broker SIGTERM"], "the first one is asked")
    supervisor.force()
    async with asyncio.timeout(DEADLINE_S):
        await stopping
    assert world.heard() == ["broker SIGTERM", "broker SIGINT", "gateway SIGINT", "control SIGINT"]


async def test_one_that_hears_nothing_is_killed(world, monkeypatch):
    monkeypatch.setattr("penstock.standalone.child.KILL_MARGIN_S", 0.05)
    monkeypatch.setattr("penstock.standalone.child.FORCE_S", 0.05)
    world.let("broker", "deaf")
    supervisor = world.supervisor(drain_s=0)
    await supervisor.start()
    await supervisor.stop()
    assert world.left() == []
    world.let("gateway", "deaf")
    supervisor = world.supervisor(drain_s=600)
    await supervisor.start()
    supervisor.force()
    async with asyncio.timeout(DEADLINE_S):
        await supervisor.stop()
    assert world.left() == []
