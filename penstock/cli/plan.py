"""``penstock plan``: what applying manifests would do, and which events the changed Triggers would gain or lose."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from penstock.cli.api import Api, Refused, object_path
from penstock.cli.apply import Applied, try_all
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.failure import CHANGES, NOT_FOUND, Failure
from penstock.cli.manifests import Manifest, read_manifests
from penstock.cli.output import print_json
from penstock.cli.pace import moment
from penstock.cli.story import clause
from penstock.cli.words import registry

__all__ = ["plan", "plan_lines"]

PATH: Final = "/penstock/v1/plan"
TRIGGER: Final = "Trigger"
_UNDONE: Final = "It could not be applied."
_COLOURS: Final = {"created": "green", "configured": "yellow", "deleted": "red"}
_NOT_FOUND_STATUS: Final = 404

Plan = Mapping[str, Any]


@click.command(short_help="Tell what manifests would change, and for which events.")
@click.option("-f", "--filename", "files", multiple=True, help="A file, a folder, or - for stdin.")
@click.option("--delete", "deleted", multiple=True, metavar="TRIGGER", help="As if this Trigger were deleted as well.")
@click.option("--since", metavar="TIME", callback=moment, help="Only events since: 2h, 30m, 7d, or RFC 3339.")
@click.option(
    "--limit",
    type=click.IntRange(1, 20_000),
    default=1000,
    show_default=True,
    help="How many of each Broker's events, the newest.",
)
@click.option("--exit-code", is_flag=True, help="End with 5 where applying would change anything.")
@namespace_option
@output_option("text", "json")
@platform_options
def plan(
    files: tuple[str, ...],
    deleted: tuple[str, ...],
    since: float | None,
    limit: int,
    exit_code: bool,
    namespace: str,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Tell what applying manifests would do, without doing it.

    Each document is checked as `apply` checks it. For each Trigger the stored events of its Broker are held against
    its filter as it is and as it would be: which ones it would have got besides, and which ones not any more. Events
    that are stored already are not delivered anew by a changed filter; `penstock replay` can do that.

    \b
    Examples:
      penstock plan -f app.yaml
      penstock plan -f app.yaml --since 1d --limit 20000
      penstock plan --delete orders
      penstock plan -f app.yaml --exit-code --output json
    """
    if not files and not deleted:
        raise click.UsageError("Say what would change: -f FILE, or --delete TRIGGER.")
    api = Session(server, data).api
    manifests = read_manifests(files, registry(), namespace, undone=_UNDONE) if files else []
    tried = list(zip(manifests, try_all(api, manifests, undone=_UNDONE), strict=True))
    ask = [_change(manifest, done) for manifest, done in tried if manifest.kind.ref.kind == TRIGGER]
    ask += [_deletion(api, namespace, name) for name in deleted]
    plans = _plans(api, ask, since, limit)
    if output == "json":
        resources = [{"resource": manifest.title, "result": done.result} for manifest, done in tried]
        print_json({"resources": resources, "triggers": list(plans.values())})
    else:
        _tell(tried, plans, files)
    if exit_code and (deleted or any(done.result != "unchanged" for _, done in tried)):
        raise click.exceptions.Exit(CHANGES)


def _change(manifest: Manifest, done: Applied) -> dict[str, Any]:
    return {"namespace": manifest.namespace, "name": manifest.name, "spec": done.resource["spec"]}


def _deletion(api: Api, namespace: str, name: str) -> dict[str, Any]:
    kind = next(kind for kind in registry() if kind.ref.kind == TRIGGER)
    try:
        api.request("GET", object_path(kind, namespace, name))
    except Refused as refusal:
        if refusal.status != _NOT_FOUND_STATUS:
            raise
        message = f"There is no Trigger {name!r} in the namespace {namespace!r}."
        hint = "List those that exist with: penstock get triggers -A"
        raise Failure(message, hint=hint, code=NOT_FOUND) from refusal
    return {"namespace": namespace, "name": name, "spec": None}


def _plans(api: Api, ask: Sequence[Mapping[str, Any]], since: float | None, limit: int) -> dict[str, Plan]:
    """What becomes of each Trigger, by its key."""
    if not ask:
        return {}
    answer = api.request("POST", PATH, body={"triggers": ask, "since": since, "limit": limit})
    return {each["trigger"]: each for each in answer["plans"]}


def _tell(tried: Sequence[tuple[Manifest, Applied]], plans: Mapping[str, Plan], files: Sequence[str]) -> None:
    left = dict(plans)
    for manifest, done in tried:
        click.echo(f"{manifest.title} {click.style(done.result, fg=_COLOURS.get(done.result))}")
        told = left.pop(f"{manifest.namespace}/{manifest.name}", None) if manifest.kind.ref.kind == TRIGGER else None
        if told is not None:
            _echo(plan_lines(told))
    for told in left.values():
        name = told["trigger"].rpartition("/")[2]
        click.echo(f"trigger.eventing.knative.dev/{name} {click.style('deleted', fg=_COLOURS['deleted'])}")
        _echo(plan_lines(told))
    if any(done.result != "unchanged" for _, done in tried):
        given = " ".join(f"-f {shlex.quote(file)}" for file in files)
        click.secho(f"Nothing is changed yet. Apply it with: penstock apply {given}", dim=True)
    elif not plans or all(each["change"] == "unchanged" for each in plans.values()):
        click.secho("Applying it would change nothing.", dim=True)
    else:
        click.secho("Nothing is changed yet.", dim=True)


def _echo(lines: Iterator[str]) -> None:
    for line in lines:
        click.echo(f"  {line}")


def plan_lines(told: Plan) -> Iterator[str]:
    """One Trigger's events: how many it has and would have, and which."""
    if told["problem"]:
        yield click.style(f"Which events is not known: {told['problem']}", fg="yellow")
        return
    if not told["looked_at"]:
        yield f"No events of the Broker {told['broker']} to hold it against."
        return
    held = f"{told['looked_at']:,} event{'' if told['looked_at'] == 1 else 's'}"
    older = "the last " if told["cut"] else "all "
    yield f"of {older}{held} since {told['since'][:19]}Z: {told['before']:,} now, {told['after']:,} then"
    for word, sign, colour in (("gained", "+", "green"), ("lost", "-", "red")):
        difference = told[word]
        if difference["count"]:
            yield click.style(f"{sign} {difference['count']:,} {word}", fg=colour)
            yield from (f"    {_example(each)}" for each in difference["examples"])
            more = difference["count"] - len(difference["examples"])
            if more:
                yield f"    ... and {more:,} more"


def _example(event: Mapping[str, Any]) -> str:
    why = f"  ({clause(event['why'])})" if event["why"] else ""
    subject = f"  {event['subject']}" if event["subject"] else ""
    return f"{event['time'][11:23]}  {event['type']}  {event['id']}{subject}{why}"
