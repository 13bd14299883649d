"""Where events go: Knative's Destination (`ref` and/or `uri`) and how it becomes a URL.

Rules: knative.dev/pkg `apis/duck/v1/destination.go` and `resolver/addressable_resolver.go`: a `ref` resolves to the
referent's ``status.address.url`` (a Kubernetes Service to its cluster name); a relative `uri` is joined to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urljoin, urlsplit

import msgspec

from core.errors import FieldError, NotFound
from core.resources.meta import Key, KindRef, Resource

__all__ = ["Destination", "KReference", "Unresolved", "resolve", "validate_destination"]

Lookup = Callable[[Key], Resource | None]


class KReference(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """Another resource by name; `namespace` "" means the referring resource's own."""

    kind: str = ""
    name: str = ""
    api_version: str = ""
    namespace: str = ""
    group: str = ""
    address: str = ""


class Destination(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"ca_certs": "CACerts"},
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """An addressable resource, a URI, or a URI relative to an addressable resource."""

    ref: KReference | None = None
    uri: str | None = None
    ca_certs: str | None = None
    audience: str | None = None


class Unresolved(NotFound):
    """A destination that leads nowhere yet. `reason` is the CamelCase word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def validate_destination(destination: Destination | None, path: str) -> Iterator[FieldError]:
    """Each broken rule of a Destination found at `path`."""
    if destination is None or (destination.ref is None and destination.uri is None):
        yield FieldError(path=path, rule="needs a ref or a uri")
        return
    try:
        parts = urlsplit(destination.uri or "")
    except ValueError as error:
        yield FieldError(path=f"{path}.uri", rule=f"must be a URL: {error}", value=destination.uri)
        return
    if destination.uri is not None and destination.ref is None:
        if not (parts.scheme and parts.netloc):
            yield FieldError(path=f"{path}.uri", rule="must be absolute where there is no ref", value=destination.uri)
        elif parts.scheme not in ("http", "https"):
            yield FieldError(path=f"{path}.uri", rule="must be an http or https URL", value=destination.uri)
    if destination.ref is not None:
        for name, value in (("kind", destination.ref.kind), ("name", destination.ref.name)):
            if not value:
                yield FieldError(path=f"{path}.ref.{name}", rule="is required")
        if not (destination.ref.api_version or destination.ref.group):
            yield FieldError(path=f"{path}.ref.apiVersion", rule="is required")


def resolve(destination: Destination, namespace: str, lookup: Lookup) -> str:
    """The URL of `destination`, referred to from `namespace`. Raises Unresolved with the reason and what is missing."""
    if destination.ref is None:
        if not destination.uri:
            raise Unresolved("NoDestination", "Neither a ref nor a uri is given.")
        return _joined("", destination.uri)
    ref = destination.ref
    kind = KindRef.parse(ref.api_version or f"{ref.group}/v1", ref.kind)
    key = Key(kind, ref.namespace or namespace, ref.name)
    base = _address(key, lookup)
    return _joined(base.rstrip("/") + "/", destination.uri) if destination.uri else base


def _joined(base: str, uri: str) -> str:
    try:
        urlsplit(uri)  # without a base, nothing is looked at
        return urljoin(base, uri)
    except ValueError as error:
        raise Unresolved("NoDestination", f"The uri {uri!r} is no URL: {error}. Correct it.") from error


def _address(key: Key, lookup: Lookup) -> str:
    if key.kind == KindRef("", "v1", "Service"):
        return f"http://{key.name}.{key.namespace}.svc.cluster.local"
    referent = lookup(key)
    if referent is None:
        raise Unresolved("NotFound", f"{key} does not exist. Create it, or correct the reference.")
    address = referent.status.get("address") or {}
    url = address.get("url")
    if not url:
        raise Unresolved("AddressNotReady", f"{key} has no address yet; see its conditions.")
    return str(url)
