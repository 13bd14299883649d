"""Which events a command is asked for: the options that say so, as a query of the platform's API."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import click
import msgspec

from penstock.cli.pace import moment

__all__ = ["STATES", "Question", "asking", "filters_of"]

F = TypeVar("F", bound=Callable[..., Any])

#: How a delivery stands, in a word (`broker.sieve.STATES`, which would load the whole broker).
STATES: Final = ("delivered", "pending", "failed")
#: Attributes that have an option of their own.
_NAMED: Final = {"id": "--id", "source": "--source", "subject": "--subject", "type": "--type"}

_PAIR: Final = re.compile(r"([a-z0-9]+)=([^\s'\"()]+)\Z")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask with. `awaits` tells that events are wanted for what becomes of them, and not as they come."""

    query: tuple[tuple[str, str], ...] = ()
    awaits: bool = False


def asking(command: F) -> F:
    """The options; the command gets them as `question`."""

    @functools.wraps(command)
    def asked(**given: Any) -> Any:
        names = ("namespace", "broker", "trigger", "event_id", "since")
        own = {name: given.pop(name) for name in names}
        states = given.pop("states")
        filters = [*_exact(given), *_extensions(given.pop("extensions")), *filters_of(given.pop("filters"))]
        own["id"] = own.pop("event_id")
        query = [(name, str(value)) for name, value in own.items() if value is not None]
        query += [("state", state) for state in states]
        if filters:
            query.append(("filters", msgspec.json.encode(filters).decode()))
        awaits = bool(states) and "pending" not in states
        return command(question=Question(query=tuple(query), awaits=awaits), **given)

    decorated: Any = asked
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    result: F = decorated
    return result


_OPTIONS: Final = (
    click.option("--broker", help="Only events of this Broker; channels/NAME for a channel."),
    click.option("-n", "--namespace", help="Only events of this namespace.  [default: all]"),
    click.option("--type", "kind", help="Only events of this type."),
    click.option("--source", help="Only events of this source."),
    click.option("--subject", help="Only events of this subject."),
    click.option("--id", "event_id", help="Only events of this id."),
    click.option(
        "-e", "--extension", "extensions", multiple=True, metavar="NAME=VALUE", help="Only with this extension."
    ),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="EXPRESSION",
        help="Only what passes: CloudEvents SQL, NAME=VALUE, or a Trigger's `filters` as JSON.",
    ),
    click.option("--trigger", help="Only what went or goes to this Trigger: NAME, or NAMESPACE/NAME."),
    click.option(
        "--state",
        "states",
        multiple=True,
        type=click.Choice(STATES),
        help="Only what stands so, for --trigger or for any one.",
    ),
    click.option("--since", metavar="TIME", callback=moment, help="Only what arrived since: 2h, 30m, 7d, or RFC 3339."),
)


def _exact(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for option, name in (("kind", "type"), ("source", "source"), ("subject", "subject")):
        value = given.pop(option)
        if value is not None:
            yield {"exact": {name: value}}


def _extensions(pairs: Sequence[str]) -> Iterator[dict[str, Any]]:
    for text in pairs:
        name, sign, value = text.partition("=")
        if not sign or not value:
            raise click.UsageError(f"--extension {text!r} must be NAME=VALUE.")
        if name in _NAMED:
            raise click.UsageError(f"--extension {text!r}: {name} is not an extension; use {_NAMED[name]}.")
        yield {"exact": {name: value}}


def filters_of(given: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A Trigger's `filters` of what ``--filter`` was given. Raises UsageError where JSON cannot be read."""
    for text in given:
        pair = _PAIR.match(text)
        if pair:
            yield {"exact": {pair[1]: pair[2]}}
        elif text.lstrip().startswith(("[", "{")):
            try:
                read = msgspec.json.decode(text)
            except msgspec.DecodeError as error:
                raise click.UsageError(f"--filter {text!r} is not JSON: {error}.") from error
            yield from read if isinstance(read, list) else [read]
        else:
            yield {"cesql": text}
