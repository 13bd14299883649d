"""The options for how long an event log keeps events, of the commands that run one."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import click

from broker.log.port import Retention
from penstock.cli.options import finite

__all__ = ["OPTIONS", "options", "taken"]

F = TypeVar("F")

#: No log keeps events for longer than a hundred years, nor more of them than a disk can have.
MAX_AGE_S: Final = 100 * 365 * 86_400.0
MAX_LOG_BYTES: Final = 2**60

_age: Final[Any] = {
    "type": click.FloatRange(0, MAX_AGE_S),
    "callback": lambda _context, _option, value: finite(value, MAX_AGE_S),
    "show_default": True,
}
_bytes: Final[Any] = {"type": click.IntRange(1, MAX_LOG_BYTES), "show_default": True}

OPTIONS: Final[tuple[Any, ...]] = (
    click.option(
        "--log-max-age",
        "max_age_s",
        default=Retention().max_age_s,
        envvar="PENSTOCK_LOG_MAX_AGE",
        help="Seconds after which an event goes, once every Trigger is done with it.",
        **_age,
    ),
    click.option(
        "--log-undelivered-age",
        "undelivered_age_s",
        default=Retention().undelivered_age_s,
        envvar="PENSTOCK_LOG_UNDELIVERED_AGE",
        help="The same for an event that could not be delivered anywhere.",
        **_age,
    ),
    click.option(
        "--log-max-bytes",
        "max_bytes",
        default=Retention().max_bytes,
        envvar="PENSTOCK_LOG_MAX_BYTES",
        help="The size from which delivered events go earlier.",
        **_bytes,
    ),
    click.option(
        "--log-full-bytes",
        "full_bytes",
        default=Retention().full_bytes,
        envvar="PENSTOCK_LOG_FULL_BYTES",
        help="The size from which new events are refused; no less than --log-max-bytes.",
        **_bytes,
    ),
)
_NAMES: Final = ("max_age_s", "undelivered_age_s", "max_bytes", "full_bytes")


def options(command: F) -> F:
    """A command with these options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def taken(told: dict[str, Any]) -> Retention:
    """What the options say, taken out of a command's arguments. Raises BadParameter where they do not fit together."""
    found = Retention(**{name: told.pop(name) for name in _NAMES})
    if found.full_bytes < found.max_bytes:
        raise click.BadParameter(
            f"{found.full_bytes} is less than --log-max-bytes, {found.max_bytes}: the log would be full "
            "before anything goes. Say more.",
            param_hint="--log-full-bytes",
        )
    return found
