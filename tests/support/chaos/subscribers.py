"""The subscribers of a run, each with a fault of its own, all in the checker's process.

- all: takes everything. flaky: fails one time in four. slow: answers after up to 0.2 s.
- flapping: for about half a second at a time it closes every connection without a word.
- replies: answers each event with another one. ordered: flaky as well, and asks for order by key.
- letters: gets the dead letters of a subscriber that refuses everything.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from typing import Final

from tests.support.chaos.account import Account
from tests.support.chaos.http import Answer, Message

__all__ = ["EVENT_TYPE", "NAMES", "ORDERED", "REFUSING", "Subscribers", "data_of", "headers_of"]

#: Every accepted event and the reply to it must come to each of these.
NAMES: Final = ("all", "flaky", "slow", "flapping", "replies", "ordered", "letters")
ORDERED: Final = ("ordered",)
#: The subscriber whose dead letters go to `letters`.
REFUSING: Final = "refusing"
EVENT_TYPE: Final = "chaos.made"
_REPLY_TYPE: Final = "chaos.reply"

FAILS: Final = 0.25
SLOWEST_S: Final = 0.2
FLAP_S: Final = 0.5


def data_of(event: str) -> bytes:
    """The data that an event of this id has, so that it can be told from any other."""
    return f"{event} {zlib.crc32(event.encode()):08x} ".encode() * 20


def headers_of(event: str, event_type: str = EVENT_TYPE, key: str = "") -> dict[str, str]:
    """The event in binary mode."""
    attributes = {"ce-specversion": "1.0", "ce-id": event, "ce-source": "/chaos", "ce-type": event_type}
    return {"content-type": "text/plain", **attributes, **({"ce-partitionkey": key} if key else {})}


class Subscribers:
    """Answers requests to ``/<broker process's number>/<subscriber>``, and tells the account.

    `heard` is called after each event that was taken: an answer is on its way, and the broker does not know it yet.
    """

    def __init__(self, account: Account, rng: random.Random, heard: Callable[[], None]) -> None:
        self._account = account
        self._rng = rng
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._flap_at = 0.0
        self._down = False
        self._replies = 0
        self.well = False

    async def handle(self, request: Message) -> Answer | None:
        process, _, name = request.words[1][1:].partition("/")
        if name == REFUSING:
            return Answer(400)
        event, came = request.headers["ce-id"], self._loop.time()
        self._account.attempted(name, event, intact=request.body == data_of(event))
        if not self.well:
            if name in ("flaky", "ordered") and self._rng.random() < FAILS:
                return Answer(self._rng.choice((500, 503, 429)))
            if name == "slow":
                await asyncio.sleep(self._rng.uniform(0, SLOWEST_S))
            if name == "flapping" and self._is_down():
                return None
        now = self._loop.time()
        self._account.taken(name, event, int(process), now, waited_s=now - came)
        self._loop.call_soon(self._heard)
        if name != "replies" or request.headers["ce-type"] != EVENT_TYPE:
            return Answer(202)
        self._replies += 1
        reply = f"reply-{self._replies}-to-{event}"
        self._account.replied(event, reply)
        return Answer(200, headers_of(reply, _REPLY_TYPE), data_of(reply))

    def _is_down(self) -> bool:
        now = self._loop.time()
        if now >= self._flap_at:
            self._down = not self._down
            self._flap_at = now + self._rng.uniform(0.5, 1.5) * FLAP_S
        return self._down
