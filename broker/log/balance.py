"""Which of the processes that share a log should deliver for which subscription: about as many each. Pure.

Each process looks at the same picture (who is there, and who holds what), works out the whole sharing, and does its
own part of it: claims what is free and its own to take, and gives what it has too much of. Pictures may differ for a
moment; whoever claims first has it, and the next look sets right what is uneven.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

__all__ = ["EVEN", "Plan", "plan"]

#: Loads that differ by less than this are even: moving one more would only turn the difference round.
EVEN: Final = 2


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one process does about it: the subscriptions to claim, and those to give, in order."""

    claim: tuple[str, ...] = ()
    give: tuple[str, ...] = ()


def plan(
    me: str,
    members: Mapping[str, int],
    holders: Mapping[str, str],
    *,
    leaving: Collection[str] = (),
    left: Collection[str] = (),
) -> Plan:
    """This process's part.

    `members` says how many subscriptions each process wants (one that ends wants fewer and fewer), `holders` who has
    each of them, "" for nobody. `leaving` are those of ours that are being given already: they go before others. `left`
    are those that were free for so long that whoever should have claimed them does not want them: they are ours to
    claim, and the last that we give.
    """
    wants = {**members, me: len(holders)}
    loads = dict.fromkeys(wants, 0)
    for holder in holders.values():
        if holder in loads:
            loads[holder] += 1
    claim = _claims(me, wants, loads, sorted(uid for uid, holder in holders.items() if not holder), left)
    mine = [uid for uid, holder in holders.items() if holder == me]
    mine.sort(key=lambda uid: (uid not in leaving, uid in left, uid))
    return Plan(claim=tuple(claim), give=tuple(mine[: _surplus(me, wants, loads)]))


def _claims(
    me: str, wants: Mapping[str, int], loads: dict[str, int], free: list[str], left: Collection[str]
) -> list[str]:
    """Which of the free ones are ours, each going to who has least; `loads` tells afterwards what all have then."""
    claim = [uid for uid in free if uid in left]
    loads[me] += len(claim)
    least = [(load, member) for member, load in loads.items() if load < wants[member]]
    heapq.heapify(least)
    for uid in free:
        if uid in left or not least:
            continue
        load, member = least[0]
        loads[member] = load + 1
        if load + 1 < wants[member]:
            heapq.heapreplace(least, (load + 1, member))
        else:
            heapq.heappop(least)
        if member == me:
            claim.append(uid)
    return claim


def _surplus(me: str, wants: Mapping[str, int], loads: dict[str, int]) -> int:
    """How many of ours go to others until all loads are even: step by step, from who has most to who has least of those
    that want more."""
    mine = loads[me]
    most = [(-load, member) for member, load in loads.items() if load]
    least = [(load, member) for member, load in loads.items() if load < wants[member]]
    heapq.heapify(most)
    heapq.heapify(least)
    while most and least:
        (high, giver), (low, taker) = most[0], least[0]
        if -high != loads[giver]:  # it took meanwhile
            heapq.heapreplace(most, (-loads[giver], giver))
        elif low != loads[taker]:
            heapq.heapreplace(least, (loads[taker], taker))
        elif -high - low < EVEN:
            break
        else:
            loads[giver] -= 1
            loads[taker] += 1
            heapq.heapreplace(most, (-loads[giver], giver))
            if loads[taker] < wants[taker]:
                heapq.heapreplace(least, (loads[taker], taker))
            else:
                heapq.heappop(least)
    return max(0, mine - loads[me])
