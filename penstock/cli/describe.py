"""``penstock describe``: one resource for reading, with what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from core.resources import Kind
from core.resources.builtin import EVENT
from core.resources.meta import KindRef
from penstock.cli.api import Api, Refused, collection_path, object_path
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.output import age, print_document, print_table, state
from penstock.cli.words import parse_words, registry

__all__ = ["describe"]

_SERVICE: Final = KindRef("serving.knative.dev", "v1", "Service")
_REVISION: Final = KindRef("serving.knative.dev", "v1", "Revision")
_TRIGGER: Final = KindRef("eventing.knative.dev", "v1", "Trigger")
_BROKER: Final = KindRef("eventing.knative.dev", "v1", "Broker")
_SUBSCRIPTION: Final = KindRef("messaging.knative.dev", "v1", "Subscription")
_CHANNELS: Final = tuple(KindRef("messaging.knative.dev", "v1", kind) for kind in ("Channel", "InMemoryChannel"))
#: Scaling decisions and Events shown, the newest.
_DECISIONS: Final = 3
_EVENTS: Final = 5
#: Annotations and labels that are for programs.
_HIDDEN: Final = ("/last-applied-configuration", "UID")


@click.command(short_help="Show one resource and its conditions.")
@click.argument("words", nargs=-1, required=True, metavar="KIND NAME")
@namespace_option
@output_option("text", "json", "yaml")
@platform_options
def describe(words: tuple[str, ...], namespace: str, output: str, server: str | None, data: Path) -> None:
    """Show one resource for reading: what is wanted, what belongs to it, its conditions with their reasons, and Events.

    \b
    Examples:
      penstock describe ksvc scan
      penstock describe trigger/scan
    """
    kinds = registry()
    named = parse_words(words, kinds)
    if len(named) != 1 or named[0][1] is None:
        raise click.UsageError("Name one KIND and one NAME; `penstock get` lists what there is.")
    kind, name = named[0]
    api = Session(server, data).api
    found = api.request("GET", object_path(kind, namespace, name or ""))
    if output != "text":
        print_document(found, output)
        return
    _print_head(kind, found)
    _print_section("Spec", found.get("spec") or {})
    place = found["metadata"].get("namespace", "")
    if kind.ref == _SERVICE:
        _print_traffic(found)
        _print_revisions(api, kinds.get(_REVISION), found)
        _print_scaling(api, found)
    elif kind.ref == _BROKER:
        _print_triggers(api, kinds.get(_TRIGGER), found)
    elif kind.ref in _CHANNELS:
        _print_subscriptions(api, kinds.get(_SUBSCRIPTION), found)
    _print_conditions((found.get("status") or {}).get("conditions") or [])
    _print_events(api, kinds.get(EVENT), found)
    service = _service_of(kind, found)
    if service:
        click.secho(f"What it printed: penstock logs {service}" + _in_namespace(place), dim=True)


def _print_head(kind: Kind, found: Mapping[str, Any]) -> None:
    meta, status, spec = found["metadata"], found.get("status") or {}, found.get("spec") or {}
    resolved = status.get("physicalSubscription") or status
    click.secho(f"{kind.ref.kind} {meta['name']}", bold=True)
    _print_fields(
        ("Namespace", meta.get("namespace")),
        ("API version", found["apiVersion"]),
        ("Age", age(meta.get("creationTimestamp"))),
        ("Generation", meta.get("generation")),
        ("Ready", _ready(status)),
        ("URL", status.get("url")),
        ("Address", (status.get("address") or {}).get("url")),
        ("Broker", spec.get("broker") if kind.ref == _TRIGGER else None),
        ("Channel", (spec.get("channel") or {}).get("name") if kind.ref == _SUBSCRIPTION else None),
        ("Subscriber", resolved.get("subscriberUri")),
        ("Replies", resolved.get("replyUri")),
        ("Dead letters", resolved.get("deadLetterSinkUri")),
        ("Sink", status.get("sinkUri")),
        ("Replicas", _replicas(status)),
    )
    for heading in ("annotations", "labels"):
        values = {key: text for key, text in (meta.get(heading) or {}).items() if not key.endswith(_HIDDEN)}
        _print_section(heading.capitalize(), values)


def _print_fields(*fields: tuple[str, Any]) -> None:
    for heading, value in fields:
        if value not in (None, ""):
            click.echo(f"{heading + ':':<14}{value}")


def _condition(status: Mapping[str, Any], wanted: str) -> Mapping[str, Any]:
    """The condition of that type; an empty one where there is none yet."""
    empty: Mapping[str, Any] = {}
    return next((entry for entry in status.get("conditions") or () if entry["type"] == wanted), empty)


def _ready(status: Mapping[str, Any]) -> str:
    ready = _condition(status, "Ready")
    if not ready:
        return ""
    reason = f" ({ready['reason']})" if ready.get("reason") else ""
    return f"{state(ready['status'])}{reason}"


def _replicas(status: Mapping[str, Any]) -> str:
    if "actualReplicas" not in status and "desiredReplicas" not in status:
        return ""
    return f"{status.get('actualReplicas', 0)} of {status.get('desiredReplicas', 0)} wanted"


def _print_section(heading: str, value: Any) -> None:
    import yaml  # noqa: PLC0415 - 18 ms that only this needs

    if not value:
        return
    click.secho(f"{heading}:", bold=True)
    for line in yaml.safe_dump(value, sort_keys=False, allow_unicode=True).splitlines():
        click.echo(f"  {line}")


def _print_traffic(service: Mapping[str, Any]) -> None:
    rows = [
        [
            f"{target.get('percent', 0)}%",
            target.get("revisionName", ""),
            "latest" if target.get("latestRevision") else "",
            target.get("tag", ""),
            target.get("url", ""),
        ]
        for target in (service.get("status") or {}).get("traffic") or ()
    ]
    click.secho("Traffic:", bold=True)
    if rows:
        print_table(("PERCENT", "REVISION", "", "TAG", "URL"), rows, indent=2)
    else:
        click.echo("  none: no Revision has been ready yet")


def _print_revisions(api: Api, kind: Kind, service: Mapping[str, Any]) -> None:
    meta = service["metadata"]
    query = {"labelSelector": f"{_SERVICE.group}/service={meta['name']}"}
    revisions = api.request("GET", collection_path(kind, meta["namespace"]), query=query)["items"]
    click.secho("Revisions:", bold=True)
    if not revisions:
        click.echo("  none yet")
        return
    rows = [_revision_row(revision) for revision in sorted(revisions, key=_generation, reverse=True)]
    print_table(("NAME", "READY", "REASON", "REPLICAS", "SOURCE", "AGE"), rows, indent=2)


def _generation(revision: Mapping[str, Any]) -> tuple[int, str]:
    labels = revision["metadata"].get("labels") or {}
    number = labels.get(f"{_SERVICE.group}/configurationGeneration", "")
    return (int(number) if number.isdigit() else 0, revision["metadata"]["name"])


def _revision_row(revision: Mapping[str, Any]) -> list[str]:
    meta, status = revision["metadata"], revision.get("status") or {}
    ready = _condition(status, "Ready")
    return [
        meta["name"],
        ready.get("status", "Unknown"),
        ready.get("reason", ""),
        f"{status.get('actualReplicas', 0)}/{status.get('desiredReplicas', 0)}",
        (meta.get("annotations") or {}).get("penstock.dev/source", ""),
        age(meta.get("creationTimestamp")),
    ]


def _print_scaling(api: Api, service: Mapping[str, Any]) -> None:
    meta = service["metadata"]
    path = f"/penstock/v1/scaling/{quote(meta['namespace'], safe='')}/{quote(meta['name'], safe='')}"
    try:
        decisions = api.request("GET", path)["decisions"][-_DECISIONS:]
    except Refused:
        return
    if decisions:
        click.secho("Scaling:", bold=True)
        rows = [
            [age(each["time"]), each["revision"], f"{each['ready']} -> {each['desired']}", each["explanation"]]
            for each in reversed(decisions)
        ]
        print_table(("AGO", "REVISION", "", "WHY"), rows, indent=2)


def _print_triggers(api: Api, kind: Kind, broker: Mapping[str, Any]) -> None:
    meta = broker["metadata"]
    found = api.request("GET", collection_path(kind, meta["namespace"]))["items"]
    mine = [each for each in found if each["spec"].get("broker") == meta["name"]]
    click.secho("Triggers:", bold=True)
    if not mine:
        click.echo("  none")
        return
    rows = []
    for trigger in mine:
        status = trigger.get("status") or {}
        ready = _condition(status, "Ready")
        name, to = trigger["metadata"]["name"], status.get("subscriberUri", "")
        rows.append([name, ready.get("status", "Unknown"), ready.get("reason", ""), to])
    print_table(("NAME", "READY", "REASON", "SUBSCRIBER"), rows, indent=2)


def _print_subscriptions(api: Api, kind: Kind, channel: Mapping[str, Any]) -> None:
    meta = channel["metadata"]
    found = api.request("GET", collection_path(kind, meta["namespace"]))["items"]
    mine = [each for each in found if (each["spec"].get("channel") or {}).get("name") == meta["name"]]
    click.secho("Subscriptions:", bold=True)
    if not mine:
        click.echo("  none")
        return
    rows = []
    for subscription in mine:
        status = subscription.get("status") or {}
        ready, to = _condition(status, "Ready"), status.get("physicalSubscription") or {}
        row = [subscription["metadata"]["name"], ready.get("status", "Unknown"), ready.get("reason", "")]
        rows.append([*row, to.get("subscriberUri", ""), to.get("replyUri", "")])
    print_table(("NAME", "READY", "REASON", "SUBSCRIBER", "REPLIES TO"), rows, indent=2)


def _print_conditions(conditions: list[dict[str, Any]]) -> None:
    click.secho("Conditions:", bold=True)
    if not conditions:
        click.echo("  none yet")
    width = max((len(condition["type"]) for condition in conditions), default=0)
    told: dict[str, str] = {}
    for condition in conditions:
        since = age(condition.get("lastTransitionTime"))
        status = state(condition["status"]) + " " * (7 - len(condition["status"]))
        line = f"  {condition['type']:<{width}}  {status}  {since:<4}  {condition.get('reason', '')}".rstrip()
        message = condition.get("message", "")
        first = told.setdefault(message, condition["type"])
        if "\n" not in message:
            click.echo(f"{line}: {message}" if message else line)
        elif first != condition["type"]:
            click.echo(f"{line}: as for {first}")
        else:
            click.echo(line)
            for each in message.splitlines():
                click.echo(f"      {each}")


def _print_events(api: Api, kind: Kind, about: Mapping[str, Any]) -> None:
    meta = about["metadata"]
    query = {"fieldSelector": f"involvedObject.uid={meta['uid']}"}
    found = api.request("GET", collection_path(kind, meta.get("namespace") or "default"), query=query)["items"]
    if not found:
        return
    click.secho("Events:", bold=True)
    newest = sorted(found, key=lambda event: event.get("lastTimestamp") or "", reverse=True)[:_EVENTS]
    rows = [
        [
            age(event.get("lastTimestamp")),
            event.get("type", ""),
            event.get("reason", ""),
            f"{event['count']} times" if event.get("count", 1) > 1 else "",
            " ".join(str(event.get("message", "")).split()),
        ]
        for event in newest
    ]
    print_table(("AGO", "TYPE", "REASON", "", "MESSAGE"), rows, indent=2)


def _service_of(kind: Kind, found: Mapping[str, Any]) -> str:
    """The Service whose instances' log belongs to this resource; "" where there is none."""
    if kind.ref == _SERVICE:
        return str(found["metadata"]["name"])
    labels = found["metadata"].get("labels") or {}
    return str(labels.get(f"{_SERVICE.group}/service", ""))


def _in_namespace(place: str) -> str:
    return "" if place in ("", "default") else f" -n {place}"
