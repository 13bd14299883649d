"""What every command shares: which platform it speaks to, and the options that say so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from penstock.cli.api import Api, connect
from penstock.cli.failure import UNREACHABLE, Failure
from penstock.places import DEFAULT_DATA, Places

__all__ = [
    "LABEL_RULE",
    "Session",
    "Waiting",
    "data_option",
    "is_label",
    "namespace_option",
    "output_option",
    "platform_options",
    "until_interrupted",
]

F = TypeVar("F")

LABEL_RULE: Final = "must be at most 63 lower case letters, digits and '-', starting and ending with a letter or digit"
_LABEL: Final = re.compile(r"(?!.{64})[a-z0-9]([-a-z0-9]*[a-z0-9])?")
#: How long a command that follows waits for a platform that is gone: a restart takes a second or two.
PATIENCE_S: Final = 30.0


class Session:
    """The platform that a command works on; it is looked up when first needed."""

    def __init__(self, server: str | None, data: Path) -> None:
        self._server = server
        self._data = data
        self._found: tuple[Api, Places] | None = None

    @property
    def api(self) -> Api:
        return self._connect()[0]

    @property
    def places(self) -> Places:
        return self._connect()[1]

    def forget(self) -> None:
        """Look the platform up anew the next time: it may have been started again somewhere else."""
        self._found = None

    def _connect(self) -> tuple[Api, Places]:
        if self._found is None:
            self._found = connect(self._server, self._data)
        return self._found


class Waiting:
    """Patience with a platform that does not answer while it is started again."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def bear(self, failure: Failure) -> None:
        """Say that it is waited for. Raises `failure` once that took too long, or where waiting does not help."""
        if failure.exit_code != UNREACHABLE:
            raise failure
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = now_s
            click.secho("The platform does not answer; waiting for it ...", dim=True, err=True)
        elif now_s - self._since_s > PATIENCE_S:
            raise failure

    def over(self) -> None:
        self._since_s = None


@contextmanager
def until_interrupted() -> Iterator[None]:
    """For what goes on until Ctrl-C: that is its orderly end."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(0) from None


def data_option(command: F) -> F:
    """``--data-dir``; the command gets it as `data`."""
    option: Any = click.option(
        "--data-dir",
        "data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(DEFAULT_DATA),
        show_default=True,
        envvar="PENSTOCK_DATA",
        help="The platform's data directory.",
    )
    result: F = option(command)
    return result


def platform_options(command: F) -> F:
    """``--server`` and ``--data-dir``; the command gets them as `server` and `data`."""
    server: Any = click.option(
        "--server",
        metavar="URL",
        envvar="PENSTOCK_SERVER",
        help="The API server, instead of the data directory's.",
    )
    result: F = server(data_option(command))
    return result


def _namespace(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not is_label(value):
        raise click.BadParameter(f"{value!r} {LABEL_RULE}.")
    return value


def is_label(name: str) -> bool:
    """Whether it can name a namespace: a DNS label (RFC 1123)."""
    return _LABEL.fullmatch(name) is not None


def namespace_option(command: F) -> F:
    """``--namespace``; the command gets it as `namespace`, checked, so that it cannot lead to another path."""
    option: Any = click.option(
        "-n", "--namespace", default="default", show_default=True, callback=_namespace, help="The namespace."
    )
    result: F = option(command)
    return result


def output_option(*formats: str) -> Callable[[F], F]:
    """``--output`` with the formats a command has; the first is the default."""
    option: Any = click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="How to print."
    )
    decorate: Callable[[F], F] = option
    return decorate
