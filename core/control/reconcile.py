"""What a reconciler is: a pure decision about one resource. The loop that carries it out is `core.control.loop`.

``decide(resource, view, now)`` looks at the resource and, through `view`, at the last known state of whatever it
depends on, and returns the status it should have and the actions that bring the world nearer to what is wanted. It does
no I/O and may be called at any time, any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from core.resources import Key, KindRef, Resource

__all__ = ["Action", "Apply", "Delete", "Outcome", "Reconciler", "Remove", "View"]


class View(Protocol):
    """The loop's cache: the last known state, read-only and without waiting."""

    def get(self, key: Key) -> Resource | None: ...

    def list(self, kind: KindRef, namespace: str | None = None) -> Sequence[Resource]: ...

    def owned(self, owner: Resource, kind: KindRef) -> Sequence[Resource]:
        """Resources of `kind` that have `owner` as their controller."""
        ...


class Apply(msgspec.Struct, frozen=True):
    """Create the resource, or update the existing one's labels, annotations, owner references and body (not status)."""

    resource: Resource


class Delete(msgspec.Struct, frozen=True):
    """Delete the resource of this key if its uid is this one; one that is gone already is fine."""

    key: Key
    uid: str


class Remove(msgspec.Struct, frozen=True):
    """Take a finalizer off the resource being reconciled."""

    finalizer: str


Action = Apply | Delete | Remove


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `status` None leaves it alone; `again_in_s` asks for another look after that many seconds."""

    status: dict[str, Any] | None = None
    actions: tuple[Action, ...] = ()
    again_in_s: float | None = None


class Reconciler(Protocol):
    """A decision about one kind of resource.

    `related` maps each other kind whose changes matter to a function that names the resources of `kind` to look at
    again when such a resource changes; the view's cache holds `kind` and all related kinds, nothing else.
    """

    @property
    def kind(self) -> KindRef: ...

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]: ...

    def decide(self, resource: Resource, view: View, now: float) -> Outcome: ...
