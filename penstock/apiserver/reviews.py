"""Admission in a cluster: what the Kubernetes API asks about a resource before it stores it. Pure functions.

The same registry answers as in the embedded API server, with the same messages and field paths. Source: Kubernetes'
"Dynamic Admission Control" (``admission.k8s.io/v1``).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

import msgspec

from core.resources import Kind, KindRef, Registry, Resource
from penstock.apiserver.admission import Place, Reading, admit, for_create, read_resource
from penstock.apiserver.statuses import Refused, bad_request

__all__ = ["Review", "defaulted", "read_review", "validated"]

_API_VERSION: Final = "admission.k8s.io/v1"


class _Kind(msgspec.Struct, frozen=True):
    group: str
    version: str
    kind: str


class Request(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What is asked: may `object`, which would replace `old_object`, be stored?"""

    uid: str
    kind: _Kind
    operation: str
    namespace: str = ""
    name: str = ""
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None


class Review(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An AdmissionReview as the API server sends it."""

    api_version: str
    kind: str
    request: Request


_DECODER: Final = msgspec.json.Decoder(Review)

#: What a review is answered with: a patch of the resource, or (None) nothing to add. Raises Refused.
_Judge = Callable[[Kind, Request], list[dict[str, Any]] | None]


def read_review(body: bytes) -> Review:
    """The review of a request's body. Raises Refused (400) where it is none that this speaks."""
    try:
        review = _DECODER.decode(body)
    except msgspec.MsgspecError as error:
        raise bad_request(f"The body is not an AdmissionReview: {error}.") from error
    if (review.api_version, review.kind) != (_API_VERSION, "AdmissionReview"):
        raise bad_request(
            f"{review.kind} of {review.api_version} is not spoken here, but AdmissionReview {_API_VERSION}."
        )
    return review


def defaulted(review: Review, registry: Registry) -> dict[str, Any]:
    """The answer of the mutating webhook: the resource's defaults as a patch, or why its shape is wrong."""
    return _answer(review, registry, _defaults)


def validated(review: Review, registry: Registry) -> dict[str, Any]:
    """The answer of the validating webhook: allowed, or every broken rule."""
    return _answer(review, registry, _verdict)


def _answer(review: Review, registry: Registry, judge: _Judge) -> dict[str, Any]:
    request = review.request
    response: dict[str, Any] = {"uid": request.uid, "allowed": True}
    ref = KindRef(request.kind.group, request.kind.version, request.kind.kind)
    try:
        kind = next((known for known in registry if known.ref == ref), None)
        if kind is None:
            raise bad_request(
                f"{ref} ({ref.api_version}) is not a kind of this platform: the webhook's rules are wrong."
            )
        if request.object is not None and not _settled(request.object, request.old_object):
            patch = judge(kind, request)
            if judge is _verdict and (warnings := _doubts(kind, request)):
                response["warnings"] = warnings
            if patch:
                response["patchType"] = "JSONPatch"
                response["patch"] = base64.b64encode(msgspec.json.encode(patch)).decode()
    except Refused as refused:
        response |= {"allowed": False, "status": refused.status}
    return {"apiVersion": _API_VERSION, "kind": "AdmissionReview", "response": response}


def _settled(new: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """Whether an update changes nothing that a kind has rules for: finalizers, owners. A resource from before a rule,
    or one that is being deleted, must not be held by it."""
    if old is None:
        return False
    if (new.get("metadata") or {}).get("deletionTimestamp"):
        return True
    return _ruled(new) == _ruled(old)


def _ruled(document: dict[str, Any]) -> dict[str, Any]:
    meta = document.get("metadata") or {}
    body = {name: value for name, value in document.items() if name not in ("metadata", "status")}
    return {**body, "labels": meta.get("labels") or {}, "annotations": meta.get("annotations") or {}}


def _defaults(kind: Kind, request: Request) -> list[dict[str, Any]]:
    given = _read(request.object, kind, request).resource
    if request.operation == "CREATE":
        given = for_create(given, kind)
    filled = kind.default(given)
    # Each member is set as a whole, as "add" does where there is one already.
    patch: list[dict[str, Any]] = []
    if filled.spec != given.spec:
        patch.append({"op": "add", "path": "/spec", "value": filled.spec})
    for name in ("labels", "annotations"):
        if getattr(filled.meta, name) != getattr(given.meta, name):
            patch.append({"op": "add", "path": f"/metadata/{name}", "value": getattr(filled.meta, name)})
    return patch


def _verdict(kind: Kind, request: Request) -> None:
    given = _read(request.object, kind, request).resource
    if request.operation == "CREATE":
        given = for_create(given, kind)
    admit(given, kind, _old(kind, request))


def _doubts(kind: Kind, request: Request) -> list[str]:
    """What the API passes on to who asked; it cuts what is longer than a line."""
    given = kind.default(_read(request.object, kind, request).resource)
    return [str(doubt) for doubt in kind.doubts(given)]


def _old(kind: Kind, request: Request) -> Resource | None:
    if request.old_object is None:
        return None
    try:
        return kind.default(_read(request.old_object, kind, request).resource)
    except Refused:
        # Stored before there were rules, or by others' definitions: nothing to compare with, so judged like a new one.
        return None


def _read(document: dict[str, Any] | None, kind: Kind, request: Request) -> Reading:
    # A name that is still to be generated is in the resource only, and "" here.
    return read_resource(document, kind, Place(request.namespace, request.name or None), "Strict")
