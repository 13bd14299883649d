"""What a write does to a stored resource: the rules of create, update, status, delete, finalizers; pure functions.

The stores that hold resources themselves (SQLite, the in-memory fake) share these decisions and differ only in where
bytes lie. A decision is given the version that the write would get, and answers with the change to store, or None where
nothing changes. Source of the rules: Kubernetes API conventions, and its API server (`registry/rest`)::

    absent --create--> stored --delete, no finalizers--> absent
                       stored --delete, finalizers left--> terminating --last finalizer removed--> absent
"""

from __future__ import annotations

import random
import uuid
from typing import Any, Final, Literal

import msgspec

from core.clock import rfc3339
from core.control.port import Change
from core.errors import AlreadyExists, Conflict, Corrupt, FieldError, Gone, InvalidInput, NotFound
from core.limits import MAX_RESOURCE_BYTES
from core.resources import Key, KindRef, Resource

__all__ = [
    "FIRST_VERSION",
    "GENERATED_NAME_ATTEMPTS",
    "Write",
    "check_named",
    "created",
    "decode",
    "deleted",
    "encode",
    "gone",
    "kind_text",
    "named",
    "new_uid",
    "not_found",
    "same_json",
    "status_replaced",
    "updated",
    "wanted_body",
]

#: The version of an empty store. Not 0: over REST a watch from "0" means "from any version".
FIRST_VERSION: Final = 1

#: Random names tried for one generateName before the create fails (as many as Kubernetes tries).
GENERATED_NAME_ATTEMPTS: Final = 8

#: No vowels and no digits that look like letters, so that no words appear (Kubernetes' `rand.SafeEncodeString`).
_SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH: Final = 5
#: A DNS label has at most 63 characters; a longer prefix is cut so that the suffix fits.
_PREFIX_LENGTH: Final = 63 - _SUFFIX_LENGTH


class Write(msgspec.Struct, frozen=True):
    """A change to store. The resource already carries the new version."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    version: int
    resource: Resource

    def change(self) -> Change:
        return Change(self.type, self.version, self.resource)


def encode(resource: Resource) -> bytes:
    """The stored form: the resource's JSON. Raises InvalidInput where it is too large to store."""
    text = msgspec.json.encode(resource.to_dict())
    if len(text) > MAX_RESOURCE_BYTES:
        raise InvalidInput(
            f"{resource.key} has {len(text)} bytes as JSON; at most {MAX_RESOURCE_BYTES} can be stored. "
            "Keep large data in a bucket and refer to it."
        )
    return text


def decode(text: bytes) -> Resource:
    """The resource of its stored form. Raises Corrupt where the bytes are not what `encode` wrote."""
    try:
        return Resource.from_dict(msgspec.json.decode(text))
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise Corrupt(f"A stored resource does not read as one ({error}). Restore the data directory.") from error


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same. Python alone holds ``True == 1``."""
    if one != other:
        return False
    return msgspec.json.encode(one, order="sorted") == msgspec.json.encode(other, order="sorted")


def wanted_body(resource: Resource) -> dict[str, Any]:
    """Everything but status: what the resource's owner decides, and what `generation` counts changes of."""
    return {name: value for name, value in resource.body.items() if name != "status"}


def new_uid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def check_named(resource: Resource) -> None:
    """Raises InvalidInput where a resource to create has neither name nor generateName."""
    if not (resource.meta.name or resource.meta.generate_name):
        missing = FieldError(path="metadata.name", rule="is required (or give metadata.generateName)")
        raise InvalidInput.of(str(resource.key), [missing])


def named(resource: Resource, rng: random.Random) -> Resource:
    """The resource with its own name, or with generateName and a random end. Raises InvalidInput without either."""
    check_named(resource)
    meta = resource.meta
    if meta.name:
        return resource
    suffix = "".join(rng.choices(_SUFFIX_ALPHABET, k=_SUFFIX_LENGTH))
    return resource.with_meta(name=meta.generate_name[:_PREFIX_LENGTH] + suffix)


def not_found(key: Key) -> NotFound:
    return NotFound(f"{key} does not exist.")


def gone(since: int, *, oldest: int, newest: int) -> Gone:
    """Why a watch cannot go on after version `since`, where changes from `oldest` to `newest` are kept."""
    if since > newest:
        return Gone(
            f"Version {since} is not of this store, whose newest is {newest}. "
            "List again and watch from the listing's version."
        )
    return Gone(
        f"Changes after version {since} are no longer kept; the oldest kept is {oldest}. "
        "List again and watch from the listing's version."
    )


def created(resource: Resource, stored: Resource | None, *, uid: str, now: float, version: int) -> Write:
    """Store `resource`, which must have a name. Raises AlreadyExists where `stored` has it already."""
    if stored is not None:
        raise AlreadyExists(f"{stored.key} already exists. Update it, or choose another name.")
    fresh = resource.with_meta(
        uid=uid,
        resource_version=str(version),
        generation=1,
        creation_timestamp=rfc3339(now),
        deletion_timestamp=None,
        deletion_grace_period_seconds=None,
        self_link="",
    )
    return Write("ADDED", version, msgspec.structs.replace(fresh, body=wanted_body(fresh)))


def updated(stored: Resource, wanted: Resource, *, version: int) -> Write | None:
    """Replace everything but status and the metadata that the store owns. Raises Conflict; InvalidInput."""
    _check_current(stored, wanted)
    meta = wanted.meta
    if stored.meta.deletion_timestamp is not None:
        _check_no_new_finalizers(stored, wanted)
    body = wanted_body(wanted)
    same_body = same_json(body, wanted_body(stored))
    replaced = stored.with_meta(
        labels=meta.labels,
        annotations=meta.annotations,
        finalizers=meta.finalizers,
        owner_references=meta.owner_references,
        managed_fields=meta.managed_fields or stored.meta.managed_fields,
    )
    if same_body and replaced.meta == stored.meta:
        return None
    if not same_body:
        if "status" in stored.body:
            body["status"] = stored.body["status"]
        replaced = msgspec.structs.replace(replaced, body=body).with_meta(generation=stored.meta.generation + 1)
    replaced = replaced.with_meta(resource_version=str(version))
    ended = replaced.meta.deletion_timestamp is not None and not replaced.meta.finalizers
    return Write("DELETED" if ended else "MODIFIED", version, replaced)


def status_replaced(stored: Resource, wanted: Resource, *, version: int) -> Write | None:
    """Replace status and nothing else. Raises Conflict."""
    _check_current(stored, wanted)
    if same_json(stored.body.get("status"), wanted.body.get("status")):
        return None
    body = wanted_body(stored)
    if "status" in wanted.body:
        body["status"] = wanted.body["status"]
    replaced = msgspec.structs.replace(stored, body=body)
    return Write("MODIFIED", version, replaced.with_meta(resource_version=str(version)))


def deleted(stored: Resource, *, uid: str | None, now: float, version: int) -> Write | None:
    """Delete, or mark as terminating where finalizers are left. Raises Conflict where `uid` is another one.

    Marking counts as a change of what is wanted, so that a status from before does not pass for current.
    """
    if uid is not None and uid != stored.meta.uid:
        raise Conflict(
            f"{stored.key} has the uid {stored.meta.uid}, not {uid}: it was deleted and created again. "
            "Read it again before deleting it."
        )
    gone = stored.with_meta(resource_version=str(version))
    if not stored.meta.finalizers:
        return Write("DELETED", version, gone)
    if stored.meta.deletion_timestamp is not None:
        return None
    marked = gone.with_meta(
        generation=stored.meta.generation + 1,
        deletion_timestamp=rfc3339(now),
        deletion_grace_period_seconds=0,
    )
    return Write("MODIFIED", version, marked)


def _check_current(stored: Resource, wanted: Resource) -> None:
    given, held = wanted.meta.resource_version, stored.meta.resource_version
    if given and given != held:
        raise Conflict(
            f"{stored.key} changed since it was read: its resource version is {held}, the write's is {given}. "
            "Read it again and repeat the change."
        )
    if wanted.meta.uid and wanted.meta.uid != stored.meta.uid:
        raise Conflict(
            f"{stored.key} has the uid {stored.meta.uid}, not {wanted.meta.uid}: it was deleted and created again. "
            "Read it again and repeat the change."
        )


def _check_no_new_finalizers(stored: Resource, wanted: Resource) -> None:
    added = sorted(set(wanted.meta.finalizers) - set(stored.meta.finalizers))
    if added:
        rule = "must not grow while the resource is being deleted"
        raise InvalidInput.of(str(stored.key), [FieldError(path="metadata.finalizers", rule=rule, value=added)])


def kind_text(kind: KindRef) -> str:
    """A kind as one word, for a column or an index: ``eventing.knative.dev/v1/Trigger``."""
    return f"{kind.api_version}/{kind.kind}"
