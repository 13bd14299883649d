"""How events and their stories look: a line an event, a tree an explanation. The shapes are those of `broker.app`."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

__all__ = ["attempt_line", "clause", "event_line", "explanation_lines", "next_steps"]

_COLOURS: Final = {
    "delivered": "green",
    "retrying": "yellow",
    "pending": "yellow",
    "dead-lettered": "red",
    "dropped": "red",
    "dead": "red",
    "corrupt": "red",
    "redriven": "yellow",
}
_MARKS: Final = {"delivered": "✓", "retrying": "↻", "pending": "…", "redriven": "⟲", "repeat": "≡"}

#: What a state means, where its name does not say it all.
_MEANINGS: Final = {
    "pending": "on its way, or waiting for its turn",
    "retrying": "another attempt follows",
    "dead-lettered": "given up; the dead-letter sink has it",
    "dropped": "given up, and there is no dead-letter sink",
    "dead": "given up, and the dead-letter sink did not take it",
    "not offered": "the event is older than this Trigger, or than its present filter",
    "corrupt": "the stored bytes are not what was written, so nobody got it",
    "redriven": "given up, and sent again by hand as another event",
    "discarded": "given up, and dropped by hand",
    "repeat": "an event of its source and id came before it",
}

#: Rows of the ledger that are no attempts: `broker.ledger.SETTLED`.
_BY_HAND: Final = frozenset({"redriven", "discarded"})

#: Next steps that are told of one event.
MAX_STEPS: Final = 3

Event = Mapping[str, Any]


def event_line(event: Event) -> str:
    """One line: when, what, about what, and how it stands for each Trigger that was tried."""
    clock = event["time"][11:23]
    if event["corrupt"]:
        return f"{clock}  {click.style('corrupt', fg='red')}  position {event['seq']} of {event['broker']}"
    subject = event.get("subject") or event["id"]
    states = "  ".join(_delivery(delivery) for delivery in event["deliveries"])
    reply = "↳ " if event.get("cause") else "⟲ " if event.get("only") else ""
    return (
        f"{click.style(clock, dim=True)}  {reply}{click.style(event['type'], bold=True)}  {subject}  {states}".rstrip()
    )


def _delivery(delivery: Mapping[str, Any]) -> str:
    state = delivery["state"]
    name = delivery["trigger"].rpartition("/")[2]
    tries = f" ({delivery['attempts']} attempts)" if delivery["attempts"] > 1 else ""
    return click.style(f"{_MARKS.get(state, '✗')} {name}", fg=_COLOURS.get(state)) + tries


def explanation_lines(explanations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The stories of all events of an id, as trees."""
    for number, told in enumerate(explanations):
        if number:
            yield ""
        yield from _explained(told, "")


def next_steps(explanations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a person would want to do about deliveries that were given up, for the first few of them."""
    letters = list(itertools.islice(_given_up(explanations), MAX_STEPS))
    return [f"Send it again, as it is or edited: penstock dlq redrive {letter}" for letter in letters]


def _given_up(explanations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The dead letters of these events and of their replies."""
    for told in explanations:
        for trigger in told["triggers"]:
            if trigger["state"] in ("dropped", "dead"):
                yield shlex.quote(f"{trigger['trigger']}/{told['event']['seq']}")
            yield from _given_up(trigger["replies"])


def _explained(told: Mapping[str, Any], indent: str) -> Iterator[str]:
    event = told["event"]
    if event["corrupt"]:
        yield f"{indent}{click.style('corrupt', fg='red')}: position {event['seq']} is not what was written"
        return
    yield f"{indent}{click.style(event['type'], bold=True)}  {event.get('subject') or ''}".rstrip()
    stored = f"stored {event['time']} at {event['broker']}, position {event['seq']}, {event['size']} bytes"
    yield click.style(f"{indent}id {event['id']}  source {event['source']}  {stored}", dim=True)
    if event.get("only"):
        replay = event["attributes"].get("penstockreplay")
        named = f" by {replay}" if replay else ""
        of = f" for position {event['repeats']}" if event.get("repeats") else ""
        yield f"{indent}⟲ sent again{named}{of}, to {event['only'].rpartition('/')[2]} alone"
    last = len(told["triggers"]) - 1
    for number, trigger in enumerate(told["triggers"]):
        branch, below = ("└─ ", "   ") if number == last else ("├─ ", "│  ")
        yield f"{indent}{branch}{_trigger(trigger)}"
        for attempt in trigger["attempts"]:
            yield f"{indent}{below}{attempt_line(attempt)}"
        for reply in trigger["replies"]:
            yield f"{indent}{below}reply:"
            yield from _explained(reply, f"{indent}{below}")
        for repeat in trigger.get("repeats") or ():
            yield f"{indent}{below}sent again:"
            yield from _explained(repeat, f"{indent}{below}")
    if not told["triggers"]:
        yield f"{indent}└─ nobody wanted it: this Broker has no Trigger"
    if told["cut"]:
        yield f"{indent}(more replies than are shown)"


def _trigger(trigger: Mapping[str, Any]) -> str:
    state = click.style(trigger["state"], fg=_COLOURS.get(trigger["state"]))
    name = trigger["trigger"].rpartition("/")[2]
    failed = trigger.get("failed")
    if failed:
        return f"{name}: {state}: {clause(failed)}"
    gone = " (this Trigger is gone)" if trigger["matched"] is None else ""
    meaning = trigger.get("waits_for") or _MEANINGS.get(trigger["state"], "")
    return f"{name}: {state}{gone}" + (f": {meaning}" if meaning else "")


def clause(verdict: Mapping[str, Any]) -> str:
    """Which clause of the filter says no, on which value."""
    if not verdict.get("attribute"):
        return f"{verdict.get('clause', 'filter')}: {verdict.get('wanted', '')}"
    value = verdict.get("value")
    met = "the event has no such attribute" if value is None else f"the event has {value!r}"
    return f"{verdict.get('clause', 'filter')}: {verdict.get('attribute', '')} {verdict.get('wanted', '')}; {met}"


def attempt_line(attempt: Mapping[str, Any], *, dated: bool = False) -> str:
    """One attempt: when, what was answered by whom, how long it took, and what followed. With `dated`, the day too."""
    clock = attempt["time"][:23].replace("T", " ") if dated else attempt["time"][11:23]
    if attempt["outcome"] in _BY_HAND:
        return f"by hand    {clock}  {attempt['outcome']}  {attempt.get('reason') or ''}".rstrip()
    if not attempt["number"]:  # nothing was sent
        return f"not sent   {clock}  {attempt['outcome']}  {attempt.get('reason') or ''}".rstrip()
    status = str(attempt["status"] or "no answer")
    reason = f"  {attempt['reason']}" if attempt.get("reason") else ""
    outcome = click.style(attempt["outcome"], fg=_COLOURS.get(attempt["outcome"]))
    if attempt["outcome"] in ("dead-lettered", "dead"):
        outcome += " (sent to the dead-letter sink)"
    revision = f" from {attempt['revision']}" if attempt.get("revision") else ""
    latency = f"{attempt['latency_ms']:.1f} ms"
    if attempt.get("cold_start_ms") is not None:
        latency += click.style(f" (cold start {attempt['cold_start_ms']:.0f} ms)", fg="cyan")
    return f"attempt {attempt['number']}  {clock}  {status}{revision}  {latency}  {outcome}{reason}"
