"""``penstock get | delete``: resources, as kubectl handles them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from core.resources import Kind
from penstock.cli.api import Api, Refused, collection_path, object_path
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.failure import NOT_FOUND
from penstock.cli.manifests import read_manifests
from penstock.cli.output import print_document, print_json, print_table
from penstock.cli.words import Named, parse_words, registry, title

__all__ = ["delete", "get"]

_TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"


@click.command(short_help="List resources, or show one.")
@click.argument("words", nargs=-1, required=True, metavar="KIND [NAME ...]")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@namespace_option
@output_option("table", "wide", "json", "yaml", "name")
@platform_options
def get(
    words: tuple[str, ...], all_namespaces: bool, namespace: str, output: str, server: str | None, data: Path
) -> None:
    """Show resources of a KIND (ksvc, trigger, broker ...), or those of a NAME.

    KIND may be several with commas between, or `all`; KIND/NAME names one resource.

    \b
    Examples:
      penstock get triggers
      penstock get brokers,triggers,ksvc -A
      penstock get ksvc scan -o yaml
      penstock get ksvc/scan trigger/scan -o json
    """
    api = Session(server, data).api
    wanted = parse_words(words, registry())
    if all_namespaces and wanted[0][1] is not None:
        raise click.UsageError("A resource of one NAME is in one namespace: --all-namespaces does not go with it.")
    place = None if all_namespaces else namespace
    if output in ("json", "yaml"):
        print_document(_documents(api, wanted, place), output)
    elif output == "name":
        for kind, name in wanted:
            for item in _items(api.request("GET", _path(kind, name, place))):
                click.echo(title(kind, item["metadata"]["name"]))
    else:
        _print_tables(api, wanted, place, wide=output == "wide")


def _path(kind: Kind, name: str | None, namespace: str | None) -> str:
    return collection_path(kind, namespace) if name is None else object_path(kind, namespace or "", name)


def _items(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The resources of a list, or the one resource that was asked for."""
    found: list[dict[str, Any]] = answer.get("items", [answer])
    return found


def _documents(api: Api, wanted: Sequence[Named], place: str | None) -> dict[str, Any]:
    """One resource or one kind's list as the server gives it; several as a List, which `apply` reads."""
    answers = [(kind, api.request("GET", _path(kind, name, place))) for kind, name in wanted]
    if len(answers) == 1:
        found: dict[str, Any] = answers[0][1]
        return found
    items = [
        {"apiVersion": kind.ref.api_version, "kind": kind.ref.kind, **item}
        for kind, answer in answers
        for item in _items(answer)
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _print_tables(api: Api, wanted: Sequence[Named], place: str | None, *, wide: bool) -> None:
    """One table a kind; where there are several, each name is told with its kind."""
    together: dict[str, list[Named]] = {}
    for kind, name in wanted:
        together.setdefault(kind.plural + kind.ref.group, []).append((kind, name))
    printed = 0
    for group in together.values():
        tables = [api.request("GET", _path(*each, place), headers={"Accept": _TABLE}) for each in group]
        titles, rows = _rows(group[0][0], tables, wide=wide, namespaced=place is None, prefixed=len(together) > 1)
        if rows:
            if printed:
                click.echo()
            print_table(titles, rows)
            printed += 1
    if not printed:
        names = " or ".join(group[0][0].plural for group in together.values())
        where = "" if place is None else f" in the namespace {place}"
        click.echo(f"There are no {names}{where}.", err=True)


def _rows(
    kind: Kind, tables: Sequence[Any], *, wide: bool, namespaced: bool, prefixed: bool
) -> tuple[list[str], list[list[str]]]:
    columns = tables[0]["columnDefinitions"]
    shown = [i for i, column in enumerate(columns) if wide or not column.get("priority")]
    titles = [columns[i]["name"].upper() for i in shown]
    sources = [row for table in tables for row in table["rows"]]
    rows = [[_cell(source["cells"][i]) for i in shown] for source in sources]
    for row, source in zip(rows, sources, strict=True):
        if prefixed:
            row[0] = title(kind, row[0])
        if namespaced and kind.namespaced:
            row.insert(0, source["object"]["metadata"].get("namespace", ""))
    if namespaced and kind.namespaced:
        titles.insert(0, "NAMESPACE")
    return titles, rows


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


@click.command(short_help="Delete resources.")
@click.argument("words", nargs=-1, metavar="[KIND NAME ...]")
@click.option("-f", "--filename", "files", multiple=True, help="Delete what these manifests name.")
@namespace_option
@output_option("text", "json")
@platform_options
def delete(
    words: tuple[str, ...], files: tuple[str, ...], namespace: str, output: str, server: str | None, data: Path
) -> None:
    """Delete resources by KIND and NAME, or those of manifests; what they own goes with them.

    \b
    Examples:
      penstock delete trigger scan
      penstock delete ksvc/scan trigger/scan
      penstock delete -f examples/pictures/manifests
    """
    if bool(files) == bool(words):
        raise click.UsageError("Name a KIND and a NAME, or give manifests with -f.")
    if files:
        manifests = read_manifests(files, registry(), namespace, undone="Nothing was deleted.")
        targets = [(each.kind, each.namespace, each.name) for each in reversed(manifests)]
    else:
        targets = [(kind, namespace, _named(kind, name)) for kind, name in parse_words(words, registry())]
    api = Session(server, data).api
    results = [(title(kind, name), _delete(api, object_path(kind, place, name))) for kind, place, name in targets]
    if output == "json":
        print_json([{"resource": what, "result": result} for what, result in results])
    else:
        for what, result in results:
            click.echo(f"{what} {result}", err=result != "deleted")
    if any(result != "deleted" for _, result in results):
        raise click.exceptions.Exit(NOT_FOUND)


def _named(kind: Kind, name: str | None) -> str:
    if name is None:
        raise click.UsageError(f"Name the {kind.plural} to delete: penstock delete {kind.singular} NAME")
    return name


def _delete(api: Api, path: str) -> str:
    try:
        api.request("DELETE", path)
    except Refused as refusal:
        if refusal.status != 404:
            raise
        return "does not exist"
    return "deleted"
