"""Resources as the Kubernetes API carries them: type, metadata, and a body that its kind gives meaning to.

Source of the rules: Kubernetes API conventions ("Metadata", "Spec and Status", "Typical status properties").
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Key", "KindRef", "ObjectMeta", "OwnerReference", "Resource", "owner_reference"]


class KindRef(msgspec.Struct, frozen=True, order=True):
    """Which kind of resource: API group ("" for Kubernetes' core group), version and kind."""

    group: str
    version: str
    kind: str

    @property
    def api_version(self) -> str:
        """As written in a manifest: ``eventing.knative.dev/v1``, or ``v1`` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @classmethod
    def parse(cls, api_version: str, kind: str) -> KindRef:
        group, _, version = api_version.rpartition("/")
        return cls(group, version, kind)

    def __str__(self) -> str:
        """As Kubernetes names a kind in messages: ``Trigger.eventing.knative.dev``."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


class Key(msgspec.Struct, frozen=True, order=True):
    """Which resource. `namespace` is "" for cluster-scoped kinds."""

    kind: KindRef
    namespace: str
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f'{self.kind} "{place}"'


class OwnerReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Who a dependent belongs to: it is deleted once its owner is gone."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A resource's metadata. The store fills uid, resource_version, generation and creation_timestamp.

    `generation` counts changes of what is wanted (everything but metadata and status); `resource_version` changes with
    every write. Times are RFC 3339 text. `labels` and `annotations` must not be changed in place.
    """

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()
    managed_fields: tuple[Any, ...] = ()
    self_link: str = ""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One resource. `body` is everything beside apiVersion, kind and metadata: spec, status, data, ...

    A resource is a value: build a changed one with `msgspec.structs.replace` or the `with_` methods and never change a
    nested dict or list in place, because caches share them.
    """

    ref: KindRef
    meta: ObjectMeta
    body: dict[str, Any]

    @property
    def key(self) -> Key:
        return Key(self.ref, self.meta.namespace, self.meta.name)

    @property
    def spec(self) -> dict[str, Any]:
        held = self.body.get("spec")
        return held if isinstance(held, dict) else {}

    @property
    def status(self) -> dict[str, Any]:
        held = self.body.get("status")
        return held if isinstance(held, dict) else {}

    def with_status(self, status: dict[str, Any]) -> Resource:
        return msgspec.structs.replace(self, body={**self.body, "status": status})

    def with_spec(self, spec: dict[str, Any]) -> Resource:
        return msgspec.structs.replace(self, body={**self.body, "spec": spec})

    def with_meta(self, **changed: Any) -> Resource:
        return msgspec.structs.replace(self, meta=msgspec.structs.replace(self.meta, **changed))

    def to_dict(self) -> dict[str, Any]:
        """The resource as a JSON-ready dict in the usual member order."""
        meta = msgspec.to_builtins(self.meta)
        return {"apiVersion": self.ref.api_version, "kind": self.ref.kind, "metadata": meta, **self.body}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Resource:
        """The resource of a JSON document that has been checked. Raises msgspec.ValidationError for wrong metadata."""
        body = {name: value for name, value in document.items() if name not in ("apiVersion", "kind", "metadata")}
        meta = msgspec.convert(document.get("metadata") or {}, ObjectMeta)
        return cls(ref=KindRef.parse(document["apiVersion"], document["kind"]), meta=meta, body=body)


def owner_reference(owner: Resource) -> OwnerReference:
    """The reference that makes `owner` the controller of a dependent."""
    return OwnerReference(
        api_version=owner.ref.api_version,
        kind=owner.ref.kind,
        name=owner.meta.name,
        uid=owner.meta.uid,
        controller=True,
        block_owner_deletion=True,
    )
