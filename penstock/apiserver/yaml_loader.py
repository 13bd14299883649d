"""The YAML loader behind `media.load_yaml` and the command line: what it makes is what JSON could hold."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

import yaml

from core.errors import InvalidInput
from core.limits import MAX_DOCUMENT_DEPTH

__all__ = ["JsonLoader", "check_depth", "json_form"]

#: Nodes of one document: more than fit in the largest resource as plain JSON, fewer than aliases can conjure up.
MAX_NODES: Final = 500_000

if TYPE_CHECKING:
    from yaml import SafeLoader as _Base
else:
    # PyYAML may have been built without libyaml: the same result, slower.
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_depth(text: bytes) -> None:
    """Raises YAMLError where `text` is nested too deeply. Goes through events, which need no recursion."""
    depth = 0
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DOCUMENT_DEPTH:
                raise yaml.YAMLError(f"it is nested deeper than {MAX_DOCUMENT_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class JsonLoader(_Base):
    """YAML as JSON would have it."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'key "{key}" is given twice in one mapping', key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


JsonLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


def json_form(document: Any) -> Any:
    """What a loaded document means as JSON: keys become text. Raises InvalidInput where it has no such form, or grows
    too large by its aliases."""
    try:
        return _JsonView().of(document)
    except RecursionError as error:
        raise InvalidInput("The YAML document contains itself through an alias.") from error


class _JsonView:
    """Turns what YAML gives into what JSON could have given, counting nodes so that aliases stay harmless."""

    def __init__(self) -> None:
        self._nodes = 0

    def of(self, value: Any) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidInput(f"The YAML document has more than {MAX_NODES} nodes.")
        if isinstance(value, dict):
            return {self._key(name): self.of(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise InvalidInput(f"The YAML value {value!r} has no JSON form; put it in quotes.")

    @staticmethod
    def _key(name: object) -> str:
        if isinstance(name, str):
            return name
        if isinstance(name, bool):
            return "true" if name else "false"
        if isinstance(name, int | float):
            return str(name)
        raise InvalidInput(f"The YAML key {name!r} is not text.")
