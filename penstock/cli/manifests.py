"""Manifests from files, folders and standard input; every problem names the file, the document and the line or key."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from core.errors import NotFound
from core.resources import Kind, KindRef, Registry
from penstock.apiserver.yaml_loader import JsonLoader, check_depth
from penstock.cli.failure import Failure

__all__ = ["Manifest", "read_manifests"]

_ENDINGS: Final = (".yaml", ".yml", ".json")
#: A manifest file is written by people; one larger than this was named by mistake.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One document of a manifest file. `place` is how a message names it: ``app.yaml, document 2``."""

    place: str
    kind: Kind
    namespace: str
    name: str
    document: dict[str, Any]

    @property
    def title(self) -> str:
        """As kubectl names an object: ``trigger.eventing.knative.dev/scan``."""
        group = f".{self.kind.ref.group}" if self.kind.ref.group else ""
        return f"{self.kind.singular}{group}/{self.name}"


def read_manifests(paths: Iterable[str], registry: Registry, namespace: str) -> list[Manifest]:
    """Every document in `paths` ("-" is standard input; a folder, its files). Raises Failure listing all problems."""
    manifests: list[Manifest] = []
    problems: list[str] = []
    for place, text in _sources(paths):
        try:
            check_depth(text.encode())
            documents = list(yaml.load_all(text, Loader=JsonLoader))
        except yaml.YAMLError as error:
            problems.append(f"{place}: {_yaml_problem(error)}")
            continue
        for number, document in enumerate(documents, start=1):
            if document is None:
                continue
            where = f"{place}, document {number}" if len(documents) > 1 else place
            found = _manifest(where, document, registry, namespace)
            if isinstance(found, str):
                problems.append(found)
            else:
                manifests.append(found)
    if problems:
        raise Failure("Nothing was applied.\n" + "\n".join(f"  {problem}" for problem in problems))
    if not manifests:
        raise Failure(f"No manifest was found in {', '.join(paths)}.", hint=f"Files must end in {', '.join(_ENDINGS)}.")
    return manifests


def _manifest(where: str, document: Any, registry: Registry, namespace: str) -> Manifest | str:
    if not isinstance(document, dict):
        return f"{where}: must be a mapping with apiVersion, kind and metadata (got {type(document).__name__})"
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str):
            return f"{where}: {key}: is required and must be text (got {document.get(key)!r})"
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return f"{where}: metadata: is required and must be a mapping (got {metadata!r})"
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        return f"{where}: metadata.name: is required and must be text (got {name!r})"
    try:
        kind = registry.get(KindRef.parse(document["apiVersion"], document["kind"]))
    except NotFound as error:
        return f"{where}: kind: {error}"
    place = str(metadata.get("namespace") or namespace) if kind.namespaced else ""
    return Manifest(place=where, kind=kind, namespace=place, name=name, document=document)


def _sources(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for given in paths:
        if given == "-":
            yield "standard input", sys.stdin.read()
            continue
        path = Path(given)
        if path.is_dir():
            for file in sorted(entry for entry in path.iterdir() if entry.suffix in _ENDINGS):
                yield str(file), _read(file)
        else:
            yield given, _read(path)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Failure(f"{path} is larger than {MAX_FILE_BYTES} bytes, too large for a manifest.")
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise Failure(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path} cannot be read: {error}.") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"is not YAML: {problem}"
    return f"line {mark.line + 1}, column {mark.column + 1}: is not YAML: {problem}"
