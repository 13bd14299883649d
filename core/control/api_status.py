"""What the Kubernetes API's error answers mean to a caller: Status objects as the platform's own errors.

Source: Kubernetes API conventions, "Response Status Kind" and "HTTP Status codes".
"""

from __future__ import annotations

from typing import Final

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

__all__ = ["error_of_answer", "error_of_status", "is_status"]

#: How much of an answer that is no Status is quoted in the error.
_QUOTED_BYTES: Final = 200


class _Typed(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    api_version: str
    kind: str


class _Cause(msgspec.Struct, frozen=True):
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    causes: tuple[_Cause, ...] | None = None
    retry_after_seconds: float = 0.0


class _Status(msgspec.Struct, frozen=True):
    kind: str = ""
    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: _Details | None = None


def is_status(body: bytes) -> bool:
    """Whether an answer is a Status and not the resource that was asked for."""
    try:
        return msgspec.json.decode(body, type=_Typed) == _Typed(api_version="v1", kind="Status")
    except msgspec.MsgspecError:
        return False


def error_of_answer(code: int, body: bytes, retry_after: str | None = None) -> PenstockError:
    """The error of an answer with an HTTP status of 300 or more, and what its header Retry-After says."""
    details = _Details(retry_after_seconds=float(retry_after)) if retry_after and retry_after.isdecimal() else None
    try:
        status = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        quoted = body[:_QUOTED_BYTES].decode("utf-8", "replace").strip()
        return _error(code, "", f"The API server answered {code}: {quoted or 'without an explanation'}.", details)
    message = status.message or f"The API server answered {code}."
    return _error(code, status.reason or "", message, status.details or details)


def error_of_status(body: bytes) -> PenstockError:
    """The error of a Status that came in a stream, where only itself says its code."""
    try:
        code = msgspec.json.decode(body, type=_Status).code or 500
    except msgspec.MsgspecError:
        code = 500
    return error_of_answer(code, body)


def _error(code: int, reason: str, message: str, details: _Details | None) -> PenstockError:
    if code == 404:
        return NotFound(message)
    if code == 409:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if code == 410:
        return Gone(message if "ist again" in message else f"{message} List again and watch from there.")
    if code == 429:
        return Overloaded(message, (details.retry_after_seconds if details else 0.0) or 1.0)
    if code == 401:
        return Unavailable(f"The API server does not accept this process's credentials: {message}.")
    if code == 408 or code >= 500:
        return Unavailable(message)
    causes = (details.causes if details else None) or ()
    return InvalidInput(message, (FieldError(path=cause.field, rule=cause.message) for cause in causes))
