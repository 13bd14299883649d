"""What the state topic says: where subscriptions are, who is there, and who dispatches for what. Pure.

Every process reads the topic from its beginning and comes to the same picture, because it depends on nothing but the
records in their order and on Kafka's times on them. So the topic settles what a lock service would. A process asks for
subscriptions in what it says of itself; where the asking stands in the topic, a subscription is granted that nobody
has: whoever had it gave it back, or said nothing for a lease's time. The offset of the asking is its fencing token, and
a position that stands after a newer grant than its own is not kept.

Compaction removes what was superseded a minute ago and longer (`topics.py`). What a process says is complete each time,
so that a reader who begins amid askings has the right picture after a lease's time. Until then an asking is granted
only for want of better knowledge: whoever says that it holds the subscription is believed instead.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from broker.log.kafka.layout import FORMAT_KEY, Kept, Stored, decode_kept, decode_said
from core.errors import Corrupt

__all__ = ["LEASE_S", "NO_TOKEN", "Holder", "State"]

logger = logging.getLogger(__name__)

#: What a crashed process's subscriptions wait for at most, until others may ask for them.
LEASE_S: Final = 5.0
#: Of a subscription that nobody was ever granted.
NO_TOKEN: Final = 0


class Holder(msgspec.Struct, frozen=True):
    """Who dispatches for a subscription, and under which fencing token."""

    owner: str
    token: int


class _Member(msgspec.Struct):
    life: str
    wants: int
    heard_ms: int
    holds: frozenset[str]


class State:
    """The picture after all records so far."""

    def __init__(self) -> None:
        #: The next offset to be read.
        self.next = 0
        #: The format that the log has, empty in a new one.
        self.format = b""
        #: Positions that nobody took.
        self.undelivered: set[int] = set()
        self._kept: dict[str, bytes] = {}
        self._kept_ms: dict[str, int] = {}
        self._memos: dict[str, bytes] = {}
        self._holders: dict[str, Holder] = {}
        self._fences: dict[str, int] = {}
        self._members: dict[str, _Member] = {}
        #: Granted while a holder may have been unknown that had spoken in what is missing of the topic.
        self._doubtful: set[str] = set()
        self._now_ms = 0
        #: When the topic was last read on after a hole.
        self._whole_since_ms: int | None = None

    def apply(self, record: Stored) -> None:
        self._now_ms = max(self._now_ms, record.time_ms)
        if record.offset != self.next:
            self._whole_since_ms = self._now_ms
        self.next = record.offset + 1
        kind, _, rest = record.key.partition(b":")
        name = rest.decode(errors="replace")
        if kind == b"p":
            self._apply_kept(name, record)
        elif kind == b"r":
            # Not fenced: a late one of a process that lost its lease only has attempts counted less exactly.
            self._memos[name] = record.value or b""
        elif kind == b"m":
            self._apply_said(name, record)
        elif kind == b"u" and name.isdecimal():
            if record.value is None:
                self.undelivered.discard(int(name))
            else:
                self.undelivered.add(int(name))
        elif record.key == FORMAT_KEY:
            self.format = record.value or b""

    # ---- what it tells

    def holder(self, uid: str) -> Holder | None:
        """Who has it; None where it is free, also because who had it is not there any more."""
        found = self._holders.get(uid)
        return found if found is not None and self._is_there(found.owner) else None

    def members(self) -> dict[str, int]:
        """The processes that are there, and how many subscriptions each wants."""
        return {owner: member.wants for owner, member in self._members.items() if self._is_there(owner)}

    def life(self, owner: str) -> str:
        """Which life of it spoke last; "" for none."""
        member = self._members.get(owner)
        return member.life if member is not None else ""

    def kept(self, uid: str) -> Kept | None:
        """The subscription as it was last kept; None where it is not, or cannot be read."""
        stored = self._kept.get(uid)
        kept = _decoded(uid, stored) if stored is not None else None
        return None if kept is None or kept.dropped else kept

    def kept_ms(self, uid: str) -> int:
        """When it was last kept, by Kafka's clock."""
        return self._kept_ms.get(uid, 0)

    def memo(self, uid: str) -> bytes:
        """What was last remembered of the subscription; empty where nothing was."""
        return self._memos.get(uid, b"")

    def all_kept(self) -> dict[str, Kept]:
        return {uid: kept for uid in self._kept if (kept := self.kept(uid)) is not None}

    def stored(self) -> dict[str, bytes]:
        """All subscriptions as they are stored, dropped ones too, by uid."""
        return self._kept

    # ---- inside

    def _is_there(self, owner: str) -> bool:
        member = self._members.get(owner)
        return member is not None and self._now_ms - member.heard_ms <= LEASE_S * 1000

    def _apply_kept(self, uid: str, record: Stored) -> None:
        kept = _decoded(uid, record.value) if record.value is not None else None
        if kept is None:
            self._kept.pop(uid, None)
            self._kept_ms.pop(uid, None)
            self._fences.pop(uid, None)
            return
        if kept.dropped:  # for good: what is still in flight for it brings nothing back
            self._memos.pop(uid, None)
            self._fences[uid] = record.offset + 1
        elif kept.token < self._fences.get(uid, NO_TOKEN):
            return  # of a process that another one has taken over from
        else:
            self._fences[uid] = kept.token
        self._kept[uid] = record.value or b""
        self._kept_ms[uid] = record.time_ms

    def _apply_said(self, owner: str, record: Stored) -> None:
        before = self._members.pop(owner, None)
        try:
            said = decode_said(record.value) if record.value is not None else None
        except Corrupt as error:
            logger.error("a process cannot be understood", extra={"facts": {"owner": owner, "error": str(error)}})
            said = None
        for uid in before.holds if before is not None else ():
            if (said is None or uid not in said.holds) and self._holders[uid].owner == owner:
                del self._holders[uid]
                self._doubtful.discard(uid)
        if said is None:
            return
        held = {uid for uid, token in said.holds.items() if self._goes_on(uid, owner, token)}
        held |= {uid for uid in said.asks if self._is_granted(uid, owner, record.offset + 1)}
        self._members[owner] = _Member(said.life, said.wants, record.time_ms, frozenset(held))

    def _goes_on(self, uid: str, owner: str, token: int) -> bool:
        found = self._holders.get(uid)
        if found is not None and found.token > token and uid not in self._doubtful:
            return False  # it was taken over meanwhile
        self._doubtful.discard(uid)
        self._set(uid, Holder(owner, token))
        self._fence(uid, token)
        return True

    def _is_granted(self, uid: str, owner: str, token: int) -> bool:
        found = self.holder(uid)
        if found is not None and found.owner != owner:
            return False
        self._set(uid, Holder(owner, token))
        if self._knows_all():
            self._doubtful.discard(uid)
            self._fence(uid, token)
        else:
            self._doubtful.add(uid)
        return True

    def _knows_all(self) -> bool:
        """Whether everybody who is there has spoken in what was read."""
        return self._whole_since_ms is None or self._now_ms - self._whole_since_ms > LEASE_S * 1000

    def _set(self, uid: str, holder: Holder) -> None:
        before = self._holders.get(uid)
        if before is not None and before.owner != holder.owner and before.owner in self._members:
            member = self._members[before.owner]
            member.holds -= {uid}
        self._holders[uid] = holder

    def _fence(self, uid: str, token: int) -> None:
        self._fences[uid] = max(token, self._fences.get(uid, NO_TOKEN))


def _decoded(uid: str, stored: bytes) -> Kept | None:
    try:
        return decode_kept(stored)
    except Corrupt as error:
        facts = {"uid": uid, "error": str(error)}
        logger.error("a Trigger's events since its creation are delivered again", extra={"facts": facts})
        return None
