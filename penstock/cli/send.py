"""``penstock send``: publish an event."""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click
import msgspec

from core.clock import rfc3339
from core.errors import InvalidInput
from core.events import CloudEvent, to_binary
from penstock.cli.api import Api, Refused
from penstock.cli.context import Session, data_option, namespace_option, output_option
from penstock.cli.failure import NOT_FOUND, Failure
from penstock.cli.output import print_json

__all__ = ["send"]

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
        content = text.encode(errors="surrogateescape")  # the bytes that the shell gave
    if "/" not in content_type:
        raise click.UsageError(f"--content-type {content_type!r} must be a media type, such as application/json.")
    if content_type.partition(";")[0].strip() == "application/json":
        try:
            msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            hint = "Quote it as JSON, or name another --content-type."
            raise Failure(f"--data is not JSON: {error}.", hint=hint) from error
    return content
