"""Which stored events a question is answered with, over a real log."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from broker import sieve as sieving
from broker.explain import EventView
from broker.ledger import Attempt, OutcomeName
from broker.listing import Library
from broker.log.query import Found, LogReader
from broker.log.sqlite import SqliteLog
from broker.resources import DEFAULT_CLASS
from broker.sieve import Question, Sieve, read_filters, read_states
from broker.table import Table, TableBuilder
from core.errors import InvalidInput
from tests.conformance.event_log import BROKER, OTHER, append, entry
from tests.support.broker import broker, trigger

TRIGGERS = [trigger("one"), trigger("two", filter={"attributes": {"type": "test.made"}}), trigger("new")]
#: How events a to g stand: for "one", then for "two".
STANDS: dict[str, tuple[OutcomeName | None, OutcomeName | None]] = {
    "a": ("delivered", "delivered"),
    "b": ("retrying", "delivered"),
    "c": ("dropped", "delivered"),
    "d": ("delivered", "dead-lettered"),
    "e": (None, "delivered"),
    "f": ("delivered", None),
    "g": ("corrupt", "retrying"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Events a to g, which stand as above; arrived at 1000 s and each a second later; g of another Broker."""
    path = tmp_path_factory.mktemp("sieve") / "log.db"
    asyncio.run(_fill(path))
    return Library({DEFAULT_CLASS: LogReader(path)})


async def _fill(path: Path) -> None:
    log = SqliteLog(path)
    await log.open()
    for number, name in enumerate(STANDS):
        made = entry(name, OTHER if name == "g" else BROKER, subject=f"{name}.png", data=bytes(1000))
        await append(log, msgspec.structs.replace(made, at=1000.0 + number))
    held = {uid: log.subscribe(f"uid-{uid}", BROKER, f"default/{uid}", 0) for uid in ("one", "two")}
    log.subscribe("uid-new", BROKER, "default/new", 7)
    for seq, outcomes in enumerate(STANDS.values(), 1):
        for subscription, outcome in zip(held.values(), outcomes, strict=True):
            subscription.take(seq)
            if outcome is not None:
                log.note(Attempt(seq, subscription.uid, 1001.0, 1, 500, 0.1, outcome, "so"))
                if outcome != "retrying":
                    subscription.ack(seq)
    await log.close()


def table() -> Table:
    return TableBuilder().build([broker(), broker("other")], TRIGGERS)


def ids(events: Sequence[EventView]) -> str:
    return "".join(event.id for event in events)


CASES = [
    pytest.param(Question(), "abcdefg", id="everything"),
    pytest.param(Question(broker="other"), "g", id="a Broker"),
    pytest.param(Question(namespace="elsewhere"), "", id="a namespace"),
    pytest.param(Question(id="c"), "c", id="an id"),
    pytest.param(Question(id="c", broker="other"), "", id="an id of another Broker"),
    pytest.param(Question(id="c", since=1004.0), "", id="an id that came before"),
    pytest.param(Question(since=1004.0), "efg", id="since"),
    pytest.param(Question(filter=read_filters('[{"prefix": {"subject": "d."}}]')), "d", id="a filter"),
    pytest.param(Question(filter=read_filters("[]", "test.other")), "", id="a type"),
    pytest.param(Question(filter=read_filters("[{\"cesql\": \"id IN ('a', 'b')\"}]", "test.made")), "ab", id="CESQL"),
    pytest.param(Question(states=read_states(["failed"])), "cdg", id="failed"),
    pytest.param(Question(states=read_states(["pending"])), "befg", id="pending"),
    pytest.param(Question(states=read_states(["dropped", "corrupt"])), "cg", id="states of the ledger"),
    pytest.param(Question(states=read_states(["failed"]), trigger="two"), "d", id="a Trigger's state"),
    pytest.param(Question(states=read_states(["failed"]), trigger="default/one"), "cg", id="its whole name"),
    pytest.param(Question(trigger="new"), "", id="a Trigger that nothing came to"),
    pytest.param(Question(states=read_states(["delivered"]), id="f", trigger="one"), "f", id="all together"),
]


@pytest.mark.parametrize(("question", "told"), CASES)
def test_the_newest_events_are_those_that_are_asked_for(library: Library, question: Question, told: str):
    found = library.newest(10, Sieve(question), table())
    assert (ids(found.events), found.cut) == (told, False)
    assert found.next == ("7" if question.namespace is None else "0")
    last = library.newest(2, Sieve(question), table())
    assert ids(last.events) == told[-2:]


@pytest.mark.parametrize(("question", "told"), CASES)
def test_asking_on_from_the_beginning_tells_the_same(library: Library, question: Question, told: str):
    cursor, seen = "0", ""
    for _ in range(7):
        found = library.after(cursor, 2, Sieve(question), table())
        seen, cursor = seen + ids(found.events), found.next
    assert (seen, cursor) == (told, "7" if question.namespace is None else "0")


def test_who_waits_is_also_told_what_can_still_come_to_the_state(library: Library):
    question = Question(states=read_states(["failed"]), trigger="one", waiting=True)
    found = library.after("0", 10, Sieve(question), table())
    assert {event.id: event.matches for event in found.events} == {"b": False, "c": True, "e": False, "f": False} | {
        "g": True
    }


def test_that_not_all_events_were_looked_at_is_told(library: Library, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sieving, "MAX_SCANNED", 7)
    for question, cut in [
        (Question(), False),
        (Question(since=1001.0), False),
        (Question(filter=read_filters("[]", "test.other")), True),
        (Question(states=read_states(["failed"])), True),
    ]:
        found = library.newest(10, Sieve(question), table())
        assert found.cut is cut


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ("no", "truncated"),
        ("{}", "Expected `array`"),
        ('[{"like": {}}]', "like"),
        ('[{"cesql": "type ="}]', "cesql"),
        ('[{"exact": {"Type": "a"}}]', "Type"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_with_its_reason(filters: str, says: str):
    with pytest.raises(InvalidInput, match="The filter cannot be read: ") as refused:
        read_filters(filters)
    assert says in str(refused.value)


def test_a_state_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(InvalidInput, match=r"state must be one of pending, delivered, failed, .* \(got 'lost'\)"):
        read_states(["failed", "lost"])


def test_what_is_older_than_asked_for_is_not_looked_at(library: Library, monkeypatch: pytest.MonkeyPatch):
    looked_at: list[Found] = []

    def wants(self: Sieve, found: Found, before: Callable[[Sieve, Found], bool] = Sieve._wants) -> bool:
        looked_at.append(found)
        return before(self, found)

    monkeypatch.setattr(Sieve, "_wants", wants)
    found = library.newest(10, Sieve(Question(since=1005.0)), table())
    assert (ids(found.events), [each.seq for each in looked_at]) == ("fg", [7, 6, 5])


def test_who_waits_begins_before_the_first_event_that_can_still_come_to_it(library: Library):
    question = Question(states=read_states(["failed"]), trigger="one", waiting=True)
    first = library.newest(3, Sieve(question), table())
    assert ([(event.id, event.matches) for event in first.events], first.start) == (
        [("e", False), ("f", False), ("g", True)],
        "4",
    )
    assert library.after(first.start, 10, Sieve(question), table()).events == first.events
