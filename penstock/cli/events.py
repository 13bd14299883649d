"""``penstock send | events | explain``: publish an event, watch events, ask where one went."""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

import click
import msgspec

from core.clock import rfc3339
from core.errors import InvalidInput
from core.events import CloudEvent, to_binary
from penstock.cli.api import Api, Refused
from penstock.cli.context import (
    Session,
    Waiting,
    data_option,
    namespace_option,
    output_option,
    platform_options,
    until_interrupted,
)
from penstock.cli.failure import NOT_FOUND, Failure
from penstock.cli.output import print_json
from penstock.cli.settling import INTERVAL_S, Settling
from penstock.cli.story import event_line, explanation_lines

__all__ = ["events", "explain", "send"]

NOT_FOUND_STATUS: Final = 404
#: Attributes of every event, and how they are given instead.
_OWN_OPTIONS: Final = {
    "id": "use --id",
    "source": "use --source",
    "type": "use --type",
    "subject": "use --subject",
    "datacontenttype": "use --content-type",
    "data": "use --data",
    "specversion": "it is always 1.0",
}
#: How many events are asked for at once while following.
FOLLOW_PAGE: Final = 500


@click.command(short_help="Publish one event.")
@click.option("--type", "kind", required=True, help="The event's type, such as com.example.order.created.")
@click.option("--source", default="/penstock/send", show_default=True, help="The event's source.")
@click.option("--id", "event_id", help="The event's id.  [default: a random one]")
@click.option("--subject", help="The event's subject.")
@click.option(
    "--data", "text", help="The payload; JSON unless --content-type says otherwise. @FILE reads it, - is stdin."
)
@click.option("--content-type", default="application/json", show_default=True, help="The payload's media type.")
@click.option("-e", "--extension", "extensions", multiple=True, metavar="NAME=VALUE", help="An extension attribute.")
@click.option(
    "--broker", default="default", show_default=True, help="The Broker to publish to; channels/NAME for a channel."
)
@namespace_option
@click.option(
    "--broker-url",
    envvar="PENSTOCK_BROKER_URL",
    metavar="URL",
    help="The broker's listener, instead of the data directory's.",
)
@output_option("text", "json")
@data_option
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
    broker_url: str | None,
    output: str,
    data: Path,
) -> None:
    """Publish one CloudEvent to a Broker; it is on disk when this returns.

    \b
    Examples:
      penstock send --type hello --data '{"to": "you"}'
      penstock send --type order.created --subject 42 -e partitionkey=eu --data @order.json
    """
    payload = _payload(text, content_type)
    attributes = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()) if event_id is None else event_id,
        "source": source,
        "type": kind,
        "time": rfc3339(time.time(), fraction=True),
        **({} if subject is None else {"subject": subject}),
        **({} if payload is None else {"datacontenttype": content_type}),
        **_extensions(extensions),
    }
    try:
        event = CloudEvent.of(attributes, payload)
    except InvalidInput as error:
        raise Failure(str(error)) from error
    _publish(Api(broker_url or Session(None, data).places.broker), event, namespace, broker)
    if output == "json":
        print_json({"id": event.id, "broker": f"{namespace}/{broker}", "stored": True})
        return
    click.echo(f"{click.style('stored', fg='green')} {event.id} in {namespace}/{broker}")
    click.secho(f"See where it went with: penstock explain {shlex.quote(event.id)}", dim=True)


def _publish(api: Api, event: CloudEvent, namespace: str, broker: str) -> None:
    headers, body = to_binary(event)
    sent = {name.decode(): value.decode("latin-1") for name, value in headers}
    sent = {"Content-Type": "application/octet-stream", **_titled(sent)}
    try:
        api.request("POST", f"/{quote(namespace, safe='')}/{quote(broker, safe='/')}", body=body, headers=sent)
    except Refused as refusal:
        if refusal.status != NOT_FOUND_STATUS:
            raise
        message = f"There is no Broker {broker!r} in the namespace {namespace!r}."
        hint = "List those that exist with: penstock get brokers -A. Name one with --broker and --namespace."
        raise Failure(message, hint=hint, code=NOT_FOUND) from refusal


def _titled(headers: dict[str, str]) -> dict[str, str]:
    """Content-Type as `Api` writes it, so that it is set once."""
    return {("Content-Type" if name == "content-type" else name): value for name, value in headers.items()}


def _extensions(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise click.UsageError(f"--extension {text!r} must be NAME=VALUE.")
        if name in _OWN_OPTIONS:
            raise click.UsageError(f"--extension {text!r}: {name} is not an extension; {_OWN_OPTIONS[name]}.")
        if name in found:
            raise click.UsageError(f"--extension {text!r}: {name} is given more than once.")
        found[name] = value
    return found


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
    if "/" not in content_type:
        raise click.UsageError(f"--content-type {content_type!r} must be a media type, such as application/json.")
    if content_type.partition(";")[0].strip() == "application/json":
        try:
            msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            hint = "Quote it as JSON, or name another --content-type."
            raise Failure(f"--data is not JSON: {error}.", hint=hint) from error
    return content


@click.command(short_help="Show events as they come and go.")
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they come, until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many, without --follow."
)
@click.option("--type", "kind", help="Only events of this type.")
@click.option("--broker", help="Only events of this Broker; channels/NAME for a channel.")
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

    With --follow, each event is shown once its deliveries have settled, or after 5 seconds. With --output json, one
    JSON object a line.

    \b
    ✓ delivered   … on its way   ↻ to be tried again   ✗ given up   ↳ a reply   ⟲ sent again

    \b
    Examples:
      penstock events --follow
      penstock events --type order.created --output json
    """
    session = Session(server, data)
    wanted = {"type": kind, "broker": broker, "namespace": namespace}
    query = {name: value for name, value in wanted.items() if value is not None}
    answer = session.api.request("GET", "/penstock/v1/events", query={**query, "limit": str(limit)})
    _print_events(answer["events"], output)
    if not answer["events"] and not (follow and output == "json"):
        which = " that match" if query else ""
        click.echo(f"No events{which} yet. Publish one with: penstock send --type hello", err=True)
    if follow:
        with until_interrupted():
            _follow(session, query, answer["next"], output)


def _follow(session: Session, query: dict[str, str], after: str, output: str) -> NoReturn:
    """Print events as they settle. Raises Failure where no platform answers for a while."""
    settling = Settling(after)
    waiting = Waiting()
    while True:
        time.sleep(INTERVAL_S)
        page = {**query, "after": settling.position, "limit": str(FOLLOW_PAGE)}
        try:
            answer = session.api.request("GET", "/penstock/v1/events", query=page)
        except Failure as failure:
            waiting.bear(failure)
            session.forget()
            continue
        waiting.over()
        _print_events(settling.due(answer["events"], answer["next"], time.monotonic()), output)


def _print_events(found: Sequence[Mapping[str, Any]], output: str) -> None:
    for event in found:
        click.echo(msgspec.json.encode(event) if output == "json" else event_line(event))


@click.command(short_help="Tell where an event went, and why.")
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
