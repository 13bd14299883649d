"""``penstock logs``: what a function printed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from penstock.cli.context import Session, namespace_option, platform_options

__all__ = ["logs"]


@click.command()
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="Go on with lines as they come, until Ctrl-C.")
@click.option(
    "--tail", type=click.IntRange(0), help="Only the last lines of each instance.  [default: all that is kept]"
)
@click.option("--revision", help="Only this Revision's instances.  [default: all]")
@namespace_option
@platform_options
def logs(
    service: str,
    follow: bool,
    tail: int | None,
    revision: str | None,
    namespace: str,
    server: str | None,
    data: Path,
) -> None:
    """Show what the instances of a SERVICE wrote to standard output and standard error.

    \b
    Example:
      penstock logs scan --follow
    """
    query = {"follow": "true"} if follow else {}
    if tail is not None:
        query["tail"] = str(tail)
    if revision is not None:
        query["revision"] = revision
    for line in Session(server, data).api.stream(f"/penstock/v1/logs/{namespace}/{service}", query=query):
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
