"""``penstock apply | get | describe | delete``: resources, as kubectl handles them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from core.resources import Kind, Registry
from penstock.cli.api import Api, Refused, collection_path, object_path
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.failure import NOT_FOUND, Failure
from penstock.cli.manifests import Manifest, read_manifests
from penstock.cli.merge import three_way_patch, with_last_applied
from penstock.cli.output import age, print_document, print_json, print_table, state

__all__ = ["apply", "apply_manifests", "delete", "describe", "get"]

_MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
_STRICT = {"fieldValidation": "Strict", "fieldManager": "penstock"}


def _registry() -> Registry:
    from penstock.kinds import registry  # noqa: PLC0415 - loads every plane's kinds; `--help` does without

    return registry()


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="A file, a folder, or - for stdin.")
@namespace_option
@output_option("text", "json")
@click.option("-q", "--quiet", is_flag=True, help="Say only how many were created, configured and left unchanged.")
@platform_options
def apply(files: tuple[str, ...], namespace: str, output: str, quiet: bool, server: str | None, data: Path) -> None:
    """Create the resources of manifests, or change them to what the manifests say.

    Every document is checked first: if one is wrong, nothing at all is applied.

    \b
    Example:
      penstock apply -f examples/pictures/manifests
    """
    api = Session(server, data).api
    manifests = read_manifests(files, _registry(), namespace)
    done = apply_manifests(api, manifests)
    if output == "json":
        print_json([{"resource": manifest.title, "result": result} for manifest, result in done])
        return
    if quiet:
        results = [result for _, result in done]
        counts = ", ".join(f"{results.count(word)} {word}" for word in dict.fromkeys(results))
        click.echo(f"Applied {', '.join(files)}: {counts}.")
        return
    for manifest, result in done:
        click.echo(f"{manifest.title} {click.style(result, fg='green' if result != 'unchanged' else None)}")
    click.secho("Watch events arrive with: penstock events --follow", dim=True)


def apply_manifests(api: Api, manifests: list[Manifest]) -> list[tuple[Manifest, str]]:
    """Apply all or none: each is tried without effect first. Raises Failure that lists every problem."""
    problems = []
    for manifest in manifests:
        try:
            _apply_one(api, manifest, {**_STRICT, "dryRun": "All"})
        except Refused as refusal:
            problems += _told(manifest, refusal)
    if problems:
        raise Failure("Nothing was applied.\n" + "\n".join(f"  {problem}" for problem in problems))
    return [(manifest, _apply_one(api, manifest, _STRICT)) for manifest in manifests]


def _told(manifest: Manifest, refusal: Refused) -> list[str]:
    where = f"{manifest.place}: {manifest.kind.ref.kind} {manifest.name}"
    causes = refusal.details.get("causes") or []
    if causes:
        return [f"{where}: {cause.get('field')}: {cause.get('message')}" for cause in causes]
    return [f"{where}: {refusal.message}"]


def _apply_one(api: Api, manifest: Manifest, query: dict[str, str]) -> str:
    wanted = with_last_applied(manifest.document)
    path = object_path(manifest.kind, manifest.namespace, manifest.name)
    try:
        live = api.request("GET", path)
    except Refused as refusal:
        if refusal.status != 404:
            raise
        api.request("POST", collection_path(manifest.kind, manifest.namespace), query=query, body=wanted)
        return "created"
    patch = three_way_patch(wanted, live)
    patch.pop("status", None)
    if not patch:
        return "unchanged"
    api.request("PATCH", path, query=query, body=patch, headers=_MERGE_PATCH)
    return "configured"


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@namespace_option
@output_option("table", "wide", "json", "yaml", "name")
@platform_options
def get(
    kind: str, name: str | None, all_namespaces: bool, namespace: str, output: str, server: str | None, data: Path
) -> None:
    """Show resources of a KIND (ksvc, trigger, broker ...), or one by NAME.

    \b
    Examples:
      penstock get triggers
      penstock get ksvc scan -o yaml
    """
    api = Session(server, data).api
    wanted = _kind(kind)
    place = None if all_namespaces else namespace
    path = object_path(wanted, namespace, name) if name else collection_path(wanted, place)
    if output in ("json", "yaml"):
        print_document(api.request("GET", path), output)
        return
    if output == "name":
        answer = api.request("GET", path)
        for item in answer.get("items", [answer]):
            click.echo(f"{wanted.singular}.{wanted.ref.group}/{item['metadata']['name']}")
        return
    _print_rows(api, wanted, path, wide=output == "wide", namespaced=all_namespaces)


def _print_rows(api: Api, kind: Kind, path: str, *, wide: bool, namespaced: bool) -> None:
    table = api.request("GET", path, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
    shown = [i for i, column in enumerate(table["columnDefinitions"]) if wide or not column.get("priority")]
    titles = [table["columnDefinitions"][i]["name"].upper() for i in shown]
    rows = [[_cell(row["cells"][i]) for i in shown] for row in table["rows"]]
    if namespaced and kind.namespaced:
        titles.insert(0, "NAMESPACE")
        for row, source in zip(rows, table["rows"], strict=True):
            row.insert(0, source["object"]["metadata"].get("namespace", ""))
    if rows:
        print_table(titles, rows)
    else:
        click.echo(f"No {kind.plural} found. Create some with: penstock apply -f FILE", err=True)


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _kind(word: str) -> Kind:
    registry = _registry()
    found = registry.find(word)
    if found is None:
        known = ", ".join(sorted(kind.plural for kind in registry))
        raise Failure(f"There is no kind {word!r}.", hint=f"Known are: {known}", code=NOT_FOUND)
    return found


@click.command()
@click.argument("kind")
@click.argument("name")
@namespace_option
@platform_options
def describe(kind: str, name: str, namespace: str, server: str | None, data: Path) -> None:
    """Show one resource for reading: what is wanted, and its conditions with their reasons.

    \b
    Example:
      penstock describe trigger scan
    """
    wanted = _kind(kind)
    found = Session(server, data).api.request("GET", object_path(wanted, namespace, name))
    meta, status = found["metadata"], found.get("status") or {}
    click.secho(f"{wanted.ref.kind} {meta['name']}", bold=True)
    for title, value in (
        ("Namespace", meta.get("namespace", "")),
        ("API version", found["apiVersion"]),
        ("Age", age(meta.get("creationTimestamp"))),
        ("Generation", str(meta.get("generation", ""))),
        ("URL", status.get("url") or (status.get("address") or {}).get("url", "")),
    ):
        if value:
            click.echo(f"{title + ':':<14}{value}")
    for title, value in (("Annotations", meta.get("annotations")), ("Labels", meta.get("labels"))):
        if value:
            _print_section(title, {key: text for key, text in value.items() if "last-applied" not in key})
    _print_section("Spec", found.get("spec") or {})
    _print_conditions(status.get("conditions") or [])


def _print_section(title: str, value: Any) -> None:
    import yaml  # noqa: PLC0415 - 18 ms that only this needs

    if not value:
        return
    click.secho(f"{title}:", bold=True)
    for line in yaml.safe_dump(value, sort_keys=False, allow_unicode=True).splitlines():
        click.echo(f"  {line}")


def _print_conditions(conditions: list[dict[str, Any]]) -> None:
    click.secho("Conditions:", bold=True)
    if not conditions:
        click.echo("  none yet")
    for condition in conditions:
        reason = ": ".join(text for text in (condition.get("reason"), condition.get("message")) if text)
        since = age(condition.get("lastTransitionTime"))
        click.echo(f"  {condition['type']:<24}{state(condition['status']):<8}  {since:<6}  {reason}".rstrip())


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
@click.option("-f", "--filename", "files", multiple=True, help="Delete what these manifests name.")
@namespace_option
@platform_options
def delete(
    kind: str | None, name: str | None, files: tuple[str, ...], namespace: str, server: str | None, data: Path
) -> None:
    """Delete a resource by KIND and NAME, or those of manifests.

    \b
    Examples:
      penstock delete trigger scan
      penstock delete -f examples/pictures/manifests
    """
    api = Session(server, data).api
    if files:
        manifests = read_manifests(files, _registry(), namespace)
        targets = [(each.kind, each.namespace, each.name) for each in reversed(manifests)]
    elif kind and name:
        targets = [(_kind(kind), namespace, name)]
    else:
        raise click.UsageError("Name a KIND and a NAME, or give manifests with -f.")
    missing = 0
    for wanted, place, each in targets:
        try:
            api.request("DELETE", object_path(wanted, place, each))
            click.echo(f"{wanted.singular}/{each} deleted")
        except Refused as refusal:
            if refusal.status != 404:
                raise
            missing += 1
            click.echo(f"{wanted.singular}/{each} does not exist", err=True)
    if missing:
        raise click.exceptions.Exit(NOT_FOUND)
