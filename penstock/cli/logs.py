"""``penstock logs``: what a function printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import quote

import click
import msgspec

from penstock.cli.api import Refused
from penstock.cli.context import (
    Session,
    Waiting,
    namespace_option,
    output_option,
    platform_options,
    until_interrupted,
)
from penstock.cli.failure import NOT_FOUND, UNREACHABLE, Failure
from penstock.cli.settling import INTERVAL_S

__all__ = ["logs"]

NOT_FOUND_STATUS: Final = 404


@click.command(short_help="Show what a function printed.")
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="Go on with lines as they come, until Ctrl-C.")
@click.option(
    "--tail", type=click.IntRange(0), help="Only the last lines of each instance.  [default: all that is kept]"
)
@click.option("--revision", help="Only this Revision's instances.  [default: all]")
@namespace_option
@output_option("text", "json")
@platform_options
def logs(
    service: str,
    follow: bool,
    tail: int | None,
    revision: str | None,
    namespace: str,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Show what the instances of a SERVICE wrote to standard output and standard error, each line after its instance.

    With --output json, one object a line: {"instance": ..., "line": ...}.

    \b
    Examples:
      penstock logs scan --follow
      penstock logs scan --tail 20 --revision scan-00002
    """
    session = Session(server, data)
    query = {"follow": "true"} if follow else {}
    if tail is not None:
        query["tail"] = str(tail)
    if revision is not None:
        query["revision"] = revision
    path = f"/penstock/v1/logs/{quote(namespace, safe='')}/{quote(service, safe='')}"
    if follow:
        with until_interrupted():
            _follow(session, path, query, output)
    elif not _print_lines(_open(session, path, query), output):
        click.echo(f"{service} has printed nothing that is kept. Whether it ever ran tells:", err=True)
        click.echo(f"  penstock describe ksvc {service} -n {namespace}", err=True)


def _follow(session: Session, path: str, query: dict[str, str], output: str) -> NoReturn:
    """Print lines as they come, also those after a restart of the platform's processes. Raises Failure."""
    waiting = Waiting()
    while True:
        try:
            lines = _open(session, path, query)
            waiting.over()
            _print_lines(lines, output)
            raise Failure(f"The log at {session.api.base} ended.", code=UNREACHABLE)
        except Failure as failure:
            waiting.bear(failure)
        session.forget()
        time.sleep(INTERVAL_S)
        # All that was there before is printed already; what was written in between is lost to this command.
        query["tail"] = "0"


def _open(session: Session, path: str, query: dict[str, str]) -> Iterator[bytes]:
    try:
        return session.api.stream(path, query=query)
    except Refused as refusal:
        if refusal.status != NOT_FOUND_STATUS:
            raise
        raise Failure(refusal.message, hint="List Services with: penstock get ksvc -A", code=NOT_FOUND) from refusal


def _print_lines(lines: Iterator[bytes], output: str) -> bool:
    """Whether there were any."""
    found = False
    for line in lines:
        found = True
        sys.stdout.buffer.write(_as_json(line) if output == "json" else line)
        sys.stdout.flush()
    return found


def _as_json(line: bytes) -> bytes:
    instance, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
    return msgspec.json.encode({"instance": instance, "line": text}) + b"\n"
