"""``penstock dlq list | show | redrive | drop``: what could not be delivered, and what to do with it."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from penstock.cli.api import Refused
from penstock.cli.context import PATIENCE_S, Session, namespace_option, output_option, platform_options
from penstock.cli.events import warn_of_away
from penstock.cli.failure import FAILED, NOT_FOUND, Failure
from penstock.cli.output import age, print_json, print_table
from penstock.cli.pace import RETRY_S, Pace, Patient, Rate, moment
from penstock.cli.story import attempt_line

__all__ = ["dlq"]

PATH: Final = "/penstock/v1/dead-letters"
#: Why a letter is one: `broker.resending.letters.REASONS`, which would load the whole broker.
REASONS: Final = ("dropped", "dead", "corrupt", "dead-lettered")
#: Letters in one answer.
PAGE: Final = 500
#: Letters of one request, at most (`broker.resending.resender.MAX_POSITIONS`).
TOGETHER: Final = 200


@click.group(short_help="Look at what could not be delivered, send it again, or drop it.")
def dlq() -> None:
    """Dead letters: events that a Trigger's subscriber did not get, after every attempt.

    A letter is one event for one Trigger, named NAMESPACE/TRIGGER/POSITION as `list` shows it. Where a letter is asked
    for, TRIGGER/POSITION (with --namespace) and an event's id will do.

    \b
    Examples:
      penstock dlq list --trigger orders --since 1h
      penstock dlq show orders/41
      penstock dlq redrive --trigger orders --rate 20
    """


def _choosing(command: Any) -> Any:
    """``--trigger``, ``--reason`` and ``--since``."""
    for option in (
        click.option("--since", metavar="TIME", callback=moment, help="Only what failed since: 2h, 30m, 7d, RFC 3339."),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=click.Choice(REASONS),
            help="Only these; dead-lettered are those that a sink took.  [default: dropped, dead, corrupt]",
        ),
        click.option("--trigger", help="Only those of this Trigger."),
    ):
        command = option(command)
    return command


def _query(
    namespace: str | None, trigger: str | None, reasons: Sequence[str], since: float | None, event: str | None = None
) -> list[tuple[str, str]]:
    given = {"namespace": namespace, "trigger": trigger, "event": event}
    query = [(name, value) for name, value in given.items() if value is not None]
    query += [("reason", reason) for reason in reasons]
    return query if since is None else [*query, ("since", repr(since))]


def _letters(session: Patient, query: Sequence[tuple[str, str]], limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The letters, page by page; all of them without `limit`."""
    after: list[tuple[str, str]] = []
    left = limit
    while True:
        size = PAGE if left is None else min(PAGE, left)
        page = session.request("GET", PATH, query=[*query, *after, ("limit", str(size))])
        warn_of_away(page["away"])
        yield from page["letters"]
        left = None if left is None else left - len(page["letters"])
        if page["next"] is None or left == 0:
            return
        after = [("after", page["next"])]


@dlq.command(name="list", short_help="List what could not be delivered.")
@_choosing
@click.option("-n", "--namespace", help="Only those of this namespace.  [default: all]")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many, oldest first."
)
@output_option("text", "json")
@platform_options
def list_(
    trigger: str | None,
    reasons: tuple[str, ...],
    since: float | None,
    namespace: str | None,
    limit: int,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """List events that could not be delivered, one for each Trigger that did not get it, oldest first.

    With --output json, one JSON object a line.

    \b
    dropped         given up, and there is no dead-letter sink
    dead            the dead-letter sink did not take it either
    corrupt         the stored bytes are not what was written
    dead-lettered   the dead-letter sink took it; only with --reason dead-lettered

    \b
    Examples:
      penstock dlq list
      penstock dlq list --trigger orders --since 1h --output json
    """
    session = Patient(Session(server, data))
    # One more than asked for: whether there are more.
    found = list(_letters(session, _query(namespace, trigger, reasons, since), limit + 1))
    shown = found[:limit]
    if output == "json":
        for letter in shown:
            click.echo(msgspec.json.encode(letter))
    elif shown:
        titles = ("LETTER", "EVENT", "TYPE", "REASON", "STATUS", "ATTEMPTS", "FAILED")
        print_table(titles, [_row(letter) for letter in shown])
    else:
        click.echo("Nothing is undelivered.", err=True)
    if len(found) > limit:
        click.echo(f"There are more than {limit}; see them with --limit.", err=True)


def _row(letter: dict[str, Any]) -> list[str]:
    status = str(letter["status"] or "none")
    failed = age(letter["failed"])
    event = letter["event_id"] or "-"
    return [letter["id"], event, letter["type"] or "-", letter["outcome"], status, str(letter["attempts"]), failed]


@dlq.command(short_help="Show one letter: the event, each attempt, the reason.")
@click.argument("letter")
@namespace_option
@output_option("text", "json")
@platform_options
def show(letter: str, namespace: str, output: str, server: str | None, data: Path) -> None:
    """Show a letter: its event, each attempt to deliver it, and why that was given up.

    \b
    Examples:
      penstock dlq show orders/41
      penstock dlq show order-1 --output json
    """
    session = Patient(Session(server, data))
    details = [session.request("GET", _path(found)) for found in _found(session, letter, namespace)]
    if output == "json":
        print_json(details if len(details) > 1 else details[0])
        return
    for number, detail in enumerate(details):
        if number:
            click.echo()
        _show(detail)


def _show(detail: dict[str, Any]) -> None:
    letter = detail["letter"]
    click.echo(f"{click.style(letter['id'], bold=True)}  {click.style(letter['outcome'], fg='red')}")
    click.echo(f"event    {letter['event_id'] or '(corrupt)'}, arrived {letter['time']} at {letter['broker']}")
    if letter["repeats"] is not None:
        click.echo(f"repeats  the event at position {letter['repeats']}")
    click.echo(f"reason   {letter['reason'] or 'none was kept'}")
    for attempt in detail["attempts"]:
        click.echo(f"  {attempt_line(attempt, dated=True)}")
    if detail["event"] is not None:
        print_json(detail["event"])


@dlq.command(short_help="Send letters again.")
@click.argument("letters", nargs=-1, metavar="[LETTER ...]")
@_choosing
@click.option("--all", "everything", is_flag=True, help="All of the namespace.")
@click.option("--revision", help="Send to this Revision instead of the Trigger's subscriber.")
@click.option("--rate", type=Rate(), default=50.0, show_default=True, help="A second; 0: no limit.")
@click.option("--edit", is_flag=True, help="Edit the event in $EDITOR first; for one letter.")
@click.option(
    "--with", "replacement", metavar="FILE", help="Send this event (JSON) instead; - is stdin. For one letter."
)
@namespace_option
@output_option("text", "json")
@platform_options
def redrive(
    letters: tuple[str, ...],
    trigger: str | None,
    reasons: tuple[str, ...],
    since: float | None,
    everything: bool,
    revision: str | None,
    rate: float,
    edit: bool,
    replacement: str | None,
    namespace: str,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Send letters again, each to its Trigger alone, whatever that one's filter says.

    An event that is sent again is stored as a new one, with the extension attribute penstockreplay and the Trigger's
    own retries and dead-letter sink. Its letter is listed no more once that is so; if it fails as well, it is a letter
    again.

    \b
    Examples:
      penstock dlq redrive orders/41 orders/57
      penstock dlq redrive --trigger orders --since 1h --rate 10
      penstock dlq redrive orders/41 --edit
      penstock dlq redrive --all --revision orders-00003
    """
    session = Patient(Session(server, data))
    chosen = _chosen(session, letters, namespace, trigger, reasons, since, everything)
    if (edit or replacement) and len(chosen) != 1:
        raise click.UsageError(f"--edit and --with are for one letter; these are {len(chosen)}.")
    replay = f"redrive-{uuid.uuid4().hex[:8]}"
    body: dict[str, Any] = {"replay": replay, **({} if revision is None else {"revision": revision})}
    event = None
    if edit:
        event = _edited(session, chosen[0])
    elif replacement:
        event = _given(replacement)
    if event is None:
        told = _each(session, chosen, rate, "redrive", body, output, "redriven")
    else:
        told = _one(session, chosen[0], {**body, "event": event}, output, edited=edit)
    if output == "json":
        print_json({"replay": replay, **told})
    elif told["done"]:
        click.secho(f"See them with: penstock events -e penstockreplay={replay}", dim=True)
    if told["failed"]:
        raise click.exceptions.Exit(FAILED)


@dlq.command(short_help="Drop letters: nobody wants them any more.")
@click.argument("letters", nargs=-1, metavar="[LETTER ...]")
@_choosing
@click.option("--all", "everything", is_flag=True, help="All of the namespace.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@namespace_option
@output_option("text", "json")
@platform_options
def drop(
    letters: tuple[str, ...],
    trigger: str | None,
    reasons: tuple[str, ...],
    since: float | None,
    everything: bool,
    yes: bool,
    namespace: str,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Drop letters: they are listed no more, and their events are kept no longer than delivered ones.

    \b
    Examples:
      penstock dlq drop orders/41
      penstock dlq drop --trigger orders --since 7d --yes
    """
    session = Patient(Session(server, data))
    chosen = _chosen(session, letters, namespace, trigger, reasons, since, everything)
    if chosen and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"This drops {_count(len(chosen))} for good; say so with --yes.")
        click.confirm(f"Drop {_count(len(chosen))} for good?", abort=True, err=True)
    told = _each(session, chosen, 0.0, "drop", {}, output, "dropped")
    if output == "json":
        print_json(told)
    if told["failed"]:
        raise click.exceptions.Exit(FAILED)


# ---- which


def _chosen(
    session: Patient,
    letters: Sequence[str],
    namespace: str,
    trigger: str | None,
    reasons: Sequence[str],
    since: float | None,
    everything: bool,
) -> list[str]:
    """The ids of the letters that the arguments name, as of now: what fails again meanwhile is not among them."""
    if sum((bool(letters), trigger is not None, everything)) != 1:
        raise click.UsageError("Name letters, or choose them with --trigger or --all.")
    if letters:
        if reasons or since is not None:
            raise click.UsageError("--reason and --since are for --trigger and --all.")
        named = [found for letter in letters for found in _found(session, letter, namespace)]
        return list(dict.fromkeys(named))
    return [letter["id"] for letter in _letters(session, _query(namespace, trigger, reasons, since))]


def _found(session: Patient, letter: str, namespace: str) -> list[str]:
    """The letters of that name, or of the event of that id. Raises Failure where there is none."""
    head, _, position = letter.rpartition("/")
    if head and position.isdecimal():
        for named in (letter, f"{namespace}/{letter}"):
            with contextlib.suppress(_Missing):
                _request(session, "GET", _path(named))
                return [named]
    found = [each["id"] for each in _letters(session, _query(namespace, None, REASONS, None, letter))]
    if not found:
        hint = "List those that exist with: penstock dlq list"
        text = (
            f"There is no dead letter {letter!r} in the namespace {namespace!r}: it was delivered, redriven or dropped."
        )
        raise Failure(text, hint=hint, code=NOT_FOUND)
    return found


class _Missing(Exception):
    """There is no such letter."""


def _request(session: Patient, method: str, path: str, body: Any = None) -> Any:
    try:
        return session.request(method, path, body=body)
    except Refused as refusal:
        if refusal.status == 404:
            raise _Missing(refusal.message) from refusal
        raise


def _path(letter: str) -> str:
    return f"{PATH}/{'/'.join(quote(part, safe='') for part in letter.split('/'))}"


# ---- doing


def _each(
    session: Patient, chosen: Sequence[str], rate: float, what: str, body: Mapping[str, Any], output: str, done: str
) -> dict[str, Any]:
    """Do the same with all letters, some in each request, and say what became of each; those that fail do not keep the
    others from it."""
    succeeded: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    pace = Pace(rate)
    together = pace.together(TOGETHER)
    try:
        for start in range(0, len(chosen), together):
            some = chosen[start : start + together]
            pace.wait(len(some))
            for told in _settled(session, what, body, some):
                if told["error"] is not None:
                    failed.append({"letter": told["letter"], "error": told["error"]})
                    click.echo(f"{told['letter']}: {told['error']}", err=True)
                    continue
                at = {} if told["position"] is None else {"position": told["position"]}
                succeeded.append({"letter": told["letter"], **at})
                if output == "text":
                    where = f" as position {told['position']}" if at else ""
                    click.echo(f"{told['letter']} {click.style(done, fg='green')}{where}")
    except KeyboardInterrupt:
        left = len(chosen) - len(succeeded) - len(failed)
        text = f"Interrupted: {len(succeeded)} of {len(chosen)} letters {done}, {left} are as they were."
        raise Failure(text, hint="The same command goes on with the rest.") from None
    if output == "text":
        told_failed = f"; {len(failed)} failed" if failed else ""
        click.echo(f"{_count(len(succeeded))} {done}{told_failed}" if chosen else "Nothing is undelivered.", err=True)
    return {"done": succeeded, "failed": failed}


def _one(session: Patient, letter: str, body: Mapping[str, Any], output: str, *, edited: bool) -> dict[str, Any]:
    """Send another event for a letter. What a person edited is kept where it is refused."""
    try:
        answer = _request(session, "POST", f"{_path(letter)}/redrive", body)
    except (_Missing, Refused) as error:
        text = error.message if isinstance(error, Refused) else str(error)
        click.echo(f"{letter}: {text}", err=True)
        if edited:
            click.echo(f"What you edited is kept: send it with --with {_kept(_written(body['event']))}", err=True)
        return {"done": [], "failed": [{"letter": letter, "error": text}]}
    if output == "text":
        click.echo(f"{letter} {click.style('redriven', fg='green')} as position {answer['position']}")
        click.echo(f"{_count(1)} redriven", err=True)
    return {"done": [{"letter": letter, "position": answer["position"]}], "failed": []}


def _settled(session: Patient, what: str, body: Mapping[str, Any], some: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What became of some letters. Those that the platform cannot do now are asked for again, for a while; where the
    answer to an earlier try was lost, a letter that is gone is one that this did."""
    asked, left, until = False, list(some), time.monotonic() + PATIENCE_S
    while left:
        answer = session.request("POST", f"{PATH}/{what}", body={**body, "letters": left})
        asked = asked or session.repeated
        left = []
        for told in answer["letters"]:
            if told["again"] and time.monotonic() < until:
                left.append(told["letter"])
            else:
                yield {**told, "error": None} if told["gone"] and asked else told
        if left:
            asked = True
            time.sleep(RETRY_S)


def _count(number: int) -> str:
    return f"{number} letter" + ("" if number == 1 else "s")


def _edited(session: Patient, letter: str) -> Any:
    """The letter's event as a person's editor left it. Raises Failure where nothing was changed, or it is no JSON."""
    event = _request(session, "GET", _path(letter))["event"]
    if event is None:
        raise Failure(f"The event of {letter} is corrupt. Give another one with --with FILE.")
    before = _written(event)
    # As bytes: an editor may leave what is no UTF-8.
    after = click.edit(before, extension=".json")
    if after is None or after == before:
        raise Failure("Nothing was changed, so nothing was sent.", hint="Without --edit it is sent as it is.")
    try:
        return _json(after.removeprefix(codecs.BOM_UTF8), "What was edited")
    except Failure as refusal:
        hint = f"What you edited is kept: mend it, and send it with --with {_kept(after)}"
        raise Failure(refusal.message, hint=hint) from refusal


def _written(event: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(event), indent=2) + b"\n"


def _kept(edited: bytes) -> str:
    """A file with what a person edited, so that the work is not lost where it is refused."""
    descriptor, path = tempfile.mkstemp(prefix="penstock-", suffix=".json")
    with os.fdopen(descriptor, "wb") as file:
        file.write(edited)
    return path


def _given(path: str) -> Any:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.") from error
    return _json(content, path)


def _json(content: bytes, what: str) -> Any:
    try:
        event = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{what} is not JSON: {error}. Nothing was sent.") from error
    if not isinstance(event, dict):
        raise Failure(f"{what} is not an event: it must be a JSON object. Nothing was sent.")
    return event
