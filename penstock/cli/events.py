"""``penstock send | events | explain``: publish an event, watch events, ask where one went."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from core.errors import InvalidInput
from core.events import CloudEvent, new_event, to_binary
from penstock.cli.api import Api, Refused
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.failure import NOT_FOUND, Failure
from penstock.cli.output import print_json
from penstock.cli.story import event_line, explanation_lines

__all__ = ["events", "explain", "send"]

#: How often new events are asked for while following.
FOLLOW_INTERVAL_S: Final = 0.25
NOT_FOUND_STATUS: Final = 404
#: How many events are asked for at once while following.
FOLLOW_PAGE: Final = 500


@click.command()
@click.option("--type", "kind", required=True, help="The event's type, such as com.example.order.created.")
@click.option("--source", default="/penstock/send", show_default=True, help="The event's source.")
@click.option("--id", "event_id", help="The event's id.  [default: a random one]")
@click.option("--subject", help="The event's subject.")
@click.option(
    "--data", "text", help="The payload; JSON unless --content-type says otherwise. @FILE reads it, - is stdin."
)
@click.option("--content-type", default="application/json", show_default=True, help="The payload's media type.")
@click.option("-e", "--extension", "extensions", multiple=True, metavar="NAME=VALUE", help="An extension attribute.")
@click.option("--broker", default="default", show_default=True, help="The Broker to publish to.")
@namespace_option
@output_option("text", "json")
@platform_options
def send(
    kind: str,
    source: str,
    event_id: str | None,
    subject: str | None,
    text: str | None,
    content_type: str,
    extensions: tuple[str, ...],
    broker: str,
    namespace: str,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Publish one CloudEvent to a Broker; it is on disk when this returns.

    \b
    Examples:
      penstock send --type hello --data '{"to": "you"}'
      penstock send --type order.created --subject 42 -e partitionkey=eu --data @order.json
    """
    attributes = dict(_extension(each) for each in extensions)
    payload = _payload(text, content_type)
    try:
        event = new_event(
            type=kind,
            source=source,
            now=time.time(),
            data=payload,
            id=event_id,
            content_type=content_type if payload is not None else None,
            subject=subject,
            **attributes,
        )
    except InvalidInput as error:
        raise Failure(str(error)) from error
    broker_url = Session(server, data).places.broker
    _publish(Api(broker_url), event, f"/{namespace}/{broker}")
    if output == "json":
        print_json({"id": event.id, "broker": f"{namespace}/{broker}", "stored": True})
        return
    click.echo(f"{click.style('stored', fg='green')} {event.id} in {namespace}/{broker}")
    click.secho(f"See where it went with: penstock explain {event.id}", dim=True)


def _publish(api: Api, event: CloudEvent, path: str) -> None:
    headers, body = to_binary(event)
    sent = {name.decode(): value.decode("latin-1") for name, value in headers}
    api.request("POST", path, body=body, headers={"Content-Type": "application/octet-stream", **_titled(sent)})


def _titled(headers: dict[str, str]) -> dict[str, str]:
    """Content-Type as `Api` writes it, so that it is set once."""
    return {("Content-Type" if name == "content-type" else name): value for name, value in headers.items()}


def _extension(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise click.UsageError(f"--extension {text!r} must be NAME=VALUE.")
    return name, value


def _payload(text: str | None, content_type: str) -> bytes | None:
    """The bytes to send. Raises Failure where a file cannot be read, or JSON is announced and not given."""
    if text is None:
        return None
    if text == "-":
        content = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            content = Path(text[1:]).read_bytes()
        except OSError as error:
            raise Failure(f"{text[1:]} cannot be read: {error.strerror}.") from error
    else:
        content = text.encode()
    if content_type == "application/json":
        try:
            msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            hint = "Quote it as JSON, or name another --content-type."
            raise Failure(f"--data is not JSON: {error}.", hint=hint) from error
    return content


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they come, until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many, without --follow."
)
@click.option("--type", "kind", help="Only events of this type.")
@click.option("--broker", help="Only events of this Broker.")
@click.option("-n", "--namespace", help="Only events of this namespace.  [default: all]")
@output_option("text", "json")
@platform_options
def events(
    follow: bool,
    limit: int,
    kind: str | None,
    broker: str | None,
    namespace: str | None,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Show stored events and how each stands for its Triggers.

    With --output json, one JSON object a line.

    \b
    Examples:
      penstock events --follow
      penstock events --type order.created --output json
    """
    api = Session(server, data).api
    wanted = {"type": kind, "broker": broker, "namespace": namespace}
    query = {name: value for name, value in wanted.items() if value is not None}
    answer = api.request("GET", "/penstock/v1/events", query={**query, "limit": str(limit)})
    _print_events(answer["events"], output)
    if not answer["events"] and not follow:
        click.echo("No events yet. Publish one with: penstock send --type hello", err=True)
    while follow:
        time.sleep(FOLLOW_INTERVAL_S)
        page = {**query, "after": str(answer["next"]), "limit": str(FOLLOW_PAGE)}
        answer = api.request("GET", "/penstock/v1/events", query=page)
        _print_events(answer["events"], output)


def _print_events(found: list[dict[str, Any]], output: str) -> None:
    for event in found:
        click.echo(msgspec.json.encode(event) if output == "json" else event_line(event))


@click.command()
@click.argument("event_id")
@output_option("text", "json")
@platform_options
def explain(event_id: str, output: str, server: str | None, data: Path) -> None:
    """Tell where an event went: each Trigger, matched or not and why, each attempt, and the replies it caused.

    \b
    Example:
      penstock explain 7f2c1d0e-...
    """
    try:
        told = Session(server, data).api.request("GET", f"/penstock/v1/events/{quote(event_id, safe='')}/explain")
    except Refused as refusal:
        if refusal.status != NOT_FOUND_STATUS:
            raise
        hint = "List the newest with: penstock events"
        raise Failure(refusal.message, hint=hint, code=NOT_FOUND) from refusal
    if output == "json":
        print_json(told["events"])
        return
    for line in explanation_lines(told["events"]):
        click.echo(line)
