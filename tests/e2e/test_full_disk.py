"""A broker process on a disk that fills up: what it says, what it keeps, what it goes on with, and how it recovers."""

import asyncio
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.events import from_http
from core.net.body import collect
from core.net.client import Client
from core.net.server import HttpServer
from core.net.types import BodySink, Exchange, RequestHead, Response
from tests.support.broker import binary
from tests.support.disks import SmallDisk
from tests.support.http import serving

pytestmark = pytest.mark.e2e

DEADLINE_S = 30.0
DISK_BYTES = 8 * 1024 * 1024
ROOT = Path(__file__).resolve().parents[2]


class World:
    """A broker process on a small disk, and its subscriber: events of type ``test.asks`` have their answers later."""

    def __init__(self, disk: SmallDisk) -> None:
        self.disk = disk
        self.accepted: set[str] = set()
        self.got: list[str] = []
        self.asked: list[Exchange] = []
        self.changed = asyncio.Event()
        self.subscriber: HttpServer
        self.client = Client()
        self._number = 0

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        def received(body: bytes) -> None:
            event = from_http(head.headers, body)
            self.got.append(event.id)
            self.changed.set()
            if event.type == "test.asks":
                self.asked.append(exchange)
            else:
                exchange.respond(202, [])

        return collect(exchange, max_bytes=1024 * 1024, then=received)

    async def start(self) -> None:
        url = f"http://127.0.0.1:{self.subscriber.address[1]}/"
        command = self.disk.inside(
            sys.executable, "-m", "tests.support.broker_process", "ingress,dispatch", str(self.log), "0", url
        )
        self.process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await self.process.stdout.readline()
        assert line.startswith(b"ready"), line
        self.port = int(line.split()[1])

    async def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()

    @property
    def log(self) -> Path:
        return self.disk.at / "log.db"

    async def send(self, size: int = 20_000, event_type: str = "test.made") -> Response:
        self._number += 1
        event_id = f"e{self._number}"
        headers = [(b"host", b"ingress.test"), *binary(event_id, event_type)]
        answer = await self.client.request(
            ("127.0.0.1", self.port), b"POST", b"/default/default", headers, b"x" * size, timeout_s=10, max_bytes=10_000
        )
        if answer.status == 202:
            self.accepted.add(event_id)
        return answer

    async def send_until(self, status: int) -> Response:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                answer = await self.send()
                if answer.status == status:
                    return answer
                assert answer.status in (202, 507)
                if answer.status != 202:
                    await asyncio.sleep(0.01)

    async def until_delivered(self, *more: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.accepted.union(more) <= set(self.got):
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with SmallDisk(tmp_path / "disk", DISK_BYTES) as disk:
        held = World(disk)
        async with serving(held.handle) as held.subscriber:
            await held.start()
            yield held
            if held.process.returncode is None:
                held.process.kill()
                await held.process.wait()
            await held.client.close()


async def test_a_full_disk_refuses_events_keeps_and_delivers_what_it_has_and_takes_more_once_there_is_room(
    world: World,
):
    await world.send_until(202)
    world.disk.fill(leave=300_000)
    refusal = await world.send_until(507)
    assert refusal.header(b"retry-after") == b"1"
    assert f"Make room for {world.log}".encode() in refusal.body
    await world.until_delivered()

    # A process that ends, or crashes, on the full disk starts on it again and has lost nothing.
    assert await world.end(signal.SIGTERM) == 0
    await world.start()
    await world.send_until(507)
    assert await world.end(signal.SIGKILL) == -signal.SIGKILL
    await world.start()
    await world.send_until(507)

    world.disk.make_room()
    await world.send_until(202)
    await world.until_delivered()
    world.disk.fill()
    await world.send_until(507)
    world.disk.make_room()
    await world.send_until(202)
    await world.until_delivered()
    assert await world.end(signal.SIGTERM) == 0
    check(world)


async def test_a_reply_waits_for_room_and_its_event_is_not_delivered_again(world: World):
    await world.send(event_type="test.asks")
    await world.until_delivered()
    world.disk.fill()
    await world.send_until(507)
    for exchange in world.asked:
        exchange.respond(200, binary("reply", "test.reply"), b"{}")
    for _ in range(3):
        await world.send_until(507)
    assert world.got == ["e1"]
    world.disk.make_room()
    await world.until_delivered("reply")
    assert world.got == ["e1", "reply"]
    assert await world.end(signal.SIGTERM) == 0


def check(world: World) -> None:
    """The file is whole, and has every event that was accepted."""
    # Where SQLite follows the way into the other mount namespace itself, it ends up outside.
    copied = world.disk.at.parent / "copied.db"
    shutil.copy(world.disk.outside / "log.db", copied)
    connection = sqlite3.connect(copied)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ((count,),) = connection.execute("SELECT count(*) FROM events")
    ((opened,),) = connection.execute("SELECT length(open) FROM subscriptions")
    connection.close()
    assert count >= len(world.accepted)
    assert opened == 4, "nothing is left open"


async def test_a_log_that_cannot_be_made_on_a_full_disk_says_that_it_is_full(tmp_path: Path):
    with SmallDisk(tmp_path / "disk", 1024 * 1024) as disk:
        for leave in (0, 8192, 50_000):
            disk.fill(leave)
            code = (
                "import asyncio, pathlib, broker.log.sqlite as log, core.errors\n"
                "async def main():\n"
                f"    made = log.SqliteLog(pathlib.Path({str(disk.at / 'log.db')!r}))\n"
                "    try: await made.open()\n"
                "    except core.errors.PenstockError as error: print(type(error).__name__, error)\n"
                "asyncio.run(main())\n"
            )
            process = await asyncio.create_subprocess_exec(
                *disk.inside(sys.executable, "-c", code), cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            said, _ = await process.communicate()
            assert said.startswith(b"LogFull The event log is full"), (leave, said)
            disk.make_room()
