"""The YAML loader behind `media.load_yaml`: a safe loader that leaves dates as text and refuses repeated keys."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import yaml

from core.limits import MAX_DOCUMENT_DEPTH

__all__ = ["JsonLoader", "check_depth"]

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
