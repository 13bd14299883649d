"""Status objects: how the Kubernetes API says that a request failed, and why.

Source: Kubernetes API conventions, "Response Status Kind". Clients switch on `reason`; `details.causes` names each
broken field, which is what kubectl prints for an invalid resource.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from core.errors import (
    AlreadyExists,
    Conflict,
    FieldError,
    Gone,
    InvalidInput,
    NotFound,
    Overloaded,
    PenstockError,
    Unavailable,
)
from core.resources import Kind

__all__ = [
    "Cause",
    "Details",
    "Refused",
    "Status",
    "bad_request",
    "cause_of",
    "invalid",
    "no_such_path",
    "object_conflict",
    "object_exists",
    "object_not_found",
    "resource_name",
    "status_of",
    "success",
]

REASONS: Final = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}

#: A value quoted in a message is cut here: long enough to recognise it, short enough for a terminal line or two.
_MAX_QUOTED: Final = 200


class Cause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One broken rule. `field` is the path of the key in the document."""

    reason: str
    message: str
    field: str = ""


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What the failure is about. `kind` is the plural where a resource is named, the Kind where one is invalid."""

    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: tuple[Cause, ...] = ()
    retry_after_seconds: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of every answer that is not the thing asked for."""

    kind: str = "Status"
    api_version: str = "v1"
    metadata: dict[str, str] = {}
    status: Literal["Success", "Failure"] = "Failure"
    message: str = ""
    reason: str = ""
    details: Details = Details()
    code: int

    @classmethod
    def failure(cls, code: int, message: str, *, reason: str | None = None, details: Details | None = None) -> Status:
        word = REASONS.get(code, "Unknown") if reason is None else reason
        return cls(code=code, message=message, reason=word, details=details or Details())


class Refused(PenstockError):
    """A request that the protocol refuses, with the Status that says so. `headers` go with the answer."""

    def __init__(self, status: Status, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.status = status
        self.headers = headers
        super().__init__(status.message)


def resource_name(kind: Kind) -> str:
    """A kind as messages name its resources: ``triggers.eventing.knative.dev``, ``configmaps``."""
    return f"{kind.plural}.{kind.ref.group}" if kind.ref.group else kind.plural


def bad_request(message: str, causes: Iterable[Cause] = ()) -> Refused:
    return Refused(Status.failure(400, message, details=Details(causes=tuple(causes))))


def no_such_path(path: str) -> Refused:
    """Nothing is served there; kubectl words it itself once it sees reason NotFound without a name."""
    message = f"the server could not find the requested resource: nothing is served at {path}; see /apis"
    return Refused(Status.failure(404, message))


def object_not_found(kind: Kind, name: str) -> Refused:
    return _about_object(404, kind, name, f'{resource_name(kind)} "{name}" not found')


def object_exists(kind: Kind, name: str) -> Refused:
    return _about_object(409, kind, name, f'{resource_name(kind)} "{name}" already exists', reason="AlreadyExists")


def object_conflict(kind: Kind, name: str, why: str) -> Refused:
    message = f'Operation cannot be fulfilled on {resource_name(kind)} "{name}": {why}'
    return _about_object(409, kind, name, message)


def _about_object(code: int, kind: Kind, name: str, message: str, *, reason: str | None = None) -> Refused:
    details = Details(name=name, group=kind.ref.group, kind=kind.plural)
    return Refused(Status.failure(code, message, reason=reason, details=details))


def cause_of(error: FieldError) -> Cause:
    """One broken rule as Kubernetes words it: path, then value, then rule."""
    if error.value is None:
        missing = error.rule == "is required"
        reason = "FieldValueRequired" if missing else "FieldValueInvalid"
        message = "Required value" if missing else f"Invalid value: {error.rule}"
        return Cause(reason=reason, message=message, field=error.path)
    message = f"Invalid value: {_quoted(error.value)}: {error.rule}"
    return Cause(reason="FieldValueInvalid", message=message, field=error.path)


def _quoted(value: object) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"


def invalid(kind: Kind, name: str, errors: Iterable[FieldError]) -> Refused:
    """422 with one cause for each broken rule."""
    causes = tuple(cause_of(error) for error in errors)
    listed = [f"{cause.field}: {cause.message}" for cause in causes]
    joined = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    details = Details(name=name, group=kind.ref.group, kind=kind.ref.kind, causes=causes)
    return Refused(Status.failure(422, f'{kind.ref} "{name}" is invalid: {joined}', details=details))


def success(kind: Kind, name: str, uid: str) -> Status:
    """What a delete answers once the resource is gone."""
    details = Details(name=name, group=kind.ref.group, kind=kind.plural, uid=uid)
    return Status(code=200, status="Success", details=details)


def status_of(error: PenstockError) -> Status:
    """The Status of an error that no verb has worded already."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, InvalidInput):
        causes = tuple(cause_of(found) for found in error.errors)
        return Status.failure(422, str(error), details=Details(causes=causes))
    if isinstance(error, Overloaded):
        retry_after_s = max(1, round(error.retry_after_s))
        return Status.failure(429, str(error), details=Details(retry_after_seconds=retry_after_s))
    if isinstance(error, AlreadyExists):
        return Status.failure(409, str(error), reason="AlreadyExists")
    codes: tuple[tuple[type[PenstockError], int], ...] = (
        (NotFound, 404),
        (Conflict, 409),
        (Gone, 410),
        (Unavailable, 503),
    )
    code = next((code for cls, code in codes if isinstance(error, cls)), 500)
    return Status.failure(code, str(error))
