"""How far a partition is done, against a model: the offset to commit has nothing undone before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.kafka.progress import Progress


def test_nothing_is_saved_before_something_is_done() -> None:
    progress = Progress()
    assert progress.unsaved is None
    progress.start(5)
    assert progress.unsaved is None


def test_a_record_done_out_of_order_waits_for_those_before_it() -> None:
    progress = Progress()
    for offset in (5, 6, 9):
        progress.start(offset)
    progress.finish(6)
    progress.finish(9)
    assert progress.unsaved is None
    assert progress.ahead == 3
    progress.finish(5)
    assert progress.unsaved == 10
    assert progress.ahead == 0


def test_what_is_saved_is_not_saved_again() -> None:
    progress = Progress()
    progress.start(5)
    progress.finish(5)
    progress.saved(6)
    assert progress.unsaved is None


@pytest.mark.parametrize("offset", [4, 5])
def test_records_start_in_the_order_of_their_offsets(offset: int) -> None:
    progress = Progress()
    progress.start(5)
    with pytest.raises(ValueError, match="come after"):
        progress.start(offset)
    progress.finish(5)
    with pytest.raises(ValueError, match="come after"):
        progress.start(5)


def test_only_what_was_started_is_finished_and_once() -> None:
    progress = Progress()
    progress.start(5)
    progress.start(6)
    progress.finish(6)
    for offset in (6, 7):
        with pytest.raises(ValueError, match="under way"):
            progress.finish(offset)


@given(st.lists(st.integers(0, 60), unique=True, min_size=1).map(sorted), st.data())
def test_the_offset_to_commit_is_after_the_last_record_before_which_all_are_done(
    offsets: list[int], data: st.DataObject
) -> None:
    progress, done, started = Progress(), set(), 0
    while len(done) < len(offsets):
        under_way = [offset for offset in offsets[:started] if offset not in done]
        if started < len(offsets) and (not under_way or data.draw(st.booleans())):
            progress.start(offsets[started])
            started += 1
        else:
            offset = data.draw(st.sampled_from(under_way))
            progress.finish(offset)
            done.add(offset)
        low = 0
        while low < started and offsets[low] in done:
            low += 1
        assert progress.unsaved == (offsets[low - 1] + 1 if low else None)
        assert progress.ahead == started - low
