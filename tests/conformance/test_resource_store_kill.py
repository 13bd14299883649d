"""The durable store is killed with SIGKILL at random moments: every write that returned is there, and nothing else.

A child process writes and prints each write once its call has returned; the test kills it after a random number of
lines, opens the store and compares. One write may be there that was not printed: the one under way.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
from contextlib import aclosing, closing
from pathlib import Path

from core.control.sqlite import SqliteStore
from core.resources import KindRef

FLOW = KindRef("test.penstock.dev", "v1", "Flow")
ROUNDS = 6
MAX_LINES = 120

WRITER = """
import asyncio, json, random, sys
from core.control.sqlite import SqliteStore
from core.resources import Key, KindRef, ObjectMeta, Resource

FLOW = KindRef("test.penstock.dev", "v1", "Flow")

async def main(path, seed):
    rng = random.Random(seed)
    store = SqliteStore(path)
    held = {item.meta.name: item for item in (await store.list(FLOW)).items}
    while True:
        name = f"f{rng.randrange(12)}"
        if name not in held:
            meta = ObjectMeta(name=name, namespace="default")
            fill = "x" * rng.randrange(20_000)
            done = held[name] = await store.create(Resource(ref=FLOW, meta=meta, body={"spec": {"fill": fill}}))
            kind = "ADDED"
        elif rng.random() < 0.25:
            done = await store.delete(held.pop(name).key)
            kind = "DELETED"
        else:
            spec = {"fill": "y" * rng.randrange(20_000), "n": rng.random()}
            done = held[name] = await store.update(held[name].with_spec(spec))
            kind = "MODIFIED"
        told = {"type": kind, "name": name, "version": int(done.meta.resource_version), "spec": done.spec}
        print(json.dumps(told), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def _write_until_killed(path: Path, seed: int, lines: int) -> list[dict]:
    """What the child reported as written before it was killed."""
    command = [sys.executable, "-c", WRITER, str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [json.loads(child.stdout.readline()) for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        # What it wrote between the last line read and its end counts as returned, too, but for a line cut short.
        told += [json.loads(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    return told


async def _check(path: Path, since: int, told: list[dict], before: dict[str, dict]) -> tuple[int, dict[str, dict]]:
    """Compare the store with what was told; its version and state, which the next round starts from."""
    with closing(SqliteStore(path)) as store:
        listing = await store.list(FLOW)
        last = told[-1]["version"]
        assert listing.version in (last, last + 1)
        async with aclosing(store.watch(FLOW, since)) as watch:
            changes = [await anext(watch) for _ in range(listing.version - since)]
        state = dict(before)
        for expected, change in zip(told, changes, strict=False):
            assert change.resource is not None
            found = {"type": change.type, "name": change.resource.meta.name, "version": change.version}
            assert {**found, "spec": change.resource.spec} == expected
        for change in changes:
            assert change.resource is not None
            state[change.resource.meta.name] = change.resource.spec
            if change.type == "DELETED":
                del state[change.resource.meta.name]
        assert [change.version for change in changes] == list(range(since + 1, listing.version + 1))
        assert {item.meta.name: item.spec for item in listing.items} == state
    return listing.version, state


def test_every_write_that_returned_survives_kill_9(tmp_path: Path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    version, state = 1, dict[str, dict]()
    for _ in range(ROUNDS):
        told = _write_until_killed(path, rng.randrange(2**32), rng.randrange(1, MAX_LINES))
        version, state = asyncio.run(_check(path, version, told, state))
