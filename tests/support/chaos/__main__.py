"""``python -m tests.support.chaos [--kills N] [--seed N] [--log sqlite|redis|kafka]``: exit code 0 where every promise
was kept, 1 where one was not. The seed is printed first; it repeats the moments of the kills and what subscribers do,
while the machine's own timing stays its own."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path

import click

from tests.support.chaos.run import Run
from tests.support.kafka.server import KafkaServer
from tests.support.services import RedisServer


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kills", type=click.IntRange(0), default=200, show_default=True)
@click.option("--seed", type=int, default=None, help="Repeats a run.")
@click.option("--log", type=click.Choice(["sqlite", "redis", "kafka"]), default="sqlite", show_default=True)
def main(kills: int, seed: int | None, log: str) -> None:
    """Kill the broker process over and over under load, and hold it to an account of every event."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}, {kills} kills, log {log}")
    with tempfile.TemporaryDirectory(prefix="penstock-chaos-") as folder:
        server: RedisServer | KafkaServer | None = None
        name = f"penstock-chaos-{os.getpid()}"
        if log == "redis":
            server = redis = RedisServer(Path(folder))
            redis.start()
            where = f"{redis.url}#{name}?first"
        elif log == "kafka":
            server = kafka = KafkaServer(Path(folder) / "kafka")
            kafka.start()
            where = f"plaintext://{kafka.servers}#{name}?first"
        else:
            where = str(Path(folder) / "log.db")
        try:
            outcome = asyncio.run(Run(where, kills=kills, seed=seed, say=click.echo)())
        finally:
            if server is not None:
                server.stop()
    for line in outcome.verdict.lines():
        click.echo(line)
    click.echo(f"kills {outcome.kills}, of which {outcome.missed} did not come to their moment")
    held = outcome.verdict.holds and outcome.ended == 0
    click.echo(f"{'kept' if held else 'BROKEN'}: repeat with --kills {kills} --seed {seed} --log {log}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
