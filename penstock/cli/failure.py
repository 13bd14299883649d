"""How a command fails: one clear message on standard error, and an exit code that a script can tell apart."""

from __future__ import annotations

import sys
from typing import IO, Any, Final

import click

__all__ = ["CHANGES", "FAILED", "NOT_FOUND", "UNREACHABLE", "Failure"]

#: The request was refused or did not succeed.
FAILED: Final = 1
#: What the command names does not exist. (2 is click's: wrong usage.)
NOT_FOUND: Final = 3
#: No platform answers.
UNREACHABLE: Final = 4
#: ``plan --exit-code``: applying would change something.
CHANGES: Final = 5


class Failure(click.ClickException):
    """Ends the command with `message`, then `hint` (what to do next), and the exit code."""

    def __init__(self, message: str, *, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc] # click declares a class variable and reads the instance's
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        out = file or sys.stderr
        click.secho("error: ", fg="red", bold=True, nl=False, file=out)
        click.echo(self.message, file=out)
        if self.hint:
            click.secho(f"       {self.hint}", dim=True, file=out)
