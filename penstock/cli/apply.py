"""``penstock apply``: makes resources what manifests say, all of them or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from penstock.cli.api import Api, Refused, collection_path, object_path
from penstock.cli.context import Session, namespace_option, output_option, platform_options
from penstock.cli.manifests import Manifest, problems_failure, read_manifests
from penstock.cli.merge import three_way_patch, with_last_applied
from penstock.cli.output import print_json
from penstock.cli.words import registry

__all__ = ["Applied", "apply", "try_all"]

_MERGE_PATCH: Final = {"Content-Type": "application/merge-patch+json"}
_STRICT: Final = {"fieldValidation": "Strict", "fieldManager": "penstock"}
_UNDONE: Final = "Nothing was applied."
#: What the server changes of a resource's metadata at every write.
_NOTED: Final = frozenset(("resourceVersion", "generation", "managedFields"))

#: What to do next, by the kind that was applied.
_NEXT_STEPS: Final = {
    "Service": "See whether it is ready, and where it listens:  penstock get ksvc{place}",
    "Trigger": "See whether it delivers, and why not:           penstock get triggers{place}",
    "Broker": "Publish an event to it:                         penstock send --type hello --broker {name}{place}",
    "PingSource": "Watch its events:                               penstock events --follow",
    "ObjectStoreSource": "Watch its events:                               penstock events --follow",
}


class Applied(msgspec.Struct, frozen=True):
    """What became of one document: "created", "configured" or "unchanged", and the resource as it is then."""

    result: str
    resource: dict[str, Any]


@click.command(short_help="Create or change resources from manifests.")
@click.option("-f", "--filename", "files", multiple=True, required=True, help="A file, a folder, or - for stdin.")
@namespace_option
@output_option("text", "json")
@click.option("-q", "--quiet", is_flag=True, help="Say only how many were created, configured and left unchanged.")
@platform_options
def apply(files: tuple[str, ...], namespace: str, output: str, quiet: bool, server: str | None, data: Path) -> None:
    """Create the resources of manifests, or change them to what the manifests say.

    Every document is checked first: if one is wrong, nothing at all is applied.

    \b
    Examples:
      penstock apply -f examples/pictures/manifests
      penstock get ksvc hello -o yaml | penstock apply -f - --server http://127.0.0.1:8082
    """
    api = Session(server, data).api
    manifests = read_manifests(files, registry(), namespace, undone=_UNDONE)
    done = _apply_all(api, manifests)
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
    for step in next_steps(manifests):
        click.secho(step, dim=True)


def next_steps(manifests: Sequence[Manifest]) -> list[str]:
    """What a person would want to do now, each once."""
    steps: dict[str, str] = {}
    for manifest in manifests:
        step = _NEXT_STEPS.get(manifest.kind.ref.kind)
        if step is not None:
            place = "" if manifest.namespace == "default" else f" -n {manifest.namespace}"
            steps.setdefault(step, step.format(name=manifest.name, place=place))
    return list(dict.fromkeys(steps.values()))


def _apply_all(api: Api, manifests: Sequence[Manifest]) -> list[tuple[Manifest, str]]:
    """Apply all or none: each is tried without effect first. Raises Failure that lists every problem."""
    try_all(api, manifests, undone=_UNDONE)
    return [(manifest, _apply_one(api, manifest, _STRICT).result) for manifest in manifests]


def try_all(api: Api, manifests: Sequence[Manifest], *, undone: str) -> list[Applied]:
    """What applying these would do, one after the other, without effect. Raises Failure that lists every problem and
    begins with `undone`."""
    problems: list[str] = []
    tried: list[Applied] = []
    for manifest in manifests:
        try:
            tried.append(_apply_one(api, manifest, {**_STRICT, "dryRun": "All"}))
        except Refused as refusal:
            problems += _told(manifest, refusal)
    if problems:
        raise problems_failure(undone, problems)
    return tried


def _told(manifest: Manifest, refusal: Refused) -> list[str]:
    where = f"{manifest.place}: {manifest.kind.ref.kind} {manifest.name}"
    causes = refusal.details.get("causes") or []
    if causes:
        return [f"{where}: {cause.get('field')}: {cause.get('message')}" for cause in causes]
    return [f"{where}: {refusal.message}"]


def _apply_one(api: Api, manifest: Manifest, query: dict[str, str]) -> Applied:
    wanted = with_last_applied(manifest.document)
    path = object_path(manifest.kind, manifest.namespace, manifest.name)
    try:
        live = api.request("GET", path)
    except Refused as refusal:
        if refusal.status != 404:
            raise
        created = api.request("POST", collection_path(manifest.kind, manifest.namespace), query=query, body=wanted)
        return Applied("created", created)
    patch = three_way_patch(wanted, live)
    if not patch:
        return Applied("unchanged", live)
    changed = api.request("PATCH", path, query=query, body=patch, headers=_MERGE_PATCH)
    # Lists are sent whole, and the server fills in defaults inside: then nothing has changed after all.
    same = changed["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
    if "dryRun" in query:  # then nothing gets a new version
        same = _said(changed) == _said(live)
    return Applied("unchanged" if same else "configured", changed)


def _said(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a resource says, without what the server notes of its own."""
    metadata = {name: value for name, value in document["metadata"].items() if name not in _NOTED}
    return {**document, "metadata": metadata, "status": None}
