"""How the instances of a Revision with a hard limit are shared out among gateways: a pure decision.

The limit holds because an instance has one owner at a time, and changes it only when the former owner has no request
under way there any more: it said so (`Released`), or it is lost (`serving.gateways.Absences`). Otherwise:

- An instance stays where it is, so that connections and queues stay as well.
- A new one goes to the gateway that has most to do for each instance that it would then have; before there is anything
  to do, to the one that has fewest.
- One that idles at one gateway while requests wait at another is asked back and goes there.
- A gateway that is being ended is asked to give back all that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from serving.gateways import Gateway, Holding, Standing

__all__ = ["MOVE_EVERY_S", "Sharing", "share"]

#: How much more there must be to do for an instance elsewhere before it is moved: below that, moving costs more than it
#: brings, and two gateways with about as much to do would take turns.
MOVE_FACTOR: Final = 1.5

#: Between two moves for the same revision: demand is told each second, and goes up and down from one to the next.
MOVE_EVERY_S: Final = 5.0

#: One more than this part of all instances is moved at a time; the next look sees what that brought.
MOVED_PART: Final = 8


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision is made from.

    `holdings` tells of each ready instance; `need` how many requests clients brought to each gateway and are not done;
    `lost` the gateways, and `released` the instances, with nothing under way; `limit` the requests that an instance
    takes at a time (at least 1). `settled` says that nothing was moved for `MOVE_EVERY_S`.
    """

    holdings: Mapping[str, Holding]
    gateways: Mapping[str, Gateway]
    need: Mapping[str, float]
    lost: AbstractSet[str]
    released: AbstractSet[str]
    limit: int
    settled: bool = True


def share(now: Sharing) -> dict[str, Holding]:
    """Whose each instance is to be."""
    takers = sorted(id_ for id_, gateway in now.gateways.items() if gateway.standing is Standing.READY)
    said = {name: _kept(now, name, whose, bool(takers)) for name, whose in now.holdings.items()}
    counts = Counter(whose.owner for whose in said.values() if whose.owner)
    for name, whose in said.items():
        if takers and not whose.owner and not whose.before:
            taker = max(takers, key=lambda id_: (now.need.get(id_, 0.0) / (counts[id_] + 1), -counts[id_]))
            said[name] = Holding(owner=taker)
            counts[taker] += 1
    if now.settled and not any(whose.before for whose in said.values()):
        _move(now, said, counts, takers)
    return said


def _kept(now: Sharing, name: str, whose: Holding, is_wanted: bool) -> Holding:
    """What is left of a holding, whatever becomes of the instance then."""
    if whose.owner:
        if whose.owner in now.lost:
            return Holding()
        gateway = now.gateways.get(whose.owner)
        if is_wanted and gateway is not None and gateway.standing is Standing.ENDING:
            return Holding(before=whose.owner)
        return whose
    if whose.before in now.lost or name in now.released:
        return Holding()
    return whose


def _move(now: Sharing, said: dict[str, Holding], counts: Counter[str], takers: list[str]) -> None:
    """Ask instances back from who has little to do for each, where another has more than its own can take."""
    for _ in range(1 + len(said) // MOVED_PART):
        short = [id_ for id_ in takers if now.need.get(id_, 0.0) > counts[id_] * now.limit]
        givers = [id_ for id_ in takers if counts[id_]]
        if not short or not givers:
            return
        taker = max(short, key=lambda id_: now.need[id_] / (counts[id_] + 1))
        giver = min(givers, key=lambda id_: now.need.get(id_, 0.0) / counts[id_])
        gain = now.need[taker] / (counts[taker] + 1)
        if taker == giver or gain <= MOVE_FACTOR * now.need.get(giver, 0.0) / counts[giver]:
            return
        name = max(name for name, whose in said.items() if whose.owner == giver)
        said[name] = Holding(before=giver)
        counts[giver] -= 1
        counts[taker] += 1
