"""What the gateway tells the autoscaler: how many requests each revision has, on average over each second.

`DemandMeter` counts (pure, time is an argument); `DemandReporter` sends ``POST /penstock/v1/demand``. A report that is
lost costs nothing: while there is anything to tell, the next one follows a second later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from core.net.types import Address, Headers, NetError, Response
from serving.routing import Return, RevisionKey

__all__ = ["Demand", "DemandMeter", "DemandReport", "DemandReporter", "DemandSource", "Fetch"]

_log = logging.getLogger(__name__)

DEMAND_PATH: Final = b"/penstock/v1/demand"

#: Knative's activators and queue-proxies report once a second as well.
REPORT_EVERY_S: Final = 1.0

#: An answer later than this is of no use: the next report is on its way.
REPORT_TIMEOUT_S: Final = 2.0

#: Reports under way at once. More means that the control process is away; what they would say is repeated anyway.
MAX_REPORTS_UNDER_WAY: Final = 4

#: The answer has no content that matters.
MAX_ANSWER_BYTES: Final = 4096


class Demand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One revision's demand at one gateway: average of requests in flight and held over the last second, requests that
    arrived per second, and requests that wait now.

    A request that was handed over to another gateway counts there alone; `elsewhere` is how many came here and count
    at others, less those that came to others and count here.
    """

    namespace: str
    name: str
    concurrency: float
    rps: float
    queued: int
    elsewhere: int = 0

    @property
    def brought(self) -> float:
        """Requests that clients brought to this gateway, wherever they are now."""
        return max(0.0, max(self.concurrency, float(self.queued)) + self.elsewhere)


class DemandReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of ``POST /penstock/v1/demand``. `returned` are instances that were asked back and have no request of
    this gateway any more."""

    gateway: str
    revisions: tuple[Demand, ...]
    returned: tuple[Return, ...] = ()


class DemandMeter:
    """The time-weighted average of a revision's concurrency, and its arrivals.

    `arrive` and `leave` are told of every request; `close` ends a window and says what it saw.
    """

    __slots__ = ("_area", "_arrivals", "_quiet", "_updated_s", "concurrency")

    def __init__(self) -> None:
        #: Requests in flight and held, now.
        self.concurrency = 0
        self._area = 0.0
        self._arrivals = 0
        self._updated_s = 0.0
        self._quiet = True

    @property
    def quiet(self) -> bool:
        """Nothing is under way, nothing came since the last window, and that has been told."""
        return self._quiet

    def arrive(self, now_s: float) -> None:
        self._area += self.concurrency * (now_s - self._updated_s)
        self._updated_s = now_s
        self.concurrency += 1
        self._arrivals += 1
        self._quiet = False

    def leave(self, now_s: float) -> None:
        self._area += self.concurrency * (now_s - self._updated_s)
        self._updated_s = now_s
        self.concurrency -= 1

    def hand_over(self, now_s: float) -> None:
        """A request that arrived counts elsewhere."""
        self.leave(now_s)
        self._arrivals -= 1

    def take_back(self, now_s: float) -> None:
        """It counts here after all."""
        self.arrive(now_s)

    def close(self, now_s: float, length_s: float) -> tuple[float, float]:
        """End the window that began `length_s` ago: (average concurrency, arrivals per second)."""
        area = self._area + self.concurrency * (now_s - self._updated_s)
        self._quiet = not area and not self._arrivals and not self.concurrency
        # What arrived before this window may have been handed over in it.
        arrivals, self._arrivals = max(self._arrivals, 0), 0
        self._area, self._updated_s = 0.0, now_s
        return (area / length_s, arrivals / length_s) if length_s > 0 else (float(self.concurrency), 0.0)


class DemandSource(Protocol):
    """What the reporter asks: one revision's side of the gateway."""

    @property
    def key(self) -> RevisionKey: ...

    @property
    def meter(self) -> DemandMeter: ...

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        ...

    @property
    def away(self) -> int:
        """Requests that came here and count at other gateways."""
        ...

    @property
    def elsewhere(self) -> int:
        """The same, less those that came to others and count here."""
        ...


class Fetch(Protocol):
    """`Client.fetch`: one small request with a callback."""

    def __call__(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        then: Callable[[Response | NetError], None],
    ) -> Callable[[], None]: ...


class DemandReporter:
    """Sends reports: each second while there is anything to tell, with a last zero, and at once for a wake-up.

    The timer runs only while there is something to tell, so that an idle gateway does not wake up the machine.
    """

    def __init__(
        self,
        *,
        gateway_id: str,
        address: Address,
        fetch: Fetch,
        monotonic: Callable[[], float],
    ) -> None:
        self._gateway_id = gateway_id
        self._address = address
        self._fetch = fetch
        self._loud: dict[RevisionKey, DemandSource] = {}
        self._monotonic = monotonic
        self._headers: Headers = [
            (b"host", f"{address[0]}:{address[1]}".encode()),
            (b"content-type", b"application/json"),
        ]
        self._timer: asyncio.TimerHandle | None = None
        self._window_began_s = 0.0
        self._woken: dict[RevisionKey, DemandSource] = {}
        self._returned: frozenset[Return] = frozenset()
        self._wake: asyncio.Handle | None = None
        self._asked: set[RevisionKey] = set()
        self._under_way: dict[int, Callable[[], None]] = {}
        self._sent = 0
        self._away = False
        self._closed = False

    def watch(self, source: DemandSource) -> None:
        """`source` has traffic: report it every second until it is quiet. Cheap where that is so already."""
        self._loud[source.key] = source
        if self._timer is None and not self._closed:
            self._arm()

    def _arm(self) -> None:
        self._window_began_s = self._monotonic()
        self._timer = asyncio.get_running_loop().call_later(REPORT_EVERY_S, self._tick)

    def wake(self, source: DemandSource) -> None:
        """A request came for a revision without ready instance: say so at once, once per second and revision."""
        key = source.key
        if key in self._asked or self._closed:
            return
        self._asked.add(key)
        self._woken[key] = source
        self._soon()

    def give_back(self, returned: frozenset[Return]) -> None:
        """All instances that are asked back and free of requests: said at once, and each second until that is heard."""
        is_more = bool(returned - self._returned)
        self._returned = returned
        if is_more and not self._closed:
            self._soon()
            if self._timer is None:
                self._arm()

    def close(self) -> None:
        """Stop reporting; a report under way is given up."""
        self._closed = True
        for handle in (self._timer, self._wake):
            if handle is not None:
                handle.cancel()
        self._timer = self._wake = None
        for cancel in tuple(self._under_way.values()):
            cancel()
        self._under_way.clear()

    def _soon(self) -> None:
        if self._wake is None:
            # Requests that arrive in one turn of the loop share a report.
            self._wake = asyncio.get_running_loop().call_soon(self._send_woken)

    def _tick(self) -> None:
        self._timer = None
        self._asked.clear()
        now_s = self._monotonic()
        length_s = now_s - self._window_began_s
        told = []
        for key, source in tuple(self._loud.items()):
            if source.meter.quiet and not source.away:
                del self._loud[key]
            else:
                told.append(_demand(source, *source.meter.close(now_s, length_s)))
        if told or self._returned:
            self._send(told)
            self._arm()

    def _send_woken(self) -> None:
        self._wake = None
        woken, self._woken = self._woken, {}
        # The window has only begun, so what is there now says more than its average.
        self._send([_demand(source, float(source.meter.concurrency), 0.0) for source in woken.values()])

    def _send(self, told: list[Demand]) -> None:
        if len(self._under_way) >= MAX_REPORTS_UNDER_WAY:
            return
        self._sent += 1
        number = self._sent
        returned = tuple(sorted(self._returned))
        report = DemandReport(gateway=self._gateway_id, revisions=tuple(told), returned=returned)

        def answered(answer: Response | NetError) -> None:
            self._under_way.pop(number, None)
            self._note(answer)

        self._under_way[number] = self._fetch(
            self._address,
            b"POST",
            DEMAND_PATH,
            self._headers,
            msgspec.json.encode(report),
            timeout_s=REPORT_TIMEOUT_S,
            max_bytes=MAX_ANSWER_BYTES,
            then=answered,
        )

    def _note(self, answer: Response | NetError) -> None:
        """Log when the autoscaler goes away and when it is back, not every report in between."""
        problem = str(answer) if isinstance(answer, NetError) else ""
        if not problem and isinstance(answer, Response) and answer.status >= 300:
            problem = f"it answered {answer.status}"
        if bool(problem) == self._away:
            return
        self._away = bool(problem)
        if problem:
            _log.warning("The autoscaler does not take demand reports", extra={"facts": {"problem": problem}})
        else:
            _log.info("The autoscaler takes demand reports again")


def _demand(source: DemandSource, concurrency: float, rps: float) -> Demand:
    return Demand(
        namespace=source.key.namespace,
        name=source.key.name,
        concurrency=round(concurrency, 4),
        rps=round(rps, 2),
        queued=source.queued,
        elsewhere=source.elsewhere,
    )
