"""Working through many things: at a rate, through a restart of the platform, and from times that people write."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import click

from penstock.cli.api import Refused
from penstock.cli.context import PATIENCE_S, Session, Waiting
from penstock.cli.failure import Failure

__all__ = ["RETRY_S", "Pace", "Patient", "Rate", "moment"]

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])\Z")
#: Between two tries while the platform does not answer, or says that it cannot now.
RETRY_S: Final = 0.5
REQUESTS_A_SECOND: Final = 5
_UNAVAILABLE: Final = 503
MAX_RATE: Final = 100_000
#: One in a quarter of an hour. Waits grow without end below, to more than a clock can sleep.
MIN_RATE: Final = 0.001


class Rate(click.FloatRange):
    """An option's rate, a second: 0, or what `Pace` can keep to. A range alone lets NaN through."""

    def __init__(self) -> None:
        super().__init__(0, MAX_RATE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        rate = float(super().convert(value, param, ctx))
        if math.isnan(rate) or 0 < rate < MIN_RATE:
            self.fail(f"{value} is no rate: give 0 for no limit, or from {MIN_RATE} to {MAX_RATE}.", param, ctx)
        return rate


class Pace:
    """Not more than `rate` a second, 0 for no limit."""

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._next = clock()

    def together(self, most: int) -> int:
        """How many go in one request: a fifth of a second's, so that it is a stream and not a burst a second."""
        return most if self._rate <= 0 else min(most, max(1, int(self._rate / REQUESTS_A_SECOND)))

    def wait(self, count: int) -> None:
        """Wait until the next `count` may go; what was not used before is not made up for."""
        if self._rate <= 0:
            return
        now = self._clock()
        if self._next > now:
            self._sleep(self._next - now)
        self._next = max(self._next, now) + count / self._rate


def moment(_context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """An option's time, in seconds since the epoch: RFC 3339, or how long ago."""
    if value is None:
        return None
    ago = _AGO.match(value)
    if ago:
        return time.time() - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        # The earliest and latest years have no timestamp where the local time is another day's.
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is no time: write 2h, 30m, 7d, or 2026-11-25T18:00:00Z.") from error


class Patient:
    """Asks a platform many things. Once it has answered, it is asked again while it is started anew or cannot answer
    now, for as long as `PATIENCE_S`; what is asked may then be done twice."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._answered = False
        #: Whether the last question was asked more than once, so that what it asks may have been done before.
        self.repeated = False

    def request(self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: Any = None) -> Any:
        """As `Api.request`. Raises Refused and Failure."""
        waiting = Waiting()
        until = time.monotonic() + PATIENCE_S
        self.repeated = False
        while True:
            try:
                answer = self._session.api.request(method, path, query=query, body=body)
            except Refused as refusal:
                self._answered = True
                if refusal.status != _UNAVAILABLE or time.monotonic() > until:
                    raise
            except Failure as failure:
                if not self._answered:
                    raise
                waiting.bear(failure)
                self._session.forget()
            else:
                self._answered = True
                return answer
            self.repeated = True
            time.sleep(RETRY_S)
