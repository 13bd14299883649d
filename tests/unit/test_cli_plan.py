"""How a Trigger's plan is told."""

from typing import Any

import click
import pytest

from penstock.cli.plan import plan_lines

NOTHING = {"count": 0, "examples": []}
PLAN = {
    "trigger": "default/t",
    "broker": "default/default",
    "change": "configured",
    "looked_at": 1200,
    "since": "2026-01-02T03:04:05.678000Z",
    "before": 12,
    "after": 11,
    "gained": NOTHING,
    "lost": NOTHING,
    "cut": True,
    "problem": None,
}


def event(name: str, subject: str | None = None, why: dict[str, Any] | None = None) -> dict[str, Any]:
    time = "2026-01-02T03:04:06.000000Z"
    return {"position": 1, "id": name, "type": "made", "source": "/", "subject": subject, "time": time, "why": why}


WHY = {"matched": False, "clause": "filters[0].exact", "attribute": "type", "wanted": "is 'x'", "value": "made"}


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["of the last 1,200 events since 2026-01-02T03:04:05Z: 12 now, 11 then"]),
        (
            {"looked_at": 1, "cut": False, "before": 1, "after": 0},
            ["of all 1 event since 2026-01-02T03:04:05Z: 1 now, 0 then"],
        ),
        (
            {"gained": {"count": 7, "examples": [event("a", "cat", WHY), event("b")]}},
            [
                "of the last 1,200 events since 2026-01-02T03:04:05Z: 12 now, 11 then",
                "+ 7 gained",
                "    03:04:06.000  made  a  cat  (filters[0].exact: type is 'x'; the event has 'made')",
                "    03:04:06.000  made  b",
                "    ... and 5 more",
            ],
        ),
        (
            {"lost": {"count": 1, "examples": [event("a")]}},
            [
                "of the last 1,200 events since 2026-01-02T03:04:05Z: 12 now, 11 then",
                "- 1 lost",
                "    03:04:06.000  made  a",
            ],
        ),
        ({"looked_at": 0, "since": None}, ["No events of the Broker default/default to hold it against."]),
        ({"problem": "It is away."}, ["Which events is not known: It is away."]),
    ],
    ids=["counts", "one event", "gained", "lost", "no events", "a log that is away"],
)
def test_a_plan_tells_how_many_events_and_which(changes: dict[str, Any], lines: list[str]):
    assert [click.unstyle(line) for line in plan_lines({**PLAN, **changes})] == lines
