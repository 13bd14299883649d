"""Events that are for one subscription alone: replayed ones, and dead letters that are sent again.

Whom such an event is for stands in a line of its own before its header lines, so that every log keeps it as it keeps
the head, under the same checksum, and the bytes of all other events are what they always were.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["Direction", "directed_head", "split_head"]

#: No event has a header line of this name: in a stored head they begin with ``ce-``, but for the content type.
_LINE: Final = b"penstock-only: "


class Direction(msgspec.Struct, frozen=True):
    """Whom an event is for: the subscription `uid` (the Trigger's), whatever its filter says. `uri` is where the event
    goes instead of to the Trigger's subscriber. Neither has a space in it."""

    uid: str
    uri: str | None = None


def directed_head(head: bytes, only: Direction | None) -> bytes:
    """The header lines as they are stored."""
    if only is None:
        return head
    words = only.uid if only.uri is None else f"{only.uid} {only.uri}"
    return b"%b%b\r\n%b" % (_LINE, words.encode(), head)


def split_head(stored: bytes) -> tuple[bytes, Direction | None]:
    """The header lines, and whom the event is for. Raises ValueError where that cannot be read."""
    if not stored.startswith(_LINE):
        return stored, None
    line, _, head = stored.partition(b"\r\n")
    uid, _, uri = line[len(_LINE) :].decode().partition(" ")
    return head, Direction(uid, uri or None)
