"""``penstock``: one command whose subcommands are loaded when they are called, so that each starts quickly."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Final

import click

from penstock import __version__

__all__ = ["main"]

#: Each command, and the module that has it.
_COMMANDS: Final = {
    "up": "penstock.cli.up",
    "apply": "penstock.cli.apply",
    "get": "penstock.cli.resources",
    "describe": "penstock.cli.describe",
    "delete": "penstock.cli.resources",
    "send": "penstock.cli.send",
    "events": "penstock.cli.events",
    "explain": "penstock.cli.events",
    "plan": "penstock.cli.plan",
    "trigger": "penstock.cli.trigger",
    "dlq": "penstock.cli.dlq",
    "replay": "penstock.cli.replay",
    "logs": "penstock.cli.logs",
    "serve": "penstock.cli.serve",
    "cluster": "penstock.cli.cluster",
    "version": "penstock.cli.version",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(import_module(module), cmd_name)
        return found if isinstance(found, click.Command) else None


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_PENSTOCK_COMPLETE=bash_source penstock)" (zsh_source, fish_source).',
)
@click.version_option(__version__, prog_name="penstock", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Events to functions on one machine, with Knative's YAML.

    \b
    Examples:
      penstock up --apply examples/pictures/manifests
      penstock get brokers,triggers,ksvc
      penstock send --type hello --data '{"to": "you"}'
      penstock events --follow

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not found, 4 no platform answers, 5 `plan --exit-code`
    has found changes.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


if __name__ == "__main__":
    main()
