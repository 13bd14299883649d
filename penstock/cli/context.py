"""What every command shares: which platform it speaks to, and the options that say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from penstock.cli.api import Api, connect
from penstock.places import DEFAULT_DATA, Places

__all__ = ["Session", "namespace_option", "output_option", "platform_options"]

F = TypeVar("F")


class Session:
    """The platform that a command works on; it is looked up when first needed."""

    def __init__(self, server: str | None, data: Path) -> None:
        self._server = server or os.environ.get("PENSTOCK_SERVER") or None
        self._data = data
        self._found: tuple[Api, Places] | None = None

    @property
    def api(self) -> Api:
        return self._connect()[0]

    @property
    def places(self) -> Places:
        return self._connect()[1]

    def _connect(self) -> tuple[Api, Places]:
        if self._found is None:
            self._found = connect(self._server, self._data)
        return self._found


def platform_options(command: F) -> F:
    """``--server`` and ``--data-dir``; the command gets them as `server` and `data`."""
    data: Any = click.option(
        "--data-dir",
        "data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(DEFAULT_DATA),
        show_default=True,
        envvar="PENSTOCK_DATA",
        help="The platform's data directory.",
    )
    server: Any = click.option("--server", metavar="URL", help="The API server, instead of the data directory's.")
    result: F = server(data(command))
    return result


def namespace_option(command: F) -> F:
    option: Any = click.option("-n", "--namespace", default="default", show_default=True, help="The namespace.")
    result: F = option(command)
    return result


def output_option(*formats: str) -> Callable[[F], F]:
    """``--output`` with the formats a command has; the first is the default."""
    option: Any = click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="How to print."
    )
    decorate: Callable[[F], F] = option
    return decorate
