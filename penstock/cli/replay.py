"""``penstock replay``: send stored events again, to one Trigger or to one Revision."""

from __future__ import annotations

import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from core.clock import rfc3339
from penstock.cli.asked import filters_of
from penstock.cli.context import Session, is_label, namespace_option, output_option, platform_options
from penstock.cli.failure import FAILED, Failure
from penstock.cli.output import print_json
from penstock.cli.pace import Pace, Patient, Rate, moment

__all__ = ["replay"]

PATH: Final = "/penstock/v1/replays"
#: Events of one request, at most (`broker.resending.resender.MAX_POSITIONS`).
TOGETHER: Final = 200
#: Events that a dry run shows, where it is not for programs.
SHOWN: Final = 20
#: Between two looks at how the events stand.
LOOK_S: Final = 0.5
#: An event in one of these states comes to another one by itself.
UNSETTLED: Final = frozenset({"pending", "retrying"})

Selected = Mapping[str, Any]


@click.command(short_help="Send stored events again, to one Trigger or Revision.")
@click.option("--trigger", required=True, help="Who gets them.")
@click.option("--revision", help="A Revision that gets them instead of the Trigger's subscriber.")
@click.option("--since", metavar="TIME", callback=moment, help="What arrived since: 2h, 30m, 7d, or RFC 3339.")
@click.option("--until", metavar="TIME", callback=moment, help="What arrived before.  [default: now]")
@click.option("--all", "everything", is_flag=True, help="From the oldest stored event on.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="The events of this id, whatever the filter says.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="EXPRESSION",
    help="Instead of the Trigger's own: CloudEvents SQL, NAME=VALUE, or a Trigger's `filters` as JSON, [] for all.",
)
@click.option("--rate", type=Rate(), default=50.0, show_default=True, help="A second; 0: no limit.")
@click.option("--dry-run", is_flag=True, help="Only tell which events and how many.")
@click.option("--resume", metavar="REPLAY", help="Go on with this replay: what it has sent is left out.")
@click.option("--wait", is_flag=True, help="Wait until each is delivered or given up, and tell how many.")
@namespace_option
@output_option("text", "json")
@platform_options
def replay(
    trigger: str,
    revision: str | None,
    since: float | None,
    until: float | None,
    everything: bool,
    ids: tuple[str, ...],
    filters: tuple[str, ...],
    rate: float,
    dry_run: bool,
    resume: str | None,
    wait: bool,
    namespace: str,
    output: str,
    server: str | None,
    data: Path,
) -> None:
    """Send stored events of a Trigger's Broker again, oldest first: to that Trigger alone, or to one Revision.

    Chosen are events that the Trigger's filter lets through, as it is now, or --filter instead, or those of some ids.
    Each is stored as a new event with the extension attribute penstockreplay, and delivered with the Trigger's own
    retries and dead-letter sink. Events that were sent again themselves are left out.

    \b
    Examples:
      penstock replay --trigger orders --since 2h --dry-run
      penstock replay --trigger orders --since 2026-11-25T08:00:00Z --until 2026-11-25T09:00:00Z --rate 10 --wait
      penstock replay --trigger orders --revision orders-00003 --since 1d --filter "type LIKE 'order.%'"
      penstock replay --trigger orders --id order-1 --id order-2
    """
    if since is None and not ids and not everything:
        raise click.UsageError("Say which events: --since TIME, --id ID, or --all of the stored ones.")
    if everything and since is not None:
        raise click.UsageError("--all and --since are two beginnings; give one.")
    if resume is not None and not is_label(resume):
        raise click.UsageError(f"--resume {resume!r} is no replay's name, such as replay-1a2b3c4d.")
    session = Patient(Session(server, data))
    end = time.time() if until is None else until
    criteria = {
        "namespace": namespace,
        "trigger": trigger,
        "since": since,
        "until": end,
        "filters": list(filters_of(filters)) if filters else None,
        "ids": ids,
    }
    target = f"the Revision {namespace}/{revision}" if revision else f"the Trigger {namespace}/{trigger}"
    selected = _selected(session, criteria)
    if dry_run:
        _tell(selected, target, output)
        return
    name = resume or f"replay-{uuid.uuid4().hex[:8]}"
    sending = {"replay": name, "namespace": namespace, "trigger": trigger, "revision": revision, "resumed": True}
    sender = _Sender(session, sending, [found["position"] for found in selected], rate, show=output == "text")
    again = f"The same command goes on with: --until {rfc3339(end, fraction=True)} --resume {name}"
    if since is not None:
        again += f" --since {rfc3339(since, fraction=True)}"
    try:
        sender.run()
    except KeyboardInterrupt:
        raise Failure(f"Interrupted. {sender.told(target)}", hint=again) from None
    except Failure as failure:
        raise Failure(f"{failure.message} {sender.told(target)}", hint=again, code=failure.exit_code) from failure
    states = _awaited(session, namespace, trigger, sender.positions) if wait else None
    _report(sender, name, target, states, output)
    undelivered = states is not None and set(states) - {"delivered"}
    if sender.missing or undelivered:
        raise click.exceptions.Exit(FAILED)


def _selected(session: Patient, criteria: Mapping[str, Any]) -> Iterator[Selected]:
    """All events that the replay is for. Says where some are corrupt and cannot be replayed."""
    after: dict[str, Any] = {}
    corrupt = 0
    while True:
        body = {**criteria, **after, "limit": TOGETHER}
        selection = session.request("POST", f"{PATH}/selection", body=body)["selection"]
        corrupt += selection["corrupt"]
        yield from selection["candidates"]
        if selection["next"] is None:
            break
        after = {"after": selection["next"], "through": selection["through"]}
    if corrupt:
        click.echo(f"{corrupt} stored events are corrupt and are left out.", err=True)


def _tell(selected: Iterator[Selected], target: str, output: str) -> None:
    """What a replay would send."""
    count = 0
    for found in selected:
        count += 1
        if output == "json":
            click.echo(msgspec.json.encode(found))
        elif count <= SHOWN:
            click.echo(f"{found['time'][:23].replace('T', ' ')}  {found['type']}  {found['id']}")
    if output == "text" and count > SHOWN:
        click.echo(f"... and {count - SHOWN} more")
    click.echo(f"{_count(count)} would be sent to {target}; without --dry-run they are.", err=True)


class _Sender:
    """Sends the events at these positions at a rate, and counts. `show` has it tell how far it is on a terminal."""

    def __init__(
        self, session: Patient, sending: Mapping[str, Any], chosen: Sequence[int], rate: float, *, show: bool
    ) -> None:
        self._session = session
        self._sending = sending
        self.chosen = chosen
        self._rate = rate
        self._show = show and sys.stderr.isatty()
        self.sent = self.before = self.missing = 0
        #: What the events have got.
        self.positions: list[int] = []

    def run(self) -> None:
        pace = Pace(self._rate)
        together = pace.together(TOGETHER)
        for start in range(0, len(self.chosen), together):
            some = self.chosen[start : start + together]
            pace.wait(len(some))
            answer = self._session.request("POST", PATH, body={**self._sending, "positions": some})
            self.sent += answer["sent"]
            self.before += answer["before"]
            self.missing += answer["missing"]
            self.positions += answer["positions"]
            if self._show:
                click.echo(f"\r{start + len(some)} of {len(self.chosen)}", nl=False, err=True)
        if self._show and self.chosen:
            click.echo(err=True)

    def told(self, target: str) -> str:
        """How far it is, in sentences."""
        text = f"{self.sent} of {_count(len(self.chosen))} sent to {target}."
        if self.before:
            text += f" {self.before} had been sent before."
        if self.missing:
            text += f" {self.missing} are no longer kept."
        return text


def _awaited(session: Patient, namespace: str, trigger: str, positions: Sequence[int]) -> dict[str, int]:
    """How many of these events came to which end. Ctrl-C ends the waiting, not the deliveries."""
    counts: Counter[str] = Counter()
    try:
        for start in range(0, len(positions), TOGETHER):
            body = {"namespace": namespace, "trigger": trigger, "positions": positions[start : start + TOGETHER]}
            while True:
                states = session.request("POST", f"{PATH}/states", body=body)["states"]
                if not UNSETTLED & set(states):
                    break
                time.sleep(LOOK_S)
            counts.update(states)
    except KeyboardInterrupt:
        counts["not waited for"] = len(positions) - sum(counts.values())
    return dict(counts)


def _report(sender: _Sender, name: str, target: str, states: Mapping[str, int] | None, output: str) -> None:
    if output == "json":
        counted = {"events": len(sender.chosen), "sent": sender.sent, "before": sender.before}
        told = {"replay": name, **counted, "missing": sender.missing, "positions": sender.positions}
        print_json(told if states is None else {**told, "states": states})
        return
    click.echo(sender.told(target))
    if states is not None:
        click.echo(", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "nothing to wait for")
    if sender.sent:
        hint = f"See them with: penstock events -e penstockreplay={name}; those that fail: penstock dlq list"
        click.secho(hint, dim=True)


def _count(number: int) -> str:
    return f"{number} event" + ("" if number == 1 else "s")
