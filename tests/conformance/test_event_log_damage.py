"""What becomes of a SQLite event log whose file is damaged: no wrong event, no lost word, and no end of the rest."""

import asyncio
import os
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.ledger import Attempt
from broker.log import schema
from broker.log.port import Entry, Position
from broker.log.query import LogReader
from broker.log.sqlite import SqliteLog
from core.errors import PenstockError, Unavailable
from tests.conformance.event_log import BROKER, OTHER, append, entry, ids, pick, read, seek

EVENTS = 200
TRIALS = 40
PAGE = 4096


class World:
    """A closed log of events of two Brokers with a subscription each, and what was put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given: dict[int, Entry] = {}
        self.positions: dict[str, Position] = {}

    async def fill(self) -> None:
        log = SqliteLog(self.path)
        await log.open()
        one = log.subscribe("uid-1", BROKER, "default/one", 0)
        log.subscribe("uid-2", OTHER, "default/two", 0)
        for n in range(EVENTS):
            broker = OTHER if n % 3 == 0 else BROKER
            given = entry(f"e{n}", broker, data=bytes([n % 251]) * (n * 37 % 6000), at=1000.0 + n, subject=f"s{n}")
            (record,) = await append(log, given)
            self.given[record.seq] = given
            log.note(Attempt(record.seq, "uid-1", 1000.0 + n, 1, 202, 0.01, "delivered"))
            if broker == BROKER:
                one.take(record.seq)
                if n % 7:
                    one.ack(record.seq)
        await log.flush()
        self.positions = {uid: log.subscribe(uid, "", "", 0).position() for uid in ("uid-1", "uid-2")}
        await log.close()

    def change(self, sql: str, *values: object) -> None:
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(sql, values)
        connection.close()

    def root(self, name: str) -> int:
        """Where the first page of a table or an index begins."""
        connection = sqlite3.connect(self.path)
        ((number,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,))
        connection.close()
        return int((number - 1) * PAGE)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("filled") / "log.db")
    asyncio.run(made.fill())
    return made


@pytest.fixture
def world(filled: World, tmp_path: Path) -> World:
    """One of the test's own: to damage."""
    copied = World(tmp_path / "log.db")
    shutil.copy(filled.path, copied.path)
    copied.given, copied.positions = filled.given, filled.positions
    return copied


@pytest.fixture
async def opened(world: World) -> AsyncIterator[Callable[[], "asyncio.Future[SqliteLog]"]]:
    """Opens the log, and closes it after the test."""
    held: list[SqliteLog] = []

    async def open_it() -> SqliteLog:
        log = SqliteLog(world.path)
        await log.open()
        held.append(log)
        return log

    yield lambda: asyncio.ensure_future(open_it())
    for log in held:
        await log.close()


async def all_of(log: SqliteLog, broker: str) -> tuple[dict[int, Entry], set[int]]:
    """Every event of the Broker, and the positions of those that are corrupt, as a dispatcher reads them."""
    found: dict[int, Entry] = {}
    corrupt: set[int] = set()
    after = 0
    while True:
        page = await read(log, after, 50, broker)
        found.update({record.seq: record.entry for record in page.records})
        corrupt.update(page.corrupt)
        if not page.more:
            return found, corrupt
        assert page.through > after, "a read that goes no further is made again and again"
        after = page.through


def damage(raw: bytearray, rng: random.Random) -> None:
    """A flipped bit, a changed byte, a lost sector, or a page of something else."""
    match rng.randrange(10):
        case 0 | 1 | 2 | 3 | 4 | 5:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case 6 | 7:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        case 8:
            at = rng.randrange(len(raw) // 512) * 512
            raw[at : at + 512] = bytes(512)
        case _:
            at = rng.randrange(len(raw) // PAGE) * PAGE
            raw[at : at + PAGE] = rng.randbytes(PAGE)


async def test_wherever_the_file_is_damaged_no_wrong_event_is_read_and_what_is_lost_is_told(
    world: World, caplog: pytest.LogCaptureFixture
):
    seed = int(os.environ.get("PENSTOCK_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"PENSTOCK_TEST_SEED={seed}")
    whole = world.path.read_bytes()
    refusals: list[str] = []
    silent = 0
    for trial in range(TRIALS):
        rng = random.Random(seed + trial)
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            damage(raw, rng)
        for left in world.path.parent.glob("log.db*"):
            left.unlink()
        world.path.write_bytes(raw)
        caplog.clear()
        log = SqliteLog(world.path)
        try:
            await log.open()
        except Unavailable as error:
            refusals.append(str(error))
            continue
        missing = 0
        for broker in (BROKER, OTHER):
            given = {seq: held for seq, held in world.given.items() if held.broker == broker}
            found, corrupt = await all_of(log, broker)
            assert {seq: given.get(seq) for seq in found} == found, f"a wrong event, seed {seed + trial}"
            missing += len(given.keys() - found.keys() - corrupt)
        kept = {uid: log.subscribe(uid, BROKER, "", 0).position() for uid in tuple(log.subscriptions())}
        said = "corrupt" in caplog.text or "damaged" in caplog.text or "delivered again" in caplog.text
        assert all(world.positions[uid] == position for uid, position in kept.items() if uid in world.positions)
        silent += bool(missing) and not said
        for work in (append(log, entry("new")), pick(log, [3, 4, 9]), seek(log, 1100.0), log.retain(9e5), log.flush()):
            try:
                async with asyncio.timeout(20):
                    await work
            except PenstockError as error:
                refusals.append(str(error))
        await log.close()
    assert all(str(world.path) in said for said in refusals), "each says which file"
    print(f"{TRIALS} trials, {len(refusals)} refusals; in {silent} events were missing without a word")
    # Where several pages of the table and the index are damaged together nothing may be left to tell of an event.
    assert silent <= TRIALS // 10


async def test_a_damaged_page_holds_back_only_the_events_that_are_on_it(world: World, opened):
    raw = bytearray(world.path.read_bytes())
    at = raw.index(world.given[100].data[:1000])
    raw[at - at % PAGE : at - at % PAGE + 100] = bytes(100)
    world.path.write_bytes(raw)
    log = await opened()
    for broker in (BROKER, OTHER):
        given = {seq: held for seq, held in world.given.items() if held.broker == broker}
        found, corrupt = await all_of(log, broker)
        assert {seq: given[seq] for seq in found} == found
        assert given.keys() == found.keys() | (corrupt & given.keys())
        assert len(found) > len(given) - 12
    assert ids(await pick(log, [2, 3], BROKER)) == ["e1", "e2"]


async def test_events_that_the_index_has_lost_are_found_all_the_same_and_it_is_told(
    world: World, opened, caplog: pytest.LogCaptureFixture
):
    connection = sqlite3.connect(world.path)
    connection.execute("PRAGMA writable_schema = 1")
    with connection:  # an index of fewer events in its place, as SQLite cannot know
        connection.execute("CREATE INDEX fewer ON events (broker) WHERE seq % 5 > 0")
        connection.execute(
            "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'fewer') "
            "WHERE name = 'events_broker'"
        )
        connection.execute("DELETE FROM sqlite_schema WHERE name = 'fewer'")
    connection.close()
    log = await opened()
    found, corrupt = await all_of(log, BROKER)
    assert found == {seq: held for seq, held in world.given.items() if held.broker == BROKER}
    assert not corrupt
    assert "without its index" in caplog.text


async def test_an_event_that_is_moved_to_another_broker_is_corrupt(world: World, opened):
    world.change("UPDATE events SET broker = 2 - (broker - 1) WHERE seq = 5")
    log = await opened()
    found, corrupt = [await all_of(log, broker) for broker in (BROKER, OTHER)], {5}
    assert all(5 not in events for events, _ in found)
    assert set().union(*(told for _, told in found)) == corrupt


@pytest.mark.parametrize(
    "changed", ["through = through + 1", "through = 0", "open = x'00'", "uid = 'uid-3'", "broker = 2"]
)
async def test_a_changed_position_is_told_and_is_not_gone_on_from(
    world: World, opened, changed: str, caplog: pytest.LogCaptureFixture
):
    world.change(f"UPDATE subscriptions SET {changed} WHERE uid = 'uid-1'")  # noqa: S608 - the table above
    log = await opened()
    assert "uid-1" not in log.subscriptions()
    assert "delivered again" in caplog.text
    assert log.subscribe("uid-2", OTHER, "default/two", 0).position() == world.positions["uid-2"]
    assert "uid-1" not in LogReader(world.path).positions()
    assert log.subscribe("uid-1", BROKER, "default/one", 7).position() == Position(7)
    await append(log, entry("goes on"))


async def test_a_changed_name_of_a_broker_is_told(world: World, opened, caplog: pytest.LogCaptureFixture):
    world.change("UPDATE brokers SET name = 'default/defaulu' WHERE id = 1")
    log = await opened()
    assert "it had another name" in caplog.text
    found, corrupt = await all_of(log, "default/defaulu")
    assert not found
    assert corrupt


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        pytest.param("UPDATE subscriptions SET through = 'x'", "cannot be", id="position that is no number"),
        pytest.param("DELETE FROM meta", "KeyError", id="no newest position"),
        pytest.param("UPDATE brokers SET name = CAST(x'ff' AS TEXT) WHERE id = 1", "UTF-8", id="name that is no text"),
    ],
)
async def test_a_file_that_cannot_be_gone_on_from_is_refused_with_what_to_do(world: World, opened, sql: str, says: str):
    world.change(sql)
    with pytest.raises(Unavailable, match=says) as refused:
        await opened()
    assert f"The event log {world.path} is damaged" in str(refused.value)
    assert "restore the file from a backup" in str(refused.value)


@pytest.mark.parametrize(
    "changed",
    [
        "events SET at = NULL",
        "events SET at = 'x', data = 7",
        "attempts SET outcome = 99",
        "attempts SET latency = 'x'",
    ],
)
async def test_who_reads_a_damaged_log_for_people_gets_what_is_whole_or_a_reason(world: World, changed: str):
    connection = sqlite3.connect(world.path)
    connection.execute("PRAGMA writable_schema = 1")
    with connection:
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'")
    connection.close()
    world.change(f"UPDATE {changed} WHERE seq = 5")
    reader = LogReader(world.path)
    found = reader.newest(EVENTS).events
    assert len(found) == EVENTS
    assert [each.seq for each in found if each.record is None] == ([5] if "events" in changed else [])
    if "attempts" in changed:
        with pytest.raises(Unavailable, match="damaged"):
            reader.deliveries([5])


async def test_a_log_of_an_older_version_opens_with_its_events_and_positions(world: World, opened):
    """They had neither the Broker in events' checksums nor a checksum for positions."""
    connection = sqlite3.connect(world.path)
    with connection:
        rows = connection.execute(schema.SELECT_EVENT).fetchall()
        for seq, at, ttl, _, cause, via, head, data in rows:
            crc = schema._checksum(0, seq, at, ttl, cause, via, head, data)
            connection.execute("UPDATE events SET crc = ? WHERE seq = ?", (crc, seq))
        connection.execute("UPDATE subscriptions SET open = substr(open, 1, length(open) / 8 * 8)")
    connection.close()
    log = await opened()
    assert (await all_of(log, BROKER))[0] == {s: held for s, held in world.given.items() if held.broker == BROKER}
    assert log.subscribe("uid-1", BROKER, "default/one", 0).position() == world.positions["uid-1"]


async def test_a_damaged_table_of_subscriptions_is_refused_when_the_log_is_opened(world: World, opened):
    raw = bytearray(world.path.read_bytes())
    at = world.root("subscriptions")
    raw[at : at + 8] = b"\xff" * 8
    world.path.write_bytes(raw)
    with pytest.raises(Unavailable, match="damaged"):
        await opened()


async def test_a_position_that_was_not_dropped_is_not_lost_by_one_bit(world: World, opened):
    world.change("UPDATE subscriptions SET kept = 0")
    log = await opened()
    assert log.subscribe("uid-1", BROKER, "default/one", 0).position() == world.positions["uid-1"]


async def crashed(world: World, tmp_path: Path, count: int = 30) -> tuple[Path, list[Entry]]:
    """The files of a log as a crash leaves them, after so many commits."""
    log = SqliteLog(world.path)
    await log.open()
    given = [entry(f"w{n}", data=bytes([n]) * 3000) for n in range(count)]
    for each in given:
        await append(log, each)
    path = tmp_path / "crashed" / "log.db"
    path.parent.mkdir()
    for name in ("log.db", "log.db-wal"):
        shutil.copy(world.path.with_name(name), path.with_name(name))
    await log.close()
    return path, given


async def test_a_crash_loses_nothing_and_nothing_is_said(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path, given = await crashed(world, tmp_path)
    log_file = path.with_name("log.db-wal")
    log_file.write_bytes(log_file.read_bytes() + b"torn")  # a commit that had just begun
    log = SqliteLog(path)
    await log.open()
    found, _ = await all_of(log, BROKER)
    assert [held for seq, held in found.items() if seq > EVENTS] == given
    assert "write-ahead" not in caplog.text
    await log.close()


async def test_what_damage_of_the_write_ahead_log_takes_is_told(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path, given = await crashed(world, tmp_path)
    raw = bytearray(path.with_name("log.db-wal").read_bytes())
    raw[raw.index(given[20].data)] ^= 1
    path.with_name("log.db-wal").write_bytes(raw)
    log = SqliteLog(path)
    await log.open()
    found, _ = await all_of(log, BROKER)
    assert [held for seq, held in found.items() if seq > EVENTS] == given[:20]
    assert "answered 202 just before the end may be missing" in caplog.text
    (record,) = await append(log, entry("goes on"))
    assert record.seq > EVENTS + 20
    await log.close()
