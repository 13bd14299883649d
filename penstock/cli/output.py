"""How commands write: aligned tables, machine-readable formats, and colour where a terminal has it (click's doing)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec

__all__ = ["age", "print_document", "print_json", "print_table", "state"]

_UNITS_S: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, indent: int = 0) -> None:
    """Columns as wide as their widest cell, two spaces between, as kubectl prints them."""
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(" " * indent + line.rstrip())


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_document(value: Any, output: str) -> None:
    """`value` as "json" or "yaml"."""
    if output == "json":
        print_json(value)
        return
    import yaml  # noqa: PLC0415 - 18 ms that only this format needs

    click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def state(text: str) -> str:
    """A condition's status in its colour."""
    colour = {"True": "green", "False": "red", "Unknown": "yellow"}.get(text)
    return click.style(text, fg=colour) if colour else text


def age(since: str | float | None, now: datetime | None = None) -> str:
    """How long ago a time was, in its largest unit: ``5m``. `since` is RFC 3339, or seconds since the epoch."""
    if not since:
        return "<unknown>"
    began = datetime.fromisoformat(since) if isinstance(since, str) else datetime.fromtimestamp(since, UTC)
    seconds = max(0, int(((now or datetime.now(UTC)) - began).total_seconds()))
    for unit, length_s in _UNITS_S:
        if seconds >= length_s:
            return f"{seconds // length_s}{unit}"
    return "0s"
