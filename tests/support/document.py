"""The parts of the documentation that follow from the code, and reading its pages.

``python -m tests.support.document`` writes docs/commands.md anew, and the values in the table of limits of
docs/operations.md; tests/unit/test_docs.py fails while that has not been done.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import msgspec

from penstock.cli.main import main

ROOT = Path(__file__).parents[2]
COMMANDS = ROOT / "docs/commands.md"
OPERATIONS = ROOT / "docs/operations.md"

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
#: A paragraph that is only a path in backticks and a colon says that the block after it is that file's content.
_FILE = re.compile(r"(?:^|\n)`(?P<path>[\w./-]+)`:\n\n\Z")
_LIMIT = re.compile(r"^\| (?P<what>[^|]+) \| (?P<value>[^|]*) \| `(?P<name>[\w.]+)` \|$", re.MULTILINE)

_INTRODUCTION = """\
# Commands

Every command, and every option. They speak to the platform whose data directory is `.penstock/` here, unless
`--data-dir` or `--server` names another one.

    penstock up --apply examples/pictures/manifests    # in one terminal
    penstock events --follow                           # in another

Errors go to standard error, as one sentence and what to do next. Exit codes: 0 done, 1 refused or failed, 2 wrong
usage, 3 what is named does not exist, 4 no platform answers, 5 `penstock plan --exit-code` has found changes. `--output
json` is for programs. Colours are used on a terminal only.

This page is written by `python -m tests.support.document` from the commands themselves.
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the file that it is the content of ("" for none)."""

    language: str
    text: str
    path: str
    line: int


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    folders = (ROOT, ROOT / "docs", ROOT / "docs/decisions")
    return sorted([*(page for folder in folders for page in folder.glob("*.md")), *(ROOT / "examples").rglob("*.md")])


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        named = _FILE.search(before)
        yield Block(match["language"], match["text"], named["path"] if named else "", before.count("\n") + 1)


def commands() -> dict[str, click.Command]:
    """Every command by its full name, each group before its own commands."""
    return dict(_commands("penstock", main))


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for own in command.list_commands(context):
            if (found := command.get_command(context, own)) is not None:
                yield from _commands(f"{name} {own}", found)


def commands_page() -> str:
    parts = [_INTRODUCTION]
    for name, command in commands().items():
        text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        described = [_paragraph(part) for part in text.split("\n\n")] if name != "penstock" else []
        parts.append("\n\n".join([f"## {name}", f"    {_usage(name, command)}", *described]) + "\n")
        parts.append("| option | default | |\n|---|---|---|\n" + "".join(_rows(name, command)))
    return "\n".join(parts)


def _usage(name: str, command: click.Command) -> str:
    return " ".join([name, *command.collect_usage_pieces(click.Context(command, **main.context_settings))])


def _paragraph(text: str) -> str:
    title, _, examples = text.partition("\n")
    if not title.startswith("Example"):
        return " ".join(text.split())
    return "\n".join("    " + line.strip() for line in examples.splitlines())


def _rows(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name, **main.context_settings)
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option):
            continue
        told = parameter.get_help_record(context)
        assert told is not None, "every option has a help text"
        # As `--help` shows it, with default and environment variable in a column of their own.
        text, _, said = (parameter.help or "").partition("  [default: ")
        default = said.removesuffix("]") if said else "" if parameter.is_flag else _default(parameter)
        if parameter.envvar:
            default += f" (`{parameter.envvar}`)"
        names = told[0].replace("|", r"\|")
        yield f"| `{names}` | {default.strip()} | {text or _named_by_option(parameter)} |\n".replace("|  |", "| |")


def _default(option: click.Option) -> str:
    value = option.default
    if option.required:
        return "required"
    shown = "" if value is None or callable(value) or value == () or repr(value).startswith("Sentinel") else str(value)
    return f"`{shown}`" if shown else ""


def _named_by_option(option: click.Option) -> str:
    """For the options that need no help text: ``--gateway-port``."""
    return f"The {max(option.opts, key=len).removeprefix('--').replace('-', ' ')}."


def operations_page() -> str:
    """The page with the limits' values as they are in the code."""

    def row(match: re.Match[str]) -> str:
        return f"| {match['what']} | {shown(match['name'])} | `{match['name']}` |"

    return _LIMIT.sub(row, OPERATIONS.read_text())


def limits() -> dict[str, str]:
    """The documented limits: name to value."""
    return {match["name"]: match["value"] for match in _LIMIT.finditer(OPERATIONS.read_text())}


def shown(name: str) -> str:
    """A limit's value for a person: the unit follows from its name."""
    value = look_up(name)
    if re.search("bytes$", name, re.IGNORECASE):
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{value / size:g} {unit}"
        return f"{value:g} bytes"
    if re.search("_s$", name, re.IGNORECASE):
        for unit, size in (("d", 86_400), ("h", 3_600)):
            if value >= size and value % size == 0:
                return f"{value / size:g} {unit}"
        return f"{value:g} s"
    return f"{value:,}"


def look_up(name: str) -> Any:
    """What a dotted name means: a module's constant, or the default of a Struct's field."""
    module, found = name.split("."), []
    while True:
        try:
            holder: Any = import_module(".".join(module))
            break
        except ModuleNotFoundError:
            found.insert(0, module.pop())
    for part in found:
        if isinstance(holder, type) and issubclass(holder, msgspec.Struct):
            fields = {field.name: field.default for field in msgspec.structs.fields(holder)}
            holder = fields[part]
        else:
            holder = getattr(holder, part)
    return holder


if __name__ == "__main__":
    COMMANDS.write_text(commands_page())
    OPERATIONS.write_text(operations_page())
