"""``penstock trigger pause | resume``: hold a Trigger's events back, and let them go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from penstock.cli.api import Refused, object_path
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.failure import NOT_FOUND
from penstock.cli.output import print_json
from penstock.cli.words import find_kind, registry, title

__all__ = ["trigger"]

#: `broker.flow.settings.PAUSED`, which would load the broker.
PAUSED: Final = "delivery.penstock.dev/paused"
_MERGE_PATCH: Final = {"Content-Type": "application/merge-patch+json"}
NOT_THERE: Final = 404


@click.group(short_help="Pause a Trigger, and let it go on.")
def trigger() -> None:
    """Hold back what a Trigger delivers, without losing anything of it.

    A paused Trigger's events stay in the log, in order and as long as it is paused; what is under way ends.

    \b
    Examples:
      penstock trigger pause orders
      penstock trigger resume orders
    """


@trigger.command(short_help="Deliver nothing more for now.")
@click.argument("names", nargs=-1, required=True, metavar="NAME ...")
@namespace_option
@output_option("text", "json")
@platform_options
def pause(names: tuple[str, ...], namespace: str, output: str, server: str | None, data: Path) -> None:
    """Deliver no more events for these Triggers until they are resumed.

    \b
    Examples:
      penstock trigger pause orders
      penstock trigger pause orders audit -n shop
    """
    _set(names, namespace, output, Session(server, data), value="true", said="paused")


@trigger.command(short_help="Go on delivering.")
@click.argument("names", nargs=-1, required=True, metavar="NAME ...")
@namespace_option
@output_option("text", "json")
@platform_options
def resume(names: tuple[str, ...], namespace: str, output: str, server: str | None, data: Path) -> None:
    """Deliver what these Triggers' events are, from where they were paused.

    \b
    Examples:
      penstock trigger resume orders
    """
    _set(names, namespace, output, Session(server, data), value=None, said="resumed")


def _set(
    names: tuple[str, ...], namespace: str, output: str, session: Session, *, value: str | None, said: str
) -> None:
    kind = find_kind("trigger", registry())
    patch: dict[str, Any] = {"metadata": {"annotations": {PAUSED: value}}}
    results = []
    for name in names:
        try:
            session.api.request("PATCH", object_path(kind, namespace, name), body=patch, headers=_MERGE_PATCH)
        except Refused as refusal:
            if refusal.status != NOT_THERE:
                raise
            results.append((title(kind, name), "does not exist"))
        else:
            results.append((title(kind, name), said))
    if output == "json":
        print_json([{"resource": what, "result": result} for what, result in results])
    else:
        for what, result in results:
            click.echo(f"{what} {result}", err=result != said)
    if any(result != said for _, result in results):
        raise click.exceptions.Exit(NOT_FOUND)
