"""Patches of JSON documents: RFC 6902 (JSON patch), RFC 7396 (merge patch), and Kubernetes' strategic merge patch.

As in Kubernetes, strategic merge is only for kinds that are Kubernetes' own (ConfigMap, Secret, EndpointSlice ...),
whose merge keys are known; kubectl sends merge patches for all others. Documents are values and never changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from core.errors import InvalidInput
from core.resources import KindRef

__all__ = ["is_native", "json_equal", "json_patch", "merge_patch", "strategic_merge"]

#: Operations in one JSON patch (Kubernetes' limit).
MAX_OPERATIONS: Final = 10_000

_MISSING: Final = object()
_END_OF_LIST: Final = "-"


def merge_patch(document: Any, patch: Any) -> Any:
    """`document` with `patch` merged into it: null removes, objects merge, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(document: Any, patch: Any) -> Any:
    """`document` after all operations. Raises InvalidInput naming the operation that is malformed or fails."""
    if not isinstance(patch, list):
        raise InvalidInput("A JSON patch is a list of operations.")
    if len(patch) > MAX_OPERATIONS:
        raise InvalidInput(f"A JSON patch may have at most {MAX_OPERATIONS} operations, not {len(patch)}.")
    for index, operation in enumerate(patch):
        try:
            document = _operate(document, operation)
        except InvalidInput as error:
            raise InvalidInput(f"JSON patch operation {index}: {error}") from error
    return document


def _operate(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict):
        raise InvalidInput("an operation is an object with op and path.")
    verb = operation.get("op")
    path = _pointer(operation, "path")
    if verb in ("add", "replace", "test") and "value" not in operation:
        raise InvalidInput(f"{verb} needs a value.")
    match verb:
        case "add":
            return _put(document, path, operation["value"], insert=True)
        case "replace":
            _look_up(document, path)
            return _put(document, path, operation["value"], insert=False)
        case "remove":
            return _remove(document, path)
        case "test":
            _test(document, path, operation["value"])
            return document
        case "copy" | "move":
            return _transfer(document, _pointer(operation, "from"), path, remove=verb == "move")
    raise InvalidInput(f"op must be add, remove, replace, move, copy or test, not {verb!r}.")


def _test(document: Any, path: list[str], wanted: Any) -> None:
    found = _look_up(document, path)
    if not json_equal(found, wanted):
        raise InvalidInput(f"test failed: {_shown(path)} is {found!r}, not {wanted!r}.")


def _transfer(document: Any, origin: list[str], path: list[str], *, remove: bool) -> Any:
    value = _look_up(document, origin)
    if remove:
        if path[: len(origin)] == origin and len(path) > len(origin):
            raise InvalidInput(f"{_shown(origin)} cannot be moved into itself.")
        document = _remove(document, origin)
    return _put(document, path, value, insert=True)


def _pointer(operation: Mapping[str, Any], member: str) -> list[str]:
    """The steps of a JSON pointer (RFC 6901)."""
    text = operation.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise InvalidInput(f"{member} must be a JSON pointer such as /spec/broker, not {text!r}.")
    return [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]


def _shown(path: list[str]) -> str:
    return "/" + "/".join(path)


def _look_up(document: Any, path: list[str]) -> Any:
    found = document
    for depth, step in enumerate(path):
        if isinstance(found, dict):
            found = found.get(step, _MISSING)
        elif isinstance(found, list):
            found = found[_index(step, len(found) - 1)]
        else:
            found = _MISSING
        if found is _MISSING:
            raise InvalidInput(f"{_shown(path[: depth + 1])} does not exist.")
    return found


def _index(step: str, highest: int) -> int:
    well_formed = step.isascii() and step.isdigit() and (step == "0" or not step.startswith("0"))
    if not well_formed or int(step) > highest:
        raise InvalidInput(f"{step!r} is not an index of a list whose last is {highest}.")
    return int(step)


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> Any:
    """`document` with `value` at `path`; `insert` moves the rest of a list up instead of replacing an entry."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(document, dict):
        if rest and step not in document:
            raise InvalidInput(f"{step!r} does not exist, so nothing can be put below it.")
        return {**document, step: _put(document.get(step), rest, value, insert=insert)}
    if isinstance(document, list):
        if rest or not insert:
            index = _index(step, len(document) - 1)
            return [*document[:index], _put(document[index], rest, value, insert=insert), *document[index + 1 :]]
        index = len(document) if step == _END_OF_LIST else _index(step, len(document))
        return [*document[:index], value, *document[index:]]
    raise InvalidInput(f"nothing can be put at {step!r}, because what holds it is neither an object nor a list.")


def _remove(document: Any, path: list[str]) -> Any:
    _look_up(document, path)
    if not path:
        raise InvalidInput("the whole document cannot be removed.")
    step, rest = path[0], path[1:]
    if isinstance(document, dict):
        if rest:
            return {**document, step: _remove(document[step], rest)}
        return {name: value for name, value in document.items() if name != step}
    index = _index(step, len(document) - 1)
    kept = [_remove(document[index], rest)] if rest else []
    return [*document[:index], *kept, *document[index + 1 :]]


def json_equal(one: Any, other: Any) -> bool:
    """Equality of JSON values: unlike in Python, true is not 1; as in JSON, 1.0 is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(json_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(json_equal, one, other))
    return bool(one == other)


# Strategic merge. Source: Kubernetes' "strategic-merge-patch.md" (community/contributors/devel/sig-api-machinery).

#: Lists that merge instead of being replaced, with the key that tells entries apart, or None for sets of values.
_MERGED_LISTS: Final[Mapping[tuple[str, ...], str | None]] = {
    ("metadata", "finalizers"): None,
    ("metadata", "ownerReferences"): "uid",
}
_DIRECTIVE: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_ORDER: Final = "$setElementOrder/"
_DELETE_VALUES: Final = "$deleteFromPrimitiveList/"


def is_native(ref: KindRef) -> bool:
    """Whether a kind is one of Kubernetes' own: the core group, groups without a dot, and ``*.k8s.io``."""
    return "." not in ref.group or ref.group.endswith(".k8s.io")


def strategic_merge(document: Any, patch: Any, path: tuple[str, ...] = ()) -> Any:
    """`document` with `patch` merged into it. Raises InvalidInput for a directive that is not known."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {name: value for name, value in patch.items() if name != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise InvalidInput(f"$patch must be replace, merge or delete, not {directive!r}.")
    if _RETAIN in patch:
        merged = {name: value for name, value in merged.items() if name in patch[_RETAIN]}
    for name, value in patch.items():
        if name.startswith(_DELETE_VALUES):
            target = name.removeprefix(_DELETE_VALUES)
            merged[target] = [item for item in merged.get(target) or [] if item not in value]
        elif name in (_DIRECTIVE, _RETAIN) or name.startswith(_ORDER):
            continue
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_member(merged.get(name), value, (*path, name))
    return merged


def _merge_member(held: Any, value: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(value, list) or path not in _MERGED_LISTS:
        return strategic_merge(held, value, path)
    key = _MERGED_LISTS[path]
    entries = list(held) if isinstance(held, list) else []
    if key is None:
        return entries + [item for item in value if item not in entries]
    for entry in value:
        entries = _merge_entry(entries, entry, key, path)
    return entries


def _merge_entry(entries: list[Any], entry: Any, key: str, path: tuple[str, ...]) -> list[Any]:
    if not isinstance(entry, dict):
        raise InvalidInput(f"an entry of {'.'.join(path)} must be an object with {key}.")
    if entry.get(_DIRECTIVE) == "replace" and key not in entry:
        return []
    if key not in entry:
        raise InvalidInput(f"an entry of {'.'.join(path)} needs {key}, by which entries are told apart.")
    same = [index for index, held in enumerate(entries) if held.get(key) == entry[key]]
    if entry.get(_DIRECTIVE) == "delete":
        return [held for index, held in enumerate(entries) if index not in same]
    if not same:
        return [*entries, strategic_merge({}, entry, path)]
    index = same[0]
    return [*entries[:index], strategic_merge(entries[index], entry, path), *entries[index + 1 :]]
