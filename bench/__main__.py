"""``python -m bench <name>``: progress on standard error, one JSON object as the last line
of standard output. Exit codes: 0 measured (a missed target too), 1 the measurement is broken, 2 wrong usage."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

import click
import msgspec

from bench.broken import Broken
from bench.cpu import OthersCpu
from bench.report import Measured, Options, machine, report

__all__ = ["main"]

#: Each benchmark's module has `run(options) -> Measured`; they are imported when they are run.
BENCHMARKS: Final = {
    "gateway": "bench.gateway",
    "broker": "bench.broker",
    "ingest": "bench.ingest",
    "filters": "bench.filters",
    "fanout": "bench.fanout",
    "isolation": "bench.isolation",
    "coldstart": "bench.coldstart",
    "selfcheck": "bench.selfcheck",
}

#: Other programs' share of the machine from which on latencies say more of them than of us.
BUSY: Final = 0.05


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice(list(BENCHMARKS)))
@click.option("--quick", is_flag=True, help="A few seconds instead of about a minute; rough figures.")
@click.option("--seed", type=int, default=1, show_default=True, help="For the bootstrap interval.")
def main(name: str, quick: bool, seed: int) -> None:
    """Measure one part of the platform; see docs/benchmarks.md."""
    options = Options(seed=seed, quick=quick, progress=lambda line: click.echo(f"{name}: {line}", err=True))
    try:
        facts = machine()
        others = OthersCpu()
        measured: Measured = import_module(BENCHMARKS[name]).run(options)
    except (Broken, ProcessLookupError) as error:
        click.echo(f"{name}: broken: {error}", err=True)
        click.echo(msgspec.json.encode({"benchmark": name, "met": False, "broken": str(error)}).decode())
        sys.exit(1)
    answer = report(name, measured, options, facts, others.share())
    if answer["others_cpu"] > BUSY:
        click.echo(f"{name}: other programs took {answer['others_cpu']:.0%} of the machine: latencies suffer", err=True)
    for target in answer["missed"]:
        limit, found = answer["target"][target], answer[target]
        click.echo(f"{name}: missed: {target} is {found:g}, and the target is at most {limit:g}", err=True)
    if measured.broken:
        click.echo(f"{name}: broken: {measured.broken}", err=True)
    click.echo(msgspec.json.encode(answer).decode())
    sys.exit(1 if measured.broken else 0)


if __name__ == "__main__":
    main()
