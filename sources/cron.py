"""Cron schedules as PingSource takes them, worked out by cronsim.

The syntax is that of the parser Knative uses (robfig/cron v3): five fields, or six with seconds first; the words
@hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually; ``?`` for ``*``; and ``CRON_TZ=<zone>`` in front.
``@every`` is refused, as Knative refuses it. Daylight saving follows Debian's cron: a tick at a time that the clocks
jump over comes right after the jump, and one at a time that happens twice comes once.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Final, Literal
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from cronsim import CronSim, CronSimError

__all__ = ["CronError", "Schedule", "local_zone"]

_WORDS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SYNTAX: Final = 'five fields "minute hour day month weekday", six with seconds first, or a word such as @hourly'
_LOCALTIME: Final = Path("/etc/localtime")


class CronError(ValueError):
    """A schedule or time zone that cannot be read: which `field` of the spec it is, and the `rule` that it breaks."""

    def __init__(self, field: Literal["schedule", "timezone"], rule: str) -> None:
        self.field: Final = field
        self.rule: Final = rule
        super().__init__(f"{field} {rule}")


class Schedule(msgspec.Struct, frozen=True):
    """A checked cron expression in a time zone."""

    expression: str
    zone: tzinfo

    @classmethod
    def parse(cls, text: str, timezone: str = "", local: tzinfo = UTC) -> Schedule:
        """The schedule that `text` states; `local` is the zone where none is named. Raises CronError."""
        expression = text.strip()
        if expression.startswith(("CRON_TZ=", "TZ=")):
            if timezone:
                raise CronError("schedule", "must not name a time zone where timezone does")
            prefix, _, expression = expression.partition(" ")
            timezone = prefix.partition("=")[2]
        zone = _zone(timezone, local)
        if "@every" in expression:
            raise CronError("schedule", f"must be a cron schedule, not @every: {_SYNTAX}")
        if expression.startswith("@") and expression not in _WORDS:
            raise CronError("schedule", f"must be one of the words {', '.join(_WORDS)}, or {_SYNTAX}")
        expression = _WORDS.get(expression, expression).replace("?", "*")
        schedule = cls(expression, zone)
        try:
            first = schedule.next_after(0.0)
        except CronSimError as error:
            raise CronError("schedule", f"must be a cron schedule of {_SYNTAX}: {error}") from error
        if first is None:
            raise CronError("schedule", "names a date that never comes")
        return schedule

    def next_after(self, now: float) -> float | None:
        """The first tick later than `now` (both seconds since the epoch); None where there is none within decades."""
        after = datetime.fromtimestamp(now, self.zone)
        tick = next(CronSim(self.expression, after), None)
        return None if tick is None else tick.timestamp()


def local_zone() -> tzinfo:
    """The machine's time zone by name, so that daylight saving is followed: $TZ, /etc/localtime, else UTC."""
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name and _LOCALTIME.is_symlink():
        name = str(_LOCALTIME.readlink()).partition("zoneinfo/")[2]
    try:
        return _zone(name, UTC)
    except CronError:
        return UTC


def _zone(name: str, local: tzinfo) -> tzinfo:
    if name in ("", "Local"):
        return local
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        known = "" if available_timezones() else " (this machine has no time zone database; install tzdata)"
        raise CronError("timezone", f"must be a zone of the IANA database, such as Europe/Berlin{known}") from error
