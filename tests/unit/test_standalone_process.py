"""The frame around each process: ready, drained, cut short, orphaned, or not started at all."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.standalone.child import Child, StartFailed
from penstock.standalone.settings import Listener, Settings
from penstock.testing import wait_until

#: A composition that takes as long to drain as it is given, and writes down what happens.
PROCESS = """
import asyncio, contextlib
from pathlib import Path
from core.errors import Corrupt
from penstock.standalone.process import run_process


@contextlib.asynccontextmanager
async def compose(settings, ending):
    data = Path(settings.data)
    if settings.name == "corrupt":
        raise Corrupt("The file is no database. Move it away.")
    if settings.name == "broken":
        raise ValueError("a bug")
    if settings.name == "blocked":
        (data / "no folder" / "file").write_text("")
    if settings.name == "waiting":
        (data / "waiting").touch()
        await asyncio.Event().wait()
    try:
        yield
    finally:
        (data / "draining").write_text(f"{ending.drain_s:g}")
        try:
            await asyncio.sleep(ending.drain_s)
        except asyncio.CancelledError:
            (data / "cut").write_text(f"{ending.drain_s:g}")
            raise
        (data / "drained").touch()


run_process(compose)
"""

DEADLINE_S = 30.0
NOWHERE = Listener(-1, ("127.0.0.1", 0))


async def spawn(data: Path, *, name: str = "it", drain_s: float = 600.0) -> Child:
    settings = Settings(
        name=name,
        data=str(data),
        root=str(data),
        api=NOWHERE,
        broker=NOWHERE,
        gateway=NOWHERE,
        admin=NOWHERE,
        ready_fd=-1,
        life_fd=-1,
        drain_s=drain_s,
    )
    return await Child.spawn(settings, (sys.executable, "-c", PROCESS), inherit=(), log_path=data / "it.log")


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Child]:
    child = await spawn(tmp_path)
    await child.ready()
    yield child
    if child.process.returncode is None:
        child.process.kill()
    await child.wait()


async def ended(child: Child) -> int:
    async with asyncio.timeout(DEADLINE_S):
        return await child.wait()


async def test_it_drains_when_it_is_asked_to_end(tmp_path):
    child = await spawn(tmp_path, drain_s=0.01)
    await child.ready()
    child.process.send_signal(signal.SIGTERM)
    assert await ended(child) == 0
    assert (tmp_path / "drained").exists()


async def test_one_that_still_starts_stops_starting_when_it_is_asked_to_end(tmp_path):
    child = await spawn(tmp_path, name="waiting")
    await asyncio.to_thread(wait_until, (tmp_path / "waiting").exists, what="it waits for something")
    child.process.send_signal(signal.SIGTERM)
    assert await ended(child) == 0
    assert "Traceback" not in (tmp_path / "it.log").read_text()


async def test_it_ends_without_a_drain_when_it_is_told_to(serving, tmp_path):
    serving.process.send_signal(signal.SIGINT)
    assert await ended(serving) == 0
    assert (tmp_path / "draining").read_text() == "0"


async def test_a_drain_under_way_is_broken_off(serving, tmp_path):
    serving.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(wait_until, (tmp_path / "draining").exists, what="it drains")
    serving.process.send_signal(signal.SIGINT)
    assert await ended(serving) == 75
    assert (tmp_path / "cut").read_text() == "0"
    assert "Traceback" not in (tmp_path / "it.log").read_text()


async def test_it_drains_for_a_moment_only_when_its_supervisor_is_gone(tmp_path):
    # The supervisor is a process of its own here, so that its death closes the life pipe as it would.
    script = f"""
import asyncio, os, sys
from pathlib import Path
from tests.unit.test_standalone_process import spawn

async def main():
    child = await spawn(Path({str(tmp_path)!r}))
    await child.ready()
    os._exit(9)

asyncio.run(main())
"""
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=Path(__file__).parents[2])
    async with asyncio.timeout(DEADLINE_S):
        assert await supervisor.wait() == 9
    await asyncio.to_thread(wait_until, (tmp_path / "drained").exists, what="it has drained")
    assert (tmp_path / "draining").read_text() == "2"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("corrupt", ["cannot start. The file is no database. Move it away."], id="what it found"),
        pytest.param("blocked", ["cannot start.", "No such file or directory"], id="the operating system"),
        pytest.param("broken", ["ended with code 1 while starting", "it.log", "ValueError: a bug"], id="a bug"),
    ],
)
async def test_one_that_cannot_start_says_why(tmp_path, name, says):
    child = await spawn(tmp_path, name=name)
    with pytest.raises(StartFailed) as caught:
        await child.ready()
    await ended(child)
    for part in says:
        assert part in str(caught.value)
    assert ("File " in str(caught.value)) == (name == "broken")
    assert not (tmp_path / "draining").exists()


async def test_a_log_that_has_grown_is_set_aside_when_the_process_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.standalone.child.MAX_LOG_BYTES", 10)
    (tmp_path / "it.log").write_text("a longer line of an earlier one\n")
    child = await spawn(tmp_path, name="broken")
    with pytest.raises(StartFailed):
        await child.ready()
    await ended(child)
    assert (tmp_path / "it.old.log").read_text() == "a longer line of an earlier one\n"
    assert "earlier" not in (tmp_path / "it.log").read_text()
    assert "ValueError: a bug" in (tmp_path / "it.log").read_text()
