"""What a client sends and wants back: request bodies in JSON or YAML, and the choice of representation by Accept.

YAML is read so that it means the same as its JSON: keys become text, dates stay text, an alias may not make a document
grow without bound, and a key may not be given twice.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from core.errors import InvalidInput
from core.limits import MAX_DOCUMENT_DEPTH
from penstock.apiserver import protobuf
from penstock.apiserver.exchange import JSON
from penstock.apiserver.statuses import Refused, Status, bad_request

__all__ = ["Form", "accepted_form", "decode_body", "load_yaml", "media_type", "parse_accept"]

FormName = Literal["", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"]

#: What a parser says of a broken document is cut here: it may quote all of it.
_MAX_EXPLANATION: Final = 500

_YAML_TYPES: Final = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
BODY_TYPES: Final = (JSON, *_YAML_TYPES, protobuf.MEDIA_TYPE)


class Form(msgspec.Struct, frozen=True):
    """The representation that a client asked for: "" is the resource itself, else a kind of meta.k8s.io/`version`."""

    name: FormName = ""
    version: str = "v1"


_AS_IS: Final = Form()


def media_type(header: str) -> str:
    """The type of a Content-Type header without its parameters, in lower case."""
    return header.partition(";")[0].strip().lower()


def parse_accept(header: str) -> list[tuple[str, dict[str, str]]]:
    """The alternatives of an Accept header in the order given, each with its parameters."""
    found = []
    for part in header.split(","):
        name, *pairs = (piece.strip() for piece in part.split(";"))
        parameters = dict(pair.partition("=")[::2] for pair in pairs)
        found.append((name.lower(), parameters))
    return found


def accepted_form(header: str) -> Form:
    """The first representation asked for that this server has. Raises Refused (406) where there is none."""
    if header in ("", JSON, "*/*"):
        return _AS_IS
    for name, parameters in parse_accept(header):
        if name not in (JSON, "*/*", "application/*"):
            continue
        wanted = parameters.get("as")
        if wanted is None:
            return _AS_IS
        version = parameters.get("v", "v1")
        if parameters.get("g") == "meta.k8s.io" and version in ("v1", "v1beta1"):
            if wanted == "Table":
                return Form("Table", version)
            if wanted == "PartialObjectMetadata":
                return Form("PartialObjectMetadata", version)
            if wanted == "PartialObjectMetadataList":
                return Form("PartialObjectMetadataList", version)
    message = f"only application/json is served, plain or as Table or PartialObjectMetadata, not {header!r}"
    raise Refused(Status.failure(406, message))


def decode_body(content_type: str, body: bytes, *, allowed: tuple[str, ...] = BODY_TYPES) -> Any:
    """The document of a body. No Content-Type means JSON. Raises Refused (415 for the type, 400 for the text)."""
    kind = media_type(content_type) or JSON
    if kind not in allowed:
        raise Refused(Status.failure(415, unsupported(kind, allowed)))
    if kind == protobuf.MEDIA_TYPE:
        try:
            return protobuf.decode_protobuf(body)
        except InvalidInput as error:
            raise bad_request(str(error)) from error
    if kind in _YAML_TYPES:
        try:
            return load_yaml(body)
        except InvalidInput as error:
            raise bad_request(str(error)) from error
    return decode_json(body)


def unsupported(kind: str, allowed: tuple[str, ...]) -> str:
    return f"the body is {kind}; accepted media types are {', '.join(allowed)}"


def decode_json(body: bytes) -> Any:
    if not body:
        raise bad_request("The request has no body; send the resource as JSON or YAML.")
    too_deep = f"The request body is nested deeper than {MAX_DOCUMENT_DEPTH} levels."
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"The request body is not JSON: {error}.") from error
    except RecursionError as error:
        raise bad_request(too_deep) from error
    if not _is_within(document, MAX_DOCUMENT_DEPTH):
        raise bad_request(too_deep)
    return document


def _is_within(document: Any, depth: int) -> bool:
    """Whether lists and mappings lie at most `depth` deep in each other. Level by level, so that it never recurses."""
    level = [document]
    for _ in range(depth + 1):
        level = [
            inner
            for node in level
            for inner in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False


def load_yaml(text: bytes) -> Any:
    """The one document of `text` as its JSON would be. Raises InvalidInput with line and column."""
    import yaml  # noqa: PLC0415 - 15 ms that only a client which sends YAML should cost

    from penstock.apiserver.yaml_loader import JsonLoader, check_depth, json_form  # noqa: PLC0415 - imports yaml

    try:
        check_depth(text)
        document = yaml.load(text, JsonLoader)  # noqa: S506 - JsonLoader is a SafeLoader
    except yaml.YAMLError as error:
        raise InvalidInput(f"The request body is not YAML: {_on_one_line(str(error))}.") from error
    except ValueError as error:
        raise InvalidInput(f"The request body is not YAML: {error}.") from error
    return json_form(document)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_EXPLANATION]
