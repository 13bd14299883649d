"""Manifests from files, folders and standard input; every problem names the file, the document and the line or key."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from core.errors import InvalidInput, NotFound
from core.resources import Kind, KindRef, Registry
from penstock.apiserver.yaml_loader import JsonLoader, check_depth, json_form
from penstock.cli.context import LABEL_RULE, is_label
from penstock.cli.failure import Failure

__all__ = ["Manifest", "problems_failure", "read_manifests"]

_STDIN: Final = "standard input"
_ENDINGS: Final = (".yaml", ".yml", ".json")
#: A manifest file is written by people; one larger than this was named by mistake.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
#: What the server sets: a document that was printed by ``get`` carries it, and no manifest can ask for it.
_SERVERS_METADATA: Final = ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink")


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


def read_manifests(paths: Iterable[str], registry: Registry, namespace: str, *, undone: str) -> list[Manifest]:
    """Every document in `paths` ("-" is standard input; a folder, its files). Raises Failure listing all problems; its
    message begins with `undone`, what therefore did not happen."""
    manifests: list[Manifest] = []
    problems: list[str] = []
    for path in paths:
        found, unreadable = _documents_in(path)
        problems += unreadable
        if not found and not unreadable:
            problems.append(_nothing_in(path))
        for where, document in found:
            manifest = _manifest(where, document, registry, namespace)
            if isinstance(manifest, str):
                problems.append(manifest)
            else:
                manifests.append(manifest)
    if problems:
        raise problems_failure(undone, problems)
    return manifests


def problems_failure(undone: str, problems: Iterable[str]) -> Failure:
    """One Failure for all of them, each on a line of its own."""
    return Failure(undone + "\n" + "\n".join(f"  {problem}" for problem in problems))


class _Unreadable(Exception):
    """A file, or the YAML in it, cannot be read. The text names the place and says why."""


def _documents_in(given: str) -> tuple[list[tuple[str, Any]], list[str]]:
    """The documents of a file, a folder or standard input, each with its place, and what cannot be read."""
    found: list[tuple[str, Any]] = []
    problems: list[str] = []
    try:
        files = _files(given)
    except OSError as error:
        return [], [f"{given} cannot be read: {error.strerror}"]
    for file in files:
        try:
            found += _documents(_STDIN if given == "-" else str(file), _read(file))
        except _Unreadable as problem:
            problems.append(str(problem))
    return found, problems


def _files(given: str) -> list[Path]:
    path = Path(given)
    if given == "-" or not path.is_dir():
        return [path]
    inside = [entry for entry in path.iterdir() if entry.suffix in _ENDINGS]
    # A named pipe in a folder would be waited for without end; one that is named itself is meant.
    return sorted(entry for entry in inside if not entry.is_dir() and not entry.is_fifo())


def _read(file: Path) -> bytes:
    try:
        if str(file) == "-":
            text = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with file.open("rb") as opened:
                text = opened.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _Unreadable(f"{file} does not exist") from error
    except OSError as error:
        raise _Unreadable(f"{file} cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise _Unreadable(f"{file} is larger than {MAX_FILE_BYTES} bytes, too large for a manifest")
    return text


def _documents(place: str, text: bytes) -> Iterator[tuple[str, Any]]:
    """Each document with the place it is at; the items of a List count as documents."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        told = f"byte {text[error.start]:#04x} at position {error.start}"
        raise _Unreadable(f"{place}: is not a manifest: it must be text in UTF-8 ({told})") from error
    try:
        check_depth(text)
        documents = [json_form(document) for document in yaml.load_all(text, Loader=JsonLoader)]
    except yaml.YAMLError as error:
        raise _Unreadable(f"{place}: {_yaml_problem(error)}") from error
    except (InvalidInput, ValueError) as error:
        raise _Unreadable(f"{place}: {error}") from error
    for number, document in enumerate(documents, start=1):
        where = f"{place}, document {number}" if len(documents) > 1 else place
        if _is_list(document):
            for item, each in enumerate(document["items"]):
                yield f"{where}, items[{item}]", each
        elif document is not None:
            yield where, document


def _is_list(document: Any) -> bool:
    """Whether it is what ``get -o yaml`` prints of several objects."""
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        return False
    return str(document.get("kind", "")).endswith("List")


def _nothing_in(path: str) -> str:
    if Path(path).is_dir():
        return f"{path}: holds no manifest; its files must end in {', '.join(_ENDINGS)}"
    return f"{_STDIN if path == '-' else path}: holds no document"


def _manifest(where: str, document: Any, registry: Registry, namespace: str) -> Manifest | str:
    if not isinstance(document, dict):
        return f"{where}: must be a mapping with apiVersion, kind and metadata (got {document!r:.60})"
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str):
            return f"{where}: {key}: {_must_be_text(document.get(key))}"
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return f"{where}: metadata: is required and must be a mapping (got {metadata!r:.60})"
    for key in ("name", "namespace"):
        value = metadata.get(key)
        if not (isinstance(value, str) and value) and not (key == "namespace" and key not in metadata):
            return f"{where}: metadata.{key}: {_must_be_text(value)}"
    if not is_label(metadata.get("namespace", namespace)):
        return f"{where}: metadata.namespace: {LABEL_RULE} (got {metadata['namespace']!r:.80})"
    try:
        kind = registry.get(KindRef.parse(document["apiVersion"], document["kind"]))
    except NotFound:
        return f"{where}: {_unknown_kind(document['apiVersion'], document['kind'], registry)}"
    place = metadata.get("namespace", namespace) if kind.namespaced else ""
    return Manifest(place=where, kind=kind, namespace=place, name=metadata["name"], document=_bare(document))


def _must_be_text(value: Any) -> str:
    if value is None or value == "":
        return "is required"
    return f"must be text; write it in quotes (got {value!r:.60})"


def _unknown_kind(api_version: str, word: str, registry: Registry) -> str:
    """What is wrong with a kind that is not known, and what was probably meant."""
    meant = [kind for kind in registry if kind.ref.kind.lower() == word.lower()]
    for kind in meant:
        if kind.ref.kind != word:
            return f"kind: there is no kind {word!r}; write {kind.ref.kind}"
        return f"apiVersion: there is no {word} in {api_version}; write {kind.ref.api_version}"
    known = ", ".join(sorted(kind.ref.kind for kind in registry if not kind.internal))
    return f"kind: there is no kind {word!r} in {api_version}. Known are {known}"


def _bare(document: dict[str, Any]) -> dict[str, Any]:
    """Without what only the server writes."""
    metadata = {key: value for key, value in document["metadata"].items() if key not in _SERVERS_METADATA}
    return {key: value for key, value in {**document, "metadata": metadata}.items() if key != "status"}


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        # libyaml tells the character as a number, PyYAML's own reader as text.
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"is not YAML: the character U+{code:04X} at position {error.position} is not allowed"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"is not YAML: {problem}"
    return f"line {mark.line + 1}, column {mark.column + 1}: is not YAML: {problem}"
