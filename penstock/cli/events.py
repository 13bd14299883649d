"""``penstock events | explain``: watch events, ask where one went."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

import click
import msgspec

from penstock.cli.api import Refused
from penstock.cli.asked import Question, asking
from penstock.cli.context import Session, Waiting, output_option, platform_options, until_interrupted
from penstock.cli.failure import NOT_FOUND, Failure
from penstock.cli.output import print_json
from penstock.cli.settling import INTERVAL_S, Settling
from penstock.cli.story import event_line, explanation_lines, next_steps

__all__ = ["events", "explain", "warn_of_away"]

PATH: Final = "/penstock/v1/events"
NOT_FOUND_STATUS: Final = 404
#: How far back one answer looks (`broker.log.query.MAX_SCANNED`).
LOOKED_AT: Final = 20_000
#: How many events are asked for at once while following.
FOLLOW_PAGE: Final = 500


@click.command(short_help="Show events as they come and go.")
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they come, until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many stored ones, the newest."
)
@asking
@output_option("text", "json")
@platform_options
def events(follow: bool, limit: int, question: Question, output: str, server: str | None, data: Path) -> None:
    """Show stored events and how each stands for its Triggers.

    With --follow, each event is shown once its deliveries have settled, or after 5 seconds; with --state, once it has
    come to that, if it does within a minute. All options that say which events hold together. With --output json, one
    JSON object a line.

    \b
    ✓ delivered   … on its way   ↻ to be tried again   ✗ given up   ≡ a repeat   ↳ a reply   ⟲ sent again

    \b
    Examples:
      penstock events --follow
      penstock events --type order.created --output json
      penstock events --follow --trigger orders --state failed
      penstock events --since 2h --filter "type LIKE 'order.%' AND EXISTS partitionkey"
    """
    session = Session(server, data)
    # What is on its way at the beginning may still come to a state that is awaited.
    begins = follow and question.awaits
    waiting = [("waiting", "true")] if begins else []
    answer = session.api.request("GET", PATH, query=[*question.query, *waiting, ("limit", str(limit))])
    printer = _Printer(output)
    settling = Settling(answer["start" if begins else "next"], awaits=question.awaits)
    found = settling.due(answer["events"], answer["next"], time.monotonic()) if begins else answer["events"]
    printer.show(answer, found)
    if not found and not (follow and output == "json"):
        which = " that match" if question.query else ""
        click.echo(f"No events{which} yet. Publish one with: penstock send --type hello", err=True)
    if answer.get("cut"):
        hint = "For older ones name a Broker or an id; `penstock dlq list` has failures of any age."
        click.secho(f"Only the newest {LOOKED_AT:,} events of each log were looked at. {hint}", dim=True, err=True)
    if follow:
        with until_interrupted():
            _follow(session, question, settling, printer)


def _follow(session: Session, question: Question, settling: Settling, printer: _Printer) -> NoReturn:
    """Print events as they settle. Raises Failure where no platform answers for a while."""
    waiting = Waiting()
    while True:
        time.sleep(INTERVAL_S)
        page = [*question.query, ("waiting", "true"), ("after", settling.position), ("limit", str(FOLLOW_PAGE))]
        try:
            answer = session.api.request("GET", PATH, query=page)
        except Failure as failure:
            waiting.bear(failure)
            session.forget()
            continue
        waiting.over()
        printer.show(answer, settling.due(answer["events"], answer["next"], time.monotonic()))


class _Printer:
    """Prints events, and when a log goes away or comes back."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._away: frozenset[str] = frozenset()

    def show(self, answer: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
        away = answer.get("away") or []
        names = frozenset(each["log"] for each in away)
        if names != self._away:
            self._away = names
            if self._output == "json":
                click.echo(msgspec.json.encode({"away": away}))
            warn_of_away(away)
        for event in found:
            click.echo(msgspec.json.encode(event) if self._output == "json" else event_line(event))


def warn_of_away(away: Sequence[Mapping[str, str]]) -> None:
    """Say what an answer is without."""
    for each in away:
        click.secho("warning: ", fg="yellow", bold=True, nl=False, err=True)
        click.echo(f"The log {each['log']} is away, and its events are missing here. {each['message']}", err=True)


@click.command(short_help="Tell where an event went, and why.")
@click.argument("event_id")
@output_option("text", "json")
@platform_options
def explain(event_id: str, output: str, server: str | None, data: Path) -> None:
    """Tell where an event went: each Trigger, matched or not and why; each attempt, which Revision answered, and how
    long it waited for a cold start; and the replies that it caused.

    \b
    Examples:
      penstock explain 7f2c1d0e-...
      penstock explain order-1 --output json
    """
    try:
        told = Session(server, data).api.request("GET", f"{PATH}/{quote(event_id, safe='')}/explain")
    except Refused as refusal:
        if refusal.status != NOT_FOUND_STATUS:
            raise
        hint = "List the newest with: penstock events"
        raise Failure(refusal.message, hint=hint, code=NOT_FOUND) from refusal
    away = told.get("away") or []
    warn_of_away(away)
    if output == "json":
        print_json([{**each, "away": away} for each in told["events"]] if away else told["events"])
        return
    for line in explanation_lines(told["events"]):
        click.echo(line)
    for step in next_steps(told["events"]):
        click.secho(step, dim=True)
