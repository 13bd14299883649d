"""Events of several logs in one list: nothing twice, nothing left out, each log in its order."""

from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.listing import Away, EventList, Library, merged
from broker.log.port import Entry, Position, Record
from broker.log.query import Delivery, Found, Slice
from broker.resources import CLASS_ANNOTATION, DEFAULT_CLASS, REDIS_CLASS
from broker.sieve import Sieve
from broker.table import TableBuilder
from core.errors import InvalidInput, Unavailable
from tests.support.broker import broker, trigger

OTHER = broker("other").with_meta(annotations={CLASS_ANNOTATION: REDIS_CLASS})
TABLE = TableBuilder().build([broker(), OTHER], [trigger("t"), trigger("u", broker="other")])


class Shelf:
    """A log's reader over a list."""

    def __init__(self, name: str, times: Sequence[float], away: Collection[str] = ()) -> None:
        self._name, self._away = name, away
        attributes = [{"id": f"{name}{n}", "type": "test.made", "source": "/"} for n in range(len(times))]
        self._found = [
            Found(n, f"default/{name}", at, 0, Record(n, Entry(f"default/{name}", attributes[n - 1], b"", b"", at, 1)))
            for n, at in enumerate(times, 1)
        ]

    def _check(self) -> None:
        if self._name in self._away:
            raise Unavailable("It is away.")

    def newest(self, limit: int, **_: object) -> Slice:
        self._check()
        return Slice(tuple(self._found[-limit:]), len(self._found))

    def after(self, seq: int, limit: int, **_: object) -> Slice:
        self._check()
        found = [each for each in self._found if each.seq > seq][:limit]
        return Slice(tuple(found), found[-1].seq if found else seq)

    def by_id(self, event_id: str) -> tuple[Found, ...]:
        self._check()
        return tuple(each for each in self._found if each.record and each.record.entry.attributes["id"] == event_id)

    def replies(self, seq: int) -> tuple[Found, ...]:
        return ()

    def deliveries(self, seqs: Sequence[int]) -> dict[int, tuple[Delivery, ...]]:
        return {}

    def positions(self) -> dict[str, Position]:
        self._check()
        return {}


def after(library: Library, cursor: str, limit: int) -> EventList:
    return library.after(cursor, limit, Sieve(), TABLE)


def newest(library: Library, limit: int) -> EventList:
    return library.newest(limit, Sieve(), TABLE)


def ids(found: EventList) -> list[str]:
    return [event.id for event in found.events]


class Two(Library):
    """A library of two shelves, of which those in `away` cannot be read."""

    def __init__(self, first: Sequence[float], second: Sequence[float]) -> None:
        self.away: set[str] = set()
        super().__init__(
            {DEFAULT_CLASS: Shelf("default", first, self.away), REDIS_CLASS: Shelf("other", second, self.away)}
        )


def two(first: Sequence[float], second: Sequence[float]) -> Two:
    return Two(first, second)


TIMES = st.lists(st.integers(0, 9).map(float), max_size=8)


@given(first=TIMES, second=TIMES, limit=st.integers(1, 5))
def test_asking_on_tells_every_event_once_and_each_log_in_its_order(
    first: list[float], second: list[float], limit: int
):
    library, cursor, told = two(first, second), "0", []
    while page := after(library, cursor, limit):
        assert len(page.events) <= limit
        told += ids(page)
        cursor = page.next
        if not page.events:
            break
    assert [each for each in told if each.startswith("default")] == [f"default{n}" for n in range(len(first))]
    assert [each for each in told if each.startswith("other")] == [f"other{n}" for n in range(len(second))]


@given(first=TIMES, second=TIMES, limit=st.integers(1, 5), at=st.integers(0, 4))
def test_asking_on_after_any_event_of_a_page_tells_what_comes_after_it(
    first: list[float], second: list[float], limit: int, at: int
):
    library = two(first, second)
    for page in (newest(library, limit), after(library, "0", limit)):
        if at < len(page.events):
            cursor = page.events[at].next
            assert cursor is not None
            rest = ids(page)[at + 1 :]
            assert ids(after(library, cursor, 100))[: len(rest)] == rest


def test_the_newest_of_all_logs_come_by_their_time():
    found = newest(two([1.0, 2.0, 5.0], [3.0, 4.0]), 3)
    assert ids(found) == ["other0", "other1", "default2"]
    assert found.next == "Penstock:3,Redis:2"
    assert [event.next for event in found.events] == ["Penstock:2,Redis:1", "Penstock:2,Redis:2", "Penstock:3,Redis:2"]


def test_a_stepped_clock_does_not_change_a_logs_order():
    shelf = Shelf("default", [5.0, 1.0])
    assert [each.seq for _, each in merged({"a": shelf.newest(2).events})] == [1, 2]


def test_a_cursor_of_one_log_is_its_position_and_a_log_that_stands_twice_is_read_once():
    shelf = Shelf("default", [1.0, 2.0])
    library = Library({DEFAULT_CLASS: shelf, REDIS_CLASS: shelf})
    found = after(library, "0", 10)
    assert ids(found) == ["default0", "default1"]
    assert found.next == "2"


def test_a_cursor_made_before_a_log_was_there_begins_it_from_its_start_and_one_that_is_gone_is_passed_over():
    library = two([1.0], [2.0])
    assert ids(after(library, "Penstock:1", 10)) == ["other0"]
    assert ids(after(library, "Penstock:1,Redis:0,Kafka:7", 10)) == ["other0"]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "Penstock:", "Penstock:x", "Penstock:1,"])
def test_what_is_no_cursor_is_refused(cursor: str):
    with pytest.raises(InvalidInput, match="is no position"):
        after(two([], []), cursor, 10)


def test_an_event_is_explained_by_its_own_logs_triggers_alone():
    library = two([1.0], [1.0])
    (told,), away = library.explain("other0", TABLE, {})
    assert [view.trigger for view in told.triggers] == ["default/u"]
    assert (library.explain("none", TABLE, {}), away) == (((), ()), ())


# ---- a log that is away


GONE = (Away(REDIS_CLASS, "It is away."),)


def test_what_is_asked_while_a_log_is_away_is_answered_from_the_others_and_says_which():
    library = two([1.0], [2.0])
    library.away.add("other")
    for found in (newest(library, 10), after(library, "0", 10)):
        assert (ids(found), found.away) == (["default0"], GONE)
    (told,), away = library.explain("default0", TABLE, {})
    assert (told.event.id, away) == ("default0", GONE)
    with pytest.raises(Unavailable, match=r"No log that can be read has .*'other0'\. The log Redis: It is away\."):
        library.explain("other0", TABLE, {})


def test_a_follower_misses_nothing_of_a_log_that_was_away_for_a_while():
    library = two([1.0, 3.0], [2.0, 4.0])
    first = after(library, "0", 2)
    assert (ids(first), first.next) == (["default0", "other0"], "Penstock:1,Redis:1")
    library.away.add("other")
    second = after(library, first.next, 2)
    assert (ids(second), second.next) == (["default1"], "Penstock:2,Redis:1")
    library.away.clear()
    third = after(library, second.next, 2)
    assert (ids(third), third.away) == (["other1"], ())


def test_a_log_that_was_away_at_the_beginning_is_told_from_its_newest_events_on():
    library = two([1.0], [2.0, 3.0, 4.0])
    library.away.add("other")
    first = newest(library, 2)
    assert (first.next, first.events[0].next) == ("Penstock:1,Redis:?", "Penstock:1,Redis:?")
    assert after(library, first.next, 2).next == "Penstock:1,Redis:?"
    library.away.clear()
    back = after(library, first.next, 2)
    assert (ids(back), back.next) == (["other1", "other2"], "Penstock:1,Redis:3")


def test_where_no_log_can_be_read_there_is_no_answer_and_each_is_named():
    library = two([1.0], [2.0])
    library.away.update(("default", "other"))
    with pytest.raises(Unavailable, match=r"The log Penstock: It is away\. The log Redis: It is away\."):
        newest(library, 10)
