"""The rules for names, labels, annotations and the other metadata that a client may write.

Source: Kubernetes documentation, "Object Names and IDs", "Labels and Selectors", "Annotations", "Finalizers"; RFC 1123.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from core.errors import FieldError
from core.resources import ObjectMeta, OwnerReference

__all__ = ["broken_metadata", "broken_name"]

MAX_SUBDOMAIN: Final = 253
MAX_LABEL: Final = 63

#: All annotations of one resource together, keys and values (Kubernetes' limit, 256 KiB).
MAX_ANNOTATIONS_BYTES: Final = 256 * 1024

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_QUALIFIED: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")

_SUBDOMAIN_RULE: Final = (
    "must be an RFC 1123 subdomain: at most 253 lower case letters, digits, '-' and '.', "
    "starting and ending with a letter or digit, as in 'example.com'"
)
_LABEL_RULE: Final = (
    "must be an RFC 1123 label: at most 63 lower case letters, digits and '-', "
    "starting and ending with a letter or digit, as in 'my-name'"
)
_QUALIFIED_RULE: Final = (
    "must be at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit, "
    "after an optional DNS prefix and '/', as in 'example.com/my-name'"
)
_VALUE_RULE: Final = (
    "must be empty or at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit"
)


def broken_name(name: str, path: str, *, label: bool = False) -> Iterator[FieldError]:
    """The rule that a resource's name breaks, if any; `label` for namespaces, whose names are one DNS label."""
    if not name:
        yield FieldError(path=path, rule="is required")
    elif label:
        if len(name) > MAX_LABEL or not _LABEL.match(name):
            yield FieldError(path=path, rule=_LABEL_RULE, value=name)
    elif len(name) > MAX_SUBDOMAIN or not _SUBDOMAIN.match(name):
        yield FieldError(path=path, rule=_SUBDOMAIN_RULE, value=name)


def broken_metadata(meta: ObjectMeta) -> Iterator[FieldError]:
    """Each rule that the metadata of a resource breaks, the name's aside."""
    for key, value in meta.labels.items():
        yield from _broken_key(key, "metadata.labels")
        if value and (len(value) > MAX_LABEL or not _QUALIFIED.match(value)):
            yield FieldError(path=f"metadata.labels[{key}]", rule=_VALUE_RULE, value=value)
    for key in meta.annotations:
        yield from _broken_key(key.lower(), "metadata.annotations")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in meta.annotations.items())
    if size > MAX_ANNOTATIONS_BYTES:
        rule = f"must be at most {MAX_ANNOTATIONS_BYTES} bytes together, keys and values; they are {size}"
        yield FieldError(path="metadata.annotations", rule=rule)
    for index, finalizer in enumerate(meta.finalizers):
        yield from _broken_key(finalizer, f"metadata.finalizers[{index}]")
    yield from _broken_owners(meta.owner_references)


def _broken_key(key: str, path: str) -> Iterator[FieldError]:
    prefix, slash, name = key.rpartition("/")
    prefixed_well = not slash or (len(prefix) <= MAX_SUBDOMAIN and _SUBDOMAIN.match(prefix))
    if not prefixed_well or len(name) > MAX_LABEL or not _QUALIFIED.match(name):
        yield FieldError(path=path, rule=f"a key {_QUALIFIED_RULE}", value=key)


def _broken_owners(owners: tuple[OwnerReference, ...]) -> Iterator[FieldError]:
    for index, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{index}]"
        members = (("apiVersion", owner.api_version), ("kind", owner.kind), ("name", owner.name), ("uid", owner.uid))
        for name, value in members:
            if not value:
                yield FieldError(path=f"{path}.{name}", rule="is required")
    controllers = [owner.name for owner in owners if owner.controller]
    if len(controllers) > 1:
        rule = "may have controller: true on one owner only"
        yield FieldError(path="metadata.ownerReferences", rule=rule, value=controllers)
