"""What a changed Trigger would gain or lose of the events that came, over a real log."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import planning
from broker.log.direction import Direction
from broker.log.query import LogReader
from broker.log.sqlite import SqliteLog
from broker.planning import MAX_LOOK, MAX_PLANNED, Ask, Change, Plan, Planner
from broker.resources import DEFAULT_CLASS, TriggerShape, compile_filter
from broker.table import TableBuilder
from core.errors import InvalidInput, Unavailable
from core.resources import Resource
from tests.conformance.event_log import OTHER, append, entry
from tests.support.broker import broker, trigger

SUBJECTS = ("a.png", "b.png", "c.jpg", "d.gif", "e.png", "f.jpg")
PNG = [{"suffix": {"subject": ".png"}}]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    """Six pictures, arrived at 1000 s and each a second later; one for a Trigger alone, and one of another Broker."""
    path = tmp_path_factory.mktemp("plan") / "log.db"
    asyncio.run(_fill(path))
    return Planner({DEFAULT_CLASS: LogReader(path)})


async def _fill(path: Path) -> None:
    log = SqliteLog(path)
    await log.open()
    for number, subject in enumerate(SUBJECTS):
        await append(log, msgspec.structs.replace(entry(subject[0], subject=subject), at=1000.0 + number))
    again = entry("again", subject="a.png")
    await append(log, msgspec.structs.replace(again, at=1006.0, only=Direction("uid-t", None)))
    await append(log, msgspec.structs.replace(entry("other", OTHER, subject="a.png"), at=1007.0))
    await log.close()


def plan(planner: Planner, *changes: Change, held: tuple[Resource, ...] = (), **asked: Any) -> tuple[Plan, ...]:
    table = TableBuilder().build([broker(), broker("other")], held or (trigger("t", filters=PNG),))
    return planner.plan(Ask(triggers=changes, **asked), table)


def change(name: str = "t", **spec: Any) -> Change:
    return Change(namespace="default", name=name, spec={"broker": "default", **spec})


def told(found: Plan) -> tuple[str, int, int, str, str]:
    gained, lost = ("".join(each.id for each in of.examples) for of in (found.gained, found.lost))
    return found.change, found.before, found.after, gained, lost


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (change(filters=PNG), ("unchanged", 3, 3, "", "")),
        (change(filters=[{"suffix": {"subject": ".jpg"}}]), ("configured", 3, 2, "fc", "eba")),
        (change(filters=[{"cesql": "subject LIKE '%.png' AND id <> 'a'"}]), ("configured", 3, 2, "", "a")),
        (change(), ("configured", 3, 6, "fdc", "")),
        (change("new", filters=PNG), ("created", 0, 3, "eba", "")),
        (change("new", broker="other"), ("created", 0, 1, ("other"), "")),
        (change("new", broker="none"), ("created", 0, 0, "", "")),
        (Change(namespace="default", name="t"), ("deleted", 3, 0, "", "eba")),
    ],
    ids=["same", "other", "CESQL", "wider", "new", "another Broker", "no Broker", "deleted"],
)
def test_the_events_that_came_are_held_against_both_filters(
    planner: Planner, changed: Change, expected: tuple[str, int, int, str, str]
):
    (found,) = plan(planner, changed)
    assert told(found) == expected


def test_why_an_event_is_kept_out_is_told_of_the_filter_that_does(planner: Planner):
    (found,) = plan(planner, change(filters=[{"exact": {"subject": "c.jpg"}}]))
    (gained,), lost = found.gained.examples, found.lost.examples[0]
    assert gained.why is not None
    assert (gained.why.clause, gained.why.wanted, gained.why.value) == (
        "filters[0].suffix",
        "ends with '.png'",
        "c.jpg",
    )
    assert lost.why is not None
    assert (lost.why.clause, lost.why.wanted, lost.why.value) == ("filters[0].exact", "is 'c.jpg'", "e.png")


def test_only_so_many_events_are_looked_at_and_none_from_before(planner: Planner):
    (last,) = plan(planner, change(), limit=3)
    assert (last.looked_at, last.cut, last.since) == (3, True, "1970-01-01T00:16:44.000000Z")
    (recent,) = plan(planner, change(), since=1004.0)
    assert (recent.looked_at, recent.cut, recent.after) == (3, False, 2)
    (everything,) = plan(planner, change())
    assert (everything.looked_at, everything.cut) == (7, False)


def test_of_many_the_newest_are_shown_and_all_are_counted(planner: Planner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "EXAMPLES", 2)
    (found,) = plan(planner, Change(namespace="default", name="t"))
    assert (found.lost.count, told(found)[-1]) == (3, "eb")


def test_a_log_that_is_away_makes_its_triggers_unknown_and_no_others(tmp_path: Path):
    class Away(LogReader):
        def newest(self, *_: Any, **__: Any) -> Any:
            raise Unavailable("It is away.")

    away = Planner({DEFAULT_CLASS: Away(tmp_path / "log.db")})
    (found,) = plan(away, change())
    assert (found.problem, found.looked_at) == ("It is away.", 0)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"limit": 0}, "limit must be from 1"),
        ({"limit": MAX_LOOK + 1}, "limit must be from 1"),
        ({"triggers": (change(),) * (MAX_PLANNED + 1)}, "at most 200 Triggers"),
        ({"triggers": (change(filters=[{"cesql": "type ="}]),)}, "default/t cannot be read: spec"),
        ({"triggers": (change(filters=[{"like": {}}]),)}, "default/t cannot be read: .*like"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_reason(tmp_path: Path, asked: dict[str, Any], says: str):
    ask = msgspec.structs.replace(Ask(triggers=(change(),)), **asked)
    with pytest.raises(InvalidInput, match=says):
        Planner({DEFAULT_CLASS: LogReader(tmp_path / "none.db")}).plan(ask, TableBuilder().build([broker()], []))


FILTERS = st.lists(
    st.one_of(
        st.sampled_from(SUBJECTS).map(lambda subject: {"exact": {"subject": subject}}),
        st.sampled_from((".png", ".jpg")).map(lambda end: {"suffix": {"subject": end}}),
        st.sampled_from("abc").map(lambda start: {"not": {"prefix": {"subject": start}}}),
    ),
    max_size=2,
)


@given(now=FILTERS, then=FILTERS)
@settings(max_examples=60, deadline=None)
def test_a_plan_says_what_both_filters_say_of_each_event(planner: Planner, now: Any, then: Any):
    """The oracle: each filter asked of each event by itself."""
    before, after = (
        {s for s in SUBJECTS if compile_filter(_shape(each)).matches({"subject": s})} for each in (now, then)
    )
    (found,) = plan(planner, change(filters=then), held=(trigger("t", filters=now),))
    assert (found.before, found.after) == (len(before), len(after))
    assert (found.gained.count, found.lost.count) == (len(after - before), len(before - after))
    assert {each.subject for each in found.lost.examples} <= before - after


def _shape(filters: Any) -> TriggerShape:
    return msgspec.convert({"filters": filters}, TriggerShape)
