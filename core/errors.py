"""Errors by what the caller can do about them.

The tree::

    PenstockError
    ├── InvalidInput          the caller must change what it sent; carries FieldErrors
    ├── NotFound              the thing named does not exist
    ├── Conflict              somebody else changed it first: read again and retry
    │   └── AlreadyExists     a create of a name that is taken
    ├── Gone                  the position asked for is no longer kept: list again
    ├── Unavailable           try again later; nothing was changed
    │   └── Overloaded        a stated limit is reached; `retry_after_s` says when to come back
    └── Corrupt               stored bytes do not read as what was written

Every error's text is a complete sentence for a person: what is wrong, with which value, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "AlreadyExists",
    "Conflict",
    "Corrupt",
    "FieldError",
    "Gone",
    "InvalidInput",
    "NotFound",
    "Overloaded",
    "PenstockError",
    "Unavailable",
]


class PenstockError(Exception):
    """The root of everything that this platform raises on purpose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldError:
    """One broken rule at one place of a document.

    `path` is the field path as Kubernetes writes it (``spec.filter.attributes[type]``), `rule` what must hold,
    `value` the offending value (None where the field is missing).
    """

    path: str
    rule: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.path}: {self.rule}"
        return f"{self.path}: {self.rule} (got {self.value!r})"


class InvalidInput(PenstockError):
    """What was sent breaks one or more rules; nothing was changed."""

    def __init__(self, message: str, errors: Iterable[FieldError] = ()) -> None:
        self.errors = tuple(errors)
        super().__init__(message)

    @classmethod
    def of(cls, what: str, errors: Iterable[FieldError]) -> InvalidInput:
        """An error about `what` ("Trigger.eventing.knative.dev \\"scan\\"") listing every broken rule."""
        found = tuple(errors)
        return cls(f"{what} is invalid: " + "; ".join(str(error) for error in found), found)


class NotFound(PenstockError):
    """The named thing does not exist."""


class Conflict(PenstockError):
    """The thing changed since it was read. Read it again, reapply the change, and retry."""


class AlreadyExists(Conflict):
    """A create named something that exists."""


class Gone(PenstockError):
    """The position asked for is older than what is kept. List again and go on from there."""


class Unavailable(PenstockError):
    """Not possible now and nothing was changed; trying again later may work."""


class Overloaded(Unavailable):
    """A stated limit is reached. `retry_after_s` is when trying again makes sense, in seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Corrupt(PenstockError):
    """Stored bytes do not read as what was written; they are never delivered."""
