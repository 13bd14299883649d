"""``penstock version``."""

from __future__ import annotations

import platform

import click

from penstock import __version__
from penstock.cli.context import output_option
from penstock.cli.output import print_json

__all__ = ["version"]


@click.command(short_help="Show versions.")
@output_option("text", "json")
def version(output: str) -> None:
    """Show the version of penstock and of its Python."""
    if output == "json":
        print_json({"penstock": __version__, "python": platform.python_version()})
    else:
        click.echo(f"penstock {__version__} (Python {platform.python_version()})")
